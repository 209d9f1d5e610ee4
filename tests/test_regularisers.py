"""Regularisation of the forward pass, against PyTorch and what the docstrings promise."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from flax.traverse_util import flatten_dict
from helpers import B, E, H, T, V, assert_bitwise_equal, make, slow
from ml_collections import ConfigDict

import charrnn_jax
from charrnn_jax.data.batches import Batch
from charrnn_jax.errors import UserError
from charrnn_jax.models import dropout, weight_dropout
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.char_rnn import CharRNN, forward, forward_in_training
from charrnn_jax.models.regularisers import Activations, Regulariser
from charrnn_jax.models.regularisers.activation_penalty import ActivationPenalty
from charrnn_jax.models.regularisers.temporal_penalty import TemporalPenalty
from charrnn_jax.models.weight_dropout import drop_weights
from charrnn_jax.training.train_step import TrainState, create_train_state, train_step

ALL = {  # every rate of the model, each another one
    "embedding_dropout": 0.1,
    "input_dropout": 0.2,
    "dropout": 0.25,
    "output_dropout": 0.4,
    "weight_dropout": 0.3,
}
PENALTIES = ActivationPenalty(2.0), TemporalPenalty(1.0)


def batch_of(tokens: jax.Array) -> Batch:
    rng = np.random.default_rng(5)
    targets = rng.integers(0, V, tokens.shape).astype(np.int32)
    return Batch(tokens, targets, resets=np.zeros(len(tokens), bool))


def state_of(model: CharRNN, params: Any, carry: Any, regularisers: Any) -> TrainState:
    state = create_train_state(
        model,
        optax.sgd(1.0),
        seed=0,
        batch_size=B,
        regularisers=regularisers,
    )
    return state.replace(params=params, carry=carry, step=jnp.int32(1))


def test_no_compiled_program_can_be_that_of_another_regulariser() -> None:
    one, other = map(jax.tree.structure, (ActivationPenalty(1.0), TemporalPenalty(1.0)))
    assert one != other
    assert one == jax.tree.structure(jax.tree.map(jnp.array, ActivationPenalty(2.0)))


def test_awd_lstm_equals_pytorch_with_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss with all its noise and penalties, and the gradient of every parameter."""
    torch = pytest.importorskip("torch")
    drawn: list[jax.Array] = []

    def remembering(draw: Any) -> Any:
        def draw_and_keep(*args: Any) -> jax.Array:
            drawn.append(draw(*args))
            return drawn[-1]

        return draw_and_keep

    monkeypatch.setattr(dropout.jax.random, "bernoulli", remembering(jax.random.bernoulli))
    monkeypatch.setattr(weight_dropout, "bernoulli", remembering(dropout.bernoulli))
    model, params, carry, tokens = make("lstm", 2, dropout_noise="locked", **ALL)
    batch = batch_of(tokens)

    @jax.jit
    def step(state: TrainState, batch: Batch) -> Any:
        return *train_step(state, batch), drawn

    new, metrics, masks = step(state_of(model, params, carry, PENALTIES), batch)
    gradient = jax.tree.map(jnp.subtract, params, new.params)

    leaves = {
        path: torch.tensor(np.array(leaf), requires_grad=True)
        for path, leaf in flatten_dict(params).items()
    }

    def scaled(index: int, rate: float) -> Any:
        return torch.tensor(np.array(masks[index])) / (1 - rate)

    dropped = dict(leaves)
    for index, (layer, gate) in enumerate((i, g) for i in (0, 1) for g in ("hf", "hg", "hi", "ho")):
        path = (f"layers_{layer}", "cell", gate, "kernel")
        dropped[path] = leaves[path] * scaled(index, 0.3)
    shapes = [mask.shape for mask in masks[8:]]
    assert shapes == [(V, 1), (B, 1, E), (B, 1, H), (B, 1, H)]
    table = leaves["embedding", "embedding"] * scaled(8, 0.1)
    x = table[torch.tensor(np.array(tokens)).long()] * scaled(9, 0.2)
    for layer, rate in enumerate((0.25, 0.4)):
        p = {path[2:]: leaf for path, leaf in dropped.items() if path[0] == f"layers_{layer}"}
        c, h = (torch.tensor(np.array(leaf)) for leaf in carry[layer])
        steps = []
        for t in range(T):
            gates = {
                g: x[:, t] @ p["i" + g, "kernel"] + h @ p["h" + g, "kernel"] + p["h" + g, "bias"]
                for g in "ifgo"
            }
            i, f, o = (torch.sigmoid(gates[g]) for g in "ifo")
            c = f * c + i * torch.tanh(gates["g"])
            h = o * torch.tanh(c)
            steps.append(h)
        raw = torch.stack(steps, 1)
        x = raw * scaled(10 + layer, rate)
    logits = x @ leaves["dense", "kernel"] + leaves["dense", "bias"]
    targets = torch.tensor(batch.targets).long()
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, V), targets.reshape(-1))
    # As in main.py of salesforce/awd-lstm-lm, where time comes first.
    total = loss + 2.0 * x.pow(2).mean() + 1.0 * (raw[:, 1:] - raw[:, :-1]).pow(2).mean()
    total.backward()
    np.testing.assert_allclose(metrics["loss"].nats_per_char, loss.item(), rtol=1e-5)
    for path, ours in flatten_dict(gradient).items():
        np.testing.assert_allclose(ours, leaves[path].grad, rtol=1e-4, atol=1e-6, err_msg=str(path))


