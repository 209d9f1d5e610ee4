"""Small HTML tables and texts, as objects show themselves in a notebook (`_repr_html_`).

Whatever a text contains, it is shown and not obeyed: neither as HTML nor, by MathJax, as a formula.
"""

from collections.abc import Iterable, Sequence
from html import escape

_STARTS_NO_FORMULA = "tex2jax_ignore mathjax_ignore"  # for old and new versions of MathJax
_LEFT = 'style="text-align: left"'  # Jupyter's own style has numbers in mind


def table(rows: Iterable[Sequence[str]], *, header: Sequence[str] = ()) -> str:
    """Returns the HTML of a table of plain texts; the first cell of a row names it.

    Args:
      rows: texts of each row.
      header: names of the columns; (): none.
    """
    lines = ["".join(f"<th>{escape(name)}</th>" for name in header)] if header else []
    for name, *cells in rows:
        texts = "".join(f"<td {_LEFT}>{escape(cell)}</td>" for cell in cells)
        lines.append(f"<th>{escape(name)}</th>{texts}")
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table class="{_STARTS_NO_FORMULA}">{body}</table>'


def quote(text: str, *, prompt: str = "") -> str:
    """Returns the HTML of a text with its line breaks, after a prompt in bold."""
    style = f'class="{_STARTS_NO_FORMULA}" style="font-family: monospace; white-space: pre-wrap"'
    start = f"<b>{escape(prompt)}</b>" if prompt else ""
    return f"<pre {style}>\n{start}{escape(text)}</pre>"  # HTML drops the first line break
