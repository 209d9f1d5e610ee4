"""Reports of sweeps: what they say, in a real browser, and that nothing in a text breaks them."""

import csv
import itertools
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import slow
from markdown_it import MarkdownIt
from selenium import webdriver

from charrnn_jax.errors import UserError
from charrnn_jax.reports.drawing import range_of
from charrnn_jax.reports.sweep.figures import _best
from charrnn_jax.reports.sweep.report import write_sweep_report
from charrnn_jax.reports.sweep.statistics import STATUSES, Result, summarize

FILES = ["sweep.csv", "sweep.html", "sweep.md", "sweep.pdf", "sweep.svg"]
HOSTILE = (
    "</script><script>document.title = 'broken'</script>",
    "<img src=x onerror=\"document.title = 'broken'\">",
    "]]>--><!-- </style></svg></title> &lt; &amp; 'quoted' \"twice\"",
    "a | b \\| c `code` *bold* _it_ [x](y) {{title}} \\g<0> $\\frac{1}{0}$ #1 ~~no~~ &copy;",
    "line\nbreak\r\n| --- |\ttab",
    "\N{SNOWMAN}\N{ZERO WIDTH SPACE}漢字 \udcff \x07 url(#a) #0072b2",
    "W" * 300,
)


def make_result(
    settings: dict[str, Any],
    loss: float | None,
    *,
    name: str = "run",
    status: str = "done",
    curve: Sequence[tuple[int, float]] | None = None,
    message: str = "",
) -> Result:
    if curve is None:
        curve = () if loss is None else [(s, loss + 2 / s) for s in range(1, 8)]
    return Result(name, settings, status, loss, loss, tuple(curve), 12_345, 67.8, message)


def cells(num_seeds: int = 3) -> list[Result]:
    rng = np.random.default_rng(0)
    means = {"gru": 1.53, "lstm": 1.55, "rnn": 1.7}
    return [
        make_result({"model.cell": cell, "seed": s}, mean + 0.01 * rng.normal(), name=f"{cell}-{s}")
        for cell, mean in means.items()
        for s in range(num_seeds)
    ]


def random_search(num: int) -> list[Result]:
    rng = np.random.default_rng(0)
    return [
        make_result(
            {"rate": 10 ** rng.uniform(-4, -1), "size": int(rng.integers(3)), "b": bool(i % 2)},
            loss,
        )
        for i, loss in enumerate(rng.normal(1.6, 0.1, num).tolist())
    ]


def ablation() -> list[Result]:
    """A base and seven configurations, each of which changes one setting or two."""
    methods = [{}, *({f"train.method_{i}": i} for i in range(6)), {"a.x": 0.5, "train.method_0": 7}]
    return [
        make_result({**method, "seed": seed}, 1.5 + index / 10 + seed / 99)
        for index, method in enumerate(methods)
        for seed in range(2)
    ]


def hostile() -> list[Result]:
    return [
        make_result(
            {text: other, "seed": seed},
            None if index == 3 else 1.5 + index / 10 + seed / 100,
            name=text,
            status="failed" if index == 3 else "done",
            message=text,
        )
        for seed in range(2)
        for index, (text, other) in enumerate(zip(HOSTILE, HOSTILE[1:] + HOSTILE[:1], strict=True))
    ]


def write(results: Sequence[Result], folder: Path, **settings: Any) -> Path:
    settings = {"title": "A sweep", "protocol": "cold", **settings}
    write_sweep_report(results, folder, **settings)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    return folder


# --- every kind of sweep ------------------------------------------------------------------------

