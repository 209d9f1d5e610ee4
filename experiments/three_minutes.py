"""The best model of Tiny Shakespeare 180 seconds after the command is typed, on two CPU cores.

charrnn --config=experiments/three_minutes.py

GRU with 512 units (1,027,394 parameters) in bfloat16, short sequences and so many steps, a high
learning rate, and weight decay as the main regulariser. `train.max_seconds` ends the training, and
the cosine with it, so the number of steps depends on the machine. Measured on two cores of an AMD
EPYC (Zen 5, which multiplies bfloat16 in hardware): 178.3 s for the whole command, 9,556 to 9,904
steps; validation cold-256 1.4308, 1.4304 and 1.4266 nats/char with seeds 0, 1 and 2. Rates,
dropout, weight decay and length were chosen by such losses, among 18 runs with seed 0.
"""

from charrnn_jax.config import default_config


def get_config():
    """Returns the config."""
    config = default_config()
    config.data.offline_corpus = "python-stdlib"
    config.data.batching = "lanes"
    config.data.batch_size = 32
    config.data.sequence_length = 32
    config.model.embedding_size = 128
    config.model.hidden_size = 512
    config.model.dtype = "bfloat16"
    config.model.dropout = 0.2
    config.model.dropout_noise = "locked"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.clip_norm = 1.0
    config.optimizer.weight_decay = 0.2
    config.optimizer.beta2 = 0.99
    config.train.num_steps = 100_000
    config.train.max_seconds = 177.0
    config.train.evaluate_every_steps = 5000
    config.evaluation.protocol = "cold"
    return config
