"""Cells that are linear in the carry, over all of time at once, against loops over one step."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import B, E, H, T, V, assert_same_run, make, signal_at, slow
from jax import export
from ml_collections import ConfigDict

import charrnn_jax
from charrnn_jax.config import default_config
from charrnn_jax.errors import Interrupted, UserError
from charrnn_jax.main import main
from charrnn_jax.models import linear
from charrnn_jax.models.cells import CELLS, Cell, Operations
from charrnn_jax.models.cells.rg_lru import coefficients, decay_init
from charrnn_jax.models.char_rnn import CharRNN, check_model, forward
from charrnn_jax.models.linear import linear_recurrence
from charrnn_jax.models.products import can_train_in_bfloat16
from charrnn_jax.models.recurrence import Recurrence
from charrnn_jax.training.dispatch import count_step_weights
from charrnn_jax.training.loop import train

NAMES = ["min_gru", "min_lstm", "rg_lru"]
BLOCK = 4
WAYS = {"steps": linear._in_steps, "blocks": partial(linear._in_blocks, length=BLOCK)}


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the recurrence is computed: as on a CPU, or as on an accelerator but in short blocks."""
    solve = WAYS[request.param]
    monkeypatch.setattr(
        linear, "_solve", lambda a, b, h, reverse=False: solve(a, b, h, reverse=reverse)
    )
    return request.param


both_ways = pytest.mark.parametrize("way", WAYS, indirect=True)


def random(*shapes: tuple[int, ...], seed: int = 0) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def close(ours: Any, theirs: Any, relative: float = 1e-5) -> None:
    """Every array is within `relative` of the other, measured in its own norm."""

    def check(a: Any, b: Any) -> None:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        assert np.linalg.norm(a - b) <= relative * np.linalg.norm(b) + 1e-9

    jax.tree.map(check, ours, theirs)


# --- the recurrence -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "length"),
    [
        *(("blocks", length) for length in (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 2)),
        *(("steps", length) for length in (1, 14)),
    ],
    indirect=["way"],
)
def test_recurrence_is_pytorchs_loop_in_values_and_gradients(way: str, length: int) -> None:
    torch = pytest.importorskip("torch")
    a, b, h, weight = random(*[(length, B, H)] * 2, (B, H), (length, B, H))

    def total(a: jax.Array, b: jax.Array, h: jax.Array) -> Any:
        hs = linear_recurrence(a, b, h)
        return (hs * weight).sum() + (hs[-1] ** 2).sum(), hs

    gradients, values = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(a, b, h)
    theirs = [torch.tensor(np.array(x), requires_grad=True) for x in (a, b, h)]
    state, states = theirs[2], []
    for t in range(length):
        state = theirs[0][t] * state + theirs[1][t]
        states.append(state)
    hs = torch.stack(states)
    ((hs * torch.tensor(np.array(weight))).sum() + (state**2).sum()).backward()
    close(values, hs.detach())
    close(gradients, tuple(x.grad for x in theirs))


@both_ways
def test_factors_near_one_and_zero_stay_accurate_over_a_long_text(way: str) -> None:
    """Against float64, also in the gradients. Positive terms, so that no error may cancel."""
    factors = np.array([1.0, 1 - 1e-6, 0.999, 1e-3, 1e-30, 0.0], np.float32)[:, None]
    noise, b, h = np.random.default_rng(0).uniform(0.5, 1, (3, 3000, 6, 2)).astype("f")
    a = np.where(factors < 1, factors * (1 - 1e-4 * noise), 1).astype("f")

    @jax.jit
    def ours(a: jax.Array, b: jax.Array, h: jax.Array) -> Any:
        hs, pull_back = jax.vjp(linear_recurrence, a, b, h)
        return hs, *pull_back(jnp.ones_like(hs))

    exact, before, d = np.empty((3, *a.shape))  # in float64
    state, d_state = h[0].astype(float), np.zeros((6, 2))
    for t in range(len(a)):
        before[t] = state
        exact[t] = state = a[t].astype(float) * state + b[t]
    for t in reversed(range(len(a))):
        d[t] = 1 + d_state
        d_state = a[t].astype(float) * d[t]
    for mine, expected in zip(ours(a, b, h[0]), (exact, d * before, d, d_state), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=2e-5, atol=1e-30)