@pytest.mark.parametrize("cell", ["gru", slow("lstm"), slow("rnn"), slow("layer_norm_lstm")])
def test_fused_and_scan_draw_the_same_noise(cell: str) -> None:
    model, params, carry, tokens = make(cell, 2, **ALL)

    @jax.jit
    def results(params: Any, carry: Any) -> Any:
        def loss(params: Any, form: str) -> jax.Array:
            now = model.clone(implementation=form)
            _, logits = forward(params, carry, tokens, model=now, dropout_key=jax.random.key(3))
            return jnp.square(logits).mean()

        return [jax.value_and_grad(loss)(params, form) for form in ("fused", "scan")]

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(close, *results(params, carry))


def test_weights_are_dropped_at_the_rate_and_scaled_and_no_others() -> None:
    """Every kernel of every layer has a mask of its own; the next key gives others."""
    model = CharRNN(V, 30, 40, 2)
    shapes = jax.eval_shape(lambda: charrnn_jax.initialize_params(model, jax.random.key(0)))
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    drop = jax.jit(lambda rate, key: drop_weights(ones, cell=CELLS["gru"], rate=rate, key=key))
    first, second = (flatten_dict(drop(0.3, jax.random.key(seed))) for seed in (1, 2))
    masks = []
    for path, leaf in first.items():
        if path[-2] not in ("hr", "hz", "hn") or path[-1] != "kernel":
            np.testing.assert_array_equal(leaf, 1)
            continue
        assert set(np.unique(leaf)) == {0, np.float32(1 / (1 - np.float32(0.3)))}
        masks += [np.array(leaf) > 0, np.array(second[path]) > 0]
    assert len(masks) == 12
    together = np.stack(masks).reshape(12, -1)
    np.testing.assert_allclose(together.mean(), 0.7, atol=0.02)
    correlations = np.corrcoef(together) - np.eye(12)
    assert np.abs(correlations).max() < 0.15  # of 1,600 numbers each


def test_embedding_dropout_drops_whole_characters_for_all_sequences() -> None:
    """Where the embedding is all that is read, a dropped character is a zero embedding."""
    model, params, carry, _ = make("rnn", 1, embedding_dropout=0.5)
    tokens = jnp.tile(jnp.arange(V), (B, 1))
    zero_h = jax.tree.map(jnp.zeros_like, params["layers_0"]["cell"]["h"])
    cell = {**params["layers_0"]["cell"], "h": {**zero_h}}
    params = {**params, "layers_0": {"cell": cell}}
    run = lambda **kwargs: forward_in_training(params, carry, tokens, **kwargs)[1]  # noqa: E731
    dropped = run(model=model, key=jax.random.key(1)).outputs[0]  # [B, V, H]
    np.testing.assert_array_equal(dropped, jnp.broadcast_to(dropped[:1], dropped.shape))
    table = params["embedding"]["embedding"]
    is_zero = np.isclose(dropped[0], jnp.zeros(()), atol=1e-6).all(-1)
    kept = jnp.tanh(2 * table @ cell["i"]["kernel"] + cell["i"]["bias"][None])
    empty = jnp.tanh(cell["i"]["bias"])[None]
    is_empty = np.isclose(dropped[0], empty, atol=1e-5).all(-1)
    assert 0 < is_empty.sum() < V
    assert not is_zero.any()
    np.testing.assert_allclose(dropped[0][~is_empty], kept[~is_empty], rtol=1e-4, atol=1e-5)


def test_output_dropout_is_the_rate_of_the_last_layer_alone() -> None:
    model, params, carry, tokens = make("rnn", 2, dropout=0.5)
    key = jax.random.key(0)

    def dropped(**fields: Any) -> list[bool]:
        _, now = forward_in_training(params, carry, tokens, model=model.clone(**fields), key=key)
        return [bool((layer == 0).any()) for layer in now.dropped]

    assert dropped() == [True, True]
    assert dropped(output_dropout=0.0) == [True, False]
    assert dropped(dropout=0.0, output_dropout=0.5) == [False, True]