NAN = math.nan
MIXED = [1, 2.5, "1", None, True, [1, 2], (3,), "", "word", {"a": 1}]
SWEEPS = {
    "cells": cells(),
    "one seed": cells(1),
    "one run": cells(1)[:1],
    "one configuration": cells()[:3],
    "none done": [make_result({"x": x}, None, status=s) for x, s in enumerate(STATUSES)],
    "unfinished": [
        make_result({"x": x}, 1.5, status="running" if x else "waiting") for x in range(4)
    ],
    "identical": [make_result({"x": x, "seed": s}, 1.5) for x in range(3) for s in range(3)],
    "missing pairs": [
        make_result({"x": x, "seed": s}, 1.5 + x) for x, s in [(0, 0), (0, 1), (1, 2), (2, 1)]
    ],
    "broken curves": [
        make_result({"x": 1, "seed": 1}, 1.5, curve=[(1, NAN), (2, 1.6), (3, math.inf)]),
        make_result({"x": 1, "seed": 2}, 1.5, curve=[(1, NAN), (2, NAN)]),
        make_result({"x": 2, "seed": 1}, 1.5, curve=[(1, 2.0)]),
        make_result({"x": 2, "seed": 2}, 1.5, curve=[(2, 2.0)]),
        make_result({"x": 3, "seed": 2}, NAN, status="diverged", curve=[(1, NAN)]),
    ],
    "mixed values": [
        make_result({"x": x, "seed": s}, 1.5 + i / 10 + s / 99)
        for i, x in enumerate(MIXED)
        for s in range(2)
    ],
    "mixed grid": [
        make_result({"x": x, "y": y}, 1.5 + i) for i, x in enumerate(MIXED) for y in (1, "2")
    ],
    "chained": [make_result({name: x}, 1.5 + x) for name in "abc" for x in range(3)],
    "outliers": [
        make_result({"x": 10.0**x, "seed": s}, 1.5 + (1e30 if x == s == 3 else s / 9))
        for x in range(5)
        for s in range(4)
    ],
    "hundreds": random_search(300),
    "ablation": ablation(),
    "hostile": hostile(),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_has_a_report(name: str, tmp_path: Path) -> None:
    """Without a warning: those are errors here."""
    results = SWEEPS[name]
    page = (write(results, tmp_path) / "sweep.html").read_text(encoding="utf-8")
    num_configurations = len(summarize(results, None))
    rows = [len(table) - 1 for table in parse_tables(page)]
    assert rows[0] == num_configurations
    assert rows[-1] == len(results)


class TableParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.inside = tag in ("td", "th", "wbr")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.tables[-1][-1][-1] += data


def parse_tables(page: str) -> list[list[list[str]]]:
    """Tables of rows of texts, the columns' names first."""
    parser = TableParser()
    parser.feed(page)
    return parser.tables


def test_the_table_says_what_was_measured(tmp_path: Path) -> None:
    results = [*cells()[:-1], make_result({"model.cell": "rnn", "seed": 2}, NAN, status="diverged")]
    folder = write(results, tmp_path, baseline={"model.cell": "lstm"}, notes=["A remark."])
    page = (folder / "sweep.html").read_text(encoding="utf-8")
    head, *rows = parse_tables(page)[0]
    gru, lstm, rnn = (dict(zip(head, row, strict=True)) for row in rows)
    losses = [float(each.loss or 0) for each in results]
    assert gru["Loss"] == f"{np.mean(losses[:3]):.4f}"
    assert gru["Bits/char"] == f"{np.mean(losses[:3]) / math.log(2):.4f}"
    assert gru["Δ to baseline"] == f"{np.mean(losses[:3]) - np.mean(losses[3:6]):+.4f}"
    assert (gru["Done"], gru["Parameters"], gru["Seconds"]) == ("3/3", "12,345", "68")
    assert (lstm["Δ to baseline"], lstm["p"]) == ("baseline", "")
    assert (rnn["Done"], rnn["Diverged"]) == ("2/3 †", "1")
    assert rnn["Min"] == f"{min(losses[6:8]):.4f}"
    for text in (
        "9 runs of 3 configurations: 8 done, 1 diverged.",
        "Note: A remark.",
        "†: not all",
    ):
        assert text in page
        assert text in (folder / "sweep.md").read_text(encoding="utf-8")


def test_what_is_left_out_of_figures_is_said(tmp_path: Path) -> None:
    page = (write(SWEEPS["hundreds"], tmp_path) / "sweep.html").read_text(encoding="utf-8")
    assert "Only the best 40 of 300" in page
    assert "Only the best 10 of 300" in page


def test_a_sweep_that_changes_one_thing_at_a_time_lists_the_changes(tmp_path: Path) -> None:
    """Not a column for each of its many settings, most of them empty."""
    page = (write(ablation(), tmp_path) / "sweep.html").read_text(encoding="utf-8")
    (columns, *rows), runs = parse_tables(page)
    assert columns[:3] == ["#", "Changes", "Done"]
    assert runs[0][:5] == ["Run", "#", "Changes", "seed", "Status"]
    changes = [row[1] for row in rows]
    assert changes[:2] == ["none", "train.method_0 = 0"]
    assert changes[-1] == "a.x = 0.5, train.method_0 = 7"
    assert "#2 method_0 = 0" in page
    assert "Effects of the settings" not in page


def test_only_runs_that_are_not_over_are_still_to_come(tmp_path: Path) -> None:
    over = [
        make_result({"x": x}, 1.5, status=s) for x, s in enumerate(("done", "pruned", "failed"))
    ]
    page = (write(over, tmp_path / "over") / "sweep.md").read_text(encoding="utf-8")
    assert "still to come" not in page
    to_come = [make_result({"x": x}, 1.5, status=s) for x, s in [(3, "running"), (4, "waiting")]]
    page = (write(over + to_come, tmp_path / "open") / "sweep.md").read_text(encoding="utf-8")
    assert "2 runs still to come" in page


def test_a_figure_of_a_curve_shows_the_runs_that_were_lost(tmp_path: Path) -> None:
    sweep = [make_result({"rate": x, "seed": s}, 1.5 + x) for x in range(1, 5) for s in range(2)]
    crosses = "Crosses at the top"
    page = (write(sweep, tmp_path / "all") / "sweep.html").read_text(encoding="utf-8")
    assert "Loss against rate" in page
    assert crosses not in page
    lost = make_result({"rate": 4, "seed": 2}, None, status="failed")
    page = (write([*sweep, lost], tmp_path / "lost") / "sweep.html").read_text(encoding="utf-8")
    assert crosses in page


def test_outliers_do_not_stretch_an_axis() -> None:
    assert range_of([1.0, 1.1, 1.2, 1.3]).high == 1.3
    assert range_of([1.0, 1.1, 1.2, 1.3, 9.0]).high == pytest.approx(2.2)
    assert range_of([1.0, 1.0, 1.0, 1.0, 2.0]).high == 2.0


def test_the_baseline_is_drawn_even_if_it_is_not_among_the_best() -> None:
    results = [make_result({"x": x, "seed": s}, 1.0 + x) for x in range(5) for s in range(2)]
    assert _best(summarize(results, {"x": 4}), 2) == [0, 1, 4]
    assert _best(summarize(results, {"x": 0}), 2) == [0, 1]


def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="matches 0"):
        write(cells(), tmp_path / "a", baseline={"model.cell": "elman"})
    with pytest.raises(UserError, match="no runs"):
        write([], tmp_path / "a")
    with pytest.raises(ValueError, match="'lost'"):
        write([make_result({}, 1.5, status="lost")], tmp_path / "a")
    assert not list(tmp_path.iterdir())


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cells", "hostile", "broken curves", "mixed values"])
def test_csv_holds_every_run_in_full_precision(name: str, tmp_path: Path) -> None:
    results = SWEEPS[name]
    file = write(results, tmp_path) / "sweep.csv"
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == len(results)
    for row, result in zip(rows, results, strict=True):
        for key, value in result.settings.items():
            assert row[plain(key)] == plain(str(value))
        assert (row["name"], row["message"]) == (plain(result.name), plain(result.message))
        assert row["status"] == result.status
        assert row["num_params"] == "12345"
        for key in ("loss", "best_loss"):
            assert row[key] == ("" if result.loss is None else repr(result.loss))
        if result.loss is not None:
            np.testing.assert_equal(float(row["bits"]), result.loss / math.log(2))


