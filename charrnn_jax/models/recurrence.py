"""One cell over time, in three forms with one signature and one parameter tree.

  scan      `nn.scan` over the Flax module: the textbook loop, and the reference; every cell has it
  fused     a faster loop, whose backward pass keeps products out of it; see `fused`
  parallel  all steps at once, for cells that are linear in the carry; see `parallel`
  auto      the best form that the cell has: parallel, else fused, else scan

The parameters are under "cell", in the layout of the cell's Flax module.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike

from charrnn_jax.errors import UserError
from charrnn_jax.models.cells import CELLS, Cell
from charrnn_jax.models.dropout import drops
from charrnn_jax.models.fused import run_fused, run_fused_on_tokens
from charrnn_jax.models.parallel import run_parallel, run_parallel_on_tokens
from charrnn_jax.models.zoneout import (
    Held,
    draw_held,
    expected_held,
    scan_with_zoneout,
    with_zoneout,
)


def choose_form(cell: Cell, *, implementation: str, dtype: str, zoneout: ArrayLike = 0.0) -> str:
    """Returns the form in which a cell is computed: "parallel", "fused" or "scan".

    Args:
      cell: the cell.
      implementation: the wanted form, or "auto" for the best.
      dtype: type of the operands of products, "float32" or "bfloat16".
      zoneout: rate of zoneout.

    Raises:
      UserError: the cell does not have this form, or the form does not support the dtype or
        zoneout.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype is {dtype!r}; it must be float32 or bfloat16")
    forms = [form for form in ("parallel", "fused") if getattr(cell, form)] + ["scan"]
    if drops(zoneout):
        if not (cell.zoneout and cell.output):
            raise UserError(f"the cell {cell.name!r} has no zoneout: set config.model.zoneout to 0")
        if implementation == "parallel":
            raise UserError(
                "the implementation 'parallel' has no zoneout, which goes step by step: set "
                "config.model.zoneout to 0, or the implementation to auto"
            )
        forms = [form for form in forms if form != "parallel"]
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
      zoneout: rate of zoneout, from 0 to below 1.
    """

    cell_name: str
    hidden_size: int
    implementation: str = "auto"
    dtype: str = "float32"
    zoneout: ArrayLike = 0.0

    def setup(self) -> None:
        cell: Cell = CELLS[self.cell_name]
        self.form = choose_form(
            cell, implementation=self.implementation, dtype=self.dtype, zoneout=self.zoneout
        )
        scanned = nn.scan(
            cell.module,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        self.cell = scanned(features=self.hidden_size)

    def __call__(
        self, carry: Any, inputs: jax.Array, *, deterministic: bool = True
    ) -> tuple[Any, jax.Array]:
        """Runs over a piece of text.

        Args:
          carry: carry of this layer, for B sequences.
          inputs: [B, T, E] inputs of this layer.
          deterministic: whether zoneout is its expectation; otherwise it needs an rng named
            "dropout".

        Returns:
          (carry after the last step, outputs [B, T, H]).
        """
        cell, held = CELLS[self.cell_name], self._held(carry, inputs.shape[1], deterministic)
        if self.is_initializing() or (self.form == "scan" and held is None):
            result: tuple[Any, jax.Array] = self.cell(carry, inputs)
            return result
        params = self.variables["params"]["cell"]
        if self.form == "scan":
            return scan_with_zoneout(
                params, carry, inputs, cell=cell, hidden_size=self.hidden_size, held=held
            )
        if self.form == "parallel":
            return run_parallel(
                params,
                carry,
                inputs,
                fused=cell.fused,
                parallel=cell.parallel,
                dtype=self.dtype,
            )
        fused = cell.fused if held is None else with_zoneout(cell)
        return run_fused(params, carry, inputs, fused=fused, dtype=self.dtype, held=held)

    def on_tokens(
        self, carry: Any, tokens: jax.Array, *, table: jax.Array, deterministic: bool = True
    ) -> tuple[Any, jax.Array]:
        """Runs over the embeddings of tokens; equals a call with table[tokens].

        Args:
          carry: carry of this layer, for B sequences.
          tokens: [B, T] ids.
          table: [V, E] embeddings.
          deterministic: as in a call.

        Returns:
          (carry after the last token, outputs [B, T, H]).
        """
        if self.form == "scan" or self.is_initializing():
            return self(carry, table[tokens], deterministic=deterministic)
        cell, params = CELLS[self.cell_name], self.variables["params"]["cell"]
        if self.form == "parallel":
            return run_parallel_on_tokens(
                params,
                carry,
                tokens,
                table=table,
                fused=cell.fused,
                parallel=cell.parallel,
                dtype=self.dtype,
            )
        held = self._held(carry, tokens.shape[1], deterministic)
        fused = cell.fused if held is None else with_zoneout(cell)
        return run_fused_on_tokens(
            params, carry, tokens, table=table, fused=fused, dtype=self.dtype, held=held
        )

    def _held(self, carry: Any, length: int, deterministic: bool) -> Held | None:
        """Returns which units keep their values in each of T steps; None: there is no zoneout."""
        if not drops(self.zoneout):
            return None
        if not deterministic:
            key = self.make_rng("dropout")
            return draw_held(key, carry, rate=self.zoneout, length=length)
        held = expected_held(carry, rate=self.zoneout)
        return jax.tree.map(lambda d: jnp.broadcast_to(d, (length, *d.shape)), held)
