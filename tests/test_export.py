import importlib.util
import json
import re
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT
from flax.traverse_util import flatten_dict
from helpers import H, V, make, slow
from jax import export as jax_export
from markdown_it import MarkdownIt
from ml_collections import ConfigDict
from safetensors import safe_open
from safetensors.numpy import load_file

import charrnn_jax
from charrnn_jax.data.dataset import CorpusIdentity
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.export.card import (
    Contents,
    ModelCard,
    _losses,
    page_description,
    page_facts,
    page_title,
    readme,
)
from charrnn_jax.export.folder import PLATFORMS, export, make_functions, write_folder
from charrnn_jax.files import creating
from charrnn_jax.generation.choice import make_rules
from charrnn_jax.generation.sampler import Sampler, SampleState, sample_step
from charrnn_jax.main import main
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.char_rnn import CharRNN, initialize_params
from charrnn_jax.models.stepping import prepare, step
from charrnn_jax.workdir.metadata import Origin
from charrnn_jax.workdir.run import Run

VOCABULARY = Vocabulary("\nabcdefghi")  # 11 ids, as the model of `make`
HOSTILE = "</script>\n# head\n````\n\"'`\\|*&\0\r\u2028\u202e\ud800😀é"
CORPUS = CorpusIdentity("corpus", sha256="5" * 64, num_chars=1000)
CARD = ModelCard(
    name="name",
    step=7,
    model=CharRNN(V, 6, H),
    vocabulary=VOCABULARY,
    config={"seed": 0},
    corpus=CORPUS,
    losses={"validation": {"carried": 1.5}},
    protocols={"carried": "one pass"},
    prompt="bad",
)


TIED = {"output_embedding": "tied", "embedding_rank": 2}


def reloaded(model: CharRNN) -> dict:
    functions = make_functions(model)
    return {name: jax_export.deserialize(f.serialize()) for name, f in functions.items()}


def export_tiny(folder: Path, params, **changes) -> None:
    write_folder(folder, params, card=replace(CARD, **changes))


@pytest.mark.parametrize(
    ("cell", "num_layers", "batch_sizes", "changes"),
    [
        ("gru", 1, (1, 17), {}),
        ("lstm", 2, (1,), {"dtype": "bfloat16"}),
        ("rnn", 2, (5,), {}),
        ("gru", 2, (5,), {"implementation": "scan"}),
        ("rnn", 2, (5,), {"residual": "add", "readout": "all"} | TIED),
        slow("mogrifier_lstm", 2, (5,), {}),
        slow("slstm", 2, (5,), {}),
    ],
)
def test_exported_step_equals_ours_bit_for_bit(
    cell: str, num_layers: int, batch_sizes: tuple[int, ...], changes: dict
) -> None:
    """One artifact, several numbers of texts and temperatures; ids and carry."""
    model, params, carry, _ = make(cell, num_layers, **changes)
    functions = reloaded(model)
    weights = jax.jit(functions["prepare"].call)(flatten_dict(params, sep="/"))
    exported = jax.jit(functions["step"].call)
    ours = prepare(params, model=model, transposed=True)
    for batch_size in batch_sizes:
        rows = jax.tree.map(lambda c, n=batch_size: np.resize(c, (n, H)), carry)
        ids = np.arange(batch_size, dtype=np.int32) % V
        for temperature in (0.0, 0.8):
            rules = make_rules(VOCABULARY, temperature=temperature)
            keys = jax.random.split(jax.random.key(0), batch_size)
            keys_of_step = jax.vmap(jax.random.fold_in, (0, None))(keys, 3)
            new_ids, new_carry = exported(weights, ids, rows, keys_of_step, temperature)
            state = SampleState(rows, ids, keys, np.full_like(ids, 3), memory=((), ()))
            state, expected = sample_step(ours, state, model=model, rules=rules)
            assert np.array_equal(new_ids, expected.tokens)
            jax.tree.map(np.testing.assert_array_equal, new_carry, state.carry)


