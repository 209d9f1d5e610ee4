import hashlib
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn_jax.data import automata, corpora, sources
from charrnn_jax.data.automata import Source
from charrnn_jax.data.corpora import load_corpus
from charrnn_jax.data.sources import SOURCES, parse_source, usage
from charrnn_jax.errors import UserError

NAMES = [
    *("iid", "iid:3:seed=5", "markov:1:2", "markov:2", "golden-mean", "even", "noisy-period"),
    *("noisy-period:3:0.5", "repeat:1", "repeat:8", "repeat:3:4", "dyck:1", "dyck:4"),
    *("hidden-markov", "hidden-markov:seed=1"),
]
any_source = st.sampled_from([*NAMES, "dyck:100", "repeat:1000:26", "markov:10:2"])


def optimal_losses(source: Source, *texts: str) -> np.ndarray:
    return np.concatenate(list(source.optimal_losses(texts)))


@pytest.mark.parametrize("name", NAMES)
def test_mean_optimal_loss_is_the_entropy_rate(name: str) -> None:
    source = parse_source(name)
    losses = optimal_losses(source, source.generate(20_000))
    means = losses.reshape(100, -1).mean(1)
    error = means.std(ddof=1) / 10
    assert error < 0.01
    assert abs(losses.mean() - source.entropy_rate) < 3 * error + source.entropy_error + 1e-9


def test_entropy_rates_equal_the_closed_forms() -> None:
    def rate(name: str) -> float:
        return parse_source(name).entropy_rate

    two_thirds = 2 / 3 * math.log(2)
    assert rate("golden-mean") == pytest.approx(two_thirds, abs=1e-12)
    assert rate("even") == pytest.approx(two_thirds, abs=1e-12)
    noise = -0.2 * math.log(0.2) - 0.8 * math.log(0.8) + 0.2 * math.log(4)
    assert rate("noisy-period:5:0.2") == pytest.approx(noise, abs=1e-12)
    row = [p for p, _, _ in parse_source("iid:5").outcomes("")]
    assert rate("iid:5") == pytest.approx(-sum(p * math.log(p) for p in row), abs=1e-12)


@pytest.mark.parametrize(
    "name", ["repeat:1", "repeat:4:3", "repeat:6", "dyck:1", "dyck:2", "dyck:6"]
)
def test_formulas_equal_the_mean_over_the_stationary_distribution(name: str) -> None:
    source = parse_source(name)
    general = Source.entropy_rate.__get__(source)
    assert source.entropy_rate == pytest.approx(general, abs=1e-9)


def test_bounds_of_the_hidden_markov_source_close_around_its_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bounds = []
    for num_chars in (1, 3, 5, 7, 11):
        monkeypatch.setattr(sources, "_WORD_CHARS", num_chars)
        bounds.append(parse_source("hidden-markov").entropy_bounds)  # type: ignore[attr-defined]
    lows, highs = zip(*bounds, strict=True)
    assert list(lows) == sorted(lows)
    assert list(highs) == sorted(highs, reverse=True)
    assert 0 < highs[-1] - lows[-1] < 1e-5
    assert parse_source("hidden-markov").entropy_error < 5e-6


@pytest.mark.parametrize(
    ("name", "alphabet"),
    [
        *(("golden-mean", "01"), ("even", "01"), ("repeat:2", "ab\n"), ("dyck:2", "()[]")),
        *(("hidden-markov", "abc"), ("markov:2:3", "abc"), ("noisy-period:3", "abc")),
    ],
)
def test_probabilities_of_all_words_sum_to_one(name: str, alphabet: str) -> None:
    source, total = parse_source(name), 0.0
    for word in map("".join, itertools.product(alphabet, repeat=5)):
        try:
            total += math.exp(-optimal_losses(source, word).sum())
        except UserError:  # a word that cannot come from the source
            assert name in ("golden-mean", "even", "repeat:2", "dyck:2")
    assert total == pytest.approx(1)


def test_a_character_that_cannot_follow_is_named() -> None:
    with pytest.raises(UserError, match=r"^character 5 of the text, '0', cannot come from source:"):
        optimal_losses(parse_source("golden-mean"), "101", "00")


def test_forward_algorithm_equals_the_sum_over_all_paths() -> None:
    source = parse_source("hidden-markov")
    text = source.generate(7)

    def probability(state: int, rest: str) -> float:
        return not rest or sum(
            p * probability(following, rest[1:])
            for p, letter, following in source.outcomes(state)
            if letter == rest[0]
        )

    expected = [probability(0, text[:n]) for n in range(1, 8)]
    np.testing.assert_allclose(np.exp(-optimal_losses(source, text).cumsum()), expected, rtol=1e-12)


