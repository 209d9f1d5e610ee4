"""Name or path -> `Corpus`: known and synthetic corpora, the user's own text, and a corpus that
needs no network.

Text is read as UTF-8, without Unicode normalisation. A byte order mark at the start of a file is
dropped, and CRLF and lone CR become LF. A file that is read as bytes is not changed. Text is read
in blocks, never as a whole. Knows nothing of vocabularies or models.
"""

import atexit
import codecs
import glob
import hashlib
import os
import shutil
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, BinaryIO

import platformdirs

from charrnn_jax.data.automata import PREFIX
from charrnn_jax.data.sources import parse_source
from charrnn_jax.errors import UserError, file_error, shown
from charrnn_jax.files import delete_oldest, replacing
from charrnn_jax.messages import NOTES
from charrnn_jax.reading import refuse_device

BLOCK_SIZE = 1 << 22  # characters or bytes read at once
STDLIB_CHARS = 1_000_000  # length of the built-in corpus, in characters
SOURCE_CHARS = 300_000  # length of a synthetic text, if no other is asked for
_MOST_SOURCE_CHARS = 100_000_000
_SOURCES_BYTES = 1 << 30  # of all files of synthetic texts
_TMPDIR = "make room there, or set TMPDIR to another folder"


@dataclass(frozen=True)
class KnownCorpus:
    """Where a corpus comes from, and how it is recognised.

    Attributes:
      url: address of the text, or of a zip archive that contains it.
      sha256: SHA-256 of the text, in hex.
      size: size of the text, in bytes.
      licence: licence and origin of the text.
      title: what a person calls the text; "": its name.
      zip_member: name of the text in the archive; "": `url` is the text itself.
      zip_sha256: SHA-256 of the archive, in hex; "": `url` is the text itself.
    """

    url: str
    sha256: str
    size: int
    licence: str
    title: str = ""
    zip_member: str = ""
    zip_sha256: str = ""


KNOWN_CORPORA = {
    "shakespeare": KnownCorpus(
        url="https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        size=1_115_394,
        licence="public domain; Tiny Shakespeare, collected by A. Karpathy",
        title="Shakespeare's plays",
    ),
    "text8": KnownCorpus(
        url="http://mattmahoney.net/dc/text8.zip",
        sha256="6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7",
        size=100_000_000,
        licence="CC BY-SA; cleaned English Wikipedia of 2006, M. Mahoney",
        title="the words of Wikipedia",
        zip_member="text8",
        zip_sha256="a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
    ),
    "enwik8": KnownCorpus(
        url="http://mattmahoney.net/dc/enwik8.zip",
        sha256="2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
        size=100_000_000,
        licence="CC BY-SA; English Wikipedia of 2006, the Hutter Prize file",
        title="Wikipedia",
        zip_member="enwik8",
        zip_sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
    ),
}
BUILT_IN = "python-stdlib"


@dataclass(frozen=True)
class Corpus:
    """A text on disk, as files in a fixed order.

    Attributes:
      name: name of a known corpus, or the path that was given.
      paths: the files, joined in this order with nothing between them.
      sha256: SHA-256 of the joined bytes, in hex.
      max_chars: number of characters (bytes if read as bytes) to use, from the start; 0: all.
      instead_of: name of the corpus that was wanted but not available; "": none.
    """

    name: str
    paths: tuple[Path, ...]
    sha256: str
    max_chars: int = 0
    instead_of: str = ""

    def blocks(self, kind: str = "characters") -> Iterator[str | bytes]:
        """Yields the text in blocks of at most `BLOCK_SIZE`, as str, or bytes for kind "bytes".

        Raises:
          UserError: a file cannot be read or is not UTF-8; the message names the file and the byte.
        """
        left = self.max_chars or sys.maxsize
        for path in self.paths:
            try:
                with _open(path, kind) as file:
                    while left and (block := file.read(min(BLOCK_SIZE, left))):
                        left -= len(block)
                        yield block
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path} is not UTF-8 at byte {_first_invalid_byte(path)}: convert it, or "
                    "train on its bytes with --config.data.vocabulary=bytes"
                ) from error
            except OSError as error:
                raise file_error(error, path=path, doing="read") from error

    def head(self, num_chars: int, *, kind: str = "characters") -> str:
        """Returns the first `num_chars` characters, or bytes for kind "bytes", as text."""
        blocks = replace(self, max_chars=num_chars).blocks(kind)
        return "".join(b if isinstance(b, str) else b.decode("utf-8", "replace") for b in blocks)


def _open(path: Path, kind: str) -> IO[Any]:
    if kind == "bytes":
        return open(path, "rb")
    return open(path, encoding="utf-8-sig")  # drops a BOM; universal newlines turn CRLF into LF


def _first_invalid_byte(path: Path) -> int:
    offset, decoder = 0, codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as file:
        while True:
            block = file.read(BLOCK_SIZE)
            held, _ = decoder.getstate()  # the beginning of a character, from the block before
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                return offset - len(held) + error.start
            if not block:
                return offset
            offset += len(block)


