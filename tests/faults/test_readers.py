"""Whatever a file holds that others have written, its reader returns or raises `UserError`.

The tests read a few thousand damaged files; `fuzz` reads as many as there is time for.
"""

import importlib.util
import io
import json
import os
import random
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from helpers import some_judgement
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from charrnn_jax.commands.evaluate import _merge_into_json
from charrnn_jax.config import default_config, from_dict, from_json, to_json
from charrnn_jax.data.corpora import load_corpus
from charrnn_jax.data.dataset import CorpusIdentity, load_dataset
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError, shortened, shown
from charrnn_jax.experiment import load_experiment
from charrnn_jax.generation.continuation import Continuation
from charrnn_jax.generation.sampler import Sampler
from charrnn_jax.main import main
from charrnn_jax.models.char_rnn import CharRNN, initialize_params
from charrnn_jax.reading import parse_json, read_bytes, read_json, read_npz
from charrnn_jax.registry import compare_registered
from charrnn_jax.sweeps import slurm
from charrnn_jax.sweeps.table import _last, fraction_trained
from charrnn_jax.sweeps.units import WorkUnit, check_workdirs, load_sweep
from charrnn_jax.workdir.checkpoints import read_metadata
from charrnn_jax.workdir.import_run import _convert
from charrnn_jax.workdir.json_lines import JsonLines, read_json_lines
from charrnn_jax.workdir.judgement import read_judgement
from charrnn_jax.workdir.metadata import CheckpointMetadata, Origin, digest_of
from charrnn_jax.workdir.run import Run, load_run
from charrnn_jax.workdir.tuned import tuned_dynamic

MOST_CHARS = 1000  # in an error
MOST_SECONDS = 10.0  # for a tiny file, on a busy machine
STEP = 7
CORPUS = CorpusIdentity("text.txt", "a" * 64, 1000)
SAVED = CheckpointMetadata(
    step=STEP,
    config=default_config().to_dict(),
    vocabulary=Vocabulary("\nabc").to_dict(),
    corpus=CORPUS,
    loss=2.5,
    recorder={
        "window": {"nats": 0.5, "chars": 3, "timed_chars": 3, "seconds": 0.1},
        "epoch": {"nats": 0.5, "chars": 3, "timed_chars": 3, "seconds": 0.1},
        "seconds": 2.5,
    },
    num_params=100,
    origin=Origin("runs/old", 3, CORPUS),
    registered={"train.hooks": {"mine": {"file": "mine.py", "sha256": "b" * 64}}},
)
ROWS = [
    {"step": 1, "epoch": 0.5, "seconds": 1.5, "train/loss": 3.5},
    {"step": 2, "epoch": 1.0, "seconds": 2.5, "validation/loss": 3.25},
]
TUNED = {"step": STEP, "rate": 3e-4, "decay": 1e-3, "epsilon": 1e-4, "segment": 20}
JUDGED = {"step": STEP, "prompt": "a", "judgement": asdict(some_judgement())}
EVALUATED = {
    "validation": {
        "step": STEP,
        "corpus": asdict(CORPUS),
        "losses": {"cold-256": {"nats_per_char": 2.5, "num_chars": 100}},
    }
}
STATUS = {"status": "done", "message": "", "config": default_config().to_dict()}
SWEEP = {"config": default_config().to_dict(), "sweep": [{"seed": 0}, {"seed": 1}]}
EXPERIMENT = b"import charrnn_jax\ndef get_config():\n    return charrnn_jax.default_config()\n"
TORCH = {
    "embedding.weight": np.ones((5, 3), "f"),
    "rnn.weight_ih_l0": np.ones((12, 3), "f"),
    "rnn.weight_hh_l0": np.ones((12, 4), "f"),
    "rnn.bias_ih_l0": np.ones(12, "f"),
    "rnn.bias_hh_l0": np.ones(12, "f"),
    "linear.weight": np.ones((5, 4), "f"),
    "linear.bias": np.ones(5, "f"),
}
KERAS_SHAPES = ((5, 3), (3, 12), (4, 12), (2, 12), (4, 5), (5,))
SYMBOLS = list("abcde")


