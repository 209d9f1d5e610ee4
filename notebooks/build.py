"""Builds the notebooks: runs each source, NAME.py, and writes NAME.ipynb with its outputs.

    pip install -e ".[notebooks]" && python notebooks/build.py [NAME ...]

Every source begins with a badge and a cell that bring the notebook and the package to Colab. Both
are written by this file, so that the address of the repository stands here alone. With
--no-run, outputs are kept as they are; it is enough after a change of text or of the address.
"""

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

import jupytext
import nbclient
import nbformat
from nbformat import NotebookNode

ADDRESS = ""  # "OWNER/NAME" on GitHub, once the repository is public; then build again
BRANCH = "main"
FOLDER = Path(__file__).resolve().parent
NAMES = sorted(file.stem for file in FOLDER.glob("*.py") if file != Path(__file__).resolve())

FIRST_CELL = """\
# Brings the package to Colab. Elsewhere: pip install -e . in a clone, before you start Jupyter.
import glob
import subprocess
import sys

if "google.colab" in sys.modules:
    address = {address}  # on GitHub; "": an archive or a folder that you have uploaded
    places = ["/content/charrnn_jax*", "/content/drive/MyDrive/charrnn_jax*"]
    found = [f"git+https://github.com/{{address}}"] if address else glob.glob(places[0])
    if not found:
        from google.colab import drive

        drive.mount("/content/drive")
        found = glob.glob(places[1])
    if not found:
        raise SystemExit("upload charrnn_jax, as .zip or as a folder, to /content or to your Drive")
    # No extra such as [tpu]: Colab's own jax and flax, which fit its machine, are kept.
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", found[0]], check=True)"""


def read_source(name: str, *, address: str = ADDRESS) -> NotebookNode:
    """Returns the notebook of a source, with its badge and its first cell written anew."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    cells = [cell for cell in notebook.cells if not cell.source.startswith("[![Open in Colab]")]
    first = next(cell for cell in cells if cell.cell_type == "code")
    first.source = FIRST_CELL.format(address=json.dumps(address))
    if address:
        link = "https://colab.research.google.com"
        badge = f"[![Open in Colab]({link}/assets/colab-badge.svg)]"
        page = f"{link}/github/{address}/blob/{BRANCH}/notebooks/{name}.ipynb"
        cells.insert(0, nbformat.v4.new_markdown_cell(f"{badge}({page})"))
    for number, cell in enumerate(cells):
        cell.id = f"{name}-{number}"
    notebook.cells = cells
    return notebook


def to_source(notebook: NotebookNode) -> str:
    """Returns a notebook as the text of its source, without what jupytext notes for itself."""
    text = jupytext.writes(notebook, fmt="py:percent")
    own = r"^# +(format_version|jupytext_version|notebook_metadata_filter): .*\n"
    return re.sub(own, "", text, flags=re.MULTILINE)


def run(notebook: NotebookNode) -> None:
    """Runs a notebook in an empty folder, and keeps its outputs but no times or places."""
    with tempfile.TemporaryDirectory() as folder:
        nbclient.NotebookClient(
            notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = merge(cell.outputs)
            for output in cell.outputs:
                if "text/html" in (shown := output.get("data", {})):  # nobody sees the other form
                    shown["text/plain"] = shown["text/plain"].partition("(")[0]
    notebook.metadata.pop("language_info", None)


def merge(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Returns the outputs of a cell with texts that were printed one after the other as one."""
    merged: list[NotebookNode] = []
    for output in outputs:
        is_text = output.output_type == "stream"
        if is_text and merged and merged[-1].get("name") == output.name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def keep_outputs(notebook: NotebookNode, built: Path) -> None:
    """Takes the outputs of a notebook as it was built; only texts and the first cell may differ."""
    old = {cell.source: cell for cell in nbformat.read(built, as_version=4).cells}
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(cells, start=1):
        if cell.source in old:
            cell.outputs = old[cell.source].outputs
        elif number > 1:
            raise SystemExit(f"the code of {built.stem} has changed: run it, without --no-run")
        cell.execution_count = number


def main() -> None:
    parser = argparse.ArgumentParser(description="builds the notebooks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(NAMES)}")
    parser.add_argument("--no-run", action="store_true", help="keep the outputs as they are")
    args = parser.parse_args()
    for name in args.names or NAMES:
        notebook, built = read_source(name), FOLDER / f"{name}.ipynb"
        (FOLDER / f"{name}.py").write_text(to_source(notebook), encoding="utf-8")
        start = time.time()
        if args.no_run:
            keep_outputs(notebook, built)
        else:
            run(notebook)
        nbformat.write(notebook, built)
        size = built.stat().st_size
        print(f"{built.name}: {time.time() - start:.0f} s, {size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
