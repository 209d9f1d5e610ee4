"""The sLSTM against its formula without a stabiliser, in float64, and against a mean in logs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import B, E, H, T, make

import charrnn_jax.models.fused
from charrnn_jax.errors import UserError
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.recurrence import Recurrence, choose_form

HEADS = 4


def run(params, carry, inputs, implementation: str):
    """Returns (last carry, outputs) of one layer."""
    size = carry[-1].shape[-1]
    return Recurrence("slstm", size, implementation).apply(
        {"params": {"cell": params}}, carry, inputs
    )


def cell_params(seed: int = 0):
    return make("slstm", seed=seed)[1]["layers_0"]["cell"]


def some_inputs(scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * np.random.default_rng(3).normal(size=(B, T, E)), jnp.float32)


def some_carry() -> tuple[jax.Array, ...]:
    """A carry in which the first sequence has stored nothing yet."""
    _, _, (carry,), _ = make("slstm")
    return tuple(leaf.at[0].set(0) for leaf in carry)


@pytest.mark.parametrize(
    ("implementation", "large_bytes"), [("scan", 0), ("fused", 1 << 20), ("fused", 0)]
)
def test_values_and_gradients_equal_the_formula_without_a_stabiliser(
    implementation: str, large_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paper's equations 8 to 14, in float64, on c exp(m) and n exp(m); fused also with kernels
    that are transposed for their size."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(charrnn_jax.models.fused, "_LARGE_BYTES", large_bytes)
    params, carry, inputs = cell_params(), some_carry(), some_inputs()

    def loss(params, carry, inputs):
        outputs = run(params, carry, inputs, implementation)[1]
        return jnp.sin(outputs).sum(), outputs

    gradients, outputs = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(params, carry, inputs)

    def tensor(array) -> "torch.Tensor":
        return torch.tensor(np.array(array, np.float64), requires_grad=True)

    p, (c_0, n_0, m_0, h_0), x = jax.tree.map(tensor, (params, carry, inputs))

    def gate(name: str, t: int, h) -> "torch.Tensor":
        recurrent = torch.block_diag(*p["h" + name]["kernel"])
        return x[:, t] @ p["i" + name]["kernel"] + p["i" + name]["bias"] + h @ recurrent

    c, n, h, expected = c_0 * torch.exp(m_0), n_0 * torch.exp(m_0), h_0, []
    for t in range(T):
        i, f = torch.exp(gate("i", t, h)), torch.sigmoid(gate("f", t, h))
        z, o = torch.tanh(gate("z", t, h)), torch.sigmoid(gate("o", t, h))
        c, n = f * c + i * z, f * n + i
        h = o * c / n
        expected.append(h)
    expected = torch.stack(expected, 1)
    torch.sin(expected).sum().backward()

    np.testing.assert_allclose(outputs, expected.detach().numpy(), rtol=1e-5, atol=1e-6)

    def equal(ours, theirs) -> None:
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)

    of_params, of_carry, of_inputs = gradients
    jax.tree.map(lambda ours, theirs: equal(ours, theirs.grad), of_params, p)
    equal(of_inputs, x.grad)
    for ours, theirs in zip(of_carry, (c_0, n_0, m_0, h_0), strict=True):
        equal(ours[1:], theirs.grad[1:])


# float32 keeps a sum of 1e4 to 1e-3, and exp of it to a part in a thousand.
@pytest.mark.parametrize(
    ("implementation", "scale", "exactness"),
    [("fused", 1.0, 1e-5), ("scan", 1e4, 1e-2), ("fused", 1e4, 1e-2)],
)
def test_c_over_n_is_a_mean_and_stays_finite_for_gates_of_any_size(
    implementation: str, scale: float, exactness: float
) -> None:
    """Without recurrent weights h is o times a mean of z, whose weights are a softmax over time.

    Gates of 1e4 are far above log(3.4e38) = 89, where exp of float32 overflows.
    """
    params, inputs = cell_params(), some_inputs(scale)
    for gate in "ifzo":
        params["h" + gate] = {"kernel": jnp.zeros((HEADS, H // HEADS, H // HEADS))}
    carry = CELLS["slstm"].initialize_carry(B, H)

    def total(params, inputs):
        last, outputs = run(params, carry, inputs, implementation)
        return jnp.sin(outputs).sum(), (last, outputs)

    gradients, (last, outputs) = jax.jit(jax.grad(total, (0, 1), has_aux=True))(params, inputs)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradients, last, outputs)))
    assert (np.asarray(last[1]) >= 1).all()

    x = np.asarray(inputs, np.float64)
    a = {
        gate: x @ np.asarray(params["i" + gate]["kernel"], np.float64)
        + np.asarray(params["i" + gate]["bias"])
        for gate in "ifzo"
    }
    log_f = -np.logaddexp(0, -a["f"])
    for t in range(T):
        logs = [a["i"][:, k] + log_f[:, k + 1 : t + 1].sum(1) for k in range(t + 1)]  # [t+1, B, H]
        weights = np.exp(logs - np.max(logs, axis=0))
        mean = (weights * np.tanh(a["z"][:, : t + 1]).swapaxes(0, 1)).sum(0) / weights.sum(0)
        expected = mean / (1 + np.exp(-a["o"][:, t].clip(-700)))
        np.testing.assert_allclose(outputs[:, t], expected, rtol=exactness, atol=1e-6)


@pytest.mark.parametrize(("size", "heads"), [(8, 4), (6, 1)])
def test_a_head_reads_its_own_units_only(size: int, heads: int) -> None:
    cell = CELLS["slstm"]
    module = cell.module(features=size, parent=None)
    carry = jax.tree.map(lambda leaf: leaf + 1, cell.initialize_carry(1, size))

    @jax.jit
    def reads():
        params = module.init(jax.random.key(0), carry, jnp.ones((1, E)))["params"]
        params = jax.tree.map(lambda p: p + 0.1, params)

        def new_h(h: jax.Array) -> jax.Array:
            carry_of_h = (*carry[:-1], h[None])
            return module.apply({"params": params}, carry_of_h, jnp.ones((1, E)))[1][0]

        return jax.jacobian(new_h)(jnp.ones(size)) != 0

    one_head = np.ones((size // heads, size // heads))
    np.testing.assert_array_equal(reads(), np.kron(np.eye(heads), one_head) != 0)
    assert cell.count_weights(E, size)[1] == 4 * size * size // heads


def test_units_of_a_head_begin_with_different_rates_of_forgetting() -> None:
    carry = CELLS["slstm"].initialize_carry(1, 12)
    module = CELLS["slstm"].module(features=12, parent=None)
    params = jax.jit(module.init)(jax.random.key(0), carry, jnp.zeros((1, E)))["params"]
    head = [5 - 12 * (k / 2) ** 0.3 for k in range(3)]
    np.testing.assert_allclose(params["if"]["bias"], head * HEADS, rtol=1e-6, atol=1e-6)
    assert not any(np.any(params["h" + gate]["kernel"]) for gate in "ifzo")


def test_zoneout_is_refused_in_one_line() -> None:
    """c and n are scaled by the m beside them, and none can be held without the others."""
    with pytest.raises(UserError, match="'slstm' has no zoneout"):
        choose_form(CELLS["slstm"], implementation="auto", dtype="float32", zoneout=0.1)