def _npz(arrays: Sequence[np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, *arrays)
    return file.getvalue()


@dataclass(frozen=True)
class Reader:
    """What reads a kind of file.

    Attributes:
      valid: content of files that are not damaged.
      read: reads a file with this content, in a folder that it may use.
    """

    valid: tuple[bytes, ...]
    read: Callable[[Path, bytes], object]


def _as_json(*values: object) -> tuple[bytes, ...]:
    return tuple(json.dumps(value).encode() for value in values)


def _write(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def _unit(folder: Path) -> WorkUnit:
    return WorkUnit(0, "unit", {"seed": 0}, default_config(), folder / "unit")


def _read_metadata(folder: Path, content: bytes) -> None:
    """With a manifest that fits, as a stranger may write one."""
    checkpoint = folder / "run" / "checkpoints" / str(STEP)
    _write(checkpoint / "metadata" / "metadata", content)
    manifest = {"metadata/metadata": sha256(content).hexdigest()}
    _write(checkpoint / "sha256.json", json.dumps(manifest).encode())
    metadata = read_metadata(folder / "run", STEP)
    compare_registered(metadata.registered, needed="model.cell")
    from_dict(metadata.config)
    Vocabulary.from_dict(metadata.vocabulary)
    metadata.corpus.without_folders().describe()
    if metadata.origin:
        metadata.origin.describe()


def _read_manifest(folder: Path, content: bytes) -> None:
    (saved,) = _as_json(SAVED.to_dict())
    checkpoint = folder / "signed" / "checkpoints" / str(STEP)
    if not (checkpoint / "metadata" / "metadata").exists():
        _write(checkpoint / "metadata" / "metadata", saved)
    _write(checkpoint / "sha256.json", content)
    read_metadata(folder / "signed", STEP)


def _read_evaluation(folder: Path, content: bytes) -> None:
    config, vocabulary, model = default_config(), Vocabulary("abc"), CharRNN(4, 2, 2)
    run = Run(folder, STEP, config, vocabulary, CORPUS, model, {}, 2.5)
    _write(folder / "evaluation.json", content)
    try:
        run.losses()
    finally:
        _merge_into_json(folder / "evaluation.json", json.loads(json.dumps(EVALUATED)))


def _read_tuned(folder: Path, content: bytes) -> None:
    config, vocabulary, model = default_config(), Vocabulary("abc"), CharRNN(4, 2, 2)
    _write(folder / "dynamic.json", content)
    tuned_dynamic(Run(folder, STEP, config, vocabulary, CORPUS, model, {}, 2.5))


def _read_judgement(folder: Path, content: bytes) -> None:
    config, vocabulary, model = default_config(), Vocabulary("abc"), CharRNN(4, 2, 2)
    _write(folder / "judgement.json", content)
    read_judgement(Run(folder, STEP, config, vocabulary, CORPUS, model, {}, 2.5))


def _read_status(folder: Path, content: bytes) -> None:
    unit = _unit(folder)
    _write(unit.workdir / "unit.json", content)
    assert unit.is_done() <= unit.has_ended()


def _read_sweep(folder: Path, content: bytes) -> None:
    _write(folder / "sweep.json", content)
    load_sweep(folder)


def _read_rows(folder: Path, content: bytes) -> None:
    unit = WorkUnit(0, "rows", {}, default_config(), folder / "rows")
    rows = read_json_lines(_write(unit.workdir / "metrics.jsonl", content))
    unit.read_result()
    assert 0 <= fraction_trained(unit, rows) <= 1
    _last(rows, "train/loss")
    JsonLines(unit.workdir / "metrics.jsonl", keep_until_step=1)


def _read_tasks(folder: Path, content: bytes) -> None:
    _write(folder / "slurm" / "tasks.json", content)
    with (
        mock.patch.object(slurm, "_read_queue", return_value={}),
        mock.patch.object(slurm.shutil, "which", return_value="squeue"),
        mock.patch.object(slurm, "_ENDED", ()),
    ):
        slurm.find_tasks([_unit(folder)], workdir=folder)


def _import(name: str) -> Callable[[Path, bytes], object]:
    def read(folder: Path, content: bytes) -> object:
        vocabulary = _write(folder / "vocabulary.json", *_as_json(SYMBOLS))
        return _convert(_write(folder / name, content), vocabulary)

    return read


def _import_vocabulary(folder: Path, content: bytes) -> None:
    weights = folder / "whole.safetensors"
    if not weights.exists():
        weights.write_bytes(save(TORCH))
    _convert(weights, _write(folder / "symbols.json", content))


@cache
def _journal() -> bytes:
    """The journal of a search in which one trial was chosen."""
    from charrnn_jax.sweeps.plan import make_plan
    from charrnn_jax.sweeps.search import create_search
    from charrnn_jax.sweeps.space import choice, loguniform

    space = {"optimizer.learning_rate": loguniform(1e-4, 1e-2), "model.cell": choice(["gru"])}
    plan = make_plan(default_config(), space, sampler="random", pruner="none")
    with tempfile.TemporaryDirectory() as folder:
        search = create_search(plan, Path(folder), num_trials=1)
        next(search.remaining())
        return (Path(folder) / "search.journal").read_bytes()


def _read_journal(folder: Path, content: bytes) -> None:
    from charrnn_jax.sweeps.search import Search, create_search

    _write(folder / "search" / "search.journal", content)
    search = Search(folder / "search")
    create_search(search.plan, folder / "search", num_trials=search.num_trials)


def _damaged_journal(rng: random.Random) -> bytes:
    lines = _journal().splitlines()
    index = rng.randrange(len(lines))
    if rng.random() < 0.7:
        lines[index] = json.dumps(_damage_json(json.loads(lines[index]), rng)).encode()
    else:
        lines[index : index + 1] = _damage_bytes(lines[index], rng).split(b"\n")
    return b"\n".join(lines) + b"\n" * rng.randrange(2)


@cache
def _sampler() -> Sampler:
    model = CharRNN(6, 2, 3)
    params = initialize_params(model, jax.random.key(0))
    return Sampler(params, model=model, vocabulary=Vocabulary("abcde"))


@cache
def _continuation() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        Continuation.start(_sampler(), "abc").save(Path(folder) / "text")
        return (Path(folder) / "text").read_bytes()


def _read_continuation(folder: Path, content: bytes) -> None:
    Continuation.load(_write(folder / "text", content), sampler=_sampler())


def _run_experiment(folder: Path, content: bytes) -> None:
    load_experiment(str(_write(folder / "experiment.py", content)))


READERS = {
    "vocabulary": Reader(
        _as_json(Vocabulary("abc").to_dict(), Vocabulary(kind="bytes").to_dict()),
        lambda _, content: Vocabulary.from_json(content),
    ),
    "config": Reader((to_json(default_config()).encode(),), lambda _, content: from_json(content)),
    "metadata": Reader(_as_json(SAVED.to_dict()), _read_metadata),
    "manifest": Reader(
        _as_json({"metadata/metadata": sha256(*_as_json(SAVED.to_dict())).hexdigest()}),
        _read_manifest,
    ),
    "evaluation.json": Reader(_as_json(EVALUATED), _read_evaluation),
    "dynamic.json": Reader(_as_json({**TUNED, "sha256": digest_of(TUNED)}), _read_tuned),
    "judgement.json": Reader(_as_json({**JUDGED, "sha256": digest_of(JUDGED)}), _read_judgement),
    "unit.json": Reader(_as_json(STATUS), _read_status),
    "sweep.json": Reader(_as_json(SWEEP), _read_sweep),
    "rows": Reader((b"\n".join(_as_json(*ROWS)) + b"\n", *_as_json(*ROWS)), _read_rows),
    "tasks of Slurm": Reader(_as_json({"12_0": {"0": "unit"}}), _read_tasks),
    "safetensors": Reader((save(TORCH),), _import("model.safetensors")),
    "npz": Reader(
        (_npz([np.ones(shape, "f") for shape in KERAS_SHAPES]),),
        _import("model.npz"),
    ),
    "vocabulary to import": Reader(
        _as_json(SYMBOLS, dict(zip(SYMBOLS, range(5), strict=True)), dict(enumerate(SYMBOLS))),
        _import_vocabulary,
    ),
    "experiment": Reader((EXPERIMENT,), _run_experiment),
    "replicas.json": Reader(
        _as_json({"cpu": "vmap"}),
        lambda folder, content: read_json(
            _write(folder / "replicas.json", content), dict[str, str], remedy="delete it"
        ),
    ),
}
SLOW_READERS = {  # tens of milliseconds a file
    "search.journal": Reader((), _read_journal),
    "saved text": Reader((), _read_continuation),
}

# --- damage -------------------------------------------------------------------------------------

ODD = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        -(2**64),
        10**30,
        10**400,
        0.5,
        -0.5,
        1e308,
        5e-324,
    ),
    *(float("nan"), float("inf"), -float("inf"), "", "\0", "a", "\ud800", "../../x", "/dev/zero"),
    *(
        "-",
        "a" * 5000,
        [],
        {},
        [[]],
        {"": {}},
        [None],
        {"a": 1},
        ["a", "a"],
        "1",
        "\uff11",
        "b" * 64,
    ),
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, dict | list):
            yield from _paths(item, (*path, key))
        else:
            yield (*path, key)


