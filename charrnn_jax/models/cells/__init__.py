"""Recurrent cells, a file each: equations, Flax module, and faster forms where there are any."""

from charrnn_jax.models.cells.cell import Cell as Cell
from charrnn_jax.models.cells.cell import CellWeights as CellWeights
from charrnn_jax.models.cells.cell import Fused as Fused
from charrnn_jax.registry import CELLS as CELLS
