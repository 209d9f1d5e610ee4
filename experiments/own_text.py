"""A model of your own text, from a file, a folder, a glob or standard input.

  python -m charrnn_jax.main --config=experiments/own_text.py --config.data.path=FILE

The model and the training procedure are those of quick.py. The vocabulary is taken from the text,
and samples begin at the start of a line. Ten epochs take, at the speed of quick.py, about six
minutes for a million characters on two CPU cores. A short text (under about 20,000 characters) is
learned by heart. The best checkpoint is kept, so stop when the validation loss rises, or set
--config.model.dropout=0.3.
"""

from charrnn_jax.config import default_config


def get_config():
    """Returns the config."""
    config = default_config()
    config.data.corpus = ""
    config.data.batching = "lanes"
    config.data.batch_size = 16
    config.data.sequence_length = 64
    config.model.embedding_size = 128
    config.model.hidden_size = 384
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.clip_norm = 1.0
    config.optimizer.weight_decay = 0.01
    config.optimizer.beta2 = 0.99
    config.train.num_epochs = 10
    config.evaluation.protocol = "carried"
    config.sample.prompt = ""
    return config
