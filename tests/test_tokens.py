import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from charrnn_jax.data import tokens as tokens_lib
from charrnn_jax.data.corpora import load_corpus
from charrnn_jax.data.tokens import Splits, tokenize
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.files import _MACHINE


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_memory_map_equals_memory(
    text_file: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    corpus = load_corpus(path=str(text_file), max_chars=1000)
    vocabulary = Vocabulary.build(corpus.blocks(kind), kind=kind)
    in_memory = tokenize(corpus, vocabulary)
    monkeypatch.setattr(tokens_lib, "IN_MEMORY_BYTES", 0)
    mapped = tokenize(corpus, vocabulary)
    assert in_memory.flags.owndata
    assert not mapped.flags.owndata
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, in_memory)
    assert mapped.dtype == in_memory.dtype
    monkeypatch.setattr(tokens_lib, "_write_tokens", None)  # found again, not written again
    np.testing.assert_array_equal(tokenize(corpus, vocabulary), in_memory)


def test_a_token_file_is_that_of_its_text_its_length_and_its_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in turn against the tokens that memory would hold, while the files of all are there."""
    texts = ["abcab" * 9, "bcabc" * 9]
    files = [tmp_path / f"{index}.txt" for index in range(2)]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    monkeypatch.setattr(tokens_lib, "IN_MEMORY_BYTES", 0)
    for _ in range(2):  # written, then found again
        for file, text in zip(files, texts, strict=True):
            for max_chars in (0, 20, 10):
                for vocabulary in (Vocabulary("abc"), Vocabulary("Aabc"), Vocabulary(kind="bytes")):
                    tokens = tokenize(load_corpus(path=str(file), max_chars=max_chars), vocabulary)
                    assert tokens.tolist() == vocabulary.encode(text[: max_chars or None]).tolist()
    assert len(list((tokens_lib.cache_folder() / "tokens").iterdir())) == 18


@pytest.mark.parametrize(
    "damage", ["zeros", "flipped bit", "cut", "empty", "longer", "only a checksum"]
)
def test_damaged_tokens_are_never_used_but_made_again(
    text_file: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(tokens_lib, "IN_MEMORY_BYTES", 0)
    corpus = load_corpus(path=str(text_file))
    vocabulary = Vocabulary.build(corpus.blocks())
    expected = tokenize(corpus, vocabulary).tolist()
    (file,) = tokens_lib.token_files()
    content = file.read_bytes()
    file.write_bytes(
        {
            "zeros": bytes(len(content)),
            "flipped bit": content[:100] + bytes([content[100] ^ 1]) + content[101:],
            "cut": content[:-1000],
            "empty": b"",
            "longer": content + b"\1",
            "only a checksum": content[-32:],
        }[damage]
    )
    with pytest.warns(UserWarning, match="are damaged, and are made again"):
        assert tokenize(corpus, vocabulary).tolist() == expected
    assert file.read_bytes() == content


def test_token_cache_is_bounded_and_keeps_what_was_used_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four texts of 1,000 tokens, with room for two; a killed process left a part of another."""
    monkeypatch.setattr(tokens_lib, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(tokens_lib, "CACHE_BYTES", 2100)
    folder = tokens_lib.token_folder()
    folder.mkdir(parents=True)
    (folder / f".0.uint8.tokens.{_MACHINE}.{2**22 + 1}.partial").write_bytes(b"left")
    corpora = []
    for name in "abcd":
        (tmp_path / name).write_text(name * 1000)
        corpora.append(load_corpus(path=str(tmp_path / name)))

    def use(index: int) -> None:
        known = set(tokens_lib.token_files())
        tokenize(corpora[index], Vocabulary("abcd"))
        new = set(tokens_lib.token_files()) - known
        made.extend([index] * len(new))
        time.sleep(0.02)  # times of files are coarse

    made: list[int] = []
    for index in (0, 1, 0, 2, 0, 1, 3):
        use(index)
    assert made == [0, 1, 2, 1, 3]  # 0 was in use all the time
    assert len(list(folder.iterdir())) == 2


def test_failed_tokenization_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_lib, "IN_MEMORY_BYTES", 0)
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(UserError, match="not in the vocabulary"):
        tokenize(load_corpus(path=str(tmp_path / "a.txt")), Vocabulary.build(["ab"]))
    assert not list((tokens_lib.cache_folder() / "tokens").iterdir())


@pytest.mark.parametrize("length", [1, 9, 10, 1_115_394])
@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.0), (0.05, 0.05), (0.0, 0.0)])
def test_splits_are_contiguous_and_cover_the_text(
    length: int, validation: float, test: float
) -> None:
    splits = Splits.make(np.arange(length), validation_fraction=validation, test_fraction=test)
    parts = [splits[name] for name in ("train", "validation", "test")]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(length))
    for name, part in zip(("validation", "test"), parts[1:], strict=True):
        if len(part) and part[0] > 0:
            assert splits.with_context(name).tolist() == [part[0] - 1, *part]


def test_all_three_splits_have_their_fractions() -> None:
    splits = Splits.make(np.arange(100), validation_fraction=0.25, test_fraction=0.5)
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [25, 25, 50]


def test_default_split_is_nanogpts() -> None:
    splits = Splits.make(np.arange(1_115_394), validation_fraction=0.1, test_fraction=0.0)
    assert (len(splits["train"]), len(splits["validation"])) == (1_003_854, 111_540)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_large_text_needs_little_memory(tmp_path: Path) -> None:
    """400 MB of text: the process must own less than 150 MB more than it had after importing.

    Pages of the mapped file are not counted: they are the system's, which drops them at will.
    """
    file = tmp_path / "large.txt"
    with open(file, "wb") as out:
        for _ in range(400):
            out.write(b"0123456789abcde\n" * (1 << 16))
    program = """
import sys
from charrnn_jax.data.batches import make_batches
from charrnn_jax.data.corpora import load_corpus
from charrnn_jax.data.tokens import tokenize
from charrnn_jax.data.vocabulary import Vocabulary
def owned():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))
before = owned()
corpus = load_corpus(path=sys.argv[1])
tokens = tokenize(corpus, Vocabulary.build(corpus.blocks()))
assert owned() - before < 150, f"{owned() - before} MB to make the tokens"
batches = make_batches(tokens, batching="chunks", batch_size=64, sequence_length=100, seed=0)
for step in range(100):
    batches[step]
assert len(tokens) == 400 << 20
assert owned() - before < 150, f"{owned() - before} MB to make batches"
"""
    subprocess.run([sys.executable, "-c", program, str(file)], check=True)
