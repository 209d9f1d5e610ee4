"""Recurrent cells, one per file: equations, Flax module, and faster forms if there are any."""

from charrnn_jax.models.cells.cell import (
    Cell,
    CellWeights,
    Fused,
    Gates,
    Operations,
    Parallel,
    Weights,
)
from charrnn_jax.models.cells.gru import GRU
from charrnn_jax.models.cells.layer_norm_gru import LAYER_NORM_GRU
from charrnn_jax.models.cells.layer_norm_lstm import LAYER_NORM_LSTM
from charrnn_jax.models.cells.lstm import LSTM
from charrnn_jax.models.cells.min_gru import MIN_GRU
from charrnn_jax.models.cells.min_lstm import MIN_LSTM
from charrnn_jax.models.cells.mogrifier_lstm import MOGRIFIER_LSTM
from charrnn_jax.models.cells.rg_lru import RG_LRU
from charrnn_jax.models.cells.rnn import RNN
from charrnn_jax.models.cells.slstm import SLSTM
from charrnn_jax.registry import CELLS

__all__ = ["CELLS", "Cell", "CellWeights", "Fused", "Gates", "Operations", "Parallel", "Weights"]

_OWN = (
    *(GRU, LSTM, RNN, LAYER_NORM_GRU, LAYER_NORM_LSTM, MOGRIFIER_LSTM, SLSTM),
    *(MIN_GRU, MIN_LSTM, RG_LRU),
)
for _cell in _OWN:
    CELLS.provide(_cell.name, _cell)
