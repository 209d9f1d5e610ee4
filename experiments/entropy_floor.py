"""Does a model reach the entropy rate of a text whose entropy rate is known?

  charrnn --config=experiments/entropy_floor.py:repeat:8
  charrnn sweep --config=experiments/entropy_floor.py

The argument is a source, as `charrnn corpora` lists them; `even` if there is none. The sweep trains
every cell on each of them: 16,000 parameters, 1,500 steps, one rate, validation carried. `min_gru`
and `min_lstm` have three layers with residual connections, and `rg_lru` has two blocks.

All but the linear cells (`min_gru`, `min_lstm` and, less so, `rg_lru`) come close to most floors;
the table is in docs/evaluation.md. Measured on two cores that were busy with other work, 11 minutes
for the sweep. The GRU has these losses, and excesses over the floor, in nats/char: iid 1.6501,
+0.0002; markov:2 0.9227, +0.0006; golden-mean 0.4631, +0.0001; even 0.4615, +0.0001; noisy-period
0.5245, +0.0005; hidden-markov 0.9442, +0.0003; dyck:4 0.8699, +0.0019; repeat:8 0.3293, +0.0032. A
longer memory takes longer: repeat:16 with --config.model.hidden_size=128
--config.train.num_steps=5000 has the loss 0.3381, +0.0021, after 50 s.
"""

from charrnn_jax.config import default_config

SOURCES = (
    "iid",
    "markov:2",
    "golden-mean",
    "even",
    "noisy-period",
    "hidden-markov",
    "dyck:4",
    "repeat:8",
)

CELLS = {  # layers, hidden units
    "gru": (1, 64),
    "lstm": (1, 55),
    "rnn": (1, 114),
    "layer_norm_gru": (1, 63),
    "layer_norm_lstm": (1, 54),
    "mogrifier_lstm": (1, 47),
    "slstm": (1, 96),
    "min_gru": (3, 58),
    "min_lstm": (3, 47),
    "rg_lru": (2, 23),
}


def get_config(arg: str = ""):
    """Returns the config; the argument is described at the top of the file."""
    config = default_config()
    config.data.corpus = f"source:{arg or 'even'}"
    config.data.batching = "lanes"
    config.data.batch_size = 16
    config.data.sequence_length = 64
    config.model.embedding_size = 16
    config.model.hidden_size = 64
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 1.0
    config.optimizer.weight_decay = 0.01
    config.optimizer.beta2 = 0.99
    config.train.num_steps = 1500
    config.train.evaluate_every_steps = 500
    config.evaluation.protocol = "carried"
    config.sample.prompt = ""
    return config


def get_hyper(hyper):
    """Returns the work units: every cell on every source."""
    cells = [
        {
            "model.cell": cell,
            "model.num_layers": num_layers,
            "model.hidden_size": hidden_size,
            "model.residual": "add" if cell in ("min_gru", "min_lstm") else "none",
        }
        for cell, (num_layers, hidden_size) in CELLS.items()
    ]
    return hyper.product(
        [cells, hyper.sweep("data.corpus", [f"source:{name}" for name in SOURCES])]
    )
