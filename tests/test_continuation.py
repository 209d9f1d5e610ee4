from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from helpers import VOCABULARY, E, H, make, sampler

from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.generation.continuation import Continuation
from charrnn_jax.generation.rules import Rule
from charrnn_jax.generation.sampler import CHUNK, Sampler, sample_chunk
from charrnn_jax.models.char_rnn import CharRNN, initialize_params


def test_writing_in_parts_gives_the_text_of_writing_at_once() -> None:
    start = Continuation.start(sampler(), "bad", seed=3)
    rules = {"temperature": 0.9, "no_repeat": 7}
    whole = start.write(120, **rules)
    parts = start.write(1, **rules).write(49, **rules).write(70, **rules)
    assert parts.text == whole.text
    (sample,) = sampler().generate(["bad"], num_chars=120, seed=3, **rules)
    assert whole.text == "bad" + sample.text
    jax.tree.map(np.testing.assert_array_equal, parts.state.carry, whole.state.carry)


@pytest.mark.parametrize("length", [10, 60, 200])
def test_after_a_stop_it_goes_on_as_if_nothing_more_had_been_drawn(length: int) -> None:
    """In the first chunk, in the next, and in a later one."""
    start = Continuation.start(sampler(), "a", seed=1)
    whole = start.write(300)
    at = whole.text.index("\n", length)
    stopped = start.write(300, stop=[whole.text[at : at + 2]])
    assert stopped.last is not None
    assert stopped.last.finish == "stop"
    assert whole.text.startswith(stopped.text)
    assert len(stopped.text) < 300
    assert stopped.write(300 - stopped.last.num_chars).text == whole.text


def test_a_stop_string_may_begin_in_the_chunk_before() -> None:
    start = Continuation.start(sampler(), "a", seed=1)
    whole = start.write(200)
    begin = len("a") + CHUNK - 3
    stop = whole.text[begin : begin + 7]
    assert whole.text.index(stop) == begin
    stopped = start.write(200, stop=[stop])
    assert stopped.text == whole.text[:begin]
    assert stopped.write(200 - (CHUNK - 3)).text == whole.text


def test_branches_leave_the_text_that_they_come_from_as_it_is() -> None:
    trunk = Continuation.start(sampler(), "bad").write(20)
    text, first = trunk.text, trunk.write(60)
    others = [trunk.branch(seed).write(60) for seed in range(3)]
    assert trunk.text == text
    assert all(other.text.startswith(text) for other in others)
    assert len({first.text, *(other.text for other in others)}) == 4
    assert trunk.branch(2).write(60).text == others[2].text
    assert trunk.write(60).text == first.text


def test_pieces_of_bytes_put_together_are_the_text() -> None:
    """Wherever a writing ends inside of a character."""
    vocabulary = Vocabulary(kind="bytes")
    model = CharRNN(vocabulary.size, E, H)
    params = initialize_params(model, jax.random.key(0))
    ours = Sampler(params, model=model, vocabulary=vocabulary)
    text, pieces = Continuation.start(ours, "é"), ["é"]
    for _ in range(4):
        text = text.write(3, on_text=pieces.append, pattern="(é|漢){9}")
        text = text.write(2, on_text=pieces.append, allow="é漢")
    assert "".join(pieces).rstrip("\ufffd") == text.text.rstrip("\ufffd")


@struct.dataclass
class Only(Rule):
    """One token alone can be drawn."""

    token: jax.Array

    def __call__(self, logits: jax.Array, memory: Any = ()) -> jax.Array:
        is_token = jnp.arange(logits.shape[1])[None] == self.token
        return jnp.where(is_token, logits, -jnp.inf)


