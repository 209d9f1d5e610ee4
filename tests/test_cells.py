"""Cells and zoneout against the equations of their papers, written down once more in PyTorch."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import B, E, H, T, V, slow

from charrnn_jax.errors import UserError
from charrnn_jax.models import recurrence
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.char_rnn import CharRNN, forward, initialize_params
from charrnn_jax.models.dropout import bernoulli
from charrnn_jax.models.recurrence import Recurrence, choose_form
from charrnn_jax.models.stepping import prepare, step
from charrnn_jax.models.zoneout import draw_held

torch = pytest.importorskip("torch")


def layer_norm(x: Any, p: dict[str, Any]) -> Any:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], p["scale"], p.get("bias"), 1e-5)


def joined(x: Any, p: dict[str, Any], *names: str) -> Any:
    return x @ torch.cat([p[name]["kernel"] for name in names], -1)


def gru(p: dict[str, Any], h: Any, x: Any) -> Any:
    gate = {g: x @ p["i" + g]["kernel"] + p["i" + g]["bias"] for g in "rzn"}
    q = {g: h @ p["h" + g]["kernel"] for g in "rzn"}
    r, z = (torch.sigmoid(gate[g] + q[g]) for g in "rz")
    return (1 - z) * torch.tanh(gate["n"] + r * (q["n"] + p["hn"]["bias"])) + z * h


def lstm(p: dict[str, Any], carry: Any, x: Any) -> Any:
    c, h = carry
    i, f, g, o = (
        x @ p["i" + g]["kernel"] + h @ p["h" + g]["kernel"] + p["h" + g]["bias"] for g in "ifgo"
    )
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return c, torch.sigmoid(o) * torch.tanh(c)


def layer_norm_gru(p: dict[str, Any], h: Any, x: Any) -> Any:
    gates = layer_norm(joined(x, p, "ir", "iz"), p["norm_i"])
    gates = gates + layer_norm(joined(h, p, "hr", "hz"), p["norm_h"])
    r, z = torch.sigmoid(gates).chunk(2, -1)
    a_n, q_n = (layer_norm(joined(v, p, k), p["norm_" + k]) for v, k in ((x, "in"), (h, "hn")))
    return (1 - z) * torch.tanh(a_n + r * q_n) + z * h


def layer_norm_lstm(p: dict[str, Any], carry: Any, x: Any) -> Any:
    c, h = carry
    gates = layer_norm(joined(x, p, "ii", "if", "ig", "io"), p["norm_i"])
    gates = gates + layer_norm(joined(h, p, "hi", "hf", "hg", "ho"), p["norm_h"])
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return c, torch.sigmoid(o) * torch.tanh(layer_norm(c, p["norm_c"]))


def mogrifier_lstm(p: dict[str, Any], carry: Any, x: Any) -> Any:
    c, h = carry
    for number in range(1, 6):
        if number % 2:
            q = p[f"q{number}"]
            x = 2 * torch.sigmoid(h @ q["kernel"] + q["bias"]) * x
        else:
            r = p[f"r{number}"]
            h = 2 * torch.sigmoid(x @ r["kernel"] + r["bias"]) * h
    return lstm(p, (c, h), x)


PEERS: dict[str, Callable[..., Any]] = {
    "gru": gru,
    "lstm": lstm,
    "layer_norm_gru": layer_norm_gru,
    "layer_norm_lstm": layer_norm_lstm,
    "mogrifier_lstm": mogrifier_lstm,
}


def random_layer(cell: str) -> tuple[Any, Any, jax.Array]:
    """Parameters of a layer, a carry that is not zero, and inputs."""
    layer = Recurrence(cell, H)
    carry, inputs = CELLS[cell].initialize_carry(B, H), jnp.zeros((B, T, E))
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), carry, inputs)["params"])
    rng = np.random.default_rng(0)
    random = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), (shapes, carry, inputs)
    )
    return random


@pytest.mark.parametrize("form", ["fused", slow("scan")])
@pytest.mark.parametrize(
    ("cell", "zoneout"),
    [
        ("layer_norm_gru", 0.0),
        ("layer_norm_lstm", 0.3),
        ("mogrifier_lstm", 0.0),
        *(slow(*case) for case in (("gru", 0.3), ("lstm", 0.3), ("layer_norm_lstm", 0.0))),
        slow("mogrifier_lstm", 0.3),
    ],
)
def test_a_layer_is_a_loop_over_the_equations_of_its_paper(
    cell: str, zoneout: float, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In values and gradients. The units that keep their values are those that were drawn."""
    params, carry, inputs = random_layer(cell)
    held = draw_held(jax.random.key(1), carry, rate=zoneout, length=T)
    monkeypatch.setattr(recurrence, "draw_held", lambda *_, **__: held)
    layer = Recurrence(cell, H, form, zoneout=zoneout)

    @jax.jit
    def ours(*arguments: Any) -> Any:
        def run(params: Any, carry: Any, inputs: jax.Array) -> Any:
            rngs = {"dropout": jax.random.key(0)}
            variables = {"params": params}
            last, y = layer.apply(variables, carry, inputs, deterministic=False, rngs=rngs)
            return sum(jnp.sin(x).sum() for x in jax.tree.leaves((last, y))), (last, y)

        return jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True)(*arguments)

    (_, results), gradients = ours(params, carry, inputs)

    def tensors(tree: Any) -> Any:
        return jax.tree.map(lambda x: torch.tensor(np.array(x, np.float64)), tree)

    leaves = tensors((params, carry, inputs))
    jax.tree.map(lambda x: x.requires_grad_(), leaves)
    p, c, x = leaves
    kept, outputs = tensors(held), []
    for t in range(T):
        new = PEERS[cell](p["cell"], c, x[:, t])
        c = jax.tree.map(lambda d, old, new, t=t: d[t] * old + (1 - d[t]) * new, kept, c, new)
        outputs.append(jax.tree.leaves(c)[-1])
    expected = c, torch.stack(outputs, 1)
    sum(torch.sin(x).sum() for x in jax.tree.leaves(expected)).backward()

    def close(ours: jax.Array, theirs: Any) -> None:
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-3, atol=2e-5)

    jax.tree.map(close, results, expected)
    jax.tree.map(close, gradients, jax.tree.map(lambda x: x.grad, leaves))


