import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import V, forward, make

from charrnn_jax.evaluation.metrics import CrossEntropy, cross_entropy
from charrnn_jax.evaluation.protocols import Carried, Cold, _most_characters, evaluate
from charrnn_jax.models.char_rnn import CharRNN


def naive_losses(params, tokens, *, model, window: int) -> list[float]:
    """One character after the other; the carry is zero again behind every `window` characters."""
    losses = []
    for i in range(len(tokens) - 1):
        if i % window == 0:
            carry = model.initialize_carry(1)
        carry, logits = forward(params, carry, jnp.array([[tokens[i]]]), model=model)
        losses.append(float(-jax.nn.log_softmax(logits[0, 0])[tokens[i + 1]]))
    return losses


@pytest.mark.parametrize("num_chars", [1, 5, 6, 12, 43])
@pytest.mark.parametrize("protocol", ["cold", "carried"])
def test_protocols_equal_the_naive_loop_and_count_every_character_once(
    protocol: str, num_chars: int
) -> None:
    model, params, _, _ = make("lstm", num_layers=2)
    tokens = np.random.default_rng(num_chars).integers(0, V, num_chars + 1)
    expected = naive_losses(params, tokens, model=model, window=6 if protocol == "cold" else 10**9)
    for batch_size in (1, 3, 64):
        record = Cold(window=6, batch_size=batch_size) if protocol == "cold" else Carried()
        pieces = list(record.losses(params, tokens, model=model))
        np.testing.assert_allclose(np.concatenate(pieces), expected, rtol=1e-4, atol=1e-5)
    result = evaluate(params, tokens, model=model, protocol=record)
    assert result.count == num_chars
    np.testing.assert_allclose(result.total, sum(expected), rtol=1e-5)


@pytest.mark.parametrize("num_characters", [1, 4, 6, 11, 20])
@pytest.mark.parametrize("protocol", [Cold(window=6), Carried()])
def test_losses_do_not_depend_on_how_many_logits_fit(
    protocol: Cold | Carried, num_characters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, params, _, _ = make("lstm")
    tokens = np.random.default_rng(0).integers(0, V, 44)
    whole = np.concatenate(list(protocol.losses(params, tokens, model=model)))
    monkeypatch.setattr("charrnn_jax.evaluation.protocols._LOGITS_BYTES", 4 * V * num_characters)
    pieces = list(protocol.losses(params, tokens, model=model))
    assert max(map(len, pieces)) <= num_characters
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-5, atol=1e-6)


def test_calls_are_as_large_as_ever_with_ordinary_vocabularies() -> None:
    """64 windows of 256 characters and segments of 1024, which decides about the last bits."""
    calls = _most_characters(CharRNN(4096, 1, 1)), _most_characters(CharRNN(20_000, 1, 1))
    assert calls[0] >= 64 * 256
    assert 1024 <= calls[1] < 4 * 1024


def test_carried_pass_goes_on_across_its_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    model, params, _, _ = make("gru")
    tokens = np.random.default_rng(0).integers(0, V, 60)
    whole = evaluate(params, tokens, model=model, protocol=Carried())
    monkeypatch.setattr("charrnn_jax.evaluation.protocols._SEGMENT", 7)
    pieces = evaluate(params, tokens, model=model, protocol=Carried())
    assert pieces.count == whole.count == 59
    np.testing.assert_allclose(pieces.total, whole.total, rtol=1e-6)


def test_cross_entropy_is_minus_log_softmax_at_the_target() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, V)) * 50, jnp.float32)
    targets = jnp.array([[0, 1, 2], [3, 4, V - 1]])
    expected = -np.take_along_axis(
        np.asarray(jax.nn.log_softmax(logits)), np.asarray(targets)[..., None], -1
    )[..., 0]
    np.testing.assert_allclose(cross_entropy(logits, targets), expected, rtol=1e-6, atol=1e-5)


def test_large_perplexities_are_short_and_not_bounded() -> None:
    shown = [CrossEntropy(nats, 1).describe_perplexity() for nats in (1.5, 13.8, 13.9, 1000.0)]
    assert shown == ["4.482", "984609.111", "1.088e+06", "1.970e+434"]
    assert CrossEntropy(float("nan"), 1).describe_perplexity() == "nan"


def test_units_and_sums() -> None:
    loss = CrossEntropy(np.log(8.0), 1) + CrossEntropy(np.log(2.0), 1)
    np.testing.assert_allclose(
        [loss.nats_per_char, loss.bits_per_char, loss.perplexity], [np.log(4.0), 2.0, 4.0]
    )
    assert np.isnan(CrossEntropy(0.0, 0).nats_per_char)
