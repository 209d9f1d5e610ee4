import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn_jax.data.corpora import cached_file
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.contamination import shared_share
from charrnn_jax.evaluation.copies import copied_spans, longest_matches, overlap
from charrnn_jax.evaluation.samples import (
    FIGURES,
    Judgement,
    distinct_share,
    far_above,
    judge,
    known_share,
    split_words,
)

SYLLABLES = ["ka", "lo", "mi", "ter", "su", "ven", "dor", "pi"]


def language(num_words: int, seed: int, *, first: int = 0) -> str:
    """Words of an own vocabulary; a rare word is new to every text with another `first`."""
    rng = np.random.default_rng(seed)
    common = np.random.default_rng(0)
    lexicon = ["".join(common.choice(SYLLABLES, size=3)) for _ in range(300)]
    ranks = np.minimum(rng.zipf(1.3, size=num_words), 320)
    return " ".join(lexicon[r - 1] if r <= 300 else f"rare{first + i}" for i, r in enumerate(ranks))


TRAIN, REAL = language(8000, 1), language(4000, 2, first=10**6)

# --- copies -------------------------------------------------------------------------------------

small = st.text("ab漢\U0001f642", max_size=14)
source = st.text("abc漢", max_size=30)
few = settings(max_examples=50)


@few
@given(st.lists(small, min_size=1, max_size=3), source)
def test_longest_matches_equal_a_search_by_hand(texts: list[str], train: str) -> None:
    for text, matches in zip(texts, longest_matches(texts, train), strict=True):
        assert len(matches.lengths) == len(matches.places) == len(text)
        for start, length in enumerate(matches.lengths.tolist()):
            longest = max(
                n for n in range(len(text) - start + 1) if text[start : start + n] in train
            )
            assert length == longest
            place = int(matches.places[start])
            assert train[place : place + length] == text[start : start + length]


@few
@given(small, source, st.integers(1, 4))
def test_copied_spans_are_all_copies_that_cannot_be_longer(text: str, train: str, n: int) -> None:
    (matches,) = longest_matches([text], train)
    expected = {
        (i, j)
        for i in range(len(text))
        for j in range(i + n, len(text) + 1)
        if text[i:j] in train
        and not (i and text[i - 1 : j] in train)
        and not (j < len(text) and text[i : j + 1] in train)
    }
    spans = copied_spans(matches, at_least=n)
    assert [(span.start, span.start + span.length) for span in spans] == sorted(expected)


@few
@given(st.text("ab漢", min_size=8, max_size=20), source, st.integers(1, 8))
def test_overlap_is_the_share_of_ngrams_in_the_training_text(text: str, train: str, n: int) -> None:
    own, other = (longest_matches([text], other)[0] for other in (text, train))
    assert overlap(own, n) == 1
    ngrams = [text[i : i + n] for i in range(len(text) - n + 1)]
    assert overlap(other, n) == pytest.approx(np.mean([ngram in train for ngram in ngrams]))


def test_a_text_shorter_than_an_ngram_has_no_overlap() -> None:
    assert math.isnan(overlap(longest_matches(["ab"], "abc")[0], 3))


# --- figures ------------------------------------------------------------------------------------


def test_words_are_runs_of_letters_marks_digits_and_apostrophes() -> None:
    assert split_words("'Tis I, Bob_2--don\u2019t!\n") == ["'Tis", "I", "Bob_2", "don\u2019t"]
    assert split_words("नमस्ते दुनिया, cafe\u0301") == ["नमस्ते", "दुनिया", "cafe\u0301"]
    assert split_words("日本です。ABCは、한국어 말") == [*"日本です", "ABC", "は", "한국어", "말"]
    assert split_words(" ... \n") == []


def test_shares_of_words() -> None:
    words = list("ababc")
    assert known_share(words, {"a", "c"}) == 3 / 5
    assert known_share([], {"a"}) == 0
    assert [distinct_share(words, n, num_words=5) for n in (1, 2, 3)] == [3 / 5, 3 / 4, 1]
    assert distinct_share(words, 1, num_words=4) == 1 / 2
    assert distinct_share(words, 3, num_words=2) == 0


def test_a_share_is_far_above_another_at_twice_as_much_but_never_above_one() -> None:
    assert far_above(0) == 0.01
    assert far_above(0.1) == pytest.approx(0.21)
    shares = [far_above(share) for share in np.linspace(0, 1, 50).tolist()]
    assert all(a < b for a, b in pairwise(shares))
    assert far_above(1) == 1


@pytest.fixture(scope="module")
def judged() -> Judgement:
    rng = np.random.default_rng(0)
    blocks = [language(400, seed, first=10**7)[:2000] for seed in (3, 4, 5, 6)]
    noise = ["".join(rng.permutation(list(block))) for block in blocks]
    words = [word for word in " ".join(blocks).split() if word in TRAIN]
    loops = [" ".join(words[i : i + 9]) * 60 for i in (0, 9, 18, 27)]
    half_new = [" ".join(f"{w} x{i}" for i, w in enumerate(b.split()))[:2000] for b in blocks]
    groups = {
        "own": blocks,
        "copied": [TRAIN[i : i + 2000] for i in (0, 5000, 9000, 20_000)],
        "partly copied": [TRAIN[i : i + 400] + b[400:] for i, b in enumerate(blocks)],
        "noise": noise,
        "loops": [loop[:2000] for loop in loops],
        "breaks": ["\n" * 2000] * 4,
        "half new": half_new,
    }
    return judge(groups, training_text=TRAIN, real_text=REAL)


