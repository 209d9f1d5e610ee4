"""A model for places without this code: as a folder, or as a web page."""

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from charrnn_jax.workdir.run import Run


class _Function(ModuleType):
    # `charrnn_jax.export` is this package and, by the same name, the function `export` of `folder`:
    # Python puts an imported package in the place of a function of its name, so it has to be both.
    def __call__(self, run: "Run", folder: str | Path) -> None:
        from charrnn_jax.export.folder import export

        export(run, folder)


sys.modules[__name__].__class__ = _Function