def test_a_character_spread_over_as_many_writings_as_it_has_bytes_is_one_piece() -> None:
    """Whatever came before it, and after the last byte whatever follows."""
    vocabulary = Vocabulary(kind="bytes")
    model = CharRNN(vocabulary.size, E, H)
    params = initialize_params(model, jax.random.key(0))
    ours = Sampler(params, model=model, vocabulary=vocabulary)
    written = "🙂🙃é漢a🙂"
    for prompt in ("a", "漢", "🙃"):
        text, pieces = Continuation.start(ours, prompt), []
        for token in vocabulary.encode(written):
            text = text.write(1, on_text=pieces.append, rules=(Only(jnp.int32(token)),))
        assert text.text == prompt + written
        expected = []
        for char in written:
            expected += [""] * (len(char.encode()) - 1) + [char]
        assert pieces == expected


def test_branches_and_loaded_texts_run_the_same_program(tmp_path: Path) -> None:
    model, params, _, _ = make("gru", num_layers=2)
    committed = jax.device_put(params, jax.devices()[0])  # as those of a run that was opened
    ours = Sampler(committed, model=model, vocabulary=VOCABULARY)
    text = Continuation.start(ours, "bad").write(60, no_repeat=4)
    before = sample_chunk._cache_size()
    text.branch(1).write(60, no_repeat=4).save(tmp_path / "text.npz")
    Continuation.load(tmp_path / "text.npz", sampler=ours).read("a").write(60, no_repeat=4)
    assert sample_chunk._cache_size() == before


def test_a_text_of_the_users_is_read_like_one_of_the_models() -> None:
    read = Continuation.start(sampler(), "b").read("ad").read("").read("cafe")
    assert read.text == "badcafe"
    start = Continuation.start(sampler(), "badcafe")
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, read.state.carry, start.state.carry)
    assert read.write(50, temperature=0.0).text == start.write(50, temperature=0.0).text
    with pytest.raises(UserError, match="'Z' at position 0"):
        read.read("Z")


def test_the_reader_of_the_pieces_can_end_the_writing() -> None:
    start = Continuation.start(sampler(), "a")
    pieces: list[str] = []

    def show(piece: str) -> bool:
        pieces.append(piece)
        return len(pieces) < 2

    ended = start.write(1000, on_text=show)
    assert ended.last is not None
    assert ended.last.finish == "interrupted"
    assert ended.text == "a" + "".join(pieces)
    assert ended.write(30).text == start.write(len(ended.text) - 1 + 30).text


def test_saved_and_loaded_it_goes_on_the_same(tmp_path: Path) -> None:
    text = Continuation.start(sampler(), "bad").branch(5).write(70)
    text.save(tmp_path / "text.npz")
    loaded = Continuation.load(tmp_path / "text.npz", sampler=sampler())
    assert loaded.text == text.text
    assert loaded.write(70).text == text.write(70).text


def test_what_is_no_saved_text_of_this_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "text.npz"
    Continuation.start(sampler(), "bad").save(file)
    other = sampler()
    other.vocabulary = Vocabulary("\nabcdefghj")
    with pytest.raises(UserError, match="saved with another model"):
        Continuation.load(file, sampler=other)
    for content in (b"", b"nothing", file.read_bytes()[:200]):
        (tmp_path / "broken.npz").write_bytes(content)
        with pytest.raises(UserError, match="saved text"):
            Continuation.load(tmp_path / "broken.npz", sampler=sampler())
    with np.load(file) as saved:
        arrays = dict(saved)
    for damage in ({"tokens": np.array([9999])}, {"state_0": np.zeros((2, 3), np.float32)}):
        np.savez(tmp_path / "damaged.npz", **{**arrays, **damage})
        with pytest.raises(UserError, match="is damaged"):
            Continuation.load(tmp_path / "damaged.npz", sampler=sampler())
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(UserError, match="saved text"):
        Continuation.load(tmp_path / "array.npy", sampler=sampler())
    with pytest.raises(UserError, match="seed is 4294967296"):
        Continuation.start(sampler(), "bad", seed=2**32)
    with pytest.raises(UserError, match="saved text"):
        Continuation.load(tmp_path / "none.npz", sampler=sampler())
    with pytest.raises(UserError, match="num_chars is 0"):
        Continuation.start(sampler(), "bad").write(0)
