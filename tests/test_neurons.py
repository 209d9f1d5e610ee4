"""The neuron atlas: probes, how units are scored, the command, and its page in a real browser."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, SENTENCE
from helpers import VOCABULARY, H, V, last_line_of_error, make
from hypothesis import given
from hypothesis import strategies as st
from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from charrnn_jax.config import default_config
from charrnn_jax.data.dataset import load_dataset
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation import recording as module
from charrnn_jax.evaluation.association import aucs, entropy, information, shifted_aucs
from charrnn_jax.evaluation.probes import PROBES, apply_probes, make_probe
from charrnn_jax.evaluation.recording import record
from charrnn_jax.evaluation.surprise import find_likeliest
from charrnn_jax.evaluation.units import ProbeScore, UnitScore, best_units, score_units
from charrnn_jax.main import main
from charrnn_jax.models.char_rnn import activations, initialize_params, make_model
from charrnn_jax.reports.neurons import page as page_module
from charrnn_jax.reports.neurons.page import write_neurons_page
from charrnn_jax.reports.page import escape_text
from charrnn_jax.workdir.neurons import Atlas, _characters, neurons
from charrnn_jax.workdir.run import Run, load_run

# --- probes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probe", "text", "expected"),
    [
        ("inside quotes", 'a "b c" d', "001111100"),
        ("inside quotes", 'a "b\nc" d', "001111100"),
        ("inside quotes", 'a "b\n\nc" d', "0000000000"),  # not closed in its paragraph
        ("inside quotes", "say 'it's so' now", "00001111111110000"),
        ("inside quotes", "the lords' don't", "0000000000000000"),
        ("inside quotes", "a \u201cb\u201d c", "0011100"),
        ("inside brackets", "a (b [c]) d)", "001111110000"),
        ("inside brackets", "f(\n\nb", "01100"),
        ("upper-case word", "A KING I am McX", "001111000000000"),
        ("speaker line", "\nFirst Man:\nI say: no\n", "0111111111100000000000"),
        ("speaker line", "KING:", "00000"),  # no line break after it
        ("distance since newline", "ab\nc\n\nd", "1201001"),
        ("position in line", "\na\n\n", "0100"),
        ("position in word", "it's a-b", "12340101"),
        ("syllable", "queen, any", "0111100112"),
    ],
)
def test_a_probe_is_what_it_says(probe: str, text: str, expected: str) -> None:
    values = apply_probes(text, PROBES)[probe]
    assert "".join(str(int(value)) for value in values) == expected


def test_own_probes_are_checked() -> None:
    found = apply_probes("ab\nab", {"a": make_probe("^a"), "b": lambda text: np.arange(5)})
    np.testing.assert_array_equal(found["a"], [True, False, False, True, False])
    np.testing.assert_array_equal(found["b"], np.arange(5))
    with pytest.raises(UserError, match="not a regular expression"):
        make_probe("(")
    for wrong in (np.zeros(4), np.full(5, np.nan), np.array(["a"] * 5), np.zeros((5, 1))):
        with pytest.raises(UserError, match="the probe 'x' gave"):
            apply_probes("ab\nab", {"x": lambda text, wrong=wrong: wrong})


# --- the recording ------------------------------------------------------------------------------


def test_a_text_is_recorded_as_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SEGMENT", 7)
    model, params, _, _ = make("lstm")
    tokens = np.random.default_rng(0).integers(1, V, 21)
    carry, first = record(params, tokens[:7], model=model)
    _, second = record(params, tokens[7:], model=model, carry=carry, with_values=True)
    found = np.concatenate([first["output"], second["output"]])
    expected = activations(params, model.initialize_carry(1), tokens[None], model=model)
    np.testing.assert_allclose(found, expected[0], rtol=1e-5, atol=1e-6)
    assert second["forget gate"].shape == (14, 1, H)


def test_each_character_has_the_unit_after_its_last_byte() -> None:
    vocabulary = Vocabulary.build([], kind="bytes")
    raw = "aé漢".encode() + b"\xff!"
    tokens = np.append(vocabulary.encode(raw), 0)
    text, ends = _characters(tokens, vocabulary)
    assert text == "aé漢\ufffd!\ufffd"
    assert ends.tolist() == [0, 2, 5, 6, 7, 8]
    text, ends = _characters(VOCABULARY.encode("\nab"), VOCABULARY)
    assert (text, ends.tolist()) == ("\nab", [0, 1, 2])


# --- scores -------------------------------------------------------------------------------------


def slow_auc(values: np.ndarray, truth: np.ndarray) -> float:
    """All pairs, one by one."""
    pairs = [(x, y) for x in values[truth] for y in values[~truth]]
    return float(np.mean([(x > y) + 0.5 * (x == y) for x, y in pairs]))


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(2, 40))
def test_auc_is_that_of_all_pairs_with_ties_and_for_every_shift(
    seed: int, num_levels: int, num: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, num_levels, num).astype(np.float32)
    truth = rng.permutation(np.arange(num) < rng.integers(1, num))
    expected = [slow_auc(values, np.roll(truth, shift)) for shift in range(num)]
    np.testing.assert_allclose(aucs(values[:, None], truth[:, None]), [[expected[0]]], rtol=1e-12)
    np.testing.assert_allclose(shifted_aucs(values, truth), expected, rtol=1e-12)


def test_mutual_information_is_that_of_the_counts() -> None:
    rng = np.random.default_rng(0)
    values, truth = rng.permutation(800) // 100, rng.random(800) < 0.3
    counts = [[np.mean((values == k) & (truth == b)) for b in (False, True)] for k in range(8)]
    p = np.array(counts)
    expected = sum(
        p[k, b] * np.log2(p[k, b] / (p[k].sum() * p[:, b].sum())) for k in range(8) for b in (0, 1)
    )
    assert information(values * 7.0, truth) == pytest.approx(expected)
    assert information(truth, truth) == pytest.approx(entropy(truth))
    assert entropy(values) == pytest.approx(3)


def series(rng: np.random.Generator, num: int) -> np.ndarray:
    """Numbers that change slowly, as units do."""
    return np.convolve(rng.normal(size=num + 99), np.ones(100) / 10, mode="valid")


def test_unrelated_series_that_change_slowly_are_rarely_significant() -> None:
    """About 5% of them at 5%; characters exchanged one by one would find most of them so."""
    rng = np.random.default_rng(0)
    ps, naive = [], []
    for _ in range(200):
        values, truth = series(rng, 1000), series(rng, 1000) > 0
        reached = shifted_aucs(values, truth)
        ps.append(np.mean(reached >= reached[0]))
        standard_error = np.sqrt(1001 / (12 * truth.sum() * (~truth).sum()))
        naive.append(reached[0] - 0.5 > 1.645 * standard_error)
    assert 0.02 < np.mean(np.less_equal(ps, 0.05)) < 0.09
    assert np.mean(naive) > 0.3


def test_units_are_found_on_one_half_and_scored_on_the_other() -> None:
    """A unit that follows a probe on the first half alone is chosen, and does not score."""
    rng = np.random.default_rng(1)
    num = 4000
    clear, spread, absent, early = (series(rng, num) > 0 for _ in range(4))
    outputs = rng.normal(size=(num, 2, 12)).astype(np.float32)
    outputs[:, 1, 3] -= 6 * clear  # low where it is true
    outputs[:, 0, :] += 0.8 * spread[:, None]  # a little in each of twelve units
    outputs[: num // 2, 0, 5] += 9 * early[: num // 2]
    position = np.concatenate([np.arange(length) for length in rng.integers(20, 60, num)])[:num]
    outputs[:, 1, 7] += position
    probes = {"clear": clear, "spread": spread, "absent": absent, "early": early}
    rare = np.arange(num) == 7
    every = probes | {"number": position, "rare": rare}
    characters = (rng.random(num) < 0.2 + 0.6 * spread).astype(int)
    found = score_units(outputs, every, characters=characters, num_best=2)
    by_name = {probe.name: probe for probe in found}
    assert [probe.verdict for probe in found] == [
        "one unit", "many units", "nothing", "nothing", "one unit", "too rare"
    ]  # fmt: skip
    unit = by_name["clear"].units[0]
    assert (unit.layer, unit.unit, unit.sign) == (1, 3, -1)
    expected = slow_auc(-outputs[num // 2 :, 1, 3], clear[num // 2 :])
    assert unit.auc == pytest.approx(expected)
    assert unit.corrected_p == pytest.approx(10 * unit.p)  # the smallest of 5 x 2
    assert {probe.least_p for probe in found} == {10 / (num // 2)}
    assert by_name["early"].units[0].unit == 5
    assert by_name["early"].units[0].chosen_auc > 0.99
    assert by_name["early"].units[0].auc < 0.6
    expected = slow_auc(characters[num // 2 :], spread[num // 2 :])
    assert by_name["spread"].character_auc == pytest.approx(expected)
    assert by_name["number"].criterion == np.median(position[: num // 2])
    assert [(u.probe, u.layer, u.unit) for u in best_units(found, num=3)] == [
        ("early", 0, 5), ("clear", 1, 3), ("number", 1, 7)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("auc", "p", "linear", "character", "expected"),
    [
        (0.95, 0.01, 0.99, 0.9, "one unit"),
        (0.95, 0.01, 0.99, 0.96, "many units"),
        (0.95, 0.01, 0.95, 0.96, "the character"),
        (0.85, 0.01, 0.95, 0.6, "many units"),
        (0.85, 0.01, 0.86, 0.6, "in part"),
        (0.55, 0.06, 0.89, 0.5, "nothing"),
        (0.55, 0.06, 0.91, 0.5, "many units"),
        (0.95, 0.06, 0.91, 0.5, "many units"),
    ],
)
def test_a_verdict_needs_more_than_chance_and_than_the_character(
    auc: float, p: float, linear: float, character: float, expected: str
) -> None:
    unit = UnitScore("x", 0, 0, 1, 0.9, auc, 0.5, p, p, 0.1, linear)
    probe = ProbeScore("x", None, 0.5, 1.0, (unit,), linear, character)
    assert probe.verdict == expected
    assert replace(probe, least_p=0.05).verdict == "too short"


# --- the command and the page -------------------------------------------------------------------

LINE = (
    "</div><script>document.title = 'broken'</script> &amp; 漢字 \N{SLIGHTLY SMILING FACE}\n"
    "KING:\nI 'say (so)'\n\n\tz"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An untrained model of a hostile text, of which half is held out."""
    folder = tmp_path_factory.mktemp("neurons")
    (folder / "text.txt").write_text((LINE + SENTENCE[:40]) * 60, encoding="utf-8")
    config = default_config()
    config.data.path, config.data.validation_fraction = str(folder / "text.txt"), 0.5
    config.model.cell, config.model.num_layers = "lstm", 2
    config.model.embedding_size, config.model.hidden_size = 8, 12
    config.model.init_scale = 2.0
    dataset = load_dataset(config.data)
    model = make_model(config.model, vocabulary_size=dataset.vocabulary.size)
    params = initialize_params(model, jax.random.key(0))
    identity = dataset.identity()
    return Run(folder / "<b>run", 0, config, dataset.vocabulary, identity, model, params, None)


