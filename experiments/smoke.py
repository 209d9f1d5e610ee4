"""Every part of a run at the smallest size, in seconds, for tests and CI. Learns nothing useful.

  python -m charrnn_jax.main --config=experiments/smoke.py

The argument :builtin trains on the built-in corpus, which needs neither network nor files.
"""

from charrnn_jax.config import UserError, default_config


def get_config(arg: str = ""):
    """Returns the config; the argument is described at the top of the file."""
    config = default_config()
    if arg == "builtin":
        config.data.corpus = "python-stdlib"
    elif arg:
        raise UserError(f"smoke.py knows :builtin, not :{arg}")
    config.data.max_chars = 20_000
    config.data.batch_size = 8
    config.data.sequence_length = 32
    config.model.embedding_size = 16
    config.model.hidden_size = 32
    config.optimizer.learning_rate = 1e-2
    config.train.num_epochs = 2
    config.train.log_every_steps = 10
    config.sample.num_chars = 80
    return config
