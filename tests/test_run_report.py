"""The report of a run: what it says, in a real browser, and that no text breaks it."""

import json
import math
import re
import shutil
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SENTENCE
from helpers import slow
from markdown_it import MarkdownIt
from ml_collections import ConfigDict
from selenium import webdriver
from test_sweep_report import HOSTILE, parse_tables

from charrnn_jax.commands import report
from charrnn_jax.errors import UserError
from charrnn_jax.main import main
from charrnn_jax.reports.document import Document, Mark, Quote, Section, to_html, to_markdown
from charrnn_jax.reports.drawing import drawing
from charrnn_jax.reports.run.copies import Copies
from charrnn_jax.reports.run.figures import draw_figures
from charrnn_jax.reports.run.history import MAX_POINTS, read_history
from charrnn_jax.reports.run.report import write_run_report
from charrnn_jax.training.loop import train
from charrnn_jax.workdir.json_lines import read_json_lines
from charrnn_jax.workdir.run import load_run


@pytest.fixture
def trained(tiny_config: ConfigDict, tmp_path: Path) -> Path:
    """A run in a folder with a name that a page must escape."""
    folder = tmp_path / "<b>run"
    train(tiny_config, folder)
    return folder


class QuoteParser(HTMLParser):
    """Texts of all <pre>, and what is marked in them: (text, note)."""

    def __init__(self) -> None:
        super().__init__()
        self.quotes: list[str] = []
        self.marks: list[tuple[str, str]] = []
        self.inside = ""
        self.note = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "pre":
            self.quotes.append("")
        if tag in ("pre", "mark"):
            self.inside, self.note = tag, dict(attrs).get("title") or ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("pre", "mark"):
            self.inside = "pre" if tag == "mark" else ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.quotes[-1] += data
        if self.inside == "mark":
            self.marks.append((data, self.note))


def parse_quotes(page: str) -> QuoteParser:
    parser = QuoteParser()
    parser.feed(re.sub(r"(<pre[^>]*>)\n", r"\1", page))  # as browsers read it
    return parser


