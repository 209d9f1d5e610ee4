"""`make_surprise_page`: a text on a page, each character coloured by its loss."""

import base64
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from charrnn_jax.evaluation.surprise import Likeliest
from charrnn_jax.reports.page import escape_text, make_page

_FOLDER = Path(__file__).parent
_BLOCK = 2000  # characters that are coloured together, when they come into view
_FINE = 200_000  # characters up to which losses are kept in 16 bits, not 8
MOST_WITH_LIKELIEST = 50_000  # characters; with more, the page would be too large


class Reader(NamedTuple):
    """A model that has read the text.

    Attributes:
      name: what to call it.
      losses: [N] loss of each character in nats; 0 for the first, which is context.
      likeliest: what was likely, for the N - 1 characters after the first; None: not known.
      symbols: the character of each id in `likeliest`.
    """

    name: str
    losses: np.ndarray
    likeliest: Likeliest | None = None
    symbols: Sequence[str] = ()


def make_surprise_page(text: str, readers: Sequence[Reader], *, title: str) -> str:
    """Returns the page as HTML.

    Args:
      text: text of N characters, at least 2.
      readers: one model, or two to compare.
      title: title of the page.
    """
    bits = [reader.losses.sum() / math.log(2) / (len(text) - 1) for reader in readers]
    numbers = "".join(
        f"<p><strong>{escape(reader.name)}</strong>: {mean:.4f} bits/char "
        f"({mean * math.log(2):.4f} nats/char)</p>\n"
        for reader, mean in zip(readers, bits, strict=True)
    )
    body = f"""\
<main>
<header>
<h1>{escape(title)}</h1>
{numbers}<p class="muted">{len(text) - 1:,} characters after the first, each predicted from all
characters before it. The colour is the surprise; move the pointer over a character, or use the
arrow keys in the text, for its numbers.</p>
</header>
<div class="tools">
{_choices(readers)}<p class="scale"><span id="low">0</span><i></i><span id="high"></span></p>
<div id="details" role="status"></div>
</div>
<div id="text" tabindex="0" role="region" aria-label="Text">{_blocks(text)}</div>
</main>"""
    return make_page(
        body,
        title=title,
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        script=(_FOLDER / "page.js").read_text(encoding="utf-8"),
        data={"readers": [_pack(reader, fine=len(text) <= _FINE) for reader in readers]},
    )


def _choices(readers: Sequence[Reader]) -> str:
    if len(readers) == 1:
        return ""
    first, second = (escape(reader.name) for reader in readers)
    labels = (first, second, f"{first} minus {second}")
    inputs = "\n".join(
        f'<label><input type="radio" name="shown" value="{value}" autocomplete="off"'
        f"{' checked' * (value == 0)}> {label}</label>"
        for value, label in enumerate(labels)
    )
    return f'<fieldset aria-label="Colour by">\n{inputs}\n</fieldset>\n'


def _blocks(text: str) -> str:
    """Returns the text in blocks, which end at a line break if there is one."""
    blocks, start = [], 0
    while start < len(text):
        end = text.rfind("\n", start, start + _BLOCK) + 1
        if end <= start or start + _BLOCK >= len(text):
            end = min(start + _BLOCK, len(text))
        blocks.append(f"<div>{escape_text(text[start:end])}</div>")
        start = end
    return "".join(blocks)


def _pack(reader: Reader, *, fine: bool) -> dict[str, Any]:
    """Returns the numbers of a reader as data for the page: whole numbers in base64."""
    kind, step = (np.uint16, 1 / 2000) if fine else (np.uint8, 1 / 16)
    # What rounding adds to a character is taken from the next, so that sums stay exact.
    rounded = np.diff(np.round(np.cumsum(reader.losses, dtype=np.float64) / step), prepend=0)
    units = np.minimum(rounded, np.iinfo(kind).max).astype(kind)
    packed = {"name": reader.name, "losses": _base64(units), "step": step, "bytes": units.itemsize}
    if reader.likeliest is None or len(reader.losses) > MOST_WITH_LIKELIEST:
        return packed
    ids, probabilities = reader.likeliest
    return packed | {
        "likeliest": _base64(ids.astype(np.uint16)),
        "probabilities": _base64(np.round(probabilities * 65535).astype(np.uint16)),
        "num": ids.shape[1],
        "symbols": list(reader.symbols),
    }


def _base64(array: np.ndarray) -> str:
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode()