@both_ways
def test_gradient_of_a_gradient_is_that_of_the_plain_loop(way: str) -> None:
    arguments = random(*[(7, B, H)] * 2, (B, H))

    def plain(a: jax.Array, b: jax.Array, h: jax.Array) -> jax.Array:
        hs = []
        for t in range(len(a)):
            h = a[t] * h + b[t]
            hs.append(h)
        return jnp.stack(hs)

    def sharpness(recurrence: Any, *arguments: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda *x: jnp.sin(recurrence(*x)).sum(), (0, 1, 2))(*arguments)
        return sum(jnp.sum(leaf**2) for leaf in gradient)

    second = jax.jit(jax.grad(sharpness, (1, 2, 3)), static_argnums=0)
    close(second(lambda *x: linear_recurrence(*x), *arguments), second(plain, *arguments))


@both_ways
def test_memory_of_the_gradient_is_linear_in_the_length(way: str) -> None:
    def temporary_bytes(length: int) -> int:
        shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (*[(length, 8, 64)] * 2, (8, 64))]
        gradient = jax.grad(lambda *x: jnp.sin(linear_recurrence(*x)).sum(), (0, 1, 2))
        return jax.jit(gradient).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(1024) <= 4.2 * temporary_bytes(256)


# --- the cells, written down once more ----------------------------------------------------------


def dense(p: dict[str, Any], name: str, x: Any) -> Any:
    return x @ p[name]["kernel"] + p[name]["bias"]


def g(torch: Any, v: Any) -> Any:
    return torch.where(v >= 0, v + 0.5, torch.sigmoid(v))


def min_gru(torch: Any, p: dict[str, Any], h: Any, x: Any) -> tuple[Any, Any]:
    z = torch.sigmoid(dense(p, "z", x))
    h = (1 - z) * h + z * g(torch, dense(p, "n", x))
    return h, h


def min_lstm(torch: Any, p: dict[str, Any], h: Any, x: Any) -> tuple[Any, Any]:
    f, i = (torch.sigmoid(dense(p, name, x)) for name in "fi")
    h = f / (f + i) * h + i / (f + i) * g(torch, dense(p, "n", x))
    return h, h


def rg_lru(torch: Any, p: dict[str, Any], carry: Any, x: Any) -> tuple[Any, Any]:
    def norm(y: Any, name: str) -> Any:
        return y / torch.sqrt((y**2).mean(-1, keepdim=True) + 1e-6) * p[name]["scale"]

    gelu = partial(torch.nn.functional.gelu, approximate="tanh")
    (v, s), y = carry, norm(x, "norm")
    gate, u = gelu(dense(p, "gate", y)), dense(p, "input", y)
    v = torch.cat([v, u[:, None]], 1)
    c = (v * p["conv"]["kernel"]).sum(1) + p["conv"]["bias"]
    r, i = (torch.sigmoid(dense(p, name, c)) for name in ("recurrence_gate", "input_gate"))
    a = torch.sigmoid(-p["decay"]) ** (8 * r)  # equation 3 of the paper, with -L
    s = a * s + torch.sqrt(1 - a**2) * (i * c)
    o = (x @ p["skip"]["kernel"] if "skip" in p else x) + dense(p, "output", gate * s)
    y = norm(o, "mlp_norm")
    return (v[:, 1:], s), o + dense(
        p, "mlp_down", gelu(dense(p, "mlp_gate", y)) * dense(p, "mlp_up", y)
    )


PEERS = {"min_gru": min_gru, "min_lstm": min_lstm, "rg_lru": rg_lru}