def _nested(value: Any, depth: int, rng: random.Random) -> Any:
    for _ in range(depth):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def _odd(rng: random.Random) -> Any:
    if rng.random() < 0.1:
        return _nested(rng.choice(ODD), rng.choice((3, 40, 200)), rng)
    return rng.choice(ODD)


def _damage_json(value: Any, rng: random.Random) -> Any:
    """Returns JSON data with a value of a wrong type, or with a key too many or too few."""
    value = json.loads(json.dumps(value))
    if not isinstance(value, dict | list) or not value or rng.random() < 0.05:
        return _odd(rng)
    *outer, last = rng.choice([path for path in _paths(value) if path])
    place = value
    for key in outer:
        place = place[key]
    match rng.randrange(4):
        case 0:
            del place[last]
        case 1 if isinstance(place, dict):
            place[rng.choice(("", "a", "\0", "..", "/", "1", "\ud800", "k" * 3000))] = _odd(rng)
        case 2 if isinstance(place, dict):
            place[rng.choice(("", ".", "..", "a.b", "0"))] = place.pop(last)
        case _:
            place[last] = _odd(rng)
    return value


def _damage_bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        start = rng.randrange(len(data) + 1)
        stop = min(len(data), start + rng.choice((1, 1, 2, 8, 64)))
        match rng.randrange(5):
            case 0:
                del data[start:stop]
            case 1:
                data[start:stop] = rng.randbytes(stop - start)
            case 2:
                data[start:start] = data[start:stop] * rng.choice((1, 2, 50))
            case 3 if start < len(data):
                data[start] ^= 1 << rng.randrange(8)
            case _:
                data[start:stop] = rng.choice(WORDS)
    return bytes(data)


