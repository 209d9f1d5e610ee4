"""`score --html`: the numbers of a text, and the page that shows them, in a real browser."""

import base64
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import VOCABULARY, V, forward, make, slow
from ml_collections import ConfigDict
from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation import surprise as module
from charrnn_jax.evaluation.surprise import Likeliest, by_character, find_likeliest
from charrnn_jax.main import main
from charrnn_jax.reports.page import escape_text
from charrnn_jax.reports.surprise.page import Reader, _pack, make_surprise_page
from charrnn_jax.training.loop import train


def test_likeliest_characters_are_those_of_one_forward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Across the pieces in which the text is read."""
    monkeypatch.setattr(module, "_SEGMENT", 7)
    model, params, _, _ = make("gru", num_layers=2)
    tokens = np.random.default_rng(0).integers(1, V, 24)
    found = find_likeliest(params, tokens, model=model, num=3)
    _, logits = forward(params, model.initialize_carry(1), tokens[None, :-1], model=model)
    p = np.asarray(jax.nn.softmax(logits[0]))
    np.testing.assert_array_equal(found.ids, np.argsort(-p, axis=-1)[:, :3])
    np.testing.assert_allclose(found.probabilities, -np.sort(-p, axis=-1)[:, :3], rtol=1e-5)


def test_losses_of_bytes_are_added_by_character() -> None:
    text = "aé漢\n"
    vocabulary = Vocabulary.build([], kind="bytes")
    tokens = vocabulary.encode(text)
    losses = np.arange(1.0, len(tokens))
    found = by_character(losses, tokens, vocabulary=vocabulary)
    assert found[0] == text
    np.testing.assert_array_equal(found[1], [0, 1 + 2, 3 + 4 + 5, 6])
    text = "漢a"  # the bytes of the first character are context
    found = by_character(np.arange(1.0, 4), vocabulary.encode(text), vocabulary=vocabulary)
    np.testing.assert_array_equal(found[1], [0, 3])
    with pytest.raises(UserError, match="one character, which is context"):
        by_character(losses[:1], vocabulary.encode("é"), vocabulary=vocabulary)
    with pytest.raises(UserError, match="not UTF-8 at byte 2"):
        by_character(losses[:3], tokens[[0, 0, 1, 0]], vocabulary=vocabulary)
    ids = VOCABULARY.encode(VOCABULARY.characters)
    losses = np.arange(1.0, len(ids))
    text, shown = by_character(losses, ids, vocabulary=VOCABULARY)
    assert text == VOCABULARY.characters
    np.testing.assert_array_equal(shown, [0, *losses])


@pytest.mark.slow
def test_command_writes_the_page_beside_the_loss(
    tiny_config: ConfigDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("a", 16), ("b", 8)):
        tiny_config.model.hidden_size = size
        train(tiny_config, tmp_path / name)
    capsys.readouterr()
    text, page = (
        ["score", f"--workdir={tmp_path / 'a'}", "--text=The lazy dog"],
        tmp_path / "x.html",
    )
    assert main(text) == 0
    plain = capsys.readouterr().out
    assert main([*text, f"--html={page}", f"--beside={tmp_path / 'b'}"]) == 0
    assert capsys.readouterr().out == plain
    bits, shown = plain.split(", ")[1], page.read_text(encoding="utf-8")
    assert re.search(rf"<strong>a, step \d+</strong>: {bits}", shown)
    assert "<strong>b, step" in shown
    assert main([*text, f"--beside={tmp_path / 'b'}"]) == 2
    assert "give --html=FILE, too" in capsys.readouterr().err
    (tmp_path / "other.txt").write_text("abc \n" * 1000)
    tiny_config.data.path, tiny_config.sample.prompt = str(tmp_path / "other.txt"), "a"
    train(tiny_config, tmp_path / "c")
    page.unlink()
    assert main([*text, f"--html={page}", f"--beside={tmp_path / 'c'}"]) == 2
    assert f"{tmp_path / 'c'}: not in the vocabulary" in capsys.readouterr().err
    assert main([*text, f"--html={page}", f"--beside={tmp_path / 'c'}", "--unk=skip"]) == 2
    assert "the two runs know different characters" in capsys.readouterr().err
    assert not page.exists()


# --- the page -----------------------------------------------------------------------------------


def readers(text: str, num: int) -> list[Reader]:
    """Readers of random losses, up to 12 bits, who find the characters of the text likely."""
    symbols, rng = sorted(set(text)), np.random.default_rng(0)
    found = []
    for k in range(num):
        losses = np.concatenate([[0.0], rng.uniform(0, 12 * math.log(2), len(text) - 1)])
        likeliest = rng.integers(0, len(symbols), (len(text) - 1, 3))
        shares = np.tile([0.5, 0.006, 0.0001], (len(text) - 1, 1))
        found.append(Reader(f"<i>run {k}", losses, Likeliest(likeliest, shares), symbols))
    return found


def open_page(driver: webdriver.Chrome, folder: Path, page: str) -> None:
    (folder / "page.html").write_text(page, encoding="utf-8")
    driver.get_log("browser")
    driver.get((folder / "page.html").as_uri())
    assert driver.get_log("browser") == []


def colours(driver: webdriver.Chrome) -> list[float]:
    """The strength of each character's colour; below 0 if it is cold."""
    return driver.execute_script(
        "return [...document.querySelectorAll('#text span')].map((span) =>"
        "Number(span.style.getPropertyValue('--a')) * (span.classList.contains('cold') ? -1 : 1))"
    )