@pytest.mark.parametrize("implementation", ["fused", "scan"])
def test_one_artifact_serves_every_platform_and_any_number_of_texts(implementation: str) -> None:
    functions = reloaded(CharRNN(V, 6, H, 2, implementation=implementation))
    assert all(f.platforms == PLATFORMS == ("cpu", "cuda", "tpu") for f in functions.values())
    (_, ids, carry, key, temperature), _ = jax.tree.unflatten(
        functions["step"].in_tree, functions["step"].in_avals
    )
    assert [str(x.shape) for x in (ids, key, temperature)] == ["(B,)", "(B,)", "()"]
    assert {str(x.shape) for x in carry} == {f"(B, {H})"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LSTM of two layers."""
    folder = tmp_path_factory.mktemp("exports") / "lstm"
    model, params, _, _ = make("lstm", 2)
    export_tiny(folder, params, model=model)
    return folder


# --- without our code ---------------------------------------------------------------------------

# Starts a program like `python generate.py`, with the packages of one folder and no others.
ALONE = """
import importlib.util, runpy, sys
sys.path.append(sys.argv[1])
assert not any(map(importlib.util.find_spec, ("charrnn_jax", "flax", "safetensors")))
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `pip install jax flatbuffers` installs."""
    folder = tmp_path_factory.mktemp("packages")
    for name in ("jax", "jaxlib", "numpy", "scipy", "ml_dtypes", "opt_einsum", "flatbuffers"):
        package = Path(importlib.util.find_spec(name).origin).parent
        for path in (package, package.with_name(f"{name}.libs")):
            if path.exists():
                (folder / path.name).symlink_to(path)
    return folder


def run_alone(folder: Path, packages: Path, *flags: str) -> tuple[int, str, str]:
    """Returns (exit code, standard output, standard error)."""
    command = [sys.executable, "-I", "-S", "-c", ALONE, packages, folder / "generate.py", *flags]
    done = subprocess.run(command, capture_output=True)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize(
    ("vocabulary", "cell", "prompt", "temperature"),
    [
        slow(VOCABULARY, "lstm", "bad", 0.8),
        slow(Vocabulary(kind="bytes"), "gru", "", 1.0),
        (Vocabulary.build([HOSTILE]), "rnn", "'😀`\n</script>", 1.0),
    ],
)
def test_a_fresh_process_without_our_code_writes_the_same_text(
    vocabulary: Vocabulary,
    cell: str,
    prompt: str,
    temperature: float,
    tmp_path: Path,
    packages: Path,
) -> None:
    model = CharRNN(vocabulary.size, 6, H, 2, cell)
    params = initialize_params(model, jax.random.key(0))
    export_tiny(tmp_path / "x", params, model=model, vocabulary=vocabulary, prompt=prompt)
    flags = (f"--prompt={prompt}", "--num_chars=100", f"--temperature={temperature}", "--seed=5")
    alone = run_alone(tmp_path / "x", packages, *flags)
    sampler = Sampler(params, model=model, vocabulary=vocabulary)
    (ours,) = sampler.generate([prompt], num_chars=100, temperature=temperature, seed=5)
    text = prompt + ours.text + "\n"
    assert alone == (0, text.encode("utf-8", "backslashreplace").decode(), "")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--prompt=aZb", "--prompt has characters that the model does not know: 'Z'"),
        ("--temperature=nan", "--temperature is nan; it must be 0, or from 1e-6 to 1e6"),
    ],
)
def test_wrong_flags_of_generate_py_end_in_one_line(
    flag: str, message: str, exported: Path, packages: Path
) -> None:
    assert run_alone(exported, packages, flag) == (2, "", f"generate.py: error: {message}\n")


# --- the files ----------------------------------------------------------------------------------


def test_weights_are_the_parameters_bit_for_bit(exported: Path) -> None:
    _, params, _, _ = make("lstm", 2)
    weights, expected = load_file(exported / "weights.safetensors"), flatten_dict(params, sep="/")
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert tensor.dtype == np.float32
        assert tensor.tobytes() == np.asarray(expected[name]).tobytes()
    with safe_open(exported / "weights.safetensors", "np") as file:
        assert json.loads(file.metadata()["model"])["cell"] == "lstm"


FUNCTIONS = ("tanh", "exp", "log", "sqrt", "where", "maximum", "inf")


@pytest.mark.parametrize("cell", CELLS)
def test_equations_of_the_card_are_what_the_model_computes(cell: str) -> None:
    """Run as Python, with the parameters that they name."""
    model, params, carry, tokens = jax.device_get(make(cell, num_layers=2))
    weights = flatten_dict(params, sep="/")
    names = {
        **{name: getattr(np, name) for name in FUNCTIONS},
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
        "joined": lambda *v: np.concatenate(v, axis=-1),
        "split": lambda v, parts: np.split(v, parts, axis=-1),
        "norm": lambda v: (
            (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)
        ),
        "heads": lambda h, k: np.hstack(
            [part @ one for part, one in zip(np.split(h, len(k), axis=1), k, strict=True)]
        ),
        "rms": lambda v: np.sqrt((v**2).mean(-1, keepdims=True) + 1e-6),
        "gelu": lambda v: np.asarray(jax.nn.gelu(v, approximate=True)),
        "p": weights,
    }
    x = weights["embedding/embedding"][tokens[:, 0]]
    for layer, layer_carry in enumerate(carry):
        state = dict(
            zip(
                CELLS[cell].carry.strip("()").split(", "), jax.tree.leaves(layer_carry), strict=True
            )
        )
        equations = CELLS[cell].equations
        own = flatten_dict(params[f"layers_{layer}"]["cell"], sep="/")
        equations = re.sub(rf"\b({'|'.join(own)})\b", rf"p['layers_{layer}/cell/\1']", equations)
        kernel = own.get("skip/kernel", np.eye(x.shape[-1]))
        skip = lambda x, kernel=kernel: x @ kernel  # noqa: E731
        exec(equations, scope := {**names, **state, "x": x, "skip": skip})
        x = scope["h"]
    logits = x @ weights["dense/kernel"] + weights["dense/bias"][None]
    _, expected = step(params, carry, tokens[:, 0], model=model.clone(implementation="scan"))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_card_shows_hostile_text_and_does_not_obey_it(tmp_path: Path) -> None:
    vocabulary = Vocabulary.build([HOSTILE])
    model = CharRNN(vocabulary.size, 6, H)
    params = initialize_params(model, jax.random.key(0))
    cards = {}
    for text in ("plain", HOSTILE):
        corpus = replace(CORPUS, name=text, instead_of=text)
        folder = tmp_path / str(len(text))
        hostile = {"model": model, "vocabulary": vocabulary, "prompt": HOSTILE}
        export_tiny(folder, params, **hostile, name=text, corpus=corpus, config={"a": text})
        cards[text] = MarkdownIt().enable("table").parse((folder / "README.md").read_text("utf-8"))
        known = (folder / "vocabulary.json").read_text()
        assert Vocabulary.from_json(known) == vocabulary
    plain, hostile = (
        [(token.type, [child.type for child in token.children or ()]) for token in card]
        for card in cards.values()
    )
    assert plain == hostile
    assert "html" not in str(hostile)
    # Markdown has no NUL, and reads CR as the end of a line.
    shown = HOSTILE.replace("\0", "\ufffd").replace("\r", "\n").replace("\ud800", "\\ud800")
    assert any(token.content.startswith(shown) for token in cards[HOSTILE])


def test_programs_name_no_file_of_the_machine(exported: Path) -> None:
    for name in ("prepare", "step"):
        assert b".py" not in (exported / f"{name}.stablehlo").read_bytes()


def test_a_folder_appears_whole_or_not_at_all(exported: Path, tmp_path: Path) -> None:
    model, params, _, _ = make("lstm", 2)
    with pytest.raises(UserError, match="'Z' at position 0"):
        export_tiny(tmp_path / "x", params, model=model, prompt="Z")
    assert not list(tmp_path.iterdir())
    (tmp_path / "x").mkdir()  # an empty folder is as good as none
    export_tiny(tmp_path / "x", params, model=model)
    there = contents(tmp_path / "x")
    assert there == contents(exported)
    assert set(there) == {
        *("README.md", "config.json", "generate.py", "vocabulary.json", "weights.safetensors"),
        *("prepare.stablehlo", "step.stablehlo"),
    }
    (tmp_path / "file").touch()
    for name in ("x", "file"):
        with pytest.raises(UserError, match="already exists: delete it, or give another folder"):
            export_tiny(tmp_path / name, params, model=model)
    assert contents(tmp_path / "x") == there


def test_killed_in_the_middle_there_is_no_folder(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, signal
from charrnn_jax.files import creating
with creating(pathlib.Path({str(tmp_path)!r}, "x")) as partial:
    (partial / "README.md").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGKILL
    assert not (tmp_path / "x").exists()
    with creating(tmp_path / "x") as partial:
        (partial / "README.md").touch()
    assert list(contents(tmp_path / "x")) == ["README.md"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]  # nothing of the killed one


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def make_run(workdir: Path, config: ConfigDict, **changes) -> Run:
    """A run of step 5, on an own text in a folder that is nobody else's business."""
    model, params, _, _ = make("lstm", 2)
    config.sample.prompt = "bad"
    config.data.path = "secret/text.txt"
    corpus = replace(CORPUS, name="secret/text.txt")
    return Run(workdir, 5, config, VOCABULARY, corpus, model, params, **{"loss": None, **changes})


def test_sample_of_a_card_is_what_its_command_writes(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    run = make_run(tmp_path, tiny_config)
    export(run, tmp_path / "x")
    readme = (tmp_path / "x" / "README.md").read_text(encoding="utf-8")
    num_chars, temperature = re.search(r"--num_chars (\d+) --temperature (\S+)", readme).groups()
    sampler = Sampler(run.params, model=run.model, vocabulary=run.vocabulary)
    (sample,) = sampler.generate(
        ["bad"], num_chars=int(num_chars), temperature=float(temperature), seed=0
    )
    lines = [line for line in sample.text.splitlines() if len(line) > 20]
    assert len(lines) > 3
    assert all(line in readme for line in lines[1:])


def test_card_has_the_losses_of_this_checkpoint_by_protocol(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    run = make_run(tmp_path, tiny_config, loss=2.0, origin=Origin("runs/old", 3, CORPUS))
    corpus = asdict(run.corpus)
    entry = {"step": 5, "corpus": corpus, "losses": {"carried": {"nats_per_char": 2.5}}}
    other_text = {**entry, "corpus": {**corpus, "sha256": "0"}}
    evaluated = {"train": entry, "validation": other_text, "test": {**entry, "step": 4}}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluated))
    assert run.losses() == {"validation": {"cold-32": 2.0}, "train": {"carried": 2.5}}
    charrnn_jax.export(run, tmp_path / "x")
    card = (tmp_path / "x" / "README.md").read_text()
    assert "| validation | cold-32 | 2.0000 | 2.8854 | 7.389 |" in card
    assert "| train | carried | 2.5000 |" in card
    assert f"- sha256: `{CORPUS.sha256}`" in card
    assert (
        "- training started from the weights of `old, step 3, trained on corpus, 1,000 long" in card
    )
    tiny_config.data.path = "text.txt"
    assert json.loads((tmp_path / "x" / "config.json").read_text()) == tiny_config.to_dict()
    assert not any(b"secret" in file.read_bytes() for file in (tmp_path / "x").iterdir())
    assert "Not evaluated." in _losses(replace(CARD, losses={}))
    (tmp_path / "evaluation.json").write_text('{"train": 3}')
    with pytest.raises(UserError, match=r"is damaged .*: delete it, and evaluate again"):
        charrnn_jax.export(run, tmp_path / "y")


def test_one_card_gives_the_readme_and_the_texts_of_the_page() -> None:
    corpus = replace(CORPUS, name="a text", instead_of="another")
    card = replace(CARD, corpus=corpus, started_from="an older model")
    contents = Contents(shapes={"x": (2, 3)}, sizes={}, platforms=PLATFORMS, sample="")
    text, facts = readme(card, contents), page_facts(card)
    for fact in ("a text", "another", "an older model", "1.5000"):
        assert fact in text
        assert fact in str(facts)
    assert "6 parameters; exported after 7 steps" in text
    assert facts["Step"] == "7"
    assert "a text" in page_description(card)


@pytest.mark.parametrize(
    ("corpus", "title"),
    [
        ("shakespeare", "Shakespeare's plays"),
        ("python-stdlib", "Python's standard library"),
        ("/home/me/war_and_peace.txt", "war and peace"),
        ("books/notes.md", "notes.md"),
        ("source:markov:2", "the synthetic text markov:2"),
        ("-", "a text"),
    ],
)
def test_title_of_a_page_is_one_that_a_person_would_give(corpus: str, title: str) -> None:
    card = replace(CARD, corpus=replace(CORPUS, name=corpus), model=CharRNN(V, 6, 512))
    assert page_title(card) == f"A model of {title}: GRU, 512 units"
    deep = replace(card, model=CharRNN(V, 6, 1024, num_layers=2, cell="lstm"))
    assert page_title(deep) == f"A model of {title}: LSTM, 2 layers of 1,024 units"


# A run of a tiny model, and what exports it, before and after the package is imported.
BEFORE_AND_AFTER = """
import sys
from pathlib import Path
import jax
import charrnn_jax
from charrnn_jax.data.dataset import CorpusIdentity
from charrnn_jax.models.char_rnn import initialize_params
from charrnn_jax.workdir.run import Run
config, model = charrnn_jax.default_config(), charrnn_jax.CharRNN(4, 2, 2)
config.sample.prompt = "a"
params = initialize_params(model, jax.random.key(0))
corpus = CorpusIdentity("text", sha256="0", num_chars=9)
folder, vocabulary = Path(sys.argv[1]), charrnn_jax.Vocabulary("abc")
run = Run(folder, 1, config, vocabulary, corpus, model, params, loss=None)
charrnn_jax.export(run, folder / "before")
import charrnn_jax.export.folder
charrnn_jax.export(run, folder / "after")
from charrnn_jax import export, export_page
export_page(run, folder / "page.html")
export(run, str(folder / "once more"))
"""


@pytest.mark.slow
def test_export_is_a_function_before_and_after_the_package_of_its_name_is_imported(
    tmp_path: Path,
) -> None:
    subprocess.run([sys.executable, "-c", BEFORE_AND_AFTER, tmp_path], check=True, cwd=ROOT)
    before, after, page, once_more = (
        tmp_path / name for name in ("before", "after", "page.html", "once more")
    )
    assert contents(before) == contents(after) == contents(once_more)
    assert "generate.py" in contents(before)
    assert page.stat().st_size > 10_000


@pytest.mark.parametrize("format", ["folder", "web"])
def test_the_command_exports_what_the_function_exports(
    format: str,
    tiny_config: ConfigDict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(tmp_path, tiny_config)
    monkeypatch.setattr("charrnn_jax.commands.export.open_run", lambda *_: run)
    output, ours = tmp_path / "x.html", tmp_path / "y.html"
    assert main(["export", f"--format={format}", f"--output={output}"]) == 0
    assert f"Exported to {output}" in capsys.readouterr().out
    if format == "folder":
        charrnn_jax.export(run, ours)
        assert contents(output) == contents(ours)
    else:
        charrnn_jax.export_page(run, ours)
        assert output.read_bytes() == ours.read_bytes()
        assert str(tmp_path).encode() not in output.read_bytes()
