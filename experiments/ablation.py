"""What is each method worth by itself? One base, one method at a time, five seeds each.

charrnn sweep --config=experiments/ablation.py

The base is a GRU-256 with AdamW and a cosine schedule, and every method is off. The report's
difference to the baseline is what a method is worth in 2,000 steps (four epochs), with a paired
interval and a p value that is corrected for the number of methods. A method has one setting here,
of its paper where that gives one, and the learning rate of the base: this asks what a method is
worth to someone who switches it on, not at its best. Other optimizers need other rates, and have
the best of two to four, found with seed 0. The base does better at twice its rate, which is a row
of its own. Two layers have as many parameters as the base; `experiments/cells.py` compares cells.

Measured on two cores (AMD EPYC, Zen 5), in about an hour, validation carried: the base has 1.5158
nats/char, Muon 1.4840, AdamW at 1e-2 1.5017, two layers and wsd 1.505; every regularisation loses,
since nothing overfits in four epochs. docs/results.md has the table.
"""

from charrnn_jax.config import default_config

METHODS: tuple[dict, ...] = (
    {},  # the base
    {"optimizer.learning_rate": 1e-2},
    {"model.dropout": 0.2},
    {"model.dropout": 0.2, "model.dropout_noise": "locked"},
    {"model.input_dropout": 0.1, "model.dropout_noise": "locked"},
    {"model.embedding_dropout": 0.05},
    {"model.weight_dropout": 0.2},
    {"model.zoneout": 0.1},
    {"train.activation_penalty": 2.0},
    {"train.temporal_penalty": 1.0},
    {"optimizer.weight_decay": 0.1},
    {"optimizer.weight_decay": 0.0},
    {"data.batching": "chunks"},
    {"data.offset": "random"},
    {"data.carry_reset_rate": 0.03},
    {"train.length_warmup_steps": 500},
    {"train.averaging": "ema", "train.ema_decay": 0.99},
    {"train.averaging": "tail", "train.tail_fraction": 0.1},
    {"optimizer.schedule": "linear"},
    {"optimizer.schedule": "wsd"},
    {"optimizer.schedule": "constant"},
    {"optimizer.schedule": "constant", "train.averaging": "ema", "train.ema_decay": 0.99},
    {"optimizer.schedule": "constant", "train.averaging": "tail", "train.tail_fraction": 0.3},
    {
        "optimizer.name": "schedule_free",
        "optimizer.schedule": "constant",
        "optimizer.learning_rate": 1e-2,
    },
    {"optimizer.name": "lion", "optimizer.learning_rate": 1e-3, "optimizer.weight_decay": 0.05},
    {"optimizer.name": "adan", "optimizer.learning_rate": 2e-2},
    {"optimizer.name": "muon", "optimizer.learning_rate": 1e-2},
    {"model.output_embedding": "tied"},
    {"model.embedding_rank": 16},
    {"model.num_layers": 2, "model.hidden_size": 156},
    {"model.num_layers": 2, "model.hidden_size": 156, "model.residual": "add"},
    {"model.num_layers": 2, "model.hidden_size": 156, "model.readout": "all"},
    {"model.dtype": "float32"},
)


def get_config():
    """Returns the config that all work units share."""
    config = default_config()
    config.data.batching = "lanes"
    config.data.batch_size = 32
    config.data.sequence_length = 64
    config.model.embedding_size = 64
    config.model.hidden_size = 256
    config.model.dtype = "bfloat16"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.clip_norm = 1.0
    config.optimizer.weight_decay = 0.01
    config.optimizer.beta2 = 0.99
    config.train.num_steps = 2000
    config.train.evaluate_every_steps = 500
    config.evaluation.protocol = "carried"
    return config


def get_hyper(hyper):
    """Returns the work units: the base and each method, five seeds each."""
    return hyper.product([METHODS, hyper.sweep("seed", range(5))])
