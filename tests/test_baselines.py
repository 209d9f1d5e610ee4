import bz2
import gzip
import lzma
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.evaluation import baselines
from charrnn_jax.evaluation.baselines import compressor_baselines, fit_ngram, ngram_baselines
from charrnn_jax.evaluation.compressors import available_compressors, compressed_sizes
from charrnn_jax.evaluation.interpolation import Tuner, best_weight, interpolate
from charrnn_jax.evaluation.ngram import KneserNey
from charrnn_jax.evaluation.protocols import Carried, Cold, Protocol
from charrnn_jax.generation.counted import _draw, generate_counted
from charrnn_jax.models.char_rnn import CharRNN, Params

ABC = Vocabulary("abcdefgh")


def noise(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, ABC.size, length)


# --- compressors --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd", "ppmd-6"])
def test_what_a_compressor_writes_can_be_read_again(name: str) -> None:
    text = b"the same words, " * 200
    readers = {"gzip": gzip.decompress, "bzip2": bz2.decompress, "xz": lzma.decompress}
    if name == "zstd":
        readers[name] = pytest.importorskip("zstandard").decompress
    elif name == "ppmd-6":
        pyppmd = pytest.importorskip("pyppmd")
        readers[name] = lambda data: pyppmd.decompress(data, max_order=6, mem_size=256 << 20)
    packed = available_compressors()[name](text)
    assert readers[name](packed) == text
    assert len(packed) < len(text) / 10


def test_a_compressor_spends_little_on_what_it_has_just_read() -> None:
    text = np.random.default_rng(0).bytes(20_000)
    alone, again = compressed_sizes(text), compressed_sizes(text, before=text)
    assert {"gzip", "bzip2", "xz"} <= again.keys() == alone.keys()
    for name in ("gzip", "xz"):
        assert again[name] < 0.02 * alone[name]
        assert alone[name] > len(text)  # noise alone has nothing to compress


def test_compressed_characters_are_bits_of_utf_8_and_cut_texts_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vocabulary = Vocabulary("aé漢")
    text = np.random.default_rng(0).integers(1, 4, 3000)
    train, tokens = text[:1000], text[999:]
    best, *others = compressor_baselines(train, tokens, vocabulary=vocabulary)
    sizes = compressed_sizes(
        vocabulary.decode(tokens[1:]).encode(), before=vocabulary.decode(train).encode()
    )
    assert best.loss.count == 2000
    assert best.loss.bits_per_char == pytest.approx(8 * min(sizes.values()) / 2000)
    assert [row.note for row in (best, *others)] == [""] * len(sizes)
    monkeypatch.setattr(baselines, "_COMPRESSED", (600, 500))
    best, *_ = compressor_baselines(train, tokens, vocabulary=vocabulary)
    assert best.loss.count == 500
    assert best.note == (
        "the last 600 of 1,000 characters of train and the first 500 characters of the split"
    )
    assert compressor_baselines(train, tokens[:3], vocabulary=vocabulary) == []  # all headers


def test_bytes_are_compressed_as_they_are() -> None:
    vocabulary = Vocabulary(kind="bytes")
    content = np.random.default_rng(0).bytes(1000)
    tokens = vocabulary.encode(b"x" + content)
    rows = compressor_baselines(vocabulary.encode(content), tokens, vocabulary=vocabulary)
    assert {row.label for row in rows} == {"bzip2"} | {
        name for name, size in compressed_sizes(content, before=content).items() if size >= 100
    }


# --- the n-gram model beside protocols ----------------------------------------------------------


def test_each_protocol_has_the_row_with_its_context() -> None:
    class Other(Protocol):
        name = "other"

    train, tokens = noise(500), noise(80, seed=1)
    ngram, note = fit_ngram(train, vocabulary=ABC, order=2)
    assert note == ""
    rows = ngram_baselines(ngram, tokens, protocols=[Cold(window=7), Other(), Carried()])
    expected = {
        "kneser-ney-2 cold-7": ngram.losses(tokens, window=7),
        "kneser-ney-2 carried": ngram.losses(tokens),
        "kneser-ney-2 updated while reading": ngram.losses_while_reading(tokens),
    }
    assert {row.label: row.loss.total for row in rows} == pytest.approx(
        {label: losses.sum() for label, losses in expected.items()}
    )
    assert {row.loss.count for row in rows} == {79}


