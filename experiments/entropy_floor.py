"""Does training reach the entropy rate of a text whose entropy rate is known?

  charrnn --config=experiments/entropy_floor.py:repeat:8
  charrnn sweep --config=experiments/entropy_floor.py

The argument is a source, as in `charrnn corpora`.
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


def get_config(arg: str = "even"):
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
    """Returns the work units: every source."""
    return hyper.sweep("data.corpus", [f"source:{name}" for name in SOURCES])