def load_corpus(
    name: str = "", *, path: str = "", offline_corpus: str = "", max_chars: int = 0
) -> Corpus:
    """Finds a text: `path` if given, else the corpus `name` in the cache, else by download.

    Args:
      name: name of a known corpus, or of a source (see `sources`).
      path: text to use instead: a file, a folder (its `.txt` files, or all files if it has none), a
        glob, or "-" for standard input. Several files are joined in sorted order.
      offline_corpus: name of the corpus to use if `name` is neither cached nor reachable, which the
        result says in `instead_of`; "": this is an error.
      max_chars: number of characters to use, from the start; 0: all, or `SOURCE_CHARS` of a source.

    Raises:
      UserError: the text is missing or empty, its checksum is wrong, or there is no network.
    """
    corpus = _own_text(path) if path else _named(name, offline_corpus, max_chars)
    if max_chars and (not corpus.max_chars or max_chars < corpus.max_chars):
        corpus = replace(corpus, max_chars=max_chars)
    return corpus


def check_recorded_path(name: str) -> None:
    """Raises UserError if a path that a run recorded is no file, folder or glob of files.

    A stranger may have made the run: its path must not open a pipe or a device.
    """
    path = Path(name).expanduser()
    if name == "-" or (path.exists() and not path.is_file() and not path.is_dir()):
        raise UserError(
            f"the run's text was {shown(name)}, which is not a file: give its text with --path=FILE"
        )


def _named(name: str, offline_corpus: str, max_chars: int) -> Corpus:
    if name == BUILT_IN:
        return _python_stdlib()
    if name.startswith(PREFIX):
        return _synthetic(name, max_chars or SOURCE_CHARS)
    if name not in KNOWN_CORPORA:
        raise UserError(
            f"there is no corpus {shown(name)}; there are {', '.join(KNOWN_CORPORA)}, {BUILT_IN}, "
            f"{PREFIX}NAME. To use your own text, give --config.data.path=FILE"
        )
    file = cached_file(name)
    if file is None:
        import requests  # takes half a second, and only a download needs it

        try:
            file = _download(name)
        except requests.RequestException as error:
            if offline_corpus:
                return replace(_named(offline_corpus, "", max_chars), instead_of=name)
            raise UserError(
                f"corpus {name!r} is not in {data_folder()} and cannot be downloaded "
                f"({_reason(error)}): put {name}.txt there, set CHARRNN_DATA_DIR to a folder that "
                f"has it, or use --config.data.corpus={BUILT_IN} or --config.data.path=FILE"
            ) from error
    known = KNOWN_CORPORA[name]
    digest = _sha256((file,)) if file.stat().st_size == known.size else "another size"
    if digest != known.sha256:
        raise UserError(
            f"{file} is not the corpus {name!r} (expected {known.size} bytes, sha256 "
            f"{known.sha256}): delete it to have it downloaded again"
        )
    return Corpus(name, (file,), known.sha256)


def data_folder() -> Path:
    """Returns the folder of the corpora: $CHARRNN_DATA_DIR, else the user's cache folder."""
    return Path(os.environ.get("CHARRNN_DATA_DIR") or cache_folder()).expanduser()


def cache_folder() -> Path:
    """Returns the user's cache folder, for files that can be made again."""
    return Path(platformdirs.user_cache_dir("charrnn_jax", appauthor=False))


def cached_file(name: str) -> Path | None:
    """Returns the file of a known corpus, NAME.txt or NAME in the data folder, if it exists."""
    candidates = (data_folder() / f"{name}.txt", data_folder() / name)
    return next((file for file in candidates if file.is_file()), None)


def _download(name: str) -> Path:
    """Downloads, verifies and stores a known corpus; a failed download leaves no files."""
    import requests

    try:
        return _download_and_store(name, KNOWN_CORPORA[name])
    except requests.RequestException:  # these are OSErrors, too
        raise
    except OSError as error:
        raise file_error(
            error, path=error.filename or _scratch(), doing="download to", remedy=_TMPDIR
        ) from error


def _download_and_store(name: str, known: KnownCorpus) -> Path:
    import pooch

    NOTES.info(f"downloading corpus {name!r} from {known.url}")
    pooch.get_logger().setLevel("WARNING")  # its own message names a temporary file
    with tempfile.TemporaryDirectory(prefix="charrnn-") as scratch:
        try:
            fetched = pooch.retrieve(
                known.url,
                known_hash=known.zip_sha256 or known.sha256,
                fname="download",
                path=scratch,
                downloader=pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=30),
            )
        except ValueError as error:  # the hash is wrong
            raise UserError(f"{known.url} is not the expected file: {error}") from error
        if known.zip_member:
            fetched = _extract(Path(fetched), known, Path(scratch) / "text")
        return _store(Path(fetched), data_folder() / f"{name}.txt")


