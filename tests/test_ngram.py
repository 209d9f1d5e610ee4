"""The model counts by sorting; the tests count with dictionaries, one character after the other."""

import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.ngram import KneserNey

Gram = tuple[int, ...]
SHAKESPEARE = Path(os.environ.get("CHARRNN_DATA_DIR", ".")) / "shakespeare.txt"


class Textbook:
    """Interpolated modified Kneser-Ney, written as the equations are read."""

    def __init__(self, texts: Sequence[Sequence[int]], *, order: int, vocabulary_size: int):
        self.order, self.size = order, vocabulary_size
        self.occurs: Counter[Gram] = Counter()
        for text in texts:
            self.add(text)
        self.discounts = [self._discounts(length) for length in range(1, order + 2)]

    def add(self, text: Sequence[int], *, only_end: bool = False) -> None:
        """Counts all grams of a text, or only those that end with it."""
        for end in [len(text)] if only_end else range(1, len(text) + 1):
            for length in range(1, min(self.order + 1, end) + 1):
                self.occurs[tuple(text[end - length : end])] += 1

    def counts(self, length: int) -> Counter[Gram]:
        if length == self.order + 1:
            return Counter({gram: n for gram, n in self.occurs.items() if len(gram) == length})
        before = defaultdict(set)
        for gram in self.occurs:
            if len(gram) == length + 1:
                before[gram[1:]].add(gram[0])
        return Counter({gram: len(different) for gram, different in before.items()})

    def _discounts(self, length: int) -> list[float]:
        n = Counter(self.counts(length).values())
        discounts = [0.0]
        for k in (1, 2, 3):
            discount = math.nan
            if n[k] and n[1] + 2 * n[2]:
                discount = k - (k + 1) * n[1] / (n[1] + 2 * n[2]) * n[k + 1] / n[k]
            discounts.append(discount if 0 < discount < k else k / 2)
        return discounts

    def probability(self, token: int, context: Sequence[int]) -> float:
        context = tuple(context)[len(context) - min(len(context), self.order) :]
        return self._probability(token, context, len(context) + 1)

    def _probability(self, token: int, context: Gram, length: int) -> float:
        if length == 0:
            return 1 / self.size
        shorter = self._probability(token, context[1:], length - 1)
        counts = self.counts(length)
        after = {gram: n for gram, n in counts.items() if gram[:-1] == context}
        if not after:
            return shorter
        discount = self.discounts[length - 1]
        freed = sum(discount[min(n, 3)] for n in after.values())
        count = after.get((*context, token), 0)
        return (count - discount[min(count, 3)] + freed * shorter) / sum(after.values())


def texts(max_size: int) -> st.SearchStrategy[list[int]]:
    """Of ids 1 to 3 in long repetitions, and now and then of a rare 4; V is 6."""
    return st.lists(st.sampled_from([1, 1, 1, 2, 2, 3, 4]), max_size=max_size)


@given(train=texts(60), text=texts(12), order=st.integers(0, 4), window=st.integers(1, 6))
def test_losses_are_those_of_the_textbook(
    train: list[int], text: list[int], order: int, window: int
) -> None:
    model = KneserNey.fit(train, order=order, vocabulary_size=6)
    slow = Textbook([train], order=order, vocabulary_size=6)
    expected = [-math.log(slow.probability(text[i], text[:i])) for i in range(1, len(text))]
    np.testing.assert_allclose(model.losses(text), expected, rtol=1e-9)
    for i in range(1, len(text)):
        start = (i - 1) // window * window
        expected[i - 1] = -math.log(slow.probability(text[i], text[start:i]))
    np.testing.assert_allclose(model.losses(text, window=window), expected, rtol=1e-9)


@given(train=texts(40), text=texts(20), order=st.integers(0, 4))
def test_losses_while_reading_are_those_of_a_model_that_counts_after_every_character(
    train: list[int], text: list[int], order: int
) -> None:
    model = KneserNey.fit(train, order=order, vocabulary_size=6)
    slow = Textbook([train], order=order, vocabulary_size=6)
    expected = []
    for i in range(1, len(text)):
        expected.append(-math.log(slow.probability(text[i], text[:i])))
        slow.add(text[: i + 1], only_end=True)
    np.testing.assert_allclose(model.losses_while_reading(text), expected, rtol=1e-9)


@given(train=texts(60), context=texts(8), order=st.integers(0, 4))
def test_distribution_sums_to_one_and_agrees_with_the_losses(
    train: list[int], context: list[int], order: int
) -> None:
    model = KneserNey.fit(train, order=order, vocabulary_size=6)
    p = model.distribution(context)
    assert abs(p.sum() - 1) < 1e-12
    assert p.min() > 0  # also of ids that do not occur
    if context:
        losses = [model.losses([*context, token])[-1] for token in range(6)]
        np.testing.assert_allclose(p, np.exp(np.negative(losses)), rtol=1e-9)


def test_a_large_vocabulary_and_a_high_order_do_not_overflow() -> None:
    """20,000 ** 13 is far above 64 bits; every character of a repeated text becomes certain."""
    text = np.random.default_rng(0).permutation(20_000)
    model = KneserNey.fit(np.tile(text, 2), order=12, vocabulary_size=20_000)
    p = model.distribution(text[:12])
    assert p.argmax() == text[12]
    assert abs(p.sum() - 1) < 1e-9
    assert model.losses(text)[12:].max() < 0.7
    assert abs(KneserNey.fit(text, vocabulary_size=20_000).distribution([]).sum() - 1) < 1e-9


def test_losses_do_not_depend_on_how_many_are_scored_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = np.random.default_rng(0).integers(0, 4, 300)
    model = KneserNey.fit(text[:200], order=3, vocabulary_size=5)
    whole = model.losses(text), model.losses(text, window=7)
    monkeypatch.setattr("charrnn_jax.evaluation.ngram._SEGMENT", 11)
    np.testing.assert_array_equal(model.losses(text), whole[0])
    np.testing.assert_array_equal(model.losses(text, window=7), whole[1])


def test_wrong_arguments_are_refused() -> None:
    for order in (-1, 33):
        with pytest.raises(UserError, match=f"order of an n-gram model is {order}: it must be"):
            KneserNey.fit([1, 2], order=order, vocabulary_size=3)
    with pytest.raises(ValueError, match="from 0 to 2; got 1 to 3"):
        KneserNey.fit([1, 3], vocabulary_size=3)
    with pytest.raises(ValueError, match="from 0 to 2; got -1 to 0"):
        KneserNey.fit([1, 2], vocabulary_size=3).losses([0, -1])


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="needs shakespeare.txt")
def test_tiny_shakespeare_has_the_losses_of_the_documentation() -> None:
    """Carried, cold-256 and updated while reading; validation is the last tenth."""
    text = SHAKESPEARE.read_text(encoding="utf-8")
    vocabulary = Vocabulary.build([text])
    tokens = vocabulary.encode(text)
    end = int(len(tokens) * 0.9)
    model = KneserNey.fit(tokens[:end], order=6, vocabulary_size=vocabulary.size)
    validation = tokens[end - 1 :]
    assert model.losses(validation).mean() == pytest.approx(1.5165, abs=1e-4)
    assert model.losses(validation, window=256).mean() == pytest.approx(1.5299, abs=1e-4)
    assert model.losses_while_reading(validation).mean() == pytest.approx(1.4070, abs=1e-4)
