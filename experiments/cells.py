"""Which cell learns best: at equal parameters, and at equal time?

charrnn sweep --config=experiments/cells.py           # equal parameters, equal steps
charrnn sweep --config=experiments/cells.py:seconds   # equal parameters, 40 seconds each
charrnn sweep --config=experiments/cells.py:rates     # the search for the learning rates

All models have 165,000 parameters, and each cell has the best of seven learning rates, found by the
third command with one seed. The first two have five seeds. `min_gru` and `min_lstm` have three
layers with residual connections, since a single one cannot combine characters; a layer of `rg_lru`
is a whole block. A run has one CPU core, if the machine has as many cores as the sweep has workers.

Measured on two cores (AMD EPYC, Zen 5), validation carried: layer_norm_lstm is best by steps, with
1.5183 nats/char, and layer_norm_gru by time, with 1.5159; the GRU has 1.5584 and 1.5353. The first
two commands take 16 and 18 minutes.
"""

from charrnn_jax.config import UserError, default_config

CELLS = {  # layers, hidden units, learning rate
    "gru": (1, 192, 8e-3),
    "lstm": (1, 164, 32e-3),
    "rnn": (1, 341, 8e-3),
    "layer_norm_gru": (1, 191, 32e-3),
    "layer_norm_lstm": (1, 163, 16e-3),
    "mogrifier_lstm": (1, 135, 8e-3),
    "slstm": (1, 268, 16e-3),
    "min_gru": (3, 177, 64e-3),
    "min_lstm": (3, 143, 64e-3),
    "rg_lru": (2, 73, 16e-3),
}


def get_config(arg: str = ""):
    """Returns the config that all work units share; the argument is described above."""
    config = default_config()
    config.data.batching = "lanes"
    config.data.batch_size = 32
    config.data.sequence_length = 64
    config.model.embedding_size = 64
    config.optimizer.name = "adamw"
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 1.0
    config.optimizer.weight_decay = 0.01
    config.optimizer.beta2 = 0.99
    config.train.num_steps = 1500
    config.train.evaluate_every_steps = 500
    config.evaluation.protocol = "carried"
    if arg == "seconds":
        config.train.num_steps = 1_000_000
        config.train.max_seconds = 40.0
    elif arg not in ("", "rates"):
        raise UserError(f"cells.py knows :seconds and :rates, not :{arg}")
    return config


def get_hyper(hyper, arg: str = ""):
    """Returns the work units: every cell with five seeds, or with seven learning rates."""
    units = []
    for cell, (num_layers, hidden_size, learning_rate) in CELLS.items():
        residual = "add" if cell in ("min_gru", "min_lstm") else "none"
        model = {
            "model.cell": cell,
            "model.num_layers": num_layers,
            "model.hidden_size": hidden_size,
            "model.residual": residual,
        }
        if arg == "rates":
            varied = hyper.sweep("optimizer.learning_rate", [1e-3 * 2**k for k in range(1, 8)])
        else:
            rate = hyper.fixed("optimizer.learning_rate", learning_rate)
            varied = hyper.product([rate, hyper.sweep("seed", range(5))])
        units += hyper.product([[model], varied])
    return units