def _store(source: Path, target: Path) -> Path:
    """Copies a file into the data folder; the copy appears whole or not at all."""
    try:
        with replacing(target) as partial:
            shutil.copyfile(source, partial)
    except OSError as error:
        remedy = "make room there, or set CHARRNN_DATA_DIR to a folder that can be written"
        raise file_error(error, path=target, doing="store", remedy=remedy) from error
    return target


def _extract(archive: Path, known: KnownCorpus, target: Path) -> Path:
    """Extracts the text from an archive, and reads no more bytes than it should have."""
    try:
        with zipfile.ZipFile(archive) as file, file.open(known.zip_member) as member:
            content = member.read(known.size + 1)
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{known.url} has no readable file {known.zip_member!r} in it") from error
    if hashlib.sha256(content).hexdigest() != known.sha256:
        raise UserError(f"{known.zip_member!r} in {known.url} does not have the expected sha256")
    target.write_bytes(content)
    return target


def _python_stdlib() -> Corpus:
    """Returns the library source of the running Python: its top-level modules, sorted by name."""
    paths = tuple(sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
    if not paths:
        raise UserError(
            f"this Python has no library source, which is the corpus {BUILT_IN!r}: "
            "use --config.data.path=FILE"
        )
    return Corpus(BUILT_IN, paths, _sha256(paths), STDLIB_CHARS)


def _synthetic(name: str, num_chars: int) -> Corpus:
    """Returns a text of a source, whose file in the cache is compared with the source each time."""
    source = parse_source(name)
    if num_chars > _MOST_SOURCE_CHARS:
        raise UserError(
            f"{name} has at most {_MOST_SOURCE_CHARS:,} characters: set a smaller "
            "--config.data.max_chars"
        )
    digest = hashlib.sha256()
    for block in source.blocks(num_chars):
        digest.update(block.encode())
    folder = cache_folder() / "sources"
    file = folder / f"{source.full_name.removeprefix(PREFIX).replace(':', '-')}-{num_chars}.txt"
    try:
        if not file.is_file() or _sha256((file,)) != digest.hexdigest():
            with replacing(file) as partial, open(partial, "wb") as out:
                out.writelines(map(str.encode, source.blocks(num_chars)))
            files = sorted(folder.glob("[!.]*"), key=os.path.getmtime)
            delete_oldest(files, keep=file, most_bytes=_SOURCES_BYTES)
    except OSError as error:
        remedy = "make room there, or set XDG_CACHE_HOME to a folder that can be written"
        raise file_error(error, path=file, doing="write", remedy=remedy) from error
    return Corpus(source.full_name, (file,), digest.hexdigest(), num_chars)


def _own_text(name: str) -> Corpus:
    path = os.path.expanduser(name)  # a shell does not expand the ~ of --flag=~/file
    refuse_device(path)
    paths: tuple[Path, ...]
    if path == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise UserError("the text should come from standard input: add < FILE to the command")
        paths = (_spool(sys.stdin.buffer),)
    elif os.path.isfile(path):
        paths = (Path(path),)
    elif os.path.exists(path) and not os.path.isdir(path):  # a named pipe, such as <(command)
        with open(path, "rb") as pipe:
            paths = (_spool(pipe),)
    elif os.path.isdir(path):
        files = sorted(file for file in Path(path).rglob("*") if file.is_file())
        paths = tuple(file for file in files if file.suffix == ".txt") or tuple(files)
    else:
        paths = tuple(map(Path, sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))))
    if not paths:
        raise UserError(f"no file found at {shown(name)}")
    if not any(file.stat().st_size for file in paths):
        raise UserError(f"there is no text in {shown(name)}")
    return Corpus(name, paths, _sha256(paths))


def _spool(pipe: BinaryIO) -> Path:
    """Copies a pipe to a file, since a text is read more than once; deleted at exit."""
    try:
        with tempfile.NamedTemporaryFile(prefix="charrnn-pipe-", delete=False) as file:
            atexit.register(Path(file.name).unlink, missing_ok=True)
            for block in _read_pipe(pipe):
                file.write(block)
    except OSError as error:
        raise file_error(
            error, path=_scratch(), doing="copy the text to", remedy=_TMPDIR
        ) from error
    return Path(file.name)


def _read_pipe(pipe: BinaryIO) -> Iterator[bytes]:
    try:
        while block := pipe.read(BLOCK_SIZE):
            yield block
    except OSError as error:
        raise file_error(error, path="the text", doing="read") from error


def _scratch() -> str:
    """Returns the folder of temporary files, or what it is if there is none that can be used."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return "a temporary folder"


def _sha256(paths: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as file:
                while block := file.read(BLOCK_SIZE):
                    digest.update(block)
        except OSError as error:
            raise file_error(error, path=path, doing="read") from error
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """Returns the cause of a network error in a few words; its full message is long and nested."""
    text = str(error)
    return "no network" if "resolve" in text or "resolution" in text else text[:80]
