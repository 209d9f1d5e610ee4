"""The notebooks are built from their sources, show nothing of the machine, and run."""

import json
import os
import re
import subprocess
import sys
import types
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

NOTEBOOKS = ROOT / "notebooks"
LARGEST = 300_000  # bytes
ACCELERATORS = {"train_on_tpu": "TPU"}  # the others: GPU
NAMES = sorted(file.stem for file in NOTEBOOKS.glob("*.ipynb"))
# What a run prints, with the small settings: something from each part.
PRINTED = {
    "ablation": ["25 of 25 done", "seed 4:", "dropout=0.05", "contains 0"],
    "inside_the_network": ["in a speaker's line", "untrained  trained", "held high"],
    "text_generation": ["Length of text: 50,000", "\ntotal  ", "Run time: ", "Steps done: 20"],
    "train_on_tpu": ["Disconnected", "Resuming from step 20 of 60", "device 1 has rows 8 to 15"],
    "write_a_cell": ["step 6: largest difference", "(leaky)", "fused  loss", "ms a step"],
    "your_own_text": ["96 unique characters", "n-grams", "letters shuffled", "report.html"],
}


@pytest.fixture(scope="module")
def build() -> Any:
    """notebooks/build.py as a module."""
    pytest.importorskip("jupytext")
    pytest.importorskip("nbclient")
    spec = spec_from_file_location("build_notebooks", NOTEBOOKS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_source_has_its_notebook(build: Any) -> None:
    assert set(build.NAMES) == set(NAMES) == set(PRINTED)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_its_source(build: Any, name: str) -> None:
    """After editing the source: python notebooks/build.py NAME"""
    source, built = build.read_source(name), json.loads((NOTEBOOKS / f"{name}.ipynb").read_bytes())
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in built["cells"]] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ]
    assert build.to_source(source) == (NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8")
    assert built["metadata"]["accelerator"] == ACCELERATORS.get(name, "GPU")


@pytest.mark.parametrize("name", NAMES)
def test_notebook_shows_outputs_without_warnings_or_places(name: str) -> None:
    file = NOTEBOOKS / f"{name}.ipynb"
    cells = json.loads(file.read_bytes())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"] == [
        *range(1, 1 + sum(cell["cell_type"] == "code" for cell in cells))
    ]
    assert len(outputs) > 5
    assert any("image/png" in output.get("data", ()) for output in outputs)
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    texts = [text for output in outputs for text in _texts(output)]
    assert not re.findall(
        r"Warning|(?<![\w./])/(?:tmp|home|root|usr|work)\b|\x1b", "\n".join(texts)
    )
    assert file.stat().st_size < LARGEST


def _texts(output: dict[str, Any]) -> list[str]:
    shown = {"text": output.get("text", ""), **output.get("data", {})}
    return ["".join(text) for kind, text in shown.items() if kind.startswith("text")]


@pytest.mark.parametrize(
    ("address", "uploaded", "in_drive", "installed"),
    [
        ("me/it", [], [], "git+https://github.com/me/it"),
        ("", ["/content/charrnn_jax.zip"], [], "/content/charrnn_jax.zip"),
        ("", [], ["/content/drive/MyDrive/charrnn_jax"], "/content/drive/MyDrive/charrnn_jax"),
        ("", [], [], None),
    ],
    ids=["public", "uploaded", "in Drive", "nowhere"],
)
def test_first_cell_brings_the_package_to_colab(
    build: Any,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    uploaded: list[str],
    in_drive: list[str],
    installed: str | None,
) -> None:
    code = build.read_source("text_generation", address=address).cells
    first = next(cell for cell in code if cell.cell_type == "code").source
    places, commands = {"/content/charrnn_jax*": uploaded}, []

    def mount(folder: str) -> None:
        places[f"{folder}/MyDrive/charrnn_jax*"] = in_drive

    colab = types.ModuleType("google.colab")
    colab.drive = types.SimpleNamespace(mount=mount)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setattr("glob.glob", lambda place: places[place])
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command))
    if installed is None:
        with pytest.raises(SystemExit, match="upload charrnn_jax"):
            exec(first, {})
    else:
        exec(first, {})
        assert [command[-1] for command in commands] == [installed]


def test_badge_leads_to_the_notebook_once_there_is_an_address(build: Any) -> None:
    badge = build.read_source("ablation", address="me/it").cells[0].source
    assert badge.endswith("/github/me/it/blob/main/notebooks/ablation.ipynb)")
    assert "badge" not in build.read_source("ablation", address="").cells[0].source


def test_a_new_address_needs_no_new_outputs(build: Any) -> None:
    built = NOTEBOOKS / "ablation.ipynb"
    notebook = build.read_source("ablation", address="me/it")
    build.keep_outputs(notebook, built)
    code = [cell for cell in json.loads(built.read_bytes())["cells"] if "outputs" in cell]
    assert [len(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"] == [
        len(cell["outputs"]) for cell in code
    ]
    notebook.cells[-2].source = "print('another')"
    notebook.cells[-2].cell_type = "code"
    with pytest.raises(SystemExit, match="the code of ablation has changed"):
        build.keep_outputs(notebook, built)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_from_top_to_bottom(name: str, tmp_path: Path) -> None:
    """In a process of its own: a notebook's kernel has no business with this one's settings."""
    pytest.importorskip("nbclient")
    program = (
        "import sys, nbformat, nbclient\n"
        "notebook = nbformat.read(sys.argv[1], as_version=4)\n"
        "nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3').execute()\n"
        "outputs = [o for c in notebook.cells for o in c.get('outputs', [])]\n"
        "print(*[o.get('text', '') for o in outputs])\n"
        "print(*[o.text for o in outputs if o.get('name') == 'stderr'], file=sys.stderr)\n"
    )
    environment = {
        **os.environ,
        "CHARRNN_NOTEBOOK_SMALL": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # and no devices but the notebook's
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(NOTEBOOKS / f"{name}.ipynb")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr
    for text in PRINTED[name]:
        assert text in done.stdout