def test_a_large_training_text_is_cut_to_its_end_and_the_note_says_so() -> None:
    train, tokens = noise(500), noise(80, seed=1)
    ngram, note = fit_ngram(train, vocabulary=ABC, most=200)
    assert note == "the last 200 of 500 characters of train"
    part = KneserNey.fit(train[300:], vocabulary_size=ABC.size)
    np.testing.assert_array_equal(ngram.losses(tokens), part.losses(tokens))


# --- interpolation ------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=20),
    st.floats(0, 1),
)
def test_the_best_weight_is_at_least_as_good_as_any_other(
    losses: list[tuple[float, float]], weight: float
) -> None:
    first, second = np.array(losses).T
    best = best_weight(first, second)
    mixed = interpolate(first, second, weight=weight)
    np.testing.assert_allclose(
        np.exp(-mixed), weight * np.exp(-first) + (1 - weight) * np.exp(-second), rtol=1e-9
    )
    assert interpolate(first, second, weight=best).mean() <= mixed.mean() + 1e-6


def test_the_weight_is_chosen_on_the_end_of_train_with_counts_of_the_rest() -> None:
    network = np.random.default_rng(0).exponential(2.0, 30)
    scored = []

    class Fixed(Carried):
        def losses(
            self, params: Params, tokens: np.ndarray, *, model: CharRNN
        ) -> Iterator[np.ndarray]:
            scored.append(tokens)
            yield network

    train = noise(300)
    tuner = Tuner.make(train, order=2, vocabulary_size=ABC.size)
    weight = tuner.weight({}, model=CharRNN(ABC.size, 1, 1), protocol=Fixed())
    np.testing.assert_array_equal(scored, [train[269:]])
    rest = KneserNey.fit(train[:270], order=2, vocabulary_size=ABC.size)
    assert weight == best_weight(network, rest.losses(train[269:]))
    assert 0 < weight < 1


# --- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_characters_are_drawn_from_the_distribution_at_the_temperature(temperature: float) -> None:
    p = np.array([0.4, 0.3, 0.2, 0.1])
    rng = np.random.default_rng(0)
    drawn = [_draw(p, temperature=temperature, rng=rng) for _ in range(8000)]
    expected = p ** (1 / temperature) * [0, 1, 1, 1]  # [UNK] is never drawn
    frequencies = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(frequencies, expected / expected.sum(), atol=0.02)


def test_generated_text_depends_on_seed_and_prompt_and_not_on_the_other_texts() -> None:
    ngram = KneserNey.fit(ABC.encode("abcabdabe" * 20), order=3, vocabulary_size=ABC.size)
    settings = {"vocabulary": ABC, "num_chars": 40}
    (alone,) = generate_counted(ngram, ["ab"], **settings)
    batch = generate_counted(ngram, ["c", "ab", "ab"], **settings)
    assert batch[1] == alone
    assert batch[2] != alone
    assert generate_counted(ngram, ["ab"], seed=1, **settings) != [alone]
    tokens = ABC.encode(alone.prompt + alone.text)
    assert UNK_ID not in tokens
    # The text is conditioned on the prompt, and its loss is the model's own.
    assert alone.nats_per_char == pytest.approx(ngram.losses(tokens)[1:].mean())
    (likeliest,) = generate_counted(ngram, ["ab"], temperature=0, **settings)
    tokens = ABC.encode(likeliest.prompt + likeliest.text).tolist()
    for end in range(2, len(tokens)):
        assert tokens[end] == ngram.distribution(tokens[:end]).argmax()


def test_units_of_a_baseline() -> None:
    (row, *_) = compressor_baselines(noise(2000), noise(2001, seed=1), vocabulary=ABC)
    data = row.to_dict()
    assert data["num_chars"] == 2000
    assert data["bits_per_char"] == pytest.approx(data["nats_per_char"] / math.log(2))
    assert data["bits_per_char"] == pytest.approx(3, rel=0.2)  # eight equally likely characters