@pytest.mark.parametrize("input_size", [E, slow(H)])
@pytest.mark.parametrize("form", ["parallel", slow("fused"), slow("scan")])
@pytest.mark.parametrize("name", NAMES)
def test_layer_is_a_loop_over_the_equations_in_pytorch(
    name: str, form: str, input_size: int
) -> None:
    """In values and gradients, from a carry that is not zero."""
    torch = pytest.importorskip("torch")
    layer = Recurrence(name, H, form)
    shapes = CELLS[name].initialize_carry(B, H), jnp.zeros((B, T, input_size))
    params = layer.init(jax.random.key(0), *shapes)["params"]
    leaves, structure = jax.tree.flatten((params, *shapes))
    noise = random(*[leaf.shape for leaf in leaves])
    arguments = jax.tree.unflatten(
        structure, [x + 0.5 * y for x, y in zip(leaves, noise, strict=True)]
    )

    def total(params: Any, carry: Any, inputs: jax.Array) -> Any:
        results = layer.apply({"params": params}, carry, inputs)
        return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(results)), results

    gradients, results = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*arguments)
    theirs = jax.tree.map(
        lambda x: torch.tensor(np.array(x, np.float64), requires_grad=True), arguments
    )
    params, carry, inputs = theirs
    outputs = []
    for t in range(T):
        carry, y = PEERS[name](torch, params["cell"], carry, inputs[:, t])
        outputs.append(y)
    expected = carry, torch.stack(outputs, 1)
    sum(torch.sin(leaf).sum() for leaf in jax.tree.leaves(expected)).backward()
    close(results, jax.tree.map(lambda x: x.detach(), expected))
    # The gradient of "decay" is the difference of what comes through a and through 1 - a^2.
    close(gradients, jax.tree.map(lambda x: x.grad, theirs), 3e-5)


def test_gates_that_round_to_zero_or_one_have_finite_gradients() -> None:
    gates = jnp.array([[-300.0, -299.0, 0.0, 300.0, 301.0]])
    one = jnp.ones_like(gates)

    @partial(jax.grad, argnums=(0, 1))
    def of_rg_lru(r: jax.Array, i: jax.Array) -> jax.Array:
        a, b = coefficients(one, jax.nn.sigmoid(r), jax.nn.sigmoid(i), -5 * one)
        return (a + b).sum()

    @jax.grad
    def of_min_lstm(gates: jax.Array) -> jax.Array:
        ops = Operations(lambda name, x: x, {"i": jnp.zeros((1, 15))})
        a, b = CELLS["min_lstm"].fused.read(ops, gates)
        return (a + 2 * b).sum()

    every_pair = [jnp.repeat(gates, 5, axis=0), jnp.repeat(gates.T, 5, axis=1)]
    for r, i in zip(*every_pair, strict=True):
        both = of_rg_lru(r[None], i[None]), of_min_lstm(jnp.concatenate([r, i, gates[0]])[None])
        assert all(np.isfinite(d).all() for d in jax.tree.leaves(both))


def test_factors_of_rg_lru_begin_between_nine_tenths_and_one() -> None:
    decay = decay_init(jax.random.key(0), (10_000,))
    factor = np.exp(-8 * np.log1p(np.exp(np.asarray(decay, np.float64))))
    assert 0.9 <= factor.min() < 0.901
    assert 0.998 < factor.max() <= 0.999 + 1e-5
    np.testing.assert_allclose(np.median(factor), 0.9495, atol=2e-3)


# --- the form -----------------------------------------------------------------------------------


def loss(params: Any, carry: Any, tokens: jax.Array, *, model: CharRNN) -> Any:
    """A scalar of every logit and of the last carry; also returns these."""
    results = forward(params, carry, tokens, model=model)
    return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(results)), results


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("min_lstm", (B, T)),
        *(slow(name, (B, T)) for name in ("min_gru", "rg_lru")),
        *(slow(name, shape) for name in NAMES for shape in ((1, 1), (2, 1))),  # fewer than ids
    ],
)
def test_parallel_on_tokens_equals_scan_in_values_and_gradients(
    name: str, shape: tuple[int, int]
) -> None:
    model, params, carry, _ = make(name, num_layers=2)
    carry = jax.tree.map(lambda x: x[: shape[0]], carry)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, V, shape))
    results = [
        jax.jit(jax.value_and_grad(partial(loss, model=each), (0, 1), has_aux=True))(
            params, carry, tokens
        )
        for each in (model, model.clone(implementation="scan"))
    ]
    ((_, ours), gradients), ((_, theirs), expected) = results
    close((ours, gradients), (theirs, expected), 2e-5)