def test_zoneout_holds_each_unit_at_its_rate_and_draws_anew_every_step() -> None:
    carry = {"c": jnp.zeros((40, 5)), "h": jnp.zeros((40, 5))}
    held = draw_held(jax.random.key(0), carry, rate=0.2, length=50)
    assert held["c"].shape == (50, 40, 5)
    for array in held.values():
        means = [array.mean(axis) for axis in ((1, 2), (0, 2), (0, 1))]
        assert all(mean.min() > 0.05 and mean.max() < 0.4 for mean in means)
        assert abs(array.mean() - 0.2) < 0.02
    assert (held["c"] != held["h"]).any()


def test_bernoulli_has_its_probability_and_independent_halves() -> None:
    for probability in (0.0, 0.1, 0.5, 1.0):
        drawn = bernoulli(jax.random.key(3), jnp.float32(probability), (300, 301))
        assert drawn.dtype == bool
        tolerance = 5 * np.sqrt(probability * (1 - probability) / drawn.size)
        assert abs(drawn.mean() - probability) <= tolerance
    drawn = bernoulli(jax.random.key(3), 0.5, (300, 300))
    first, second = drawn[:, :150], drawn[:, 150:]  # from the halves of the same words
    assert abs((first == second).mean() - 0.5) < 5 * 0.5 / np.sqrt(first.size)


@pytest.mark.parametrize("cell", ["gru", slow("layer_norm_lstm")])
def test_outside_of_training_zoneout_is_its_expectation(cell: str) -> None:
    """In both forms, and one character at a time."""
    fused = CharRNN(V, E, H, 2, cell, zoneout=0.25, implementation="fused")
    shapes = jax.eval_shape(lambda: initialize_params(fused, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params, carry = jax.tree.map(
        lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), jnp.float32),
        (shapes, fused.initialize_carry(B)),
    )
    tokens = jnp.asarray(rng.integers(0, V, (B, 2)))
    results = [
        forward(params, carry, tokens, model=model)
        for model in (fused, fused.clone(implementation="scan"))
    ]
    weights, end = prepare(params, model=fused, transposed=True), carry
    for t in range(2):
        end, logits = step(weights, end, tokens[:, t], model=fused)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(close, *results)
    jax.tree.map(close, (end, logits), (results[0][0], results[0][1][:, -1]))

    plain = fused.clone(zoneout=0.0)
    new, _ = forward(params, carry, tokens[:, :1], model=plain)
    ours, _ = forward(params, carry, tokens[:, :1], model=fused)
    mixed = jax.tree.map(lambda old, new: 0.25 * old + 0.75 * new, carry[0], new[0])
    jax.tree.map(close, ours[0], mixed)


def test_cells_that_cannot_have_zoneout_say_so() -> None:
    parallel = replace(CELLS["gru"], parallel=lambda *_, **__: None)
    form = {"dtype": "float32", "zoneout": 0.1}
    assert choose_form(parallel, implementation="auto", **form) == "fused"
    with pytest.raises(UserError, match="'parallel' has no zoneout"):
        choose_form(parallel, implementation="parallel", **form)
    with pytest.raises(UserError, match="'gru' has no zoneout"):
        choose_form(replace(CELLS["gru"], output=None), implementation="auto", **form)
