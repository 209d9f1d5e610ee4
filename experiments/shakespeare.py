"""The TensorFlow tutorial's model and procedure on Tiny Shakespeare, in this framework.

  python -m charrnn_jax.main --config=experiments/shakespeare.py

GRU with 1024 units, embedding 256, Adam 1e-3, shuffled chunks of 100, batch 64, 20 epochs.
First 90% of the text for training, last 10% for validation. With model.implementation="scan" on
two cores of an Intel Xeon with AVX-512 an epoch of :tutorial takes 2 min 7 s, the whole about 42
minutes; its mean train loss is 2.4379 nats/char (3.517 bits/char) in epoch 1, 1.7770 in epoch 2,
0.6836 in epoch 20. Neither the default, the faster "fused", nor the validation loss of the 90/10
split and the other arguments were measured. Arguments:

  :tutorial    trains on the whole text, exactly as the tutorial does; no validation
  :lstm        an LSTM instead of the GRU
  :two_layers  two GRU layers

Without a network and without the corpus in the cache it trains on the library source of the running
Python instead, and says so; --config.data.offline_corpus= (empty) makes that an error.
"""

from charrnn_jax.config import UserError, default_config


def get_config(arg: str = ""):
    """Returns the config; see the module for the arguments."""
    config = default_config()
    config.data.offline_corpus = "python-stdlib"
    if arg == "tutorial":
        config.data.validation_fraction = 0.0
    elif arg == "lstm":
        config.model.cell = "lstm"
    elif arg == "two_layers":
        config.model.num_layers = 2
    elif arg:
        raise UserError(f"shakespeare.py knows :tutorial, :lstm and :two_layers, not :{arg}")
    return config
