"""One cell over time, in two ways with one signature and one parameter tree.

  scan   `nn.scan` over a Flax cell: the textbook loop, and the reference
  fused  the same by hand, faster: see `fused`
  auto   fused

The parameters lie under "cell", in the cell's own layout.
"""

from typing import Any

import jax
from flax import linen as nn

from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.fused import run_fused

IMPLEMENTATIONS = ("auto", "scan", "fused")


class Recurrence(nn.Module):
    """Runs a cell over the time axis: for t in range(T): carry, y[t] = cell(carry, x[t]).

    Attributes:
      cell: name in `CELLS`.
      hidden_size: H.
      implementation: one of `IMPLEMENTATIONS`.
      dtype: of the operands of products, "float32" or "bfloat16"; the scan knows only float32.
    """

    cell: str
    hidden_size: int
    implementation: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, carry: Any, inputs: jax.Array, *, tokens: jax.Array | None = None
    ) -> tuple[Any, jax.Array]:
        """Runs over a piece of text.

        Args:
          carry: of one layer.
          inputs: [B, T, E]; with `tokens` the table [V, E] of their embeddings.
          tokens: [B, T] ids.

        Returns:
          (carry, outputs [B, T, H]).

        Raises:
          ValueError: the scan cannot compute in `dtype`.
        """
        if self.implementation == "scan" and self.dtype != "float32":
            raise ValueError(f"implementation 'scan' computes in float32, not in {self.dtype}")
        if self.implementation == "scan" or self.is_initializing():
            scanned_cell = nn.scan(
                CELLS[self.cell],
                variable_broadcast="params",
                split_rngs={"params": False},
                in_axes=1,
                out_axes=1,
            )
            embedded = inputs if tokens is None else inputs[tokens]
            return scanned_cell(features=self.hidden_size, name="cell")(carry, embedded)
        return run_fused(
            self.variables["params"]["cell"],
            carry,
            inputs,
            cell=self.cell,
            dtype=self.dtype,
            tokens=tokens,
        )

    def initialize_carry(self, batch_size: int) -> Any:
        """Returns the zero carry of this layer: [B, H], or a pair of them for the LSTM."""
        cell = CELLS[self.cell](features=self.hidden_size, parent=None)
        return cell.initialize_carry(jax.random.key(0), (batch_size, self.hidden_size))
