"""What is recorded inside a model is what the model computes."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import numpy as np
import pytest
from helpers import EVERY_CELL, B, H, T, forward, make

from charrnn_jax.errors import UserError
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.inside import inside
from charrnn_jax.registry import register_cell


def gru(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    z = now["update gate"]
    return {"output": (1 - z) * now["candidate"] + z * before["output"]}


def lstm(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    c = now["forget gate"] * before["c"] + now["input gate"] * now["candidate"]
    return {"c": c, "output": now["output gate"] * np.tanh(c)}


def slstm(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    c = now["forget gate"] * before["c"] + now["input gate"] * now["candidate"]
    n = now["forget gate"] * before["n"] + now["input gate"]
    return {"c": c, "n": n, "output": now["output gate"] * c / n}


# From the carry before and the gates: the carry after, and the output.
EQUATIONS = {
    "gru": gru,
    "layer_norm_gru": gru,
    "lstm": lstm,
    "mogrifier_lstm": lstm,
    "slstm": slstm,
}


@pytest.mark.parametrize("cell", EVERY_CELL)
def test_outputs_carry_and_gates_are_those_of_the_model(cell: str) -> None:
    """In the second layer, too, and from a carry that is not zero."""
    model, params, carry, tokens = make(cell, num_layers=2)
    expected_carry, _ = forward(params, carry, tokens, model=model)
    new_carry, values = inside(params, carry, tokens, model=model, with_values=True)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, new_carry, expected_carry)
    assert set(values) >= {name for name in CELLS[cell].gate_names if name}
    assert {array.shape for array in values.values()} == {(B, T, 2, H)}
    if equation := EQUATIONS.get(cell):
        arrays = jax.device_get(values)
        steps = [{name: x[:, t] for name, x in arrays.items()} for t in range(T)]
        for before, now in pairwise(steps):
            for name, array in equation(before, now).items():
                np.testing.assert_allclose(now[name], array, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_cell_without_a_fused_form_has_its_carry(cell: str, own_registries: None) -> None:
    """As a Flax module alone, from outside."""
    model, params, carry, tokens = make(cell, num_layers=2)
    register_cell(replace(CELLS[cell], name="mine", fused=None, gate_names=()))
    _, expected = inside(params, carry, tokens, model=model, with_values=True)
    _, values = inside(params, carry, tokens, model=model.clone(cell="mine"), with_values=True)
    assert set(values) == {"gru": {"output"}, "lstm": {"output", "c"}}[cell]
    for name, array in values.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)


def test_with_residual_connections_the_output_is_that_of_the_cell() -> None:
    model, params, carry, tokens = make("gru", num_layers=2, residual="add")
    _, values = inside(params, carry, tokens, model=model, with_values=True)
    new_carry, _ = forward(params, carry, tokens, model=model)
    last = np.stack(new_carry, axis=1)  # the carry of a GRU is its output
    np.testing.assert_allclose(values["output"][:, -1], last, rtol=1e-4, atol=1e-5)


def test_with_zoneout_the_carry_is_the_expected_one() -> None:
    model, params, carry, tokens = make("lstm", zoneout=0.25)
    new_carry, values = inside(params, carry, tokens, model=model, with_values=True)
    np.testing.assert_allclose(values["c"][:, -1, 0], new_carry[0][0], rtol=1e-5)


def test_names_that_do_not_fit_a_step_are_an_error(own_registries: None) -> None:
    register_cell(replace(CELLS["gru"], name="mine", gate_names=("reset",)))
    model, params, carry, tokens = make("gru")
    with pytest.raises(UserError, match="1 gate_names, but its step computes 3"):
        inside(params, carry, tokens, model=model.clone(cell="mine"), with_values=True)
