"""Files import only what stands above them, so that each can be read with that alone."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "charrnn_jax"
LAYERS = [
    "errors",
    "files",
    "reading",
    "memory",
    "messages",
    "tables",
    "processes",
    "pytree",
    "registry",
    "config",
    "experiment",
    "data",
    "host_devices",
    "compilation_cache",
    "models",
    "evaluation",
    "generation",
    "workdir",
    "reports",
    "export",
    "training",
    "sweeps",
    "commands",
    "main",
]


def _imports(file: Path) -> set[str]:
    """Full names of what is imported anywhere in the file, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative: {file}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def _imported_layers(file: Path) -> set[str]:
    """First name after `charrnn_jax.` of every import."""
    return {name.split(".")[1] for name in _imports(file) if name.startswith("charrnn_jax.")}


def _module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("layer", LAYERS)
def test_folder_imports_only_from_folders_above(layer: str) -> None:
    folder = PACKAGE / layer
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{layer}.py"]
    assert files
    for file in files:
        below = set(LAYERS[LAYERS.index(layer) + 1 :])
        assert not _imported_layers(file) & below, f"{file} imports from below"


def test_no_file_imports_itself_by_way_of_others() -> None:
    files = {_module_name(file): file for file in PACKAGE.rglob("*.py")}
    graph = {
        module: {
            # A name that is imported is a module, or something inside one.
            name if name in files else name.rpartition(".")[0]
            for name in _imports(file)
        }
        for module, file in files.items()
        if module != "charrnn_jax"  # it has the names of all others
    }
    assert set.union(*graph.values()) >= {"charrnn_jax.errors", "charrnn_jax.generation.rules"}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=_module_name)
def test_nothing_imports_the_names_of_the_package(file: Path) -> None:
    """They are for users; inside, each name comes from its own file."""
    assert _imported_layers(file) <= set(LAYERS)
    assert "charrnn_jax" not in _imports(file)


def test_every_module_belongs_to_a_layer() -> None:
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names - {"__init__", "__pycache__"} == set(LAYERS)


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.py")), ids=lambda f: f.stem)
def test_experiments_import_only_the_config(file: Path) -> None:
    assert _imported_layers(file) <= {"config"}


@pytest.mark.parametrize("file", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda f: f.stem)
def test_notebooks_import_public_names_only(file: Path) -> None:
    assert _imported_layers(file) <= {"config"}  # as an experiment in a cell does
    assert "charrnn_jax" in _imports(file) or file.stem == "build"


def test_the_package_lists_its_names_with_a_line_each() -> None:
    """In `dir` and in the docstring that `help` shows."""
    import charrnn_jax

    assert charrnn_jax.__doc__ is not None
    assert set(dir(charrnn_jax)) == {*charrnn_jax.__all__, "__version__"}
    for name in charrnn_jax.__all__:
        assert re.search(rf"\b{name}\b", charrnn_jax.__doc__), name
