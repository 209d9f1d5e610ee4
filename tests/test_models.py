import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EVERY_CELL, B, E, H, T, V, forward, make

from charrnn_jax.evaluation.metrics import cross_entropy
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.char_rnn import CharRNN, initialize_params, summary


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_model_equals_a_python_loop_over_cells(cell: str, num_layers: int) -> None:
    model, params, carry, tokens = make(cell, num_layers)
    new_carry, logits = forward(params, carry, tokens, model=model)
    carries = list(carry)
    one_step = CELLS[cell].module(features=H)
    for t in range(T):
        x = params["embedding"]["embedding"][tokens[:, t]]
        for layer in range(num_layers):
            cell_params = params[f"layers_{layer}"]["cell"]
            carries[layer], x = one_step.apply({"params": cell_params}, carries[layer], x)
        expected = x @ params["dense"]["kernel"] + params["dense"]["bias"][None]
        np.testing.assert_allclose(logits[:, t], expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        new_carry,
        tuple(carries),
    )


@pytest.mark.parametrize("cell", EVERY_CELL)
def test_text_in_two_pieces_equals_text_in_one(cell: str) -> None:
    model, params, carry, tokens = make(cell, num_layers=2)
    end, logits = forward(params, carry, tokens, model=model)
    middle, first = forward(params, carry, tokens[:, :4], model=model)
    two_ends, second = forward(params, middle, tokens[:, 4:], model=model)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), logits, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), end, two_ends)


