"""Documents of paragraphs, tables, quoted texts and charts, as one web page and as Markdown.

Texts are untrusted: both formats escape them. This file knows nothing about what the tables show.
"""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from charrnn_jax.reports.page import escape_text, make_page

_FILE = Path(__file__)
STYLE = _FILE.with_name("document.css").read_text(encoding="utf-8")
SCRIPT = _FILE.with_name("document.js").read_text(encoding="utf-8")  # sorts tables by their columns
_LONG = 40  # cells with more characters may break into lines


class Cell(NamedTuple):
    """The text of a table cell, and a number to sort by; None sorts by text, after all numbers."""

    text: str
    value: float | None = None


class Table(NamedTuple):
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


class Mark(NamedTuple):
    """A stretch of a quoted text to highlight: its start, its length, and a note about it."""

    start: int
    length: int
    note: str


class Quote(NamedTuple):
    """A text as it is, with its line breaks; the marks are in order and do not overlap."""

    title: str
    text: str
    marks: Sequence[Mark] = ()


class Section(NamedTuple):
    """Paragraphs, tables and texts; `fold` hides them until the reader opens the section."""

    title: str
    paragraphs: Sequence[str]
    tables: Sequence[Table] = ()
    fold: bool = False
    quotes: Sequence[Quote] = ()


class Chart(NamedTuple):
    """A figure: `title` and `caption` are plain text, `svg` is markup."""

    title: str
    caption: str
    svg: str
    is_wide: bool = False


class Document(NamedTuple):
    """A report; its charts follow the first section, and Markdown leaves them out."""

    title: str
    overview: Sequence[str]
    sections: Sequence[Section]
    charts: Sequence[Chart]


def to_html(document: Document) -> str:
    """Returns a self-contained page, which can be read without a network or JavaScript."""
    first, *rest = map(_html_section, document.sections)
    figures = "\n".join(map(_html_figure, document.charts))
    body = f"""\
<main>
<header>
<h1>{escape(document.title)}</h1>
{_html_paragraphs(document.overview)}</header>
{first}
<div class="figures">
{figures}
</div>
{"".join(rest)}
</main>"""
    return make_page(
        body,
        title=document.title,
        style=STYLE,
        script=SCRIPT,
    )


def _html_figure(chart: Chart) -> str:
    kind = ' class="wide"' if chart.is_wide else ""
    return (
        f"<figure{kind}><h3>{escape(chart.title)}</h3><div>{chart.svg}</div>"
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>"
    )


def _html_section(section: Section) -> str:
    inside = _html_paragraphs(section.paragraphs) + "\n".join(map(html_table, section.tables))
    if section.quotes:
        inside += html_quotes(section.quotes)
    title = escape(section.title)
    if section.fold:
        return f"<details><summary>{title}</summary>{inside}</details>"
    return f"<section><h2>{title}</h2>{inside}</section>"


def html_quotes(quotes: Sequence[Quote]) -> str:
    """Returns the markup of texts side by side."""
    return f'<div class="quotes">{"".join(map(_html_quote, quotes))}</div>'


def _html_quote(quote: Quote) -> str:
    parts, end = [], 0
    for mark in quote.marks:
        stop = mark.start + mark.length
        parts.append(escape_text(quote.text[end : mark.start]))
        parts.append(f'<mark title="{escape(mark.note)}">')
        parts.append(f"{escape_text(quote.text[mark.start : stop])}</mark>")
        end = stop
    text = "".join([*parts, escape_text(quote.text[end:])])
    # A title is read by a pointer only.
    notes = "".join(f"<li>{escape(mark.note)}</li>" for mark in quote.marks)
    return (
        f"<div><h3>{escape(quote.title)}</h3>"
        f'<pre tabindex="0" role="region" aria-label="{escape(quote.title)}">\n{text}</pre>'
        f"{f'<ol>{notes}</ol>' if notes else ''}</div>"
    )


def _html_paragraphs(paragraphs: Sequence[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>\n" for text in paragraphs)


def html_table(table: Table) -> str:
    """Returns the markup of a table, which scrolls inside its frame if it is too wide."""
    numeric = [
        any(row[column].value is not None for row in table.rows)
        for column in range(len(table.columns))
    ]
    head = "".join(
        f'<th scope="col"{" class=number" * is_number}>{_html_head(name)}</th>'
        for name, is_number in zip(table.columns, numeric, strict=True)
    )
    rows = "\n".join(f"<tr>{''.join(map(_html_cell, row, numeric))}</tr>" for row in table.rows)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
    )


def _html_head(name: str) -> str:
    """Lets long names of settings break into lines."""
    return re.sub(r"[._](?=.)", r"\g<0><wbr>", escape(name))


def _html_cell(cell: Cell, is_number: bool) -> str:
    kinds = ["number"] if is_number else []
    if is_number and ", " in cell.text:  # an interval, which may break into its two ends
        kinds.append("pair")
    elif not is_number and len(cell.text) > _LONG:
        kinds.append("long")
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    value = "" if cell.value is None else f' data-value="{float(cell.value)!r}"'
    return f"<td{kind}{value}>{escape(cell.text)}</td>"


def to_markdown(document: Document) -> str:
    """Returns the text and tables as GitHub-flavoured Markdown, with all texts escaped."""
    parts = [f"# {_markdown_text(document.title)}", *map(_markdown_text, document.overview)]
    for section in document.sections:
        parts += [f"## {_markdown_text(section.title)}", *map(_markdown_text, section.paragraphs)]
        parts += map(_markdown_table, section.tables)
        parts += map(_markdown_quote, section.quotes)
    return "\n\n".join(parts) + "\n"


def _markdown_quote(quote: Quote) -> str:
    """Returns a text as indented code, which nothing in it can end."""
    lines = "\n".join(f"    {line}" for line in quote.text.splitlines())
    notes = "".join(f"\n\n{_markdown_text(mark.note)}" for mark in quote.marks)
    return f"### {_markdown_text(quote.title)}\n\n{lines}{notes}"


def _markdown_table(table: Table) -> str:
    lines = [[_markdown_text(name) for name in table.columns], ["---"] * len(table.columns)]
    lines += [[_markdown_text(cell.text) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_text(text: str) -> str:
    """Returns one line with markup escaped; underscores inside words are not markup."""
    line = " ".join(text.split())
    return re.sub(r"[\\`*<>|&~#]|\](?=[(\[:])|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)