@pytest.mark.parametrize("name", [slow("min_gru"), slow("min_lstm"), "rg_lru"])
def test_text_in_pieces_of_any_length_equals_the_whole(name: str) -> None:
    model, params, carry, tokens = make(name)
    run = jax.jit(partial(forward, model=model))
    expected_carry, expected = run(params, carry, tokens)
    pieces = []
    for piece in jnp.split(tokens, [1, 2], axis=1):  # 1: shorter than the convolution
        carry, logits = run(params, carry, piece)
        pieces.append(logits)
    close((carry, jnp.concatenate(pieces, 1)), (expected_carry, expected))


@pytest.mark.skipif(not can_train_in_bfloat16(), reason="this jaxlib cannot on this processor")
@pytest.mark.parametrize("name", ["min_gru", slow("min_lstm"), slow("rg_lru")])
def test_bfloat16_rounds_what_it_rounds_in_the_fused_form(name: str) -> None:
    model, params, carry, tokens = make(name)

    def run(**changes: str) -> Any:
        each = model.clone(**changes)
        function = jax.value_and_grad(partial(loss, model=each), (0, 1), has_aux=True)
        (_, results), gradients = jax.jit(function)(params, carry, tokens)
        return results, gradients

    ours, gradients = run(dtype="bfloat16")
    theirs, expected = run(dtype="bfloat16", implementation="fused")
    close(ours, theirs, 1e-4)
    close(gradients, expected, 2e-2)  # the fused form rounds some sums where this does not
    exact, _ = run()
    assert np.linalg.norm(exact[1] - ours[1]) > 1e-3 * np.linalg.norm(exact[1])
    assert {x.dtype for x in jax.tree.leaves((ours, gradients))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["min_gru", slow("min_lstm"), slow("rg_lru")])
def test_gradient_lowers_for_every_platform_without_its_hardware(name: str) -> None:
    model, params, carry, tokens = make(name, num_layers=2)
    gradient = jax.jit(jax.grad(lambda *a: loss(*a, model=model)[0]))
    platforms = ("cpu", "cuda", "tpu")
    exported = export.export(gradient, platforms=platforms)(params, carry, tokens)
    assert exported.platforms == platforms


def test_a_layer_of_products_with_the_table_alone_costs_the_readout() -> None:
    assert count_step_weights(CharRNN(V, E, H, cell="min_gru")) == H * V
    two = CharRNN(V, E, H, num_layers=2, cell="min_lstm")
    assert count_step_weights(two) == 3 * H * H + H * V
    block = CharRNN(V, E, H, cell="rg_lru")
    assert count_step_weights(block) == 12 * H * H + 4 * H + H * V


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_run_resumes_bit_for_bit_and_every_command_reads_it(
    name: str, tiny_config: ConfigDict, tmp_path: Path, heeded_signals: None
) -> None:
    tiny_config.data.batching = "lanes"
    tiny_config.model.cell, tiny_config.model.num_layers = name, 2
    tiny_config.train.num_steps = 12
    train(tiny_config, tmp_path / "one")
    with pytest.raises(Interrupted):
        train(tiny_config, tmp_path / "many", hooks=[signal_at(5)])
    train(tiny_config, tmp_path / "many")
    assert_same_run(tmp_path / "one", tmp_path / "many")
    workdir = f"--workdir={tmp_path / 'one'}"
    assert main(["evaluate", workdir, "--protocol=all"]) == 0
    assert main(["sample", workdir, "--num_chars=20"]) == 0
    assert main(["export", workdir, f"--output={tmp_path / 'exported'}"]) == 0


def test_a_parallel_form_without_a_fused_one_is_refused() -> None:
    with pytest.raises(UserError, match="'mine' has a parallel form, which needs a fused one"):
        Cell("mine", CELLS["gru"].module, "", (), parallel=CELLS["min_gru"].parallel)
    assert charrnn_jax.linear_recurrence is linear_recurrence


def test_weight_dropout_needs_recurrent_kernels() -> None:
    config = default_config().model
    config.weight_dropout = 0.3
    config.cell = "rg_lru"
    check_model(config)
    config.cell = "min_gru"
    with pytest.raises(UserError, match="'min_gru' has no recurrent kernels"):
        check_model(config)
