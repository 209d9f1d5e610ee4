"""One cell over time, in three forms with one signature and one parameter tree.

  scan      `nn.scan` over the Flax module: the textbook loop, and the reference; every cell has it
  fused     a faster loop with a backward pass written by hand; see `fused`
  parallel  a whole sequence at once
  auto      the best form that the cell has: parallel, else fused, else scan

The parameters are under "cell", in the layout of the cell's Flax module.
"""

from typing import Any

import jax
from flax import linen as nn

from charrnn_jax.errors import UserError
from charrnn_jax.models.cells import CELLS, Cell
from charrnn_jax.models.fused import run_fused, run_fused_on_tokens


def choose_form(cell: Cell, *, implementation: str, dtype: str) -> str:
    """Returns the form in which a cell is computed: "parallel", "fused" or "scan".

    Args:
      cell: the cell.
      implementation: the wanted form, or "auto" for the best.
      dtype: type of the operands of products, "float32" or "bfloat16".

    Raises:
      UserError: the cell does not have this form, or the form does not support the dtype.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype is {dtype!r}; it must be float32 or bfloat16")
    forms = [form for form in ("parallel", "fused") if getattr(cell, form)] + ["scan"]
    form = forms[0] if implementation == "auto" else implementation
    if form not in forms:
        raise UserError(
            f"the cell {cell.name!r} has no implementation {form!r}; it has {', '.join(forms)}"
        )
    if form == "scan" and dtype != "float32":
        raise UserError(
            f"the implementation 'scan' of the cell {cell.name!r} computes in float32, not in "
            f"{dtype}: set the dtype to float32"
            + (", or the implementation to auto" if len(forms) > 1 else "")
        )
    return form


class Recurrence(nn.Module):
    """Runs a cell over the time axis: for t in range(T): carry, y[t] = cell(carry, x[t]).

    Attributes:
      cell_name: name of the cell in `CELLS`.
      hidden_size: H, units of the layer.
      implementation: "auto", "scan", "fused" or "parallel".
      dtype: type of the operands of products, "float32" or "bfloat16".
    """

    cell_name: str
    hidden_size: int
    implementation: str = "auto"
    dtype: str = "float32"

    def setup(self) -> None:
        cell: Cell = CELLS[self.cell_name]
        self.form = choose_form(cell, implementation=self.implementation, dtype=self.dtype)
        scanned = nn.scan(
            cell.module,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        self.cell = scanned(features=self.hidden_size)

    def __call__(self, carry: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
        """Runs over a piece of text.

        Args:
          carry: carry of this layer, for B sequences.
          inputs: [B, T, E] inputs of this layer.

        Returns:
          (carry after the last step, outputs [B, T, H]).
        """
        if self.form == "scan" or self.is_initializing():
            result: tuple[Any, jax.Array] = self.cell(carry, inputs)
            return result
        cell, params = CELLS[self.cell_name], self.variables["params"]["cell"]
        if self.form == "parallel":
            return cell.parallel(params, carry, inputs, dtype=self.dtype)
        return run_fused(params, carry, inputs, fused=cell.fused, dtype=self.dtype)

    def on_tokens(
        self, carry: Any, tokens: jax.Array, *, table: jax.Array
    ) -> tuple[Any, jax.Array]:
        """Runs over the embeddings of tokens; equals a call with table[tokens].

        Args:
          carry: carry of this layer, for B sequences.
          tokens: [B, T] ids.
          table: [V, E] embeddings.

        Returns:
          (carry after the last token, outputs [B, T, H]).
        """
        if self.form != "fused" or self.is_initializing():
            return self(carry, table[tokens])
        params, fused = self.variables["params"]["cell"], CELLS[self.cell_name].fused
        return run_fused_on_tokens(
            params, carry, tokens, table=table, fused=fused, dtype=self.dtype
        )
