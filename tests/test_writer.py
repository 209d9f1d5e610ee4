"""Where texts end, however the tokens come in."""

import itertools

import jax
import numpy as np
import pytest
from helpers import E, H, make, sampler
from hypothesis import example, given
from hypothesis import strategies as st

from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.generation.sampler import CHUNK, Sampler
from charrnn_jax.generation.writer import Writer
from charrnn_jax.models.char_rnn import CharRNN, forward, initialize_params

VOCABULARY = Vocabulary("ab\n")


def obvious_end(text: str, stop: list[str], num_chars: int) -> tuple[str, str]:
    """Character by character."""
    for end in range(1, min(len(text), num_chars) + 1):
        for string in sorted(stop, key=len, reverse=True):
            if text[:end].endswith(string):
                return text[: end - len(string)], "stop"
    return text[:num_chars], "length" if len(text) >= num_chars else ""


@given(
    st.text("ab\n", min_size=1, max_size=40),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    st.integers(1, 30),
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
@example("aba", ["aba", "b"], 9, [9])  # of two in one piece the one that is complete first
@example("aab", ["ab", "b"], 9, [9])  # of two that end together the longer one
@example("abab\n", ["ab\n"], 9, [1])  # what is held back turns out to be text, in part
@example("aaab", ["aab"], 9, [3, 1])
@example("abaab", ["abab", "aab"], 9, [1])
@example("ab\nab\na", ["ab\n", "bb"], 9, [2])
@example("aab", ["b"], 2, [3])  # complete only after the last character
@example("ab", ["b"], 2, [2])  # complete with it
@example("ab", ["ab\n"], 2, [1])  # the text ends while it is held back
@example("aaaaaaab", ["aab"], 5, [4])  # of the piece that is cut, what is held counts
@example("ababab", ["abb"], 5, [2, 1])
def test_a_text_ends_at_the_first_stop_string_whatever_the_pieces(
    text: str, stop: list[str], num_chars: int, sizes: list[int]
) -> None:
    writer = Writer(VOCABULARY, num_chars=num_chars, stop=stop)
    tokens, shown, at = VOCABULARY.encode(text), "", 0
    expected, finish = obvious_end(text, stop, num_chars)
    pieces = itertools.cycle(sizes)
    while at < len(tokens) and not writer.finish:
        size = next(pieces)
        shown += writer.add(tokens[at : at + size], -np.ones(len(tokens[at : at + size])))
        at += size
        assert expected.startswith(shown)  # nothing of a stop string is ever shown
    assert writer.finish == finish
    if finish:
        assert shown == writer.sample("").text == expected
        assert writer.sample("").num_chars == len(expected)


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_streamed_pieces_put_together_are_the_text(kind: str) -> None:
    """Of bytes, too, where a chunk may end inside a character, or all of it be no UTF-8."""
    vocabulary = Vocabulary(kind="bytes") if kind == "bytes" else Vocabulary("\nabcdefghi")
    model = CharRNN(vocabulary.size, E, H)
    params = initialize_params(model, jax.random.key(0))
    ours = Sampler(params, model=model, vocabulary=vocabulary)
    wanted = {"num_chars": 2 * CHUNK + 7, "seed": 4, "stop": ["\nb", "a\n"]}
    for stop in (["\nb", "a\n"], []):
        wanted["stop"] = stop
        pieces = list(ours.stream(["bad", "a"], **wanted))
        together = ["".join(rows) for rows in zip(*pieces, strict=True)]
        assert together == [sample.text for sample in ours.generate(["bad", "a"], **wanted)]
    assert len(pieces) == 3


def test_texts_in_one_batch_end_each_for_itself() -> None:
    samples = sampler().generate(["a"] * 9, num_chars=90, stop=["\n", "cd"])
    free = sampler().generate(["a"] * 9, num_chars=90)
    assert {sample.finish for sample in samples} >= {"stop"}
    for sample, whole in zip(samples, free, strict=True):
        assert (sample.text, sample.finish) == obvious_end(whole.text, ["\n", "cd"], 90)


def test_the_loss_of_a_sample_is_that_of_the_model_whatever_the_rules() -> None:
    model, params, _, _ = make("gru", num_layers=2)
    (sample,) = sampler().generate(["bad"], num_chars=60, temperature=0.5, top_k=4, stop=["hh"])
    tokens = Vocabulary("\nabcdefghi").encode("bad" + sample.text).astype(np.int32)
    _, logits = forward(params, model.initialize_carry(1), tokens[None, :-1], model=model)
    losses = -jax.nn.log_softmax(logits[0])[np.arange(len(tokens) - 1), tokens[1:]]
    assert sample.nats_per_char == pytest.approx(float(losses[2:].mean()), rel=1e-5)


def test_best_of_is_the_likeliest_of_the_samples_of_a_prompt() -> None:
    several = sampler().generate(["a"] * 4 + ["bad"] * 4, num_chars=30, stop=["\n"])
    best = sampler().generate(["a", "bad"], num_chars=30, stop=["\n"], best_of=4)
    for of, chosen in zip((several[:4], several[4:]), best, strict=True):
        written = [sample for sample in of if sample.num_chars]
        assert chosen.text == min(written, key=lambda sample: sample.nats_per_char).text
    with pytest.raises(UserError, match="best_of is 0"):
        sampler().generate(["a"], num_chars=3, best_of=0)


@pytest.mark.parametrize(
    ("stop", "message"),
    [("ab", "list of texts"), ([""], "stop string is empty"), (["aZ"], "'Z' at position 1")],
)
def test_wrong_stop_strings_are_refused(stop, message: str) -> None:
    with pytest.raises((UserError, TypeError), match=message):
        sampler().generate(["a"], num_chars=3, stop=stop)


def test_the_end_of_a_pattern_is_no_character() -> None:
    writer = Writer(VOCABULARY, num_chars=9)
    assert writer.add(np.array([1, 2, UNK_ID, UNK_ID]), np.zeros(4)) == "ab"
    assert writer.sample("b") == ("b", "ab", "match", 2, 0.0, "")
