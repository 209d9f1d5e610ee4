import functools
import hashlib
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from charrnn_jax.data import corpora
from charrnn_jax.data.corpora import KNOWN_CORPORA, KnownCorpus, load_corpus
from charrnn_jax.errors import UserError


def read(corpus: corpora.Corpus, kind: str = "characters"):
    blocks = list(corpus.blocks(kind))
    return (b"" if kind == "bytes" else "").join(blocks)


def write(folder: Path, name: str, content: bytes) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def test_bom_is_dropped_and_line_ends_become_lf(tmp_path: Path) -> None:
    raw = b"\xef\xbb\xbfa\r\nb\rc\n" + "é\u2028\U0001f600\0".encode()
    file = write(tmp_path, "a.txt", raw)
    corpus = load_corpus(path=str(file))
    assert read(corpus) == "a\nb\nc\né\u2028\U0001f600\0"
    assert read(corpus, "bytes") == raw
    assert corpus.sha256 == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize("block_size", [1, 2, 3, 7])
def test_text_does_not_depend_on_the_block_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_size: int
) -> None:
    file = write(tmp_path, "a.txt", "aé\r\n\U0001f600ß\r\nend".encode())
    whole = read(load_corpus(path=str(file)))
    monkeypatch.setattr(corpora, "BLOCK_SIZE", block_size)
    assert read(load_corpus(path=str(file))) == whole
    assert read(load_corpus(path=str(file), max_chars=5)) == whole[:5]


def test_files_of_folders_and_globs_are_joined_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", "notes.md"):
        write(tmp_path, name, name[-5:].encode())
    assert read(load_corpus(path=str(tmp_path))) == "a.txtb.txtc.txt"
    assert read(load_corpus(path=str(tmp_path / "*.*"))) == "a.txtb.txtes.md"
    assert read(load_corpus(path=str(tmp_path / "**/c.txt"))) == "c.txt"


@pytest.mark.parametrize("block_size", [1, 2, 3, 1 << 22])
@pytest.mark.parametrize(
    "content",
    [b"ab\xffcd", b"ok\nab\xc3", b"\xef\xbb\xbf\xc3(", "é漢🙂".encode() + b"\xf0\x9f\x99a"],
)
def test_invalid_utf8_is_named_by_file_and_byte(
    tmp_path: Path, content: bytes, block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "BLOCK_SIZE", block_size)
    file = write(tmp_path, "bad.txt", content)
    with pytest.raises(UnicodeDecodeError) as reason:
        content.decode()
    with pytest.raises(UserError, match=rf"bad.txt is not UTF-8 at byte {reason.value.start}:"):
        read(load_corpus(path=str(file)))


def test_text_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file found"):
        load_corpus(path=str(tmp_path / "absent.txt"))
    write(tmp_path, "empty.txt", b"")
    with pytest.raises(UserError, match="there is no text in"):
        load_corpus(path=str(tmp_path))


def test_stdin_is_read_once_and_can_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(b"from a pipe")

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr("sys.stdin", Stdin())
    corpus = load_corpus(path="-")
    assert read(corpus) == read(corpus) == "from a pipe"


def test_built_in_corpus_has_the_stated_length_and_is_ascii() -> None:
    corpus = load_corpus("python-stdlib")
    text = read(corpus)
    assert len(text) == corpora.STDLIB_CHARS
    assert text.isascii()
    assert load_corpus("python-stdlib") == corpus
    assert len(read(load_corpus("python-stdlib", max_chars=99))) == 99


TEXT = b"To be, or not to be\n" * 100


def zipped(member: str) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../evil", b"evil")
        file.writestr(member, TEXT)
    return archive.getvalue()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Known corpora "plain" and "zipped" on a real server; the data folder is empty.

    Yields the folder that is served.
    """
    served = tmp_path / "served"
    archive = zipped("text")
    write(served, "plain.txt", TEXT)
    write(served, "text.zip", archive)
    handler = functools.partial(QuietHandler, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    known = KnownCorpus(f"{url}/plain.txt", hashlib.sha256(TEXT).hexdigest(), len(TEXT), "test")
    monkeypatch.setitem(KNOWN_CORPORA, "plain", known)
    monkeypatch.setitem(
        KNOWN_CORPORA,
        "zipped",
        replace(
            known,
            url=f"{url}/text.zip",
            zip_member="text",
            zip_sha256=hashlib.sha256(archive).hexdigest(),
        ),
    )
    monkeypatch.setenv("CHARRNN_DATA_DIR", str(tmp_path / "data"))
    yield served
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["plain", "zipped"])
def test_download_is_verified_extracted_and_cached(served: Path, name: str) -> None:
    assert read(load_corpus(name), "bytes") == TEXT
    for file in served.iterdir():
        file.unlink()
    assert read(load_corpus(name), "bytes") == TEXT  # from the cache: the server has nothing now
    assert [file.name for file in corpora.data_folder().iterdir()] == [f"{name}.txt"]


def test_download_with_a_wrong_hash_leaves_nothing(served: Path) -> None:
    write(served, "plain.txt", b"another text")
    with pytest.raises(UserError, match="is not the expected file"):
        load_corpus("plain")
    assert not corpora.data_folder().exists()


def test_archive_with_a_wrong_member_leaves_nothing(
    served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = replace(KNOWN_CORPORA["zipped"], sha256="0" * 64)
    monkeypatch.setitem(KNOWN_CORPORA, "zipped", known)
    with pytest.raises(UserError, match="the expected sha256"):
        load_corpus("zipped")
    assert not corpora.data_folder().exists()


def test_unreachable_corpus_is_an_error_or_the_offline_corpus(
    served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (served / "plain.txt").unlink()
    with pytest.raises(UserError, match="CHARRNN_DATA_DIR"):
        load_corpus("plain")
    corpus = load_corpus("plain", offline_corpus="python-stdlib")
    assert (corpus.name, corpus.instead_of) == ("python-stdlib", "plain")


@pytest.mark.parametrize("damaged", [b"?" + TEXT[1:], TEXT[:-1]])
def test_damaged_cached_file_is_refused_and_kept(served: Path, damaged: bytes) -> None:
    load_corpus("plain")
    file = corpora.data_folder() / "plain.txt"
    file.write_bytes(damaged)
    with pytest.raises(UserError, match="delete it to have it downloaded again"):
        load_corpus("plain")
    assert file.exists()


def test_unknown_corpus_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="shakespeare, text8, enwik8, python-stdlib"):
        load_corpus("shakespear")