WORDS = (
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b":",
        b"\\",
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b"NaN",
        b"null",
    ),
    *(b"-Infinity", b"1e999", b"9" * 30, b"9" * 5000, b"true", b"\xef\xbb\xbf", b"\\ud800", b"#"),
    *(b"(", b"'''", b"\t", b"lambda:", b"raise SystemExit", b"import nothing_", b"1/0;", b"0xz"),
)
WHOLE = (
    *(b"", b"\0", b"null", b"[]", b"{}", b"3", b'"a"', b"NaN", b"{" * 999, b"\xff\xfe{\0}\0"),
    *(b"[" * 100_000, b'{"a":' * 100_000, b"9" * 100_000, b"[" * 500 + b"]" * 500),
    *(b"(" * 5000, b"-" * 100_000 + b"1", b"a." * 50_000 + b"a", b"x = '''", b"\\", b"\x00" * 64),
    b"PK\x05\x06" + b"\0" * 18,
)


def damaged(valid: Sequence[bytes], rng: random.Random) -> bytes:
    """Returns the content of a damaged file."""
    content = rng.choice(valid)
    chance = rng.random()
    if chance < 0.02:
        return rng.choice(WHOLE)
    if chance < 0.04:
        return rng.randbytes(rng.choice((1, 8, 100)))
    try:
        value = json.loads(content)
    except ValueError:
        return _damage_header(content, rng) if chance < 0.5 else _damage_bytes(content, rng)
    if chance < 0.75:
        return json.dumps(_damage_json(value, rng)).encode()
    return _damage_bytes(content, rng)


