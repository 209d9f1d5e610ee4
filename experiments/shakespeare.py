"""The model and the training procedure of the TensorFlow tutorial, on Tiny Shakespeare.

  python -m charrnn_jax.main --config=experiments/shakespeare.py

GRU with 1024 units, embedding 256, Adam 1e-3, shuffled chunks of 100, batch 64, 20 epochs.
The first 90% of the text is for training, the last 10% for validation. With
model.implementation="scan" on two cores of an Intel Xeon with AVX-512, an epoch of :tutorial takes
2 min 7 s and all 20 take about 42 minutes. The mean train loss is 2.4379 nats/char (3.517
bits/char) in epoch 1, 1.7770 in epoch 2 and 0.6836 in epoch 20. Not measured: the default
implementation, the faster "fused", the validation loss of the 90/10 split, and the other arguments.
Arguments:

  :tutorial    trains on the whole text, exactly as the tutorial does; no validation
  :lstm        an LSTM instead of the GRU
  :two_layers  two GRU layers

If the corpus is neither cached nor reachable, the model is trained on the library source of the
running Python instead, with a warning; --config.data.offline_corpus= (empty) makes that an error.
"""

from charrnn_jax.config import UserError, default_config


def get_config(arg: str = ""):
    """Returns the config; the arguments are listed at the top of the file."""
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
