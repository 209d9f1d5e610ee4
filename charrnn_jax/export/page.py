"""A trained model as a web page: one file that generates in the browser, without any network.

The page holds the weights as `step` reads them, the embedding and the first input kernel multiplied
beforehand. Matrices are rounded, biases are not:

  float16   every number to the nearest half
  int8      kernel[n, k] to s[n] i[n, k], where s[n] = max_k |kernel[n, k]| / 127 and i are
            integers

Texts (title, prompt, vocabulary, ...) come from anywhere: the script inserts them as text only.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.export.card import make_card, page_description, page_facts
from charrnn_jax.files import replacing
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.char_rnn import CharRNN
from charrnn_jax.models.stepping import StepWeights, prepare
from charrnn_jax.reports.page import make_page
from charrnn_jax.workdir.run import Run

PAGE_CELLS = ("gru", "lstm", "rnn")  # whose equations network.js has
PAGE_DTYPES = ("int8", "float16")
_SIZES = ("cell", "num_layers", "hidden_size", "vocabulary_size")  # what network.js needs to know


def export_page(run: Run, file: str | Path, *, dtype: str = "int8") -> None:
    """Writes the model of a run as one HTML file that generates in the browser.

    Args:
      run: from `load_run`.
      file: to write; replaced if it is there.
      dtype: of the weights in the page, one of `PAGE_DTYPES`.

    Raises:
      ValueError: another dtype.
      UserError: a cell that the page cannot show, weights that are not finite or too large for
        float16, or a damaged `evaluation.json`.
    """
    card = make_card(run)
    write_page(
        Path(file),
        run.params,
        model=run.model,
        vocabulary=run.vocabulary,
        dtype=dtype,
        title=card.name,
        description=page_description(card),
        facts=page_facts(card),
        prompt=card.prompt,
    )


class PageWeights(NamedTuple):
    """Rounded weights, twice: `packed` for the page, and the same numbers for `step`.

    Attributes:
      packed: the leaves of `StepWeights` in order, little-endian: matrices in the dtype of the page
        (int8 after the scales of the rows), vectors and scales in float32.
      weights: float32, kernels as [N, K].
    """

    packed: bytes
    weights: StepWeights


def page_weights(params: Any, *, model: CharRNN, dtype: str) -> PageWeights:
    """Rounds the weights of a model as its page has them.

    Args:
      params: of the model.
      model: of the params.
      dtype: one of `PAGE_DTYPES`.

    Raises:
      ValueError: another dtype.
      UserError: the weights are not finite, or too large for float16.
    """
    if dtype not in PAGE_DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(PAGE_DTYPES)}")
    fused = model.clone(implementation="fused")
    weights = prepare(params, model=fused, transposed=True, dtype="float32")
    leaves, structure = jax.tree.flatten(jax.device_get(weights))
    pack = {"int8": _pack_int8, "float16": _pack_float16}[dtype]
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite then is refused
        pairs = [
            pack(leaf) if leaf.ndim == 2 else (_to_bytes(leaf, "<f4"), leaf) for leaf in leaves
        ]
    packed, rounded = zip(*pairs, strict=True)
    if not all(np.isfinite(leaf).all() for leaf in rounded):
        raise UserError(
            f"the weights are not all finite in {dtype}: export another checkpoint, or weights too "
            "large for float16 as int8"
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
    params: Any,
    *,
    model: CharRNN,
    vocabulary: Vocabulary,
    dtype: str,
    title: str,
    description: str,
    facts: Mapping[str, str],
    prompt: str,
) -> None:
    """Writes a model as one HTML file that needs nothing else.

    Args:
      file: to write; replaced if it is there.
      params: of the model.
      model: of the params.
      vocabulary: of the model.
      dtype: of the weights in the page, one of `PAGE_DTYPES`.
      title: of the page.
      description: a paragraph below the title.
      facts: name -> text, shown under "About this model".
      prompt: in the page at first; the reader may change it.

    Raises:
      ValueError: another dtype.
      UserError: a cell that the page cannot show, or weights that are not finite, or too large for
        float16.
    """
    if model.cell not in PAGE_CELLS:
        raise UserError(
            f"a web page shows models of the cells {', '.join(PAGE_CELLS)}, not {model.cell}: "
            "export a folder instead, --format=folder"
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
        script=_read("network.js") + _read("page.js"),
        data=data,
    )
    with replacing(file) as partial:
        # A title may have characters that UTF-8 lacks; all other texts are in the data, as ASCII.
        partial.write_text(html, encoding="utf-8", errors="backslashreplace", newline="\n")


def _layout(cell: str) -> dict[str, Any]:
    """What network.js has to know of the layout of a cell's weights."""
    fused = CELLS[cell].fused
    return {"num_gates": len(fused.gates), "last_gate_has_bias": bool(fused.last_bias)}


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