@settings(max_examples=40)
@given(any_source, st.integers(0, 300), st.integers(0, 300), st.sampled_from([1, 7, 100, 1 << 16]))
def test_a_longer_text_begins_with_the_shorter_one(
    name: str, short: int, more: int, block: int
) -> None:
    source = parse_source(name)
    text = source.generate(short + more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(automata, "_BLOCK_CHARS", block)
        pieces = list(source.blocks(short))
    assert "".join(pieces) == text[:short]
    assert len(text) == short + more
    whole = optimal_losses(source, text)
    np.testing.assert_array_equal(whole, optimal_losses(source, text[:short], text[short:]))


def test_texts_have_the_structure_of_their_sources() -> None:
    assert "00" not in parse_source("golden-mean").generate(2000)
    runs = parse_source("even").generate(2000).split("0")[:-1]
    assert {len(run) % 2 for run in runs} == {0}
    assert max(map(len, runs)) > 8
    for line in parse_source("repeat:5:3").generate(2200).splitlines():
        assert re.fullmatch(r"([abc]{5})\1", line)
    brackets = parse_source("dyck:3").generate(2001)
    depths = np.cumsum([1 if c in "([" else -1 for c in brackets])
    assert (depths.min(), depths.max()) == (0, 3)
    left = re.sub(r"[)\]].*", "", brackets)
    while brackets != (left := re.sub(r"\(\)|\[\]", "", brackets)):
        brackets = left
    assert len(left) <= 3


def test_texts_are_the_same_on_every_machine() -> None:
    """A change here makes every run on a source one of another text."""
    digests = {
        name: hashlib.sha256(parse_source(name).generate(5000).encode()).hexdigest()[:12]
        for name in ("iid", "markov:2:seed=1", "noisy-period", "repeat:8", "dyck:4", "even")
    }
    assert digests == {
        "iid": "46136a8af9c6",
        "markov:2:seed=1": "e7104b22e5a0",
        "noisy-period": "8e9532dc0d97",
        "repeat:8": "4ec177bb89b6",
        "dyck:4": "11857c63bc25",
        "even": "b229495f207e",
    }


def test_seeds_give_other_texts_and_other_probabilities() -> None:
    first, second = parse_source("even"), parse_source("even:seed=1")
    assert first.generate(50) != second.generate(50)
    assert first.entropy_rate == second.entropy_rate
    assert parse_source("markov").entropy_rate != parse_source("markov:seed=1").entropy_rate


@pytest.mark.parametrize("name", NAMES)
def test_full_name_names_the_same_source(name: str) -> None:
    source = parse_source(f"source:{name}")
    assert parse_source(source.full_name) == source
    assert source.full_name.startswith(f"source:{name.partition(':seed')[0]}")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("nothing", "there is no source 'nothing'; there are iid, markov, "),
        ("markov:x", "the order of 'source:markov:x' is 'x'; it must be a whole number"),
        ("markov:0", "the order of source:markov is 0; it must be from 1 to 10"),
        ("markov:3:26", r"has 26\*\*3 contexts"),
        ("noisy-period:8:nan", "is nan; it must be from"),
        ("even:3", r"too many arguments: give source:even\[:seed=N\]"),
        ("repeat:8:2:seed=-1", "the seed of source:repeat is -1"),
        ("repeat:seed=", "the seed of 'source:repeat:seed=' is ''"),
        ("markov:seed=1:2", "'seed=1'; it must be a whole number"),
    ],
)
def test_a_name_that_is_wrong_says_what_is_possible(name: str, error: str) -> None:
    with pytest.raises(UserError, match=error):
        load_corpus(f"source:{name}")


def test_usage_names_the_arguments() -> None:
    shown = [usage(kind) for kind in SOURCES.values()]
    assert "markov[:ORDER[:LETTERS]]" in shown
    assert "even" in shown


def test_a_source_is_a_corpus() -> None:
    corpus, text = (
        load_corpus("source:repeat:4", max_chars=777),
        parse_source("repeat:4").generate(777),
    )
    assert corpus.name == "source:repeat:4:2:seed=0"
    assert "".join(map(str, corpus.blocks())) == text
    assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()
    default = load_corpus("source:even")
    assert len("".join(map(str, default.blocks()))) == corpora.SOURCE_CHARS
    with pytest.raises(UserError, match="at most 100,000,000 characters"):
        load_corpus("source:even", max_chars=100_000_001)


def test_a_damaged_text_of_a_source_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = load_corpus("source:even", max_chars=500).paths
    before = file.read_bytes()
    file.write_bytes(before[::-1])
    assert load_corpus("source:even", max_chars=500).paths == (file,)
    assert file.read_bytes() == before
    monkeypatch.setattr(corpora, "_SOURCES_BYTES", 900)
    (other,) = load_corpus("source:even", max_chars=600).paths
    assert not file.exists()
    assert other.exists()


def test_a_cache_that_cannot_be_written_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write .*XDG_CACHE_HOME"):
        load_corpus("source:even", max_chars=100)
