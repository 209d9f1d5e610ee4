"""How the layers of a model are connected: residual, readout, tied and factored embedding."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import VOCABULARY, E, H, T, V, forward, make, slow

from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.metrics import cross_entropy
from charrnn_jax.export.page import write_page
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.char_rnn import (
    CharRNN,
    activations,
    change_vocabulary,
    initialize_params,
    summary,
)
from charrnn_jax.models.products import can_train_in_bfloat16
from charrnn_jax.models.stepping import prepare, step
from charrnn_jax.training.dispatch import count_step_weights

CASES: list[dict[str, Any]] = [
    {"residual": "add"},
    {"readout": "all"},
    {"output_embedding": "tied"},
    {"output_embedding": "tied", "embedding_size": H},
    {"embedding_rank": 3},
    {"residual": "add", "readout": "all", "output_embedding": "tied", "embedding_rank": 2},
]
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def make_case(case: dict[str, Any], *, cell: str = "gru", num_layers: int = 2) -> Any:
    size = case.get("embedding_size", E)
    fields = {name: value for name, value in case.items() if name != "embedding_size"}
    return make(cell, num_layers, embedding_size=size, **fields)


def predict(params: Any, outputs: list[Any], model: CharRNN) -> Any:
    """Logits by the equations, for arrays of NumPy or PyTorch."""
    table, dense = table_of(params), params["dense"]
    if model.readout == "all":
        outputs = [side_by_side(outputs)]
    h = outputs[-1]
    if model.output_embedding == "own":
        return h @ dense["kernel"] + dense["bias"]
    if "projection" in dense:
        h = h @ dense["projection"]
    return h @ table.T + dense["bias"]


def table_of(params: Any) -> Any:
    ends = params["embedding"]
    return ends["embedding"] @ ends["kernel"] if "kernel" in ends else ends["embedding"]


def side_by_side(outputs: list[Any]) -> Any:
    if isinstance(outputs[0], np.ndarray):
        return np.concatenate(outputs, -1)
    import torch

    return torch.cat(outputs, -1)


@pytest.mark.parametrize("case", [CASES[-1], *map(slow, CASES[:-1])])
def test_model_equals_a_numpy_loop(case: dict[str, Any]) -> None:
    """Also all layers' outputs, one step at a time, and the number of parameters."""
    model, params, carry, tokens = make_case(case)
    _, logits = forward(params, carry, tokens, model=model)
    units = activations(params, carry, tokens, model=model)
    one_step = jax.jit(CELLS["gru"].module(features=H).apply)
    numbers, carries = jax.tree.map(np.array, params), list(carry)
    table = table_of(numbers)
    for t in range(T):
        outputs: list[Any] = []
        for layer in range(2):
            x = outputs[-1] if outputs else table[tokens[:, t]]
            cell = {"params": params[f"layers_{layer}"]["cell"]}
            carries[layer], y = one_step(cell, carries[layer], x)
            adds = outputs and model.residual == "add"
            outputs.append(np.array(y) + outputs[-1] if adds else np.array(y))
        close(logits[:, t], predict(numbers, outputs, model))
        close(units[:, t], np.stack(outputs, 1))
    sizes = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert f"{sizes:,}" in summary(model).splitlines()[-2]


@pytest.mark.parametrize("form", ["fused", "scan"])
@pytest.mark.parametrize("case", [CASES[-1], *map(slow, CASES[:-1])])
def test_one_step_equals_forward(case: dict[str, Any], form: str) -> None:
    model, params, carry, tokens = make_case({**case, "implementation": form}, cell="lstm")
    end, logits = forward(params, carry, tokens, model=model)
    for transposed in (False, True):
        weights, now = prepare(params, model=model, transposed=transposed), carry
        one_step = jax.jit(partial(step, model=model))
        for t in range(T):
            now, of_step = one_step(weights, now, tokens[:, t])
            close(of_step, logits[:, t])
        jax.tree.map(close, now, end)


@pytest.mark.skipif(not can_train_in_bfloat16(), reason="this jaxlib cannot on this processor")
@pytest.mark.parametrize("case", [CASES[2], *map(slow, [*CASES[:2], *CASES[3:]])])
def test_gradients_in_bfloat16_are_near_those_in_float32(case: dict[str, Any]) -> None:
    def gradient_of(dtype: str) -> Any:
        model, params, carry, tokens = make_case({**case, "dtype": dtype})

        @jax.jit
        @jax.grad
        def gradient(params: Any) -> jax.Array:
            return cross_entropy(forward(params, carry, tokens, model=model)[1], tokens).sum()

        return gradient(params)

    def near(rounded: jax.Array, exact: jax.Array) -> None:
        assert 0 < np.linalg.norm(rounded - exact) < 0.02 * np.linalg.norm(exact)

    jax.tree.map(near, gradient_of("bfloat16"), gradient_of("float32"))