def _damage_header(content: bytes, rng: random.Random) -> bytes:
    """Of a .safetensors file: JSON of the length in its first 8 bytes."""
    size = int.from_bytes(content[:8], "little")
    if size > len(content):
        return _damage_bytes(content, rng)
    header = json.dumps(_damage_json(json.loads(content[8 : 8 + size]), rng)).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


# --- reading ------------------------------------------------------------------------------------


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder in memory, if there is one: a fuzzer writes many files."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="charrnn-faults-", dir=memory) as folder:
        yield Path(folder)


def check(name: str, content: bytes, folder: Path) -> str:
    """Reads one file; returns "read" or "refused".

    Raises:
      AssertionError: the reader did something else; the content is kept in the file that it names.
    """
    start = time.monotonic()
    outcome = "read"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (READERS | SLOW_READERS)[name].read(folder, content)
    except UserError as error:
        outcome = "refused"
        if len(str(error)) > MOST_CHARS:
            raise _found(name, content, f"an error of {len(str(error))} characters") from error
    except Exception as error:
        raise _found(name, content, repr(error)[:300]) from error
    if time.monotonic() - start > MOST_SECONDS:
        raise _found(name, content, f"{time.monotonic() - start:.1f} seconds")
    return outcome


def _found(name: str, content: bytes, what: str) -> AssertionError:
    label = "".join(c if c.isalnum() else "_" for c in name)
    kept = Path(tempfile.gettempdir()) / f"charrnn-{label}-{sha256(content).hexdigest()[:12]}"
    kept.write_bytes(content)
    return AssertionError(f"the reader of {name} gave {what}; its input is in {kept}")


def fuzz(*, seconds: float, seed: int) -> dict[str, int]:
    """Reads damaged files, with all readers in turn.

    Args:
      seconds: time to do so.
      seed: seed of the damage.

    Returns:
      How many files each reader was given, by its name, and how many it read and refused, such as
      {"config": 3, "config, read": 1, "config, refused": 2}.

    Raises:
      AssertionError: a reader raised another error than `UserError`; the input is kept.
    """
    rng, counts = random.Random(seed), Counter[str]()
    start = time.monotonic()
    slow = 0.0  # seconds of the slow readers, which get a tenth of the time

    def read(name: str, content: bytes) -> None:
        outcome = check(name, content, folder)
        counts[name] += 1
        counts[f"{name}, {outcome}"] += 1

    with _folder() as folder:
        while (elapsed := time.monotonic() - start) < seconds:
            for name, reader in READERS.items():
                read(name, damaged(reader.valid, rng))
            if slow < 0.1 * elapsed:
                before = time.monotonic()
                if importlib.util.find_spec("optuna"):
                    read("search.journal", _damaged_journal(rng))
                read("saved text", damaged([_continuation()], rng))
                slow += time.monotonic() - before
    return dict(counts)


