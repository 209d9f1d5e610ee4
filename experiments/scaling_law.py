"""How the loss falls with parameters and characters read: a grid of runs, and a fitted law.

charrnn sweep --config=experiments/scaling_law.py

Measured, validation carried: from 2.80 nats/char (9,250 parameters, 128,000 characters read) to
1.664 (267,970 and 1,024,000).
"""

from charrnn_jax.config import default_config


def get_config():
    """Returns the config that all work units share."""
    config = default_config()
    config.data.batching = "lanes"
    config.data.batch_size = 16
    config.data.sequence_length = 64
    config.model.embedding_size = 64
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 1.0
    config.optimizer.weight_decay = 0.01
    config.optimizer.beta2 = 0.99
    config.train.evaluate_every_steps = 10_000  # only at the end, when the schedule is complete
    config.train.sample_every_steps = 10_000
    config.train.checkpoint_every_steps = 250
    config.evaluation.protocol = "carried"
    return config


def get_hyper(hyper):
    """Returns the work units: 5 sizes (9,000 to 268,000 parameters), 4 lengths of training, each
    with its own schedule, and two seeds."""
    return hyper.product(
        [
            hyper.sweep("model.hidden_size", [16, 32, 64, 128, 256]),
            hyper.sweep("train.num_steps", [125, 250, 500, 1000]),
            hyper.sweep("seed", range(2)),
        ]
    )