LINE = (
    "</div><script>document.title = 'broken'</script> &amp; 漢字 \N{SLIGHTLY SMILING FACE}\n\n\tz"
)
TEXT = f"{LINE}\r\n\r" * 30 + "no line break " * 300 + LINE * 20  # in several blocks


def test_losses_on_the_page_are_rounded_such_that_their_sums_are_exact() -> None:
    """In 16 bits, or in 8 for long texts."""
    losses = np.random.default_rng(0).exponential(0.02, 5000)
    for fine, kind in ((True, "<u2"), (False, "u1")):
        packed = _pack(Reader("x", losses), fine=fine)
        units = np.frombuffer(base64.b64decode(packed["losses"]), kind)
        assert packed["bytes"] == units.itemsize
        step = packed["step"]
        np.testing.assert_allclose(units * step, losses, atol=step * 1.001)
        np.testing.assert_allclose(np.cumsum(units) * step, losses.cumsum(), atol=step * 0.501)


def test_a_browser_changes_no_character_of_an_escaped_text() -> None:
    assert escape_text("\r\n<\0") == "&#13;\n&lt;\N{REPLACEMENT CHARACTER}"


NAMES = {" ": "space", "\n": "line break", "\r": "carriage return", "\t": "tab"}
IS_FILLED = "return Boolean(arguments[0].filled)"


@pytest.mark.parametrize("width", [1280, slow(375)])
def test_each_character_has_the_colour_of_its_bits_and_keys_show_its_numbers(
    width: int, driver: webdriver.Chrome, tmp_path: Path
) -> None:
    both = readers(TEXT, 2)
    bits = [reader.losses / math.log(2) for reader in both]
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 1000}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        open_page(driver, tmp_path, make_surprise_page(TEXT, both, title="<b>x"))
        assert driver.title == "<b>x"
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        shown = driver.execute_script("return document.getElementById('text').textContent")
        assert shown == TEXT
        for block in driver.find_elements("css selector", "#text div"):
            driver.execute_script("arguments[0].scrollIntoView()", block)
            wait = WebDriverWait(driver, 30)
            wait.until(lambda _, block=block: driver.execute_script(IS_FILLED, block))
        driver.execute_script("scrollTo(0, 0)")
        np.testing.assert_allclose(colours(driver), np.minimum(bits[0] / 8, 1), atol=2e-3)
        buttons = driver.find_elements("name", "shown")
        buttons[1].click()
        np.testing.assert_allclose(colours(driver), np.minimum(bits[1] / 8, 1), atol=2e-3)
        buttons[2].click()
        expected = np.clip((bits[0] - bits[1]) / 4, -1, 1)
        np.testing.assert_allclose(colours(driver), expected, atol=2e-3)

        region = driver.find_element("id", "text")
        region.send_keys(Keys.ARROW_RIGHT)
        details = driver.find_element("id", "details")
        assert details.text == "The first character is context: nothing predicts it."
        region.send_keys(Keys.ARROW_RIGHT * 3)
        symbols = both[0].symbols
        for line, reader, of in zip(details.text.splitlines(), both, bits, strict=True):
            likely = [symbols[i] for i in reader.likeliest.ids[2]]
            named = [NAMES.get(c, c) for c in likely]
            assert f"{reader.name}: {TEXT[3]} {of[3]:.2f} bits" in line
            assert f"up to here {of[1:4].mean():.3f} bits/char. Likeliest:" in line
            assert line.endswith(f"{named[0]} 50% {named[1]} 0.6% {named[2]} below 0.1%")
        region.send_keys(Keys.END)
        assert f"{bits[0][1:].mean():.3f} bits/char" in details.text
        first = driver.find_element("css selector", "#text span")
        driver.execute_script("arguments[0].click()", first)
        assert details.text.startswith("The first character")
        assert driver.get_log("browser") == []
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
def test_a_text_of_a_million_characters_is_a_page_below_three_megabytes(
    driver: webdriver.Chrome, tmp_path: Path
) -> None:
    """Only what is in view is coloured, until one scrolls."""
    text = ("The quick brown fox jumps over the lazy dog.\n" * 22_223)[:1_000_000]
    page = make_surprise_page(text, readers(text, 1), title="long")
    assert len(page.encode()) < 3e6
    open_page(driver, tmp_path, page)
    num_coloured = len(driver.find_elements("css selector", "#text span"))
    assert 1000 < num_coloured < 20_000
    driver.find_element("id", "text").send_keys(Keys.END)
    assert "bits/char" in driver.find_element("id", "details").text