def plain(text: str) -> str:
    """What becomes of bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize("name", ["cells", "hostile", "one seed", "mixed values"])
def test_markdown_has_the_tables_of_the_page(name: str, tmp_path: Path) -> None:
    folder = write(SWEEPS[name], tmp_path, title=HOSTILE[3])
    html = MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(
        (folder / "sweep.md").read_text(encoding="utf-8")
    )
    tables = parse_tables((folder / "sweep.html").read_text(encoding="utf-8"))

    def lines(tables: list[list[list[str]]]) -> list[list[list[str]]]:
        return [[[" ".join(text.split()) for text in row] for row in table] for table in tables]

    assert lines(parse_tables(html)) == lines(tables)
    assert not re.search(r"<(?!/?(h[12]|p|table|thead|tbody|tr|th|td)\b)", html)


def test_figures_are_the_same_bytes_again_and_fit_for_print(tmp_path: Path) -> None:
    first, second = write(cells(), tmp_path / "a"), write(cells(), tmp_path / "b")
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    pdf = (first / "sweep.pdf").read_bytes()
    assert b"/Subtype /CIDFontType2" in pdf or b"/Subtype /TrueType" in pdf
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    svg = (first / "sweep.svg").read_text(encoding="utf-8")
    assert "<image" not in svg
    assert "dc:date" not in svg


def test_drawing_changes_no_global_state_and_loads_matplotlib_only_then(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from charrnn_jax.reports.sweep.statistics import Result\n"
        "from charrnn_jax.reports.sweep.report import write_sweep_report\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import matplotlib\n"
        "matplotlib.rcParams['lines.linewidth'] = 7.0\n"
        "before = matplotlib.rcParams.copy()\n"
        "results = [Result('a', {'x': 1}, 'done', 1.5, 1.5, ((1, 2.0),), 1, 1.0)]\n"
        f"write_sweep_report(results, Path({str(tmp_path)!r}), title='', protocol='')\n"
        "assert dict.__eq__(matplotlib.rcParams, before)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- in a browser -------------------------------------------------------------------------------


def open_page(driver: webdriver.Chrome, folder: Path) -> None:
    driver.get_log("browser")
    driver.get((folder / "sweep.html").as_uri())
    assert driver.get_log("browser") == []


def column(driver: webdriver.Chrome, number: int) -> list[str]:
    return driver.execute_script(
        "return [...document.querySelector('table').tBodies[0].rows]"
        ".map((row) => row.cells[arguments[0]].textContent)",
        number,
    )


def test_hostile_texts_are_shown_and_columns_sort(driver: webdriver.Chrome, tmp_path: Path) -> None:
    title = "".join(HOSTILE[:4])
    open_page(driver, write(hostile(), tmp_path, title=title, protocol=title, notes=HOSTILE))
    assert driver.title == " ".join(title.split())
    assert driver.execute_script("return document.querySelector('h1').textContent") == title
    assert driver.execute_script("return document.scripts.length") == 1
    assert driver.execute_script("return document.querySelectorAll('img').length") == 0
    assert (
        driver.execute_script("return document.querySelectorAll('figure > div > svg').length") > 1
    )
    heads = driver.find_elements("css selector", "table:first-of-type th")
    names = [head.get_attribute("textContent") for head in heads]
    loss = names.index("Loss")
    button = driver.find_elements("css selector", "th button")[loss]
    assert column(driver, 0) == ["1", "2", "3", "4", "5", "6", "7"]
    for direction, order in (("ascending", "1234567"), ("descending", "6543217")):
        driver.execute_script("arguments[0].click()", button)
        assert heads[loss].get_attribute("aria-sort") == direction
        assert column(driver, 0) == list(order)  # the one without a loss stays at the end
    driver.execute_script("document.querySelectorAll('th button')[1].click()")
    texts = column(driver, 1)
    assert sorted(texts, key=lambda text: text != "—", reverse=True) in (texts, texts[::-1])


@pytest.mark.parametrize("name", ["cells", "hostile", slow("hundreds")])
def test_the_page_fits_a_phone(name: str, driver: webdriver.Chrome, tmp_path: Path) -> None:
    screen = {"width": 375, "height": 667, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        open_page(driver, write(SWEEPS[name], tmp_path, title="W" * 80))
        driver.execute_script(
            "for (const each of document.querySelectorAll('details')) each.open = true"
        )
        assert driver.execute_script("return document.documentElement.scrollWidth") == 375
        sizes = driver.execute_script(
            "return [...document.querySelectorAll('button, summary')]"
            ".map((e) => e.getBoundingClientRect()).map(({width, height}) => [width, height])"
        )
        assert np.min(sizes) >= 44
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_sweep_of_four_settings_shows_all_its_columns_on_1280_pixels(
    driver: webdriver.Chrome, tmp_path: Path
) -> None:
    names = ("model.cell", "model.hidden_size", "optimizer.learning_rate", "train.clip_norm")
    values = (("gru", "lstm"), (256, 1024), (0.001, 0.004), (1.0, 5.0))
    sweep = [
        make_result(dict(zip((*names, "seed"), settings, strict=True)), 1.5 + i / 1000)
        for i, settings in enumerate(itertools.product(*values, range(3)))
    ]
    lost = [make_result({**sweep[0].settings, "seed": 4}, NAN, status="diverged")]
    screen = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        open_page(driver, write(sweep + lost, tmp_path))
        frame = "const frame = document.querySelector('.scroll');"
        num_columns = driver.execute_script(f"{frame} return frame.querySelectorAll('th').length")
        assert num_columns == 19
        shown, wide = driver.execute_script(
            f"{frame} return [frame.clientWidth, frame.scrollWidth]"
        )
        assert wide <= shown
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_number_of_a_row_stays_in_sight_where_a_table_scrolls(
    driver: webdriver.Chrome, tmp_path: Path
) -> None:
    screen = {"width": 375, "height": 667, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        open_page(driver, write(cells(), tmp_path))
        scrolled, left, width = driver.execute_script(
            "const frame = document.querySelector('.scroll'); frame.scrollLeft = 300;"
            "const box = (element) => element.getBoundingClientRect();"
            "return [frame.scrollLeft, box(frame.querySelector('td')).left - box(frame).left,"
            "box(frame.querySelector('td')).width]"
        )
        assert scrolled == 300
        assert 0 <= left <= 2  # the border's
        assert width < 60
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_names_inside_the_figures_are_unique_and_found(
    driver: webdriver.Chrome, tmp_path: Path
) -> None:
    grid = [make_result({"a": a, "b": b}, 1.5 + a + b / 9) for a in range(3) for b in range(3)]
    open_page(driver, write(grid, tmp_path))
    ids = driver.execute_script("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids)) > 10
    missing = driver.execute_script(
        "return [...document.querySelectorAll('use')].map((e) => e.getAttribute('xlink:href'))"
        ".filter((href) => !document.getElementById(href.slice(1)))"
    )
    assert missing == []
