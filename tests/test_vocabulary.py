import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn_jax.data.corpora import cached_file, load_corpus
from charrnn_jax.data.vocabulary import UNK_ID, UnknownCharacterError, Vocabulary
from charrnn_jax.errors import UserError

any_text = st.text(st.characters(), min_size=1)  # surrogates included


@given(any_text)
def test_decode_inverts_encode_for_any_unicode(text: str) -> None:
    vocabulary = Vocabulary.build([text[: len(text) // 2], text[len(text) // 2 :]])
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert ids.min() > UNK_ID
    assert ids.dtype == vocabulary.dtype
    assert vocabulary.size == 1 + len(set(text))


@given(any_text, any_text)
def test_encode_equals_the_obvious_loop(known: str, text: str) -> None:
    vocabulary = Vocabulary.build([known])
    expected = [1 + sorted(set(known)).index(c) if c in known else UNK_ID for c in text]
    assert vocabulary.encode(text, unk="keep").tolist() == expected
    assert vocabulary.encode(text, unk="skip").tolist() == [i for i in expected if i]


@given(st.text())
def test_bytes_round_trip_any_text(text: str) -> None:
    vocabulary = Vocabulary.build([], kind="bytes")
    assert vocabulary.size == 257
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.encode(text).tolist() == [1 + byte for byte in text.encode()]


@given(any_text)
def test_json_round_trip(text: str) -> None:
    vocabulary = Vocabulary.build([text])
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary
    assert vocabulary.to_json().isascii()


def test_unknown_characters_are_named_with_their_positions() -> None:
    vocabulary = Vocabulary.build(["abc"])
    with pytest.raises(UnknownCharacterError, match=r"'x' at position 1, '\\x00' at position 3"):
        vocabulary.encode("axb\0x")


def test_unk_decodes_to_its_name() -> None:
    assert Vocabulary.build(["ab"]).decode([1, UNK_ID, 2]) == "a[UNK]b"
    assert Vocabulary.build([], kind="bytes").decode([98, UNK_ID, 99]) == "a[UNK]b"
    halves = [1 + byte for byte in "é".encode()]  # an [UNK] between them parts them for good
    text = Vocabulary.build([], kind="bytes").decode([halves[0], UNK_ID, halves[1]])
    assert text == "\ufffd[UNK]\ufffd"


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match=r"from 0 to 2"):
        Vocabulary.build(["ab"]).decode([3])
    with pytest.raises(ValueError, match=r"from 0 to 2"):
        Vocabulary.build(["ab"]).decode([-1])


def test_empty_text_has_no_vocabulary() -> None:
    with pytest.raises(UserError, match="empty"):
        Vocabulary.build([""])


@pytest.mark.parametrize(("count", "dtype"), [(255, np.uint8), (256, np.uint16)])
def test_ids_take_the_smallest_type(count: int, dtype: type) -> None:
    assert Vocabulary.build(["".join(map(chr, range(count)))]).dtype == dtype


@pytest.mark.skipif(not cached_file("shakespeare"), reason="Tiny Shakespeare is not cached")
def test_shakespeare_is_the_tutorials_file() -> None:
    corpus = load_corpus("shakespeare")
    vocabulary = Vocabulary.build(corpus.blocks())
    assert vocabulary.size == 66
    assert sum(map(len, corpus.blocks())) == 1_115_394
    assert corpus.head(250).endswith(
        "First, you know Caius Marcius is chief enemy to the people.\n"
    )
