"""Exports of a trained model that work without this package: a folder, or a web page."""

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from charrnn_jax.workdir.run import Run


class _Function(ModuleType):
    # `charrnn_jax.export` is both this package and the function `export` of `folder`. Importing the
    # package would replace a function of the same name, so the package itself is made callable.
    def __call__(self, run: "Run", folder: str | Path) -> None:
        from charrnn_jax.export.folder import export

        export(run, folder)


sys.modules[__name__].__class__ = _Function