def test_gru_is_the_equation_in_the_docstring() -> None:
    _, params, _, _ = make("gru")
    p = params["layers_0"]["cell"]
    rng = np.random.default_rng(0)
    x, h = rng.normal(size=(B, E)).astype("f"), rng.normal(size=(B, H)).astype("f")
    logistic = jax.nn.sigmoid
    r = logistic(x @ p["ir"]["kernel"] + p["ir"]["bias"][None] + h @ p["hr"]["kernel"])
    z = logistic(x @ p["iz"]["kernel"] + p["iz"]["bias"][None] + h @ p["hz"]["kernel"])
    recurrent = h @ p["hn"]["kernel"] + p["hn"]["bias"][None]
    n = jnp.tanh(x @ p["in"]["kernel"] + p["in"]["bias"][None] + r * recurrent)
    new_h, y = CELLS["gru"].module(features=H).apply({"params": p}, h, x)
    np.testing.assert_allclose(new_h, (1 - z) * n + z * h, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(new_h, y)


def test_the_tutorials_model_has_its_size() -> None:
    """66 x 256 + 3 (256 + 1024) 1024 + 4 x 1024 + 1025 x 66: Keras keeps 2,048 biases more."""
    model = CharRNN(66, 256, 1024)
    shapes = jax.eval_shape(lambda: initialize_params(model, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 4_020_802
    assert "4,020,802" in summary(model)


def test_dropout_acts_between_layers_and_only_in_training() -> None:
    model, params, carry, tokens = make("gru", num_layers=2)
    dropping = CharRNN(V, E, H, num_layers=2, dropout=0.5)
    expected = forward(params, carry, tokens, model=model)[1]
    np.testing.assert_array_equal(forward(params, carry, tokens, model=dropping)[1], expected)
    key = jax.random.key(0)
    dropped = forward(params, carry, tokens, model=dropping, dropout_key=key)[1]
    again = forward(params, carry, tokens, model=dropping, dropout_key=key)[1]
    np.testing.assert_array_equal(dropped, again)
    assert (dropped != expected).mean() > 0.9
    # The first layer's carry has seen no dropout, the second layer's has.
    (first, second), _ = forward(params, carry, tokens, model=model)
    (first_d, second_d), _ = forward(params, carry, tokens, model=dropping, dropout_key=key)
    np.testing.assert_array_equal(first, first_d)
    assert (second != second_d).any()


# --- PyTorch, an independent implementation -----------------------------------------------------

GATES = {  # Flax's gate letters in PyTorch's row order, and which of Flax's denses have a bias
    "gru": ("rzn", {"ir", "iz", "in", "hn"}),
    "lstm": ("ifgo", {"hi", "hf", "hg", "ho"}),
}


def torch_gates(cell_params, cell: str, side: str):
    """PyTorch's (weight [gates H, in], bias [gates H]) of one side, "i" or "h"."""
    letters, with_bias = GATES[cell]
    names = [side + letter for letter in letters]
    weight = np.concatenate([np.asarray(cell_params[name]["kernel"]).T for name in names])
    biases = [
        np.asarray(cell_params[name]["bias"]) if name in with_bias else np.zeros(H, "f")
        for name in names
    ]
    return weight, np.concatenate(biases)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("cell", GATES)
def test_logits_and_gradients_equal_pytorchs(cell: str, num_layers: int) -> None:
    torch = pytest.importorskip("torch")
    model, params, carry, tokens = make(cell, num_layers)
    targets = jnp.asarray(np.random.default_rng(9).integers(0, V, (B, T)))

    def loss(params, carry):
        logits = forward(params, carry, tokens, model=model)[1]
        return cross_entropy(logits, targets).mean(), logits

    (value, logits), (gradient, carry_gradient) = jax.value_and_grad(
        loss, argnums=(0, 1), has_aux=True
    )(params, carry)

    def tensor(array) -> "torch.Tensor":
        return torch.tensor(np.array(array), requires_grad=True)

    table = tensor(params["embedding"]["embedding"])
    kernel, bias = tensor(params["dense"]["kernel"]), tensor(params["dense"]["bias"])
    rnn = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell](E, H, num_layers, batch_first=True)
    for layer in range(num_layers):
        for side in "ih":
            weight, side_bias = torch_gates(params[f"layers_{layer}"]["cell"], cell, side)
            getattr(rnn, f"weight_{side}h_l{layer}").data = torch.tensor(weight)
            getattr(rnn, f"bias_{side}h_l{layer}").data = torch.tensor(side_bias)
    if cell == "lstm":
        c, h = (tensor(np.stack([layer[i] for layer in carry])) for i in (0, 1))
        outputs, _ = rnn(table[torch.tensor(np.array(tokens))], (h, c))
    else:
        h = tensor(np.stack(carry))
        outputs, _ = rnn(table[torch.tensor(np.array(tokens))], h)
    torch_logits = outputs @ kernel + bias
    torch_loss = torch.nn.functional.cross_entropy(
        torch_logits.reshape(-1, V), torch.tensor(np.array(targets, np.int64)).reshape(-1)
    )
    torch_loss.backward()

    def equal(ours, theirs) -> None:
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)

    equal(value, torch_loss.item())
    equal(logits, torch_logits.detach().numpy())
    equal(gradient["embedding"]["embedding"], table.grad.numpy())
    equal(gradient["dense"]["kernel"], kernel.grad.numpy())
    equal(gradient["dense"]["bias"], bias.grad.numpy())
    for layer in range(num_layers):
        ours = gradient[f"layers_{layer}"]["cell"]
        for side in "ih":
            weight, side_bias = torch_gates(ours, cell, side)
            equal(weight, getattr(rnn, f"weight_{side}h_l{layer}").grad.numpy())
            known = np.repeat([side + g in GATES[cell][1] for g in GATES[cell][0]], H)
            theirs = getattr(rnn, f"bias_{side}h_l{layer}").grad.numpy()
            equal(side_bias[known], theirs[known])
    if cell == "lstm":
        equal(np.stack([layer[0] for layer in carry_gradient]), c.grad.numpy())
        equal(np.stack([layer[1] for layer in carry_gradient]), h.grad.numpy())
    else:
        equal(np.stack(carry_gradient), h.grad.numpy())
