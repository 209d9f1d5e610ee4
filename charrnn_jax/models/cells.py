"""Recurrent cells by name: `(carry, x) -> (carry, y)` for one time step.

All are flax.linen's own. With x [B, E], h and c [B, H], s the logistic function:

  gru   r = s(W_ir x + b_ir + W_hr h)              (the reset gate is applied AFTER the recurrent
        z = s(W_iz x + b_iz + W_hz h)               product, as in cuDNN, PyTorch and Keras's
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))               `reset_after=True`)
        h' = (1 - z) * n + z * h                                                carry: h'
  lstm  i, f, o = s(W_i* x + W_h* h + b_h*);  g = tanh(W_ig x + W_hg h + b_hg)
        c' = f * c + i * g;  h' = o * tanh(c')                                  carry: (c', h')
  rnn   h' = tanh(W_i x + b_i + W_h h)                                          carry: h'

Sources: GRU, Cho et al. 2014 (arXiv:1406.1078) in the form of Chung et al. 2014 (1412.3555); LSTM,
Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; vanilla RNN, Elman 1990.
"""

from typing import Any

from flax import linen as nn

CELLS: dict[str, Any] = {
    "gru": nn.GRUCell,
    "lstm": nn.OptimizedLSTMCell,  # nn.LSTMCell's parameters, with the four gates in one product
    "rnn": nn.SimpleCell,
}