def test_report_says_what_the_run_has_recorded(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", f"--workdir={trained}"]) == 0
    assert main(["report", f"--workdir={trained}", "--figures=svg,pdf,png"]) == 0
    assert str(trained / "report.html") in capsys.readouterr().out
    page = (trained / "report.html").read_text(encoding="utf-8")
    losses, layers, config, _ = parse_tables(page)
    evaluated = json.loads((trained / "evaluation.json").read_text())["validation"]
    assert [row[1] for row in losses[1:]] == [
        *(f"network, {name}" for name in evaluated["losses"]),
        *evaluated["baselines"],
    ]
    nats = [loss["nats_per_char"] for loss in evaluated["losses"].values()]
    assert [float(row[2]) for row in losses[1 : 1 + len(nats)]] == pytest.approx(nats, abs=1e-4)
    assert losses[1][4] == f"{nats[0] / math.log(2):.4f}"
    run = load_run(trained)
    total = sum(int(row[2].replace(",", "")) for row in layers[1:])
    assert f"{total:,} parameters" in page
    assert total == sum(leaf.size for leaf in run.params["dense"].values()) + sum(
        int(row[2].replace(",", "")) for row in layers[1:-1]
    )
    assert ["model.hidden_size", "16", "1024"] in config
    assert "&lt;b&gt;run" in page
    assert "<b>run" not in page
    samples = read_json_lines(trained / "samples.jsonl")
    assert parse_quotes(page).quotes == [row["prompt"] + row["text"] for row in samples]
    names = ["loss", "learning_rate", "gradient_norm", "update_ratio", "chars_per_second"]
    for name in [*names, "peak_memory"]:
        for form, start in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
            assert (trained / f"report.{name}.{form}").read_bytes().startswith(start)
    text = (trained / "report.md").read_text(encoding="utf-8")
    assert f"step {run.step:,}: validation loss {run.loss:.4f} nats/char" in text


def test_a_notebook_shows_a_run_as_a_table(trained: Path) -> None:
    run = load_run(trained)
    shown = dict(re.findall(r"<th>(.*?)</th><td .*?>(.*?)</td>", run._repr_html_()))
    assert shown["run"] == f"{escape(str(trained))}, step {run.step}"
    assert shown["model"] == "gru, 1 x 16 hidden units"
    assert shown["parameters"] == "2,066"
    assert shown["validation loss, cold-32"] == f"{run.loss:.4f} nats/char"


def test_copied_spans_are_marked_with_their_place(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(trained)
    text = run.vocabulary.decode(run.load_dataset().splits["train"])
    copied = text[1000:1060]
    rows = [
        {"step": 1, "prompt": "The ", "text": f"zzz{copied}zzz{copied}", "temperature": 1.0},
        {"step": 2, "prompt": "The ", "text": "zzz", "temperature": 1.0},
    ]
    (trained / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    copies = Copies(run)
    write_run_report(run, tmp_path, copies=copies)
    found = parse_quotes((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert found.quotes == [row["prompt"] + row["text"] for row in rows]
    assert len(found.marks) == 2
    for marked, note in found.marks:
        assert copied in marked
        place = int(note.split("character ")[1].split(", line")[0].replace(",", ""))
        assert text[place:].startswith(marked)
        assert f"<li>{note}</li>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    monkeypatch.setattr(Copies, "_read", None)  # what was found is not looked up again
    assert copies.marks([row["prompt"] + row["text"] for row in rows[::-1]])[0] == []


def test_report_needs_neither_the_text_nor_an_evaluation(
    trained: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved.txt"
    config = json.loads((trained / "config.json").read_text())
    assert config["data"]["path"] == str(text_file)
    run = load_run(trained)
    run.config.data.path = str(moved)  # is not there
    assert Copies(run).marks([SENTENCE]) is None
    write_run_report(run, tmp_path, copies=Copies(run))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<mark" not in page.partition("<body>")[2]
    assert "copied spans are not marked" in page
    assert str(tmp_path) not in page  # nor any folder of this machine
    assert repr("moved.txt").replace("'", "&#x27;") in page
    with pytest.raises(UserError):
        Copies(run, path=str(moved)).marks([SENTENCE])
    shutil.copy(text_file, moved)
    assert Copies(run).marks([SENTENCE]) == Copies(load_run(trained)).marks([SENTENCE]) != [[]]
    for name in ("metrics.jsonl", "samples.jsonl"):
        (trained / name).unlink()
    assert main(["report", f"--workdir={trained}"]) == 0
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "run charrnn evaluate" in page
    assert "has written no samples" in page
    capsys.readouterr()
    assert main(["report", f"--workdir={trained}", "--figures=gif"]) == 2
    assert "'gif' is not one of pdf, png, svg" in capsys.readouterr().err
    assert main(["report", f"--workdir={tmp_path}"]) == 2


def test_watch_writes_again_when_there_are_new_rows(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[str] = []

    def sleep(seconds: float) -> None:
        assert seconds == 3
        pages.append((trained / "report.html").read_text(encoding="utf-8"))
        if len(pages) == 2:  # nothing is new the first time
            with open(trained / "metrics.jsonl", "a") as rows:
                rows.write('{"step": 99, "epoch": 3.5, "seconds": 61, "train/loss": 1.5}\n')
        if len(pages) == 3:
            with open(trained / "samples.jsonl", "a") as rows:
                rows.write('{"step": 99, "prompt": "", "text": "the last", "temperature": 1}\n')
        if len(pages) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(report.time, "sleep", sleep)
    assert main(["report", f"--workdir={trained}", "--watch=3"]) == 130
    assert pages[0] == pages[1] != pages[2]
    assert "99 steps of 8 x 20 characters, 3.5 epochs, in 1 min 1 s" in pages[2]
    assert "the last" in pages[3]
    assert "the last" not in pages[2]


def test_long_curves_are_means_over_neighbours(tmp_path: Path) -> None:
    """200,000 rows; not a figure of as many points."""
    rng, steps = np.random.default_rng(0), np.arange(1, 200_001)
    losses = 2 + rng.normal(size=len(steps))
    with open(tmp_path / "metrics.jsonl", "w") as rows:
        for step, loss in zip(steps.tolist(), losses.tolist(), strict=True):
            rows.write(f'{{"step": {step}, "train/loss": {loss!r}}}\n')
    curve = read_history(tmp_path).curves["train/loss"]
    assert len(curve.steps) == len(curve.values) == MAX_POINTS
    assert (np.diff(curve.steps) > 0).all()
    assert curve.values.mean() == pytest.approx(losses.mean(), abs=1e-3)
    first = losses[: 200_000 // MAX_POINTS]
    assert curve.values[0] == pytest.approx(first.mean())


def hostile_document() -> Document:
    quotes = [Quote(text, text * 3, [Mark(2, 4, text)]) for text in HOSTILE]
    return Document("Quotes", [], [Section("Texts", [], quotes=quotes)], [])


def test_quoted_texts_are_shown_as_they_are() -> None:
    """In HTML, and as code in Markdown, so that nothing in them is markup."""
    document = hostile_document()
    parser = parse_quotes(to_html(document))
    texts = [quote.text.replace("\r\n", "\n") for quote in document.sections[0].quotes]
    assert [text.replace("\r\n", "\n") for text in parser.quotes] == texts
    assert [note for _, note in parser.marks] == list(HOSTILE)
    html = MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(to_markdown(document))
    code = [unescape(each) for each in re.findall(r"<pre><code>(.*?)</code></pre>", html, re.S)]
    assert [each.split() for each in code] == [text.split() for text in texts]
    assert not re.search(r"<(?!/?(h[123]|p|pre|code)\b)", html)


@pytest.mark.parametrize(
    "rows",
    [
        [{"train/loss": 3.0, "train/learning_rate": 0.1}],
        [{"validation/loss": 3.0, "validation/protocol": "carried"}],
        [{"train/loss": 1.0 + 1 / k} for k in range(1, 30)],
        [{"train/loss": 1.0}, *({"train/skipped_in_a_row": k} for k in range(1, 30))],
        [],
    ],
)
def test_figures_show_what_there_is(rows: list[dict[str, float]], tmp_path: Path) -> None:
    """A single point has a mark, and only what is drawn is in the legend."""
    lines = [json.dumps({"step": step, **row}) + "\n" for step, row in enumerate(rows, 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    with drawing():
        figures = draw_figures(read_history(tmp_path), {"n-grams": 9.0}, unit="byte")
        if not rows:
            assert figures == {}
            return
        (axes,) = figures["loss"].axes
        names = axes.get_legend_handles_labels()[1]
    kind = "training" if "train/loss" in rows[0] else "validation"
    assert names == [kind, "n-grams"]
    assert axes.get_ylabel() == "loss (nats/byte)"
    assert axes.get_ylim()[1] > 9
    if len(rows) == 1:
        assert axes.lines[0].get_marker() == "o"


def test_no_validation_loss_and_no_line_is_cut_off(tmp_path: Path) -> None:
    """As where a model overfits, and its training losses are far lower and far more."""
    rows = [{"step": k, "train/loss": 9.0 if k < 9 else 1.0} for k in range(1, 401)]
    rows += [{"step": 100 * k, "validation/loss": 1.0 + k} for k in range(1, 5)]
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    with drawing():
        (axes,) = draw_figures(read_history(tmp_path), {}, unit="char")["loss"].axes
    low, high = axes.get_ylim()
    assert low < 1 < 5 < high < 6


@pytest.mark.slow
def test_report_of_bytes_without_validation_names_its_units(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    tiny_config.data.vocabulary, tiny_config.data.validation_fraction = "bytes", 0.0
    tiny_config.sample.num_samples = 2
    train(tiny_config, tmp_path / "run")
    run = load_run(tmp_path / "run")
    write_run_report(run, tmp_path, copies=Copies(run))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "There is no validation split" in page
    assert "8 x 20 bytes" in page
    assert "bytes/s" in page


@pytest.mark.parametrize("width", [1280, slow(375)])
def test_page_has_no_errors_fits_the_screen_and_runs_no_text(
    width: int, trained: Path, driver: webdriver.Chrome, tmp_path: Path
) -> None:
    with open(trained / "samples.jsonl", "a") as rows:
        for step, text in enumerate(HOSTILE[:5], 1000):
            row: dict[str, Any] = {"step": step, "prompt": "", "text": text * 9, "temperature": 1}
            rows.write(json.dumps(row) + "\n")
    write_run_report(load_run(trained), tmp_path, copies=Copies(load_run(trained)))
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 1000}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        driver.get_log("browser")
        driver.get((tmp_path / "report.html").as_uri())
        assert driver.get_log("browser") == []
        assert driver.title == "<b>run"
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        quotes = driver.find_elements("css selector", "pre")
        assert len(quotes) == 6
        assert len(driver.find_elements("css selector", "figure svg")) == 6
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