@pytest.mark.parametrize("case", [CASES[-1], *map(slow, CASES[2:5])])
def test_gradients_equal_pytorchs(case: dict[str, Any]) -> None:
    """The table of a tied model gets the gradient of both ends."""
    torch = pytest.importorskip("torch")
    model, params, carry, tokens = make_case(case, cell="rnn")
    weights = np.random.default_rng(1).normal(size=(*tokens.shape, V)).astype("f")

    @jax.jit
    @jax.grad
    def gradient_of(params: Any) -> jax.Array:
        return (forward(params, carry, tokens, model=model)[1] * weights).sum()

    def tensor(array: Any) -> Any:
        return torch.tensor(np.array(array), requires_grad=True)

    theirs = jax.tree.map(tensor, params)
    hs = [torch.tensor(np.array(h)) for h in carry]
    table, total = table_of(theirs), torch.zeros(())
    for t in range(T):
        outputs: list[Any] = []
        for layer in range(2):
            cell = theirs[f"layers_{layer}"]["cell"]
            x = outputs[-1] if outputs else table[torch.tensor(np.array(tokens[:, t])).long()]
            pre = x @ cell["i"]["kernel"] + cell["i"]["bias"] + hs[layer] @ cell["h"]["kernel"]
            hs[layer] = torch.tanh(pre)
            adds = outputs and model.residual == "add"
            outputs.append(hs[layer] + x if adds else hs[layer])
        total = total + (predict(theirs, outputs, model) * torch.tensor(weights[:, t])).sum()
    total.backward()
    jax.tree.map(
        lambda ours, leaf: np.testing.assert_allclose(ours, leaf.grad, rtol=1e-4, atol=1e-4),
        gradient_of(params),
        theirs,
    )


def test_table_that_is_factored_begins_with_the_variance_of_one_that_is_not() -> None:
    model = CharRNN(300, 64, 4, embedding_rank=48)
    params = initialize_params(model, jax.random.key(0))
    assert {name: leaf.shape for name, leaf in params["embedding"].items()} == {
        "embedding": (300, 48),
        "kernel": (48, 64),
    }
    np.testing.assert_allclose(np.std(table_of(params)), 1 / 8, rtol=0.05)


@pytest.mark.parametrize("case", [CASES[-1], *map(slow, CASES[:-1])])
def test_vocabulary_changes_and_keeps_what_is_said_of_kept_characters(case: dict[str, Any]) -> None:
    """Logits of characters that both have, after a text of such; any others are new."""
    model, params, carry, tokens = make_case(case)
    size = V + 4
    bigger = model.clone(vocabulary_size=size)
    new_ids = np.random.default_rng(0).permutation(size)[:V]
    fresh = initialize_params(bigger, jax.random.key(7))
    changed = change_vocabulary(
        jax.device_get(params), tokens=np.arange(V), new=fresh, new_tokens=new_ids
    )
    _, before = forward(params, carry, tokens, model=model)
    _, after = forward(changed, carry, new_ids[tokens], model=bigger)
    close(after[..., new_ids], before)


def test_weights_of_a_step_are_counted() -> None:
    sizes = V, E, H, 2
    inputs, recurrent = CELLS["gru"].count_weights(H, H)
    layers = 2 * recurrent + inputs
    for fields, readout in (
        ({}, H * V),
        ({"readout": "all"}, 2 * H * V),
        ({"output_embedding": "tied"}, H * E + E * V),
        ({"output_embedding": "tied", "readout": "all"}, 2 * H * E + E * V),
    ):
        assert count_step_weights(CharRNN(*sizes, **fields)) == layers + readout
    assert count_step_weights(CharRNN(V, H, H, output_embedding="tied")) == recurrent + H * V


def test_page_runs_tied_and_factored_models_and_refuses_other_connections(tmp_path: Path) -> None:
    settings = {"vocabulary": VOCABULARY, "dtype": "int8", "title": "", "description": ""}
    settings |= {"facts": {}, "prompt": "a"}
    for case in CASES:
        model, params, _, _ = make_case(case)
        file = tmp_path / "page.html"
        if (model.residual, model.readout) == ("none", "last"):
            write_page(file, params, model=model, **settings)
            file.unlink()
            continue
        with pytest.raises(UserError, match=r"residual='\w+' and readout='\w+'.* --format=folder"):
            write_page(file, params, model=model, **settings)
        assert not file.exists()
