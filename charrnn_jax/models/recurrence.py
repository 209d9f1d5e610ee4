"""One cell over time.

The reference is `nn.scan`: the textbook loop, compiled once for any length. Its parameters lie
under "cell", in the cell's own layout.
"""

from typing import Any

import jax
from flax import linen as nn

from charrnn_jax.models.cells import CELLS


class Recurrence(nn.Module):
    """Scans a cell over the time axis: for t in range(T): carry, y[t] = cell(carry, x[t]).

    Attributes:
      cell: name in `CELLS`.
      hidden_size: H.
    """

    cell: str
    hidden_size: int

    @nn.compact
    def __call__(self, carry: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
        """Args: carry: of one layer; inputs: [B, T, E]. Returns: (carry, outputs [B, T, H])."""
        scanned_cell = nn.scan(
            CELLS[self.cell],
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        return scanned_cell(features=self.hidden_size, name="cell")(carry, inputs)

    def initialize_carry(self, batch_size: int) -> Any:
        """Returns the zero carry of this layer: [B, H], or a pair of them for the LSTM."""
        cell = CELLS[self.cell](features=self.hidden_size, parent=None)
        return cell.initialize_carry(jax.random.key(0), (batch_size, self.hidden_size))