# --- your own -----------------------------------------------------------------------------------


@struct.dataclass
class Everything(Regulariser):
    """Uses each hook in a way that can be computed by hand."""

    def transform_params(self, params: Any, *, key: jax.Array) -> Any:
        return {**params, "dense": jax.tree.map(lambda leaf: 2 * leaf, params["dense"])}

    def transform_output(self, output: jax.Array, *, layer: int, key: jax.Array) -> jax.Array:
        return output + jax.random.normal(key, output.shape) * (layer + 1)

    def penalty(self, activations: Activations, *, params: Any) -> jax.Array:
        return activations.logits.mean() + params["dense"]["bias"].sum()


def test_own_regulariser_changes_what_it_says_and_its_penalty_is_minimised() -> None:
    model, params, carry, tokens = make("rnn", 2)
    regulariser = Everything()
    run = {"model": model, "key": jax.random.key(4)}
    _, now = forward_in_training(params, carry, tokens, **run, regularisers=(regulariser,))
    _, plain = forward_in_training(params, carry, tokens, **run)
    np.testing.assert_array_equal(now.outputs[0], plain.outputs[0])
    noise = [np.array(now.dropped[i] - now.outputs[i]) for i in (0, 1)]
    np.testing.assert_allclose([noise[i].std() for i in (0, 1)], (1, 2), rtol=0.2)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.2
    kernel, bias = (2 * params["dense"][name] for name in ("kernel", "bias"))
    np.testing.assert_allclose(now.logits, now.dropped[1] @ kernel + bias[None, None], rtol=1e-4)

    step = jax.jit(train_step)
    batch = batch_of(tokens)
    with_it, metrics = step(state_of(model, params, carry, (regulariser,)), batch)
    twice, same = step(state_of(model, params, carry, (regulariser, Everything())), batch)
    assert metrics["loss"].nats_per_char != same["loss"].nats_per_char  # of other noise
    # The gradient of the biases: a mean that each logit's bias is in, doubled, and the sum.
    _, alone = jax.jit(
        lambda params: jax.value_and_grad(
            lambda params: charrnn_jax.cross_entropy(
                forward_in_training(
                    params,
                    carry,
                    tokens,
                    model=model,
                    key=jax.random.fold_in(with_it.key, 1),
                    regularisers=(regulariser,),
                )[1].logits,
                batch.targets,
            ).mean()
        )(params)
    )(params)
    expected = alone["dense"]["bias"] + 2 / V + 1
    actual = params["dense"]["bias"] - with_it.params["dense"]["bias"]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
    assert twice.params.keys() == params.keys()


@pytest.mark.usefixtures("own_registries")
def test_what_is_no_regulariser_is_refused_before_anything_is_written(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    class NoDataclass(Regulariser):
        pass

    makers = {"function": lambda _: print, "object": lambda _: NoDataclass()}
    messages = {"function": "subclass of charrnn_jax.Regulariser", "object": "struct.dataclass"}
    for name, maker in makers.items():
        charrnn_jax.register_regulariser(name, maker)
        tiny_config.train.regularisers = name
        with pytest.raises(UserError, match=messages[name]):
            charrnn_jax.train(tiny_config, tmp_path / "run")
    tiny_config.train.regularisers = "unknown"
    with pytest.raises(UserError, match="no such regulariser is registered"):
        charrnn_jax.train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("own_registries")
def test_regularised_run_resumes_bit_for_bit_and_is_used_without_its_code(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    charrnn_jax.register_regulariser("mine", lambda _: Everything())
    tiny_config.model.update(cell="rnn", **ALL)
    tiny_config.train.update(regularisers="mine", activation_penalty=2.0, temporal_penalty=1.0)
    tiny_config.train.num_steps = 6
    whole = charrnn_jax.train(tiny_config, tmp_path / "whole")
    tiny_config.train.num_steps = 3
    charrnn_jax.train(tiny_config, tmp_path / "parts")
    tiny_config.train.num_steps = 6
    assert_bitwise_equal(charrnn_jax.train(tiny_config, tmp_path / "parts"), whole)
    charrnn_jax.registry.REGULARISERS._registered.clear()
    run = charrnn_jax.load_run(tmp_path / "whole")
    sampler = charrnn_jax.Sampler(run.params, model=run.model, vocabulary=run.vocabulary)
    assert len(sampler.generate(["The "], num_chars=9)[0].text) == 9


def test_penalty_of_changes_is_zero_where_there_is_one_step() -> None:
    outputs = (jnp.ones((2, 1, 3)),)
    activations = Activations(outputs, outputs, jnp.zeros((2, 1, 4)))
    assert TemporalPenalty(1.0).penalty(activations, params={}) == 0