def test_a_verdict_says_what_is_wrong(judged: Judgement) -> None:
    verdicts = {name: group.verdict for name, group in judged.groups.items()}
    assert verdicts["own"] == "like real text"
    assert verdicts["copied"] == "memorised"
    assert verdicts["partly copied"] == "memorised"
    assert verdicts["noise"] == verdicts["half new"] == "gibberish"
    assert verdicts["loops"] == "repeats itself"
    assert verdicts["breaks"] == "repeats itself, gibberish"
    assert all(group.reasons for name, group in judged.groups.items() if name != "own")
    assert set(judged.real.figures) == set(FIGURES)


def test_the_longest_copy_is_named_with_its_place(judged: Judgement) -> None:
    copied = judged.groups["copied"]
    assert (copied.longest.length, copied.longest.place, copied.longest_text) == (2000, 0, 0)
    assert copied.figures["copied_30"].mean == 1


def test_real_text_is_inside_its_own_interval_and_more_text_makes_it_narrower() -> None:
    own = [language(400, seed, first=10**7)[:1000] for seed in range(3, 19)]
    less, more = (
        judge({"own": own[:n]}, training_text=TRAIN, real_text=REAL).real.figures for n in (4, 16)
    )
    for name, figure in less.items():
        assert figure.low <= figure.mean <= figure.high
        assert figure.mean == more[name].mean
    for name in ("known_words", "copied_8", "distinct_2", "nats_per_char"):
        ratio = (less[name].high - less[name].low) / (more[name].high - more[name].low)
        assert ratio == pytest.approx(2, rel=0.2)


def test_drift_is_what_the_end_of_a_text_loses() -> None:
    rng = np.random.default_rng(0)
    own = [language(400, seed, first=10**7)[:2000] for seed in (3, 4, 5, 6)]
    worse = [text[:1500] + "".join(rng.permutation(list(text[1500:]))) for text in own]
    group = judge({"worse": worse}, training_text=TRAIN, real_text=REAL).groups["worse"]
    assert len(group.loss_by_distance) == 8
    for start, stretch in zip(range(0, 2000, 250), group.loss_by_distance, strict=True):
        assert stretch.low < stretch.mean < stretch.high
        assert (stretch.mean > 1 + group.loss_by_distance[0].mean) == (start >= 1500)
    weights = [249, *[250] * 7]  # the first character of a text is not predicted
    means = [stretch.mean for stretch in group.loss_by_distance]
    assert np.average(means, weights=weights) == pytest.approx(group.figures["nats_per_char"].mean)
    drift = group.figures["drift"]
    assert (
        1
        < drift.low
        < drift.mean
        == pytest.approx(group.loss_by_quarter[3] - group.loss_by_quarter[0])
    )


@pytest.mark.parametrize(
    ("texts", "real", "message"),
    [
        ([], "x" * 9999, "has 0 characters"),
        (["x" * 500, "x" * 199], "x" * 9999, "has 199 characters: give texts of at least 200"),
        (["x" * 500] * 5, "x" * 2499, "has 2,499 characters, but 5 times 500 are needed"),
        (["x" * 500], "x" * 1999, "has 1,999 characters, but 4 times 500 are needed"),
    ],
)
def test_too_little_text_is_refused(texts: list[str], real: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        judge({"group": texts}, training_text="x" * 9999, real_text=real)


def test_characters_that_the_training_text_lacks_are_judged_too() -> None:
    group = judge({"漢": ["漢" * 300]}, training_text=TRAIN, real_text=REAL).groups["漢"]
    assert "gibberish" in group.verdict


def test_held_out_tiny_shakespeare_has_the_known_figures() -> None:
    file = cached_file("shakespeare")
    if file is None:
        pytest.skip("Tiny Shakespeare is not in CHARRNN_DATA_DIR")
    text = file.read_text(encoding="utf-8")
    end = int(0.9 * len(text))
    train, real = text[:end], text[end:]
    words = split_words(real)
    assert known_share(words, set(split_words(train))) == pytest.approx(0.934, abs=5e-4)
    (matches,) = longest_matches([real], train)
    shares = [overlap(matches, n) for n in (8, 12, 16, 20, 30)]
    assert shares == pytest.approx([0.503, 0.107, 0.015, 0.002, 0], abs=5e-4)
    distinct = [distinct_share(words, n, num_words=20_000) for n in (1, 2, 3)]
    assert distinct == pytest.approx([0.187, 0.770, 0.972], abs=5e-4)
    vocabulary = Vocabulary.build([text])
    assert shared_share(vocabulary.encode(real), vocabulary.encode(train)) == 0
