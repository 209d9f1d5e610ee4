"""How Sphinx builds these pages: `sphinx-build -W docs build/docs` (`pip install -e ".[docs]"`)."""

import shutil
from pathlib import Path

import charrnn_jax

HERE = Path(__file__).parent

project = "charrnn_jax"
author = "The charrnn_jax authors"
version = release = charrnn_jax.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["build"]

html_theme = "sphinx_book_theme"
html_title = "charrnn_jax"
html_show_sourcelink = False
html_theme_options = {"navbar_persistent": []}  # the search is in the sidebar

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests run the notebooks; here they are shown
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Sphinx reads sources from this folder alone. The copy is ignored by git.
(HERE / "notebooks").mkdir(exist_ok=True)
for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):
    shutil.copy(notebook, HERE / "notebooks")
