"""The Mogrifier LSTM against PyTorch's LSTM, and against ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import B, E, H, T, forward, make

from charrnn_jax.models.char_rnn import CharRNN
from charrnn_jax.models.recurrence import Recurrence

CELL = "mogrifier_lstm"


@pytest.mark.parametrize("implementation", ["scan", "fused"])
def test_values_and_gradients_equal_pytorchs_lstm_after_five_rounds(implementation: str) -> None:
    torch = pytest.importorskip("torch")
    _, params, (carry,), _ = make(CELL)
    params = params["layers_0"]["cell"]
    inputs = jnp.asarray(np.random.default_rng(3).normal(size=(B, T, E)), jnp.float32)

    def loss(params, carry, inputs):
        layer = Recurrence(CELL, H, implementation)
        last, outputs = layer.apply({"params": {"cell": params}}, carry, inputs)
        return jnp.sin(outputs).sum() + jnp.sin(last[0]).sum(), (last, outputs)

    gradients, (last, outputs) = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(
        params, carry, inputs
    )

    def tensor(array) -> "torch.Tensor":
        return torch.tensor(np.array(array), requires_grad=True)

    p, (c_0, h_0), x_0 = (jax.tree.map(tensor, tree) for tree in (params, carry, inputs))
    lstm = torch.nn.LSTMCell(E, H)
    for side in "ih":
        kernels = [np.asarray(params[side + gate]["kernel"]).T for gate in "ifgo"]
        getattr(lstm, f"weight_{side}h").data = torch.tensor(np.concatenate(kernels))
    biases = [np.asarray(params["h" + gate]["bias"]) for gate in "ifgo"]
    lstm.bias_ih.data, lstm.bias_hh.data = torch.tensor(np.concatenate(biases)), torch.zeros(4 * H)

    def gate(name: str, of) -> "torch.Tensor":
        return 2 * torch.sigmoid(of @ p[name]["kernel"] + p[name]["bias"])

    c, h, expected = c_0, h_0, []
    for t in range(T):
        x = x_0[:, t]
        x = gate("q1", h) * x
        h = gate("r2", x) * h
        x = gate("q3", h) * x
        h = gate("r4", x) * h
        x = gate("q5", h) * x
        h, c = lstm(x, (h, c))
        expected.append(h)
    expected = torch.stack(expected, 1)
    (torch.sin(expected).sum() + torch.sin(c).sum()).backward()

    def equal(ours, theirs) -> None:
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)

    equal(outputs, expected)
    equal(last[0], c)
    for side in "ih":
        kernels = [gradients[0][side + gate]["kernel"].T for gate in "ifgo"]
        equal(np.concatenate(kernels), getattr(lstm, f"weight_{side}h").grad)
    equal(np.concatenate([gradients[0]["h" + gate]["bias"] for gate in "ifgo"]), lstm.bias_ih.grad)
    for name in ("q1", "r2", "q3", "r4", "q5"):
        for of in ("kernel", "bias"):
            equal(gradients[0][name][of], p[name][of].grad)
    equal(gradients[1][0], c_0.grad)
    equal(gradients[1][1], h_0.grad)
    equal(gradients[2], x_0.grad)


def test_without_weights_in_its_rounds_it_is_the_lstm() -> None:
    model, params, carry, tokens = make("lstm", num_layers=2)
    mogrifier = model.clone(cell=CELL)
    zeros = jax.tree.map(jnp.zeros_like, make(CELL, num_layers=2)[1])
    with_rounds = {
        name: {"cell": {**zeros[name]["cell"], **params[name]["cell"]}} if "layers" in name else of
        for name, of in params.items()
    }
    expected = forward(params, carry, tokens, model=model.clone(implementation="scan"))
    ours = forward(with_rounds, carry, tokens, model=mogrifier)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, expected
    )


def test_number_of_its_parameters_is_the_lstms_and_five_dense_layers() -> None:
    sizes = {}
    for cell in (CELL, "lstm"):
        _, params, _, _ = make(cell)
        sizes[cell] = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sizes[CELL] - sizes["lstm"] == 5 * E * H + 3 * E + 2 * H
    assert CharRNN(5, E, H, cell=CELL).initialize_carry(B)[0][0].shape == (B, H)
