"""Which values suit a small GRU on Tiny Shakespeare? 24 trials of at most 1,000 steps.

  charrnn search --config=experiments/search.py --num_trials=24

Trials are compared after 100, 300 and 900 steps, and only the best third continue. The first
evaluation must be late enough to say something about the last one. A trial is limited in steps, not
seconds, which favours larger layers.
"""

from charrnn_jax.config import default_config


def get_config():
    """Returns the config that all trials share."""
    config = default_config()
    config.data.batching = "lanes"
    config.data.batch_size = 16
    config.data.sequence_length = 64
    config.model.embedding_size = 64
    config.optimizer.name = "adamw"
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 1.0
    config.optimizer.beta2 = 0.99
    config.train.num_steps = 1000
    config.train.evaluate_every_steps = 100
    config.evaluation.protocol = "carried"
    return config


def get_search(space):
    """Returns the space of the search, field -> values."""
    return {
        "optimizer.learning_rate": space.loguniform(3e-4, 1e-1),
        "optimizer.weight_decay": space.loguniform(1e-3, 1.0),
        "model.dropout": space.uniform(0.0, 0.5),
        "model.hidden_size": space.integers(64, 256, log=True),
    }
