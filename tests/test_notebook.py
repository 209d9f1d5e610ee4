import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

NOTEBOOK = ROOT / "notebooks" / "text_generation.ipynb"


def test_notebook_is_its_source() -> None:
    """After editing the source: jupytext --to ipynb notebooks/text_generation.py"""
    jupytext = pytest.importorskip("jupytext")
    notebook, source = jupytext.read(NOTEBOOK), jupytext.read(NOTEBOOK.with_suffix(".py"))
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ]
    assert notebook.metadata["accelerator"] == "GPU"


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """In a process of its own: a notebook's kernel has no business with this one's settings."""
    pytest.importorskip("nbclient")
    program = (
        "import sys, nbformat, nbclient\n"
        "notebook = nbformat.read(sys.argv[1], as_version=4)\n"
        "nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3').execute()\n"
        "print(*[o.get('text', '') for c in notebook.cells for o in c.get('outputs', [])])\n"
    )
    environment = {
        **os.environ,
        "CHARRNN_NOTEBOOK_SMALL": "1",
        "CHARRNN_NOTEBOOK_WORKDIR": str(tmp_path / "run"),
    }
    done = subprocess.run(
        [sys.executable, "-c", program, str(NOTEBOOK)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for text in ("Length of text: 50,000", "\ntotal  ", "Run time: ", "Steps done: 20"):
        assert text in done.stdout
    assert done.stdout.count("ROMEO:") > 5  # the exported generator's, too
