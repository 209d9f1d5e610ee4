"""Folders import only downwards, so that each can be read with what stands above it."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "charrnn_jax"
LAYERS = [
    "errors",
    "files",
    "config",
    "data",
    "compilation_cache",
    "models",
    "evaluation",
    "generation",
    "training",
    "run",
    "reports",
    "sweeps",
    "import_run",
    "commands",
    "main",
]


def _imported_layers(file: Path) -> set[str]:
    """First name behind `charrnn_jax.` of every import anywhere in the file."""
    layers = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"relative: {file}"
            continue
        layers |= {name.split(".")[1] for name in names if name.startswith("charrnn_jax.")}
    return layers


@pytest.mark.parametrize("layer", LAYERS)
def test_folder_imports_only_from_folders_above(layer: str) -> None:
    folder = PACKAGE / layer
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{layer}.py"]
    assert files
    for file in files:
        below = set(LAYERS[LAYERS.index(layer) + 1 :])
        assert not _imported_layers(file) & below, f"{file} imports from below"


def test_every_module_belongs_to_a_layer() -> None:
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names - {"__init__", "__pycache__"} == set(LAYERS)


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.py")), ids=lambda f: f.stem)
def test_experiments_import_only_the_config(file: Path) -> None:
    assert _imported_layers(file) <= {"config"}
