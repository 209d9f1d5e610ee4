"""`make_page`: a self-contained HTML page, which all reports are built on.

The page has the shared style, light and dark, and a content security policy: it loads nothing and
runs only its own script, which is identified by a hash, so untrusted texts cannot do anything. This
file knows nothing about what a page shows.
"""

import base64
import hashlib
import json
from html import escape
from pathlib import Path
from typing import Any

_STYLE = Path(__file__).with_name("page.css")

# CSS variable -> its value in light and in dark mode. Warm and cold are rgb() channels for
# backgrounds of varying alpha, at most `strength` so that text on them stays readable.
COLOURS = {
    "page": ("#f7f5f0", "#161514"),
    "surface": ("#fffefb", "#1e1d1b"),
    "ink": ("#1f1d1a", "#ece8e1"),
    "muted": ("#5d5850", "#aca599"),
    "line": ("#d8d3c8", "#3a3733"),
    "field-line": ("#8a8478", "#7d766b"),
    "action": ("#1d4f78", "#9ecbf0"),
    "on-action": ("#ffffff", "#10202e"),
    "warm": ("214 88 16", "226 98 28"),
    "cold": ("36 110 190", "60 130 220"),
    "strength": (".7", ".65"),
    # Curves: the colours of Okabe and Ito, darker on a light background
    "series-0": ("#0072b2", "#56b4e9"),
    "series-1": ("#c45500", "#ff8f4d"),
    "series-2": ("#00805e", "#2fc296"),
    "series-3": ("#a8478a", "#e29bc4"),
    "series-4": ("#8f6a00", "#e6b422"),
}
LIGHT = {name: light for name, (light, _) in COLOURS.items()}
DARK = {name: dark for name, (_, dark) in COLOURS.items()}


def make_page(body: str, *, title: str, style: str, script: str, data: Any = None) -> str:
    """Returns the HTML of a page, to be written as UTF-8.

    Args:
      body: HTML of the body; the caller escapes the texts in it with `html.escape`.
      title: title of the browser tab, plain text.
      style: CSS, applied after the shared style.
      script: JavaScript module, the only one that the page runs.
      data: data for the script, as JSON in the element with the id "data"; None adds no element.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    block = "" if data is None else _data_block(data)
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<!-- No network, and no script but the one below, whatever the texts in the page contain. -->
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
  style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
:root {{ {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
{_STYLE.read_text(encoding="utf-8")}
{style}</style>
</head>
<body>
{body}
<script type="module">{script}</script>
{block}</body>
</html>
"""


def escape_text(text: str) -> str:
    """Returns the HTML of a text, of which a browser drops and changes no character.

    Only NUL, which no page can hold, becomes U+FFFD.
    """
    return escape(text).replace("\r", "&#13;").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


def _data_block(data: Any) -> str:
    """Returns the element with the data: ASCII without "<", so that no text can end it."""
    text = json.dumps(data).replace("<", "\\u003c")
    return f'<script type="application/json" id="data">{text}</script>\n'
