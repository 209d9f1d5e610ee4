"""Exports a model as a web page: one file that generates text in the browser, without a network.

The page contains the weights that `step` reads, with the product of the embedding and the first
input kernel computed in advance. Matrices are rounded, biases are not:

  float16   each number to the nearest half-precision number
  int8      kernel[n, k] to s[n] i[n, k], where s[n] = max_k |kernel[n, k]| / 127 and i[n, k] is an
            integer

Texts such as the title, the prompt and the vocabulary are untrusted: the script inserts them as
plain text, never as markup.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.export.card import make_card, page_description, page_facts, page_title
from charrnn_jax.files import replacing
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.char_rnn import CharRNN, Params
from charrnn_jax.models.stepping import StepWeights, prepare
from charrnn_jax.reports.page import make_page
from charrnn_jax.workdir.run import Run

PAGE_CELLS = ("gru", "lstm", "rnn")  # the cells that network.js implements
PAGE_DTYPES = ("int8", "float16")
_SCRIPTS = ("network.js", "text.js", "probes.js", "page.js")  # one module, in this order
_SIZES = ("cell", "num_layers", "hidden_size", "vocabulary_size")  # fields that network.js reads


def export_page(run: Run, file: str | Path, *, dtype: str = "int8") -> None:
    """Writes the model of a run as one HTML file that generates text in the browser.

    Args:
      run: run to export, as returned by `load_run`.
      file: path of the HTML file; an existing file is replaced.
      dtype: number type of the weights in the page, one of `PAGE_DTYPES`.

    Raises:
      ValueError: `dtype` is not one of `PAGE_DTYPES`.
      UserError: the page does not support the cell, zoneout or the connections of the layers, the
        weights are not finite or are too large for float16, or `evaluation.json` is damaged.
    """
    card = make_card(run)
    write_page(
        Path(file),
        run.params,
        model=run.model,
        vocabulary=run.vocabulary,
        dtype=dtype,
        title=page_title(card),
        description=page_description(card),
        facts=page_facts(card),
        prompt=card.prompt,
    )


class PageWeights(NamedTuple):
    """Rounded weights in two forms: bytes for the page, and arrays for `step`.

    Attributes:
      packed: leaves of `StepWeights` in order, little-endian. Matrices have the dtype of the page,
        int8 ones preceded by the scales of their rows; vectors and scales are float32.
      weights: the same numbers as float32 arrays, with kernels as [N, K].
    """

    packed: bytes
    weights: StepWeights


def page_weights(params: Params, *, model: CharRNN, dtype: str) -> PageWeights:
    """Returns the weights of a model, rounded as in its page.

    Args:
      params: model parameters, as returned by `initialize_params`.
      model: model that the parameters belong to.
      dtype: number type of the page, one of `PAGE_DTYPES`.

    Raises:
      ValueError: `dtype` is not one of `PAGE_DTYPES`.
      UserError: the weights are not finite, or are too large for float16.
    """
    if dtype not in PAGE_DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(PAGE_DTYPES)}")
    fused = model.clone(implementation="fused")
    weights = prepare(params, model=fused, transposed=True, dtype="float32")
    leaves, structure = jax.tree.flatten(jax.device_get(weights))
    pack = {"int8": _pack_int8, "float16": _pack_float16}[dtype]
    with np.errstate(over="ignore", invalid="ignore"):  # checked below instead
        pairs = [
            pack(leaf) if leaf.ndim == 2 else (_to_bytes(leaf, "<f4"), leaf) for leaf in leaves
        ]
    packed, rounded = zip(*pairs, strict=True)
    if not all(np.isfinite(leaf).all() for leaf in rounded):
        raise UserError(
            f"the weights are not all finite in {dtype}: export another checkpoint, or use "
            "--dtype=int8 if they are too large for float16"
        )
    return PageWeights(b"".join(packed), jax.device_put(jax.tree.unflatten(structure, rounded)))


def _pack_int8(matrix: np.ndarray) -> tuple[bytes, np.ndarray]:
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    scales = np.maximum(largest / 127, np.finfo(np.float32).tiny)  # a row may be all zeros
    values = np.rint(matrix / scales)
    return _to_bytes(scales, "<f4") + _to_bytes(values, "i1"), values * scales


def _pack_float16(matrix: np.ndarray) -> tuple[bytes, np.ndarray]:
    values = matrix.astype("<f2")
    return values.tobytes(), values.astype(np.float32)


def _to_bytes(array: np.ndarray, dtype: str) -> bytes:
    return array.astype(dtype).tobytes()


def write_page(
    file: Path,
    params: Params,
    *,
    model: CharRNN,
    vocabulary: Vocabulary,
    dtype: str,
    title: str,
    description: str,
    facts: Mapping[str, str],
    prompt: str,
) -> None:
    """Writes a model as one self-contained HTML file.

    Args:
      file: path of the HTML file; an existing file is replaced.
      params: model parameters, as returned by `initialize_params`.
      model: model that the parameters belong to.
      vocabulary: vocabulary of the model.
      dtype: number type of the weights in the page, one of `PAGE_DTYPES`.
      title: title of the page.
      description: paragraph below the title.
      facts: facts to list under "About this model", name -> text.
      prompt: initial prompt, which the reader can change.

    Raises:
      ValueError: `dtype` is not one of `PAGE_DTYPES`.
      UserError: the page does not support the cell, zoneout or the connections of the layers, or
        the weights are not finite or are too large for float16.
    """
    if model.cell not in PAGE_CELLS:
        raise UserError(
            f"a web page can run the cells {', '.join(PAGE_CELLS)}, not {model.cell}: export a "
            "folder instead, with --format=folder"
        )
    if model.zoneout:
        raise UserError(
            "a web page cannot run a model with zoneout: export a folder instead, with "
            "--format=folder"
        )
    if model.num_layers > 1 and (model.residual, model.readout) != ("none", "last"):
        raise UserError(
            f"a web page cannot run a model with residual={model.residual!r} and "
            f"readout={model.readout!r}, but only 'none' and 'last': export a folder instead, with "
            "--format=folder"
        )
    data = {
        "title": title,
        "description": description,
        "facts": dict(facts),
        "prompt": prompt,
        "vocabulary": {
            "kind": vocabulary.kind,
            "code_points": [ord(character) for character in vocabulary.characters],
        },
        "model": {**{name: getattr(model, name) for name in _SIZES}, **_layout(model.cell)},
        "dtype": dtype,
        "weights": base64.b64encode(page_weights(params, model=model, dtype=dtype).packed).decode(),
    }
    html = make_page(
        _read("page.html"),
        title=title,
        style=_read("page.css"),
        script="".join(map(_read, _SCRIPTS)),
        data=data,
    )
    with replacing(file) as partial:
        # A title may have characters that UTF-8 cannot encode; the data with the other texts is
        # ASCII.
        partial.write_text(html, encoding="utf-8", errors="backslashreplace", newline="\n")


def _layout(cell: str) -> dict[str, Any]:
    """Returns what network.js needs to know about the layout of a cell's weights."""
    gates = CELLS[cell].gates
    return {"num_gates": len(gates.names), "last_gate_has_bias": bool(gates.last_bias)}


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