@pytest.fixture(scope="module")
def atlas(run: Run) -> Atlas:
    return neurons(run, num_chars=3000, clamp=False)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """The workdir of a small run."""
    with tarfile.open(ROOT / "tests" / "stored_runs" / "gru_lanes.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "gru_lanes"


def test_command_prints_and_writes_what_the_function_finds(
    stored: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "atlas.html"
    where = [f"--path={text_file}", "--split=train", "--num_chars=3000"]
    command = ["neurons", f"--workdir={stored}", *where, "--probe=fox=f[^x]*x"]
    assert main([*command, f"--output={page}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    atlas = neurons(
        load_run(stored),
        split="train",
        num_chars=3000,
        path=str(text_file),
        probes={"fox": make_probe("f[^x]*x")},
    )
    assert found == json.loads(json.dumps(atlas.to_dict()))
    assert [probe["name"] for probe in found["probes"]] == [*PROBES, "fox"]
    first, unit = atlas.clamped[0], atlas.best[0]
    assert first.unit == unit
    assert first.low.value < np.median(atlas.outputs[:, unit.layer, unit.unit]) < first.high.value
    assert main(command) == 0
    written = (stored / "neurons.html").read_text(encoding="utf-8")
    assert written == page.read_text(encoding="utf-8")
    assert escape_text(first.high.text) in written
    out = capsys.readouterr().out
    for shown in ("'inside quotes'", f"{unit.auc:7.3f}{unit.null:7.3f}", "held high"):
        assert shown in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--probe=("], "is not NAME=REGEX"),
        (["--probe=a=("], "is not a regular expression"),
        (["--probe=a=b", "--probe=a=c"], "is given twice"),
        (["--split=train", "--num_chars=999"], "999 characters of the train split of"),
        (["--split=test"], "0 characters of the test split of"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_writes_nothing(
    flags: list[str],
    message: str,
    stored: Path,
    text_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = list(stored.iterdir())
    assert main(["neurons", f"--workdir={stored}", f"--path={text_file}", *flags]) == 2
    assert message in last_line_of_error(capsys)
    assert list(stored.iterdir()) == before


def colours(driver: webdriver.Chrome) -> list[float]:
    """The strength of each character's colour; below 0 if it is cold."""
    return driver.execute_script(
        "return [...document.querySelectorAll('#text span')].map((span) =>"
        "Number(span.style.getPropertyValue('--a')) * (span.classList.contains('cold') ? -1 : 1))"
    )


@pytest.mark.parametrize("width", [1280, pytest.param(375, marks=pytest.mark.slow)])
def test_page_colours_a_hostile_text_by_any_unit_and_gate(
    width: int,
    run: Run,
    atlas: Atlas,
    driver: webdriver.Chrome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num = 400
    monkeypatch.setattr(page_module, "_MOST_SHOWN", num)
    start = atlas.text.index("\n", 1499) + 1
    carry, _ = record(run.params, atlas.tokens[:start], model=run.model)
    tokens = atlas.tokens[start : start + num + 1]
    _, values = record(run.params, tokens[:-1], model=run.model, carry=carry, with_values=True)
    likeliest = find_likeliest(run.params, tokens, model=run.model, num=5, carry=carry)

    def shown(name: str, layer: int, unit: int) -> np.ndarray:
        of_unit = values[name][:, layer, unit]
        return np.rint(of_unit / abs(of_unit).max() * 15) / 15

    write_neurons_page(atlas, tmp_path / "page.html")
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 1000}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        driver.get_log("browser")
        driver.get((tmp_path / "page.html").as_uri())
        text, details = (driver.find_element("id", name) for name in ("text", "details"))
        assert driver.title == "Hidden units of <b>run"
        assert text.get_property("textContent") == atlas.text[start : start + num]
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        best = atlas.best[0]
        np.testing.assert_allclose(
            colours(driver), shown("output", best.layer, best.unit), atol=6e-3
        )
        underlined = driver.execute_script(
            "return [...document.querySelectorAll('#text span')]"
            ".map((span) => span.classList.contains('true'))"
        )
        assert underlined == atlas.truths[best.probe][start : start + num].tolist()

        select = Select(driver.find_element("id", "shown"))
        assert {option.text for option in select.options} == set(values)
        select.select_by_visible_text("forget gate")
        expected = shown("forget gate", best.layer, best.unit)
        np.testing.assert_allclose(colours(driver), expected, atol=6e-3)
        select.select_by_visible_text("output")
        for box, number in (("layer", 1), ("unit", 5)):
            element = driver.find_element("id", box)
            element.clear()
            element.send_keys(str(number))
        np.testing.assert_allclose(colours(driver), shown("output", 1, 5), atol=6e-3)

        text.send_keys(Keys.ARROW_RIGHT * 4)
        symbols = ["[UNK]", *run.vocabulary.characters]
        for name, symbol in ((" ", "space"), ("\n", "line break"), ("\t", "tab")):
            symbols[symbols.index(name)] = symbol
        value = shown("output", 1, 5)[3] * abs(values["output"][:, 1, 5]).max()
        assert f"the output of 1:5 is about {value:.2f}." in details.text
        for token, share in zip(*(array[3] for array in likeliest), strict=True):
            assert f"{symbols[token]} {100 * share:.{int(share < 0.1)}f}%" in details.text
        text.send_keys(Keys.ARROW_DOWN)
        np.testing.assert_allclose(colours(driver), shown("output", 1, 6), atol=6e-3)
        text.send_keys(Keys.END)
        assert "the output of 1:6" in details.text
        button = driver.find_element("css selector", "td button")
        driver.execute_script("arguments[0].click()", button)
        np.testing.assert_allclose(
            colours(driver), shown("output", best.layer, best.unit), atol=6e-3
        )
        assert driver.get_log("browser") == []
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_page_that_would_be_too_large_shows_less_of_the_text(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "_MOST_SHOWN", 400)
    monkeypatch.setattr(page_module, "_MOST_BYTES", 40_000)
    write_neurons_page(atlas, tmp_path / "page.html")
    assert 30_000 < (tmp_path / "page.html").stat().st_size <= 40_000
