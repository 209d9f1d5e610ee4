"""Which learning rate? Seven rates a factor of two apart, for Adam and SGD, three seeds each.

charrnn sweep --config=experiments/learning_rate.py

Measured, validation carried, mean of three seeds: Adam is best at 0.016 with 1.701 nats/char (one
of three seeds fails at 0.032), SGD at 8 with 1.771.
"""

from charrnn_jax.config import default_config


def get_config():
    """Returns the config that all work units share."""
    config = default_config()
    config.data.batching = "lanes"
    config.data.batch_size = 16
    config.data.sequence_length = 64
    config.model.embedding_size = 64
    config.model.hidden_size = 128
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 1.0
    config.train.num_steps = 1000
    config.train.evaluate_every_steps = 250
    config.evaluation.protocol = "carried"
    return config


def get_hyper(hyper):
    """Returns the work units: rates around the usual ones of each optimizer."""
    rates = hyper.chainit(
        [
            hyper.product(
                [
                    hyper.fixed("optimizer.name", "adam"),
                    hyper.sweep("optimizer.learning_rate", [1e-3 * 2**k for k in range(7)]),
                ]
            ),
            hyper.product(
                [
                    hyper.fixed("optimizer.name", "sgd"),
                    hyper.sweep("optimizer.learning_rate", [0.25 * 2**k for k in range(7)]),
                ]
            ),
        ]
    )
    return hyper.product([rates, hyper.sweep("seed", range(3))])
