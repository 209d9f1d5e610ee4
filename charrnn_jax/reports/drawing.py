"""Figures for reports: fonts, colours, axes, and how a figure becomes part of a page.

Every figure distinguishes its parts by marks, not by colour alone. matplotlib is imported only
where a figure is made, so that commands that draw nothing start fast. Its settings are changed only
inside `drawing`, which restores them.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from charrnn_jax.reports.page import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SERIES = [name for name in LIGHT if name.startswith("series-")]
INK, MUTED, LINE, SURFACE = (LIGHT[name] for name in ("ink", "muted", "line", "surface"))
COLOURS = tuple(LIGHT[name] for name in _SERIES)
# Colour of the figures -> CSS variable, which a page sets for its dark mode.
VARIABLES = {LIGHT[name]: name for name in ("ink", "muted", "line", "surface", *_SERIES)}
_MARKERS, _STYLES = "osD^vPX<>ph", ("-", "--", ":")


@contextmanager
def drawing(size: float = 9.0, fonttype: str = "none") -> Iterator[None]:
    """Sets matplotlib's fonts and colours for figures that are drawn and saved inside.

    Dollar signs are not read as formulas, because names of settings may contain them.

    Args:
      size: font size, points.
      fonttype: how SVG shows text: "none" keeps it as text, "path" draws its outlines.
    """
    import matplotlib.style

    small = size - 1
    settings = {
        "font.size": size,
        "axes.titlesize": size,
        "axes.labelsize": size,
        "xtick.labelsize": small,
        "ytick.labelsize": small,
        "legend.fontsize": small,
        "font.family": "DejaVu Sans",
        "text.parse_math": False,
        "text.color": INK,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "grid.color": LINE,
        "grid.linewidth": 0.6,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "legend.frameon": False,
        "svg.fonttype": fonttype,
        "svg.hashsalt": "sweep",
        "pdf.fonttype": 42,  # TrueType, as publishers require
    }
    with matplotlib.style.context(["default", settings]):
        yield


def to_svg(figure: "Figure", *, prefix: str, label: str) -> str:
    """Returns SVG markup for a page that sets the colours as CSS variables (see `VARIABLES`).

    Args:
      figure: figure drawn inside `drawing`.
      prefix: letters that make the ids of the figure unique in the page.
      label: text for screen readers.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\sid="|url\(#|href="#)(?=[^<>]*>)', rf"\g<1>{prefix}-", svg)
    # Only inside tags: a "<" or ">" in text is written as an entity.
    svg = re.sub(
        r"#[0-9a-f]{6}(?=[^<>]*>)",
        lambda m: f"var(--{VARIABLES[m[0]]})" if m[0] in VARIABLES else m[0],
        svg,
    )
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def drawable(text: str, longest: int = 34) -> str:
    """Returns the text as one line that the figures' font can show, shortened in the middle."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    text = " ".join(text.split())
    if len(text) > longest:
        text = f"{text[: longest - longest // 3 - 1]}…{text[-(longest // 3) :]}"
    return "".join(c if ord(c) in known else "\N{REPLACEMENT CHARACTER}" for c in text)


def style_of(position: int) -> dict[str, Any]:
    """Returns the colour, marker and line style of a curve; the first 11 have different markers."""
    return {
        "color": COLOURS[position % len(COLOURS)],
        "marker": _MARKERS[position % len(_MARKERS)],
        "linestyle": _STYLES[position // len(COLOURS) % len(_STYLES)],
    }


def make_figure(*, height: float, width: float = 5.2) -> "tuple[Figure, Axes]":
    """Returns a figure with one panel; `height` and `width` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


class Range(NamedTuple):
    """The range of losses on an axis, nats/char; losses above `high` are marked as beyond it."""

    low: float
    high: float

    @property
    def span(self) -> float:
        return max(self.high - self.low, 1e-3)

    def near(self, loss: float) -> float:
        """Returns the loss, moved closer if it is too far outside the axis to be drawn."""
        return min(max(loss, self.low - 10 * self.span), self.high + 10 * self.span)


def range_of(losses: Sequence[float]) -> Range:
    """Returns the range of the losses without outliers, which would squeeze the others together."""
    low, upper, highest = np.quantile(losses, [0, 0.75, 1]).tolist()
    return Range(low, min(highest, upper + 3 * (upper - low)) if upper > low else highest)