# --- tests --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with _folder() as folder:
        yield folder


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_reader_of_a_damaged_file_returns_or_raises_user_error(
    name: str, seed: int, folder: Path
) -> None:
    check(name, damaged(READERS[name].valid, random.Random(seed)), folder)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
inner = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(), scalars, max_size=3)
any_json = inner | st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=any_json, rest=st.binary(max_size=20))
def test_every_reader_takes_any_json_and_any_bytes(value: Any, rest: bytes, folder: Path) -> None:
    for name in READERS:
        if name != "experiment":
            check(name, json.dumps(value).encode(), folder)
            check(name, rest, folder)


@pytest.mark.parametrize("name", READERS)
def test_reader_of_an_odd_file_returns_or_raises_user_error(name: str, folder: Path) -> None:
    """Empty, deeply nested, of huge numbers, and with each value replaced by each odd one."""
    for content in WHOLE:
        check(name, content, folder)
    for content in READERS[name].valid:
        assert check(name, content, folder) == "read"
        try:
            value = json.loads(content)
        except ValueError:
            continue
        for path in [path for path in _paths(value) if path][::5]:
            for odd in ODD[::3]:
                changed = json.loads(content)
                place = changed
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = odd
                check(name, json.dumps(changed).encode(), folder)


def test_damaged_journal_of_a_search_gives_one_line(folder: Path) -> None:
    pytest.importorskip("optuna")
    assert check("search.journal", _journal(), folder) == "read"
    rng = random.Random(0)
    for _ in range(40):
        check("search.journal", _damaged_journal(rng), folder)


def test_damaged_text_that_was_saved_gives_one_line(folder: Path) -> None:
    assert check("saved text", _continuation(), folder) == "read"
    rng = random.Random(0)
    for _ in range(40):
        check("saved text", damaged([_continuation()], rng), folder)


def test_fuzzing_counts_what_it_read() -> None:
    counts = fuzz(seconds=0.5, seed=0)
    assert counts.keys() >= {*READERS, "saved text"}
    for name in READERS:
        outcomes = (counts.get(f"{name}, {outcome}", 0) for outcome in ("read", "refused"))
        assert counts[name] == sum(outcomes)


def test_pipes_devices_and_large_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(UserError, match=r"not a regular file|Is a directory|cannot read"):
            read_bytes(name)
    (tmp_path / "large").write_bytes(b"1" * 11)
    with pytest.raises(UserError, match="more than 10 bytes"):
        read_json(tmp_path / "large", int, remedy="do", max_bytes=10)
    with pytest.raises(UserError, match="is not a path"):
        read_bytes("a\0b")
    with pytest.raises(UserError, match="cannot read"):
        read_bytes(tmp_path / "absent")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="cannot read"):
        read_bytes(tmp_path / "loop")


def test_recorded_path_opens_files_only(tmp_path: Path) -> None:
    """A stranger's run must not make `evaluate` read from a pipe, or from a device without end."""
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", "/dev/zero", "-", "/dev/stdin", "a\0b", tmp_path / "*.none"):
        config = default_config()
        config.data.path = str(name)
        with pytest.raises(UserError, match=r"not a file|no file found|device"):
            load_dataset(config.data, path_is_recorded=True)
    with pytest.raises(UserError, match=r"not a path|no file found"):
        load_corpus(path="a\0b")
    with pytest.raises(UserError, match="is a device"):
        load_corpus(path="/dev/zero")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(UserError, match="no file found"):
        load_corpus(path=str(loop))


def test_parameters_of_another_model_than_the_config_says_are_refused(tmp_path: Path) -> None:
    """By their sizes alone, before any memory is taken for them."""
    for field, value in (("hidden_size", 2**20), ("hidden_size", 2**31), ("num_layers", 10**6)):
        saved = SAVED.to_dict()
        saved["config"]["model"][field] = value
        _read_or_refuse(tmp_path, saved)
        with pytest.raises(UserError, match=r"parameters, but it has|it must be (from|at most)"):
            load_run(tmp_path / "run", checkpoint=STEP)


def _read_or_refuse(folder: Path, saved: dict[str, Any]) -> None:
    try:
        _read_metadata(folder, json.dumps(saved).encode())
    except UserError:
        assert saved["config"]["model"] != default_config().model.to_dict()


def test_error_never_shows_a_large_value() -> None:
    for value in ("a" * 10**6, 10**6000, [["b"] * 1000] * 1000, {"a" * 5000: "c" * 5000}):
        assert len(shown(value)) <= 200
    config = default_config().unlock()
    config.sample.prompt = "a" * 5000
    assert from_dict(config.to_dict()).sample.prompt == "a" * 5000
    config.model.cell = "a" * 5000
    config.model.dtype = "b" * 5000
    with pytest.raises(UserError, match=r"config.model.dtype is 'bbb.*bbb'; it must be") as error:
        from_dict(config.to_dict())
    assert len(str(error.value)) < 300
    line = shortened("head " + "a\n" * 5000 + "tail", length=100)
    assert len(line) <= 100
    assert line.startswith("head a a")
    assert line.endswith("a tail")


def test_line_of_an_error_is_one_and_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, nested = tmp_path / "config.py", tmp_path / "nested.py"
    config.write_text("raise ValueError('a\\n' * 100_000)")
    nested.write_text("-" * 100_000 + "1")
    for arguments in (
        ["sample", "--workdir=" + "a" * 5000],
        ["sample", "--workdir=" + "a/" * 5000],
        ["sample", "--workdir=runs\nhere", "--checkpoint=" + "1" * 5000],
        [f"--config={config}"],
        [f"--config={nested}"],
        ["--config=" + "b" * 5000],
        ["--config=quick", "--config.train.num_steps=" + "c" * 5000],
        ["--config=quick", "--config." + "d" * 5000 + "=1"],
        ["--config=quick", "--config.data.path=/dev/zero", f"--workdir={tmp_path / 'run'}"],
        ["--config=quick", "--config.data.path=~nobody_of_this_name/x", "--workdir=/dev/null/run"],
        ["e" * 5000],
    ):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("charrnn: error: "), arguments
        assert err.count("\n") == 1, arguments
        assert len(err) <= MOST_CHARS


def test_unit_with_a_damaged_checkpoint_does_not_block_its_sweep(tmp_path: Path) -> None:
    unit = WorkUnit(0, "unit", {}, default_config(), tmp_path)
    _write(tmp_path / "checkpoints" / str(STEP) / "sha256.json", b"{")
    with pytest.warns(UserWarning, match="unit: checkpoint .* cannot be used"):
        check_workdirs([unit])
    with pytest.warns(UserWarning, match="unit: checkpoint .* cannot be used"):
        assert unit.read_result().num_params is None


def test_json_of_the_wrong_shape_names_the_place_and_what_to_do() -> None:
    with pytest.raises(UserError, match=r"^x is damaged \(Expected `int`, got `str`.*\): do this$"):
        parse_json('{"a": "secret"}', dict[str, int], name="x", remedy="do this")
    with pytest.raises(UserError, match="too deeply nested"):
        parse_json("[" * 100 + "]" * 100, list, name="x", remedy="do this")
    with pytest.raises(UserError, match="whole number of 400 digits"):
        parse_json("9" * 400, int, name="x", remedy="do this")


def test_archive_that_promises_more_than_it_can_hold_is_refused(tmp_path: Path) -> None:
    content = bytearray(_npz([np.zeros(3)]))
    directory = content.index(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (2**32 - 2).to_bytes(4, "little")
    (tmp_path / "bomb.npz").write_bytes(content)
    with pytest.raises(UserError, match="sizes are wrong"):
        read_npz(tmp_path / "bomb.npz")
