"""The web page of a model, in a real browser; what it computes against `step`."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.export.page import PAGE_DTYPES, page_weights, write_page
from charrnn_jax.generation.sampler import encode_prompt
from charrnn_jax.models.char_rnn import CharRNN, initialize_params
from charrnn_jax.models.stepping import StepWeights, prepare, step

LETTERS = Vocabulary("\n abcdefghi")
BYTES = Vocabulary(kind="bytes")
SETTINGS = {"title": "A model", "description": "", "facts": {}, "prompt": "bad"}


@cache
def make_model(
    cell: str = "gru", num_layers: int = 1, vocabulary: Vocabulary = LETTERS, seed: int = 6
) -> tuple[CharRNN, Any]:
    """A random model whose greedy text varies: its weights are larger than at initialization."""
    model = CharRNN(vocabulary.size, 6, 10, num_layers=num_layers, cell=cell)
    leaves, treedef = jax.tree.flatten(initialize_params(model, jax.random.key(seed)))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [3 * x + 0.4 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return model, jax.tree.unflatten(treedef, noisy)


class Reference(NamedTuple):
    """tokens [N] are the prompt and what follows; the rest is of every token.

    Attributes:
      tokens: [N].
      probabilities: [N, V], of the token after each.
      activations: [N, L, H], after reading each.
    """

    tokens: np.ndarray
    probabilities: np.ndarray
    activations: np.ndarray


def greedy(
    weights: StepWeights, prompt: np.ndarray, num_tokens: int, *, model: CharRNN
) -> Reference:
    @jax.jit
    def read(carry: Any, token: jax.Array) -> Any:
        carry, logits = step(weights, carry, token[None], model=model)
        probabilities = jax.nn.softmax(logits[0].at[UNK_ID].set(-jnp.inf))
        return carry, probabilities, jnp.stack([jax.tree.leaves(layer)[-1][0] for layer in carry])

    carry, tokens, read_so_far = model.initialize_carry(1), prompt.tolist(), []
    for index in range(len(prompt) + num_tokens):
        carry, *seen = read(carry, jnp.asarray(tokens[index]))
        read_so_far.append(seen)
        if index + 1 == len(tokens):
            tokens.append(int(seen[0].argmax()))
    probabilities, activations = map(np.stack, zip(*read_so_far, strict=True))
    return Reference(np.array(tokens[:-1]), probabilities, activations)


@dataclass
class Page:
    """A page in the browser, as its reader sees it."""

    driver: webdriver.Chrome
    folder: Path
    written: dict[str, Any] = field(default_factory=dict)

    def open(self, model: CharRNN, params: Any, **settings: Any) -> "Page":
        file = self.folder / "page.html"
        settings = {"vocabulary": LETTERS, "dtype": "float16", **SETTINGS, **settings}
        write_page(file, params, model=model, **settings)
        self.driver.get(file.as_uri())
        return self

    def find(self, id: str) -> WebElement:
        return self.driver.find_element("id", id)

    def script(self, body: str, *arguments: Any) -> Any:
        return self.driver.execute_script(body, *arguments)

    def set(self, **values: Any) -> None:
        for id, value in values.items():
            self.script(
                "arguments[0].value = arguments[1];"
                "arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
                *(self.find(id), value),
            )

    def colour_by(self, name: str) -> None:
        self.script("document.querySelector(`input[value=${arguments[0]}]`).click()", name)

    def wait(self) -> str:
        """Returns the status when all is written."""
        end = time.monotonic() + 20
        while (status := self.find("status").text).endswith("…"):
            assert time.monotonic() < end, status
            time.sleep(0.02)
        return status

    def generate(self, button: str = "generate", **values: Any) -> str:
        """Returns the status; the text is in `text`."""
        self.set(**values)
        self.script("arguments[0].click()", self.find(button))
        return self.wait()

    @property
    def text(self) -> str:
        return exact(
            self.script("return " + UNITS + "(document.getElementById('text').textContent)")
        )

    def choose(self, index: int) -> None:
        self.script("document.querySelectorAll('#text span')[arguments[0]].click()", index)

    def alternatives(self) -> list[tuple[str, float]]:
        rows = self.script(
            "return [...document.querySelectorAll('#alternatives li')]"
            ".map((li) => [li.querySelector('b').textContent, li.querySelector('data').value])"
        )
        return [(name, float(value)) for name, value in rows]


UNITS = "((text) => Array.from({length: text.length}, (_, i) => text.charCodeAt(i)))"


def exact(units: list[int]) -> str:
    """UTF-16 code units -> text: a lone surrogate would not survive the way from the browser."""
    return np.array(units, "<u2").tobytes().decode("utf-16-le", "surrogatepass")


@pytest.fixture
def page(driver: webdriver.Chrome, tmp_path: Path) -> Iterator[Page]:
    """Fails the test, too, if the browser reports an error or asks a network for something."""
    yield Page(driver, tmp_path)
    assert driver.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [
        m["params"]["request"]["url"]
        for m in messages
        if m["method"] == "Network.requestWillBeSent"
    ]
    assert not [url for url in sent if not url.startswith(("file:", "data:", "chrome"))]


# The seeds give texts that vary, and in which no two characters are nearly as likely.
CASES = {
    "gru": ("gru", 1, LETTERS, 6),
    "lstm of 2 layers": ("lstm", 2, LETTERS, 2),
    "rnn": ("rnn", 1, LETTERS, 14),
    "gru of bytes": ("gru", 2, BYTES, 12),
}


@pytest.mark.parametrize("dtype", PAGE_DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_greedy_text_equals_python_with_the_same_weights(case: str, dtype: str, page: Page) -> None:
    model, params = make_model(*CASES[case])
    vocabulary = CASES[case][2]
    weights = page_weights(params, model=model, dtype=dtype).weights
    prompt = encode_prompt("bad", vocabulary)
    tokens = greedy(weights, prompt, 200, model=model).tokens
    assert len(set(tokens[100:].tolist())) >= 4  # a text that never varies would prove little
    page.open(model, params, vocabulary=vocabulary, dtype=dtype)
    page.generate(temperature=0, length=150)
    page.generate("continue", length=50)
    assert page.text == vocabulary.make_decoder()(tokens)


@pytest.mark.parametrize("case", CASES)
def test_probabilities_and_activations_equal_python(case: str, page: Page) -> None:
    _, num_layers, vocabulary, _ = CASES[case]
    model, params = make_model(*CASES[case])
    weights = page_weights(params, model=model, dtype="int8").weights
    expected = greedy(weights, encode_prompt("bad", vocabulary), 30, model=model)
    page.open(model, params, vocabulary=vocabulary, dtype="int8")
    page.generate(temperature=0, length=30)
    page.choose(0)
    assert page.alternatives() == []  # nothing predicts the first character
    for index in (1, 2, 3, 20, 32):
        page.choose(index)
        best = np.argsort(-expected.probabilities[index - 1])[:5]
        shown = [value for _, value in page.alternatives()]
        np.testing.assert_allclose(shown, expected.probabilities[index - 1][best], atol=1e-4)
    layer, neuron = num_layers - 1, 7
    page.colour_by("neuron")
    page.set(layer=layer, neuron=neuron)
    colours = page.script(
        "return [...document.querySelectorAll('#text span')].map((span) => "
        "(span.classList.contains('cold') ? -1 : 1) * span.style.getPropertyValue('--a'))"
    )
    np.testing.assert_allclose(colours, expected.activations[:, layer, neuron], atol=0.005)
    assert np.ptp(colours) > 0.3
    value = page.script("return document.querySelector('#chosen data').value")
    np.testing.assert_allclose(float(value), expected.activations[32, layer, neuron], atol=0.005)


def test_colours_of_surprise_are_bits_and_can_be_turned_off(page: Page) -> None:
    model, params = make_model()
    weights = page_weights(params, model=model, dtype="float16").weights
    expected = greedy(weights, encode_prompt("bad", LETTERS), 20, model=model)
    page.open(model, params)
    page.colour_by("off")
    page.generate(temperature=0, length=20)
    background = (
        "return getComputedStyle(document.querySelectorAll('#text span')[2]).backgroundColor"
    )
    assert page.script(background) == "rgba(0, 0, 0, 0)"
    page.colour_by("probability")
    assert page.script(background) != "rgba(0, 0, 0, 0)"
    shown = page.script(
        "return [...document.querySelectorAll('#text span')]"
        ".map((span) => Number(span.style.getPropertyValue('--a')))"
    )
    behind = expected.probabilities[np.arange(len(expected.tokens) - 1), expected.tokens[1:]]
    np.testing.assert_allclose(shown[1:], np.minimum(-np.log2(behind) / 8, 1), atol=2e-3)


def test_drawn_frequencies_follow_the_tempered_distribution_without_unk(page: Page) -> None:
    """Chi-square; the threshold is exceeded by chance once in a million."""
    model = CharRNN(5, 4, 4)
    params = jax.tree.map(jnp.zeros_like, initialize_params(model, jax.random.key(0)))
    bias = jnp.array([50.0, 0.0, 1.0, 2.0, -1.0])  # the model is sure of [UNK]
    params["dense"]["bias"] = bias
    page.open(model, params, vocabulary=Vocabulary("abcd"), prompt="a")
    for temperature in (0.5, 2.0):
        page.generate(temperature=temperature, length=4000)
        drawn = page.text[1:]
        observed = np.array([drawn.count(c) for c in "abcd"])
        assert observed.sum() == 4000
        expected = 4000 * np.asarray(jax.nn.softmax(bias[1:] / temperature))
        assert ((observed - expected) ** 2 / expected).sum() < 30.7  # 3 degrees of freedom


def test_same_seed_same_text_and_another_seed_another(page: Page) -> None:
    page.open(*make_model())
    texts = []
    for seed in (5, 5, 6):
        page.generate(temperature=1, length=100, seed=seed)
        texts.append(page.text)
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == len("bad") + 100
    page.generate(length=60, seed=5)
    page.generate("continue", length=40)
    assert page.text == texts[0]


def test_generate_again_gives_another_text_and_shows_the_seed_that_repeats_it(page: Page) -> None:
    page.open(*make_model())
    page.set(temperature=1, length=100, seed=2**32 - 2)
    texts = {}
    for _ in range(4):
        page.generate()
        seed = page.find("seed").get_attribute("value")
        assert seed not in texts
        texts[seed] = page.text
    assert list(texts) == ["4294967294", "4294967295", "0", "1"]
    assert len(set(texts.values())) == 4
    for seed, text in texts.items():
        page.generate(seed=seed)
        assert page.text == text


def test_the_seed_stays_where_something_else_changed(page: Page) -> None:
    """So that one can see what a prompt or a temperature does."""
    page.open(*make_model())
    page.generate(temperature=1, length=50, seed=7)
    text = page.text
    page.generate(length=80)
    assert page.text[: len(text)] == text
    page.generate("continue")
    page.generate(prompt="dab")
    page.generate("generate", prompt="bad", length=50)
    assert page.text == text
    assert page.find("seed").get_attribute("value") == "7"
    page.colour_by("neuron")  # which changes no text
    page.generate()
    assert page.text != text
    assert page.find("seed").get_attribute("value") == "8"


def test_stop_text_and_stop_button_end_the_text(page: Page) -> None:
    page.open(*make_model())
    page.generate(temperature=1, length=200, seed=3)
    whole = page.text
    stop = whole[60:63]
    assert page.generate(stop=stop.replace("\n", "\\n")).startswith("Wrote")
    assert page.text == whole[: whole.index(stop, len("bad")) + 3]
    page.set(stop="", length=10**6)
    page.script(
        "const button = document.getElementById('generate'); button.click();"
        "setTimeout(() => { if (button.textContent === 'Stop') button.click() }, 100)"
    )
    assert page.wait().startswith("Stopped after")
    assert len(page.text) < 10**6


def test_wrong_numbers_are_refused_where_they_show(page: Page) -> None:
    page.open(*make_model())
    page.colour_by("neuron")
    page.generate(neuron=10, length=20)  # of 0 to 9
    assert page.text == ""
    page.colour_by("probability")  # what is hidden is not asked for
    page.generate()
    assert len(page.text) == len("bad") + 20


def test_unknown_characters_are_named_and_an_empty_prompt_starts_a_line(page: Page) -> None:
    page.open(*make_model(), prompt="b😀a\u2028d")
    status = page.generate(temperature=0, length=20)
    assert "does not know 😀 U+2028: skipped" in status
    assert page.text.startswith("bad")
    before = page.text
    assert "no character of this prompt" in page.generate(prompt="XYZ")
    assert page.text == before
    page.generate(prompt="\n")
    behind_line_break = page.text[1:]
    page.generate(prompt="")
    assert page.text == behind_line_break
    page.choose(0)
    assert len(page.alternatives()) == 5


HOSTILE = (
    "</script><script>window.hacked = 1</script><!--<script>]]>\"'`&amp;&lt;{{page}}{{script_hash}}"
    "${window.hacked = 1}<img src=x onerror='window.hacked = 1'>\\u003c\0\u2028\u2029\u202e\ufeff"
    "\udc00\ud800😀é\t "
)


def test_hostile_texts_are_never_run_and_come_back_exactly(page: Page) -> None:
    # Alone in the vocabulary, the two surrogates stand next to each other.
    vocabulary = Vocabulary.build([HOSTILE + "\n"])
    texts = dict.fromkeys(("title", "description", "prompt"), HOSTILE)
    model, params = make_model(vocabulary=vocabulary)
    page.open(
        model, params, vocabulary=vocabulary, facts={HOSTILE: HOSTILE, "__proto__": "x"}, **texts
    )
    page.generate(temperature=1, length=300)
    shown = page.text
    assert shown.startswith(HOSTILE)
    assert len(shown) == len(HOSTILE) + 300
    for element in ("title", "description"):
        units = f"return {UNITS}(document.getElementById('{element}').textContent)"
        assert exact(page.script(units)) == HOSTILE
    facts = page.script(
        f"return [...document.querySelectorAll('dl *')].map((e) => {UNITS}(e.textContent))"
    )
    assert list(map(exact, facts))[:4] == [HOSTILE, HOSTILE, "__proto__", "x"]
    for character, name in {"\0": "U+0000", "\u2028": "U+2028", " ": "␣ space", "<": "<"}.items():
        page.choose(HOSTILE.index(character))
        assert page.script("return document.querySelector('#chosen b').textContent") == name
    assert page.script("return [window.hacked, document.scripts.length]") == [None, 2]


def test_policy_refuses_network_and_any_other_script(page: Page) -> None:
    page.open(*make_model())
    page.script(
        "const script = document.createElement('script'); script.textContent = 'window.hacked = 1';"
        "document.body.append(script)"
    )
    refused = page.script(
        "const answer = fetch('http://localhost:9/').then(() => 'reached', () => 'refused');"
        "return answer"
    )
    assert refused == "refused"
    assert page.script("return window.hacked") is None
    messages = [entry["message"] for entry in page.driver.get_log("browser")]
    assert len([m for m in messages if "Content Security Policy" in m]) >= 2
    page.driver.get_log("performance")  # the request that was refused


def test_everything_can_be_done_with_the_keyboard(page: Page) -> None:
    model, params = make_model()
    page.open(model, params)

    def press(*keys: str) -> None:
        ActionChains(page.driver).send_keys(*keys).perform()

    def write(text: str) -> None:
        """In place of what the field holds."""
        actions = ActionChains(page.driver)
        actions.key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).send_keys(text).perform()

    def focused() -> str:
        return page.driver.switch_to.active_element.get_attribute("id") or ""

    def selected() -> int:
        return page.script(
            "return [...document.querySelectorAll('#text span')]"
            ".findIndex((span) => span.classList.contains('selected'))"
        )

    press(Keys.TAB)
    write("a\nbad")
    press(Keys.TAB, Keys.HOME, Keys.TAB)
    write("80")
    press(Keys.ENTER)
    assert page.wait().startswith("Wrote 80 characters")
    weights = page_weights(params, model=model, dtype="float16").weights
    tokens = greedy(weights, encode_prompt("a\nbad", LETTERS), 80, model=model).tokens
    assert page.text == LETTERS.decode(tokens)
    for _ in range(20):
        if focused() == "text":
            break
        press(Keys.TAB)
    assert focused() == "text"
    places = []
    for key in (
        Keys.RIGHT,
        Keys.RIGHT,
        Keys.LEFT,
        Keys.END,
        Keys.LEFT,
        Keys.HOME,
        Keys.DOWN,
        Keys.UP,
    ):
        press(key)
        places.append(selected())
    assert places == [0, 1, 0, 84, 83, 0, 2, 0]
    press(Keys.RIGHT, Keys.RIGHT, Keys.RIGHT, Keys.RIGHT)
    assert len(page.alternatives()) == 5
    press(Keys.TAB)
    assert focused() == "generate"
    press(Keys.ESCAPE)
    assert selected() == -1


def test_pointer_shows_alternatives_and_a_click_keeps_them(page: Page) -> None:
    page.open(*make_model())
    page.generate(temperature=0, length=40)
    spans = page.driver.find_elements("css selector", "#text span")

    def point_at(index: int) -> list[tuple[str, float]]:
        ActionChains(page.driver).move_to_element(spans[index]).perform()
        return page.alternatives()

    assert len(point_at(1)) == 5
    at_2 = point_at(2)
    assert at_2 != point_at(1)
    spans[2].click()
    assert point_at(1) == at_2


def test_copied_text_is_exactly_the_text(page: Page) -> None:
    page.open(*make_model())
    page.generate(temperature=1, length=300)
    assert "\n" in page.text
    copied = page.script(
        "const text = document.getElementById('text'); getSelection().selectAllChildren(text);"
        "const event = new ClipboardEvent('copy', {clipboardData: new DataTransfer()});"
        "text.dispatchEvent(event); return event.clipboardData.getData('text/plain')"
    )
    assert copied == page.text


def test_fits_a_phone(page: Page) -> None:
    """No sideways scrolling, and everything that is tapped is at least 44 px high and wide."""
    set_screen = partial(page.driver.execute_cdp_cmd, "Emulation.setDeviceMetricsOverride")
    set_screen({"width": 375, "height": 667, "deviceScaleFactor": 2, "mobile": True})
    try:
        model, params = make_model(num_layers=2)
        page.open(model, params, title="W" * 80, description="w" * 200, facts={"a": "w" * 200})
        page.script("document.querySelector('details').open = true")
        page.colour_by("neuron")
        page.generate(length=300)
        page.choose(100)
        assert page.script("return document.documentElement.scrollWidth") == 375
        sizes = page.script(
            "return [...document.querySelectorAll('button, input, textarea, summary')]"
            ".map((e) => e.getBoundingClientRect()).map(({width, height}) => [width, height])"
        )
        assert len(sizes) > 10
        assert np.min(sizes) >= 44
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_at_least_4_5_even_in_full_colour(scheme: str, page: Page) -> None:
    """WCAG 2.2, success criterion 1.4.3 (AA)."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    page.open(*make_model())
    page.generate(length=10)
    ground = colour_of(page, "text", "backgroundColor")
    for name in ("", "cold"):
        page.script(
            "const span = document.querySelector('#text span'); span.className = arguments[0];"
            "span.id = 'sample'; span.style.setProperty('--a', 1)",
            name,
        )
        *colour, alpha = colour_of(page, "sample", "backgroundColor")
        behind = alpha * np.array(colour) + (1 - alpha) * np.array(ground[:3])
        assert contrast(colour_of(page, "sample", "color")[:3], behind) >= 4.5
    for muted, behind_it in (("speed", "text"), ("description", None), ("generate", "generate")):
        background = colour_of(page, behind_it, "backgroundColor")
        assert contrast(colour_of(page, muted, "color")[:3], background[:3]) >= 4.5


def colour_of(page: Page, id: str | None, name: str) -> list[float]:
    """Red, green, blue and alpha from 0 to 1; id None: of the body."""
    value = page.script(
        "const e = document.getElementById(arguments[0]) ?? document.body;"
        "return getComputedStyle(e)[arguments[1]]",
        *(id, name),
    )
    red, green, blue, *alpha = map(float, re.findall(r"[\d.]+", value))
    return [red / 255, green / 255, blue / 255, *(alpha or [1.0])]


def contrast(a: Any, b: Any) -> float:
    """WCAG's contrast ratio of two sRGB colours in [0, 1]."""

    def luminance(colour: Any) -> float:
        c = np.asarray(colour)
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


# --- without a browser --------------------------------------------------------------------------


def test_rounded_weights_are_near_and_have_their_size() -> None:
    model, params = make_model("lstm", num_layers=2)
    exact = jax.tree.leaves(prepare(params, model=model, transposed=True))
    for dtype, bytes_each in (("int8", 1), ("float16", 2)):
        packed, weights = page_weights(params, model=model, dtype=dtype)
        size = 0
        for rounded, leaf in zip(jax.tree.leaves(weights), exact, strict=True):
            if leaf.ndim == 2:
                largest = np.abs(leaf).max(axis=1, keepdims=True)
                step_size = largest / 127 if dtype == "int8" else np.abs(leaf) * 2.0**-10 + 1e-7
                assert (np.abs(rounded - leaf) <= 0.501 * step_size).all()
                if dtype == "int8":  # what the page reads
                    scales = np.frombuffer(packed, "<f4", len(leaf), size)[:, None]
                    values = np.frombuffer(packed, "i1", leaf.size, size + 4 * len(leaf))
                    np.testing.assert_array_equal(values.reshape(leaf.shape) * scales, rounded)
                size += bytes_each * leaf.size + (4 * len(leaf) if dtype == "int8" else 0)
            else:
                np.testing.assert_array_equal(rounded, leaf)
                size += 4 * leaf.size
        assert len(packed) == size


def test_rows_of_zeros_stay_zero() -> None:
    model = CharRNN(5, 4, 4)
    zeros = jax.tree.map(jnp.zeros_like, initialize_params(model, jax.random.key(0)))
    for dtype in PAGE_DTYPES:
        weights = page_weights(zeros, model=model, dtype=dtype).weights
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(weights))


def test_scan_and_bfloat16_models_have_the_same_page() -> None:
    model, params = make_model()
    expected = page_weights(params, model=model, dtype="int8").packed
    for changes in ({"implementation": "scan"}, {"dtype": "bfloat16"}):
        assert page_weights(params, model=model.clone(**changes), dtype="int8").packed == expected


def test_weights_that_a_page_cannot_hold_are_refused(tmp_path: Path) -> None:
    model, params = make_model()
    with pytest.raises(ValueError, match="int8, float16"):
        page_weights(params, model=model, dtype="float32")

    def with_weight(value: float) -> Any:
        kernel = params["dense"]["kernel"].at[0, 0].set(value)
        return {**params, "dense": {**params["dense"], "kernel": kernel}}

    assert page_weights(with_weight(1e5), model=model, dtype="int8").packed
    with pytest.raises(UserError, match="not all finite in float16"):
        page_weights(with_weight(1e5), model=model, dtype="float16")
    settings = {"model": model, "vocabulary": LETTERS, "dtype": "int8", **SETTINGS}
    other = model.clone(cell="other")
    with pytest.raises(UserError, match=r"gru, lstm, rnn, not other: .* --format=folder"):
        write_page(tmp_path / "page.html", params, **{**settings, "model": other})
    holding = model.clone(zoneout=0.1)
    with pytest.raises(UserError, match=r"with zoneout: .* --format=folder"):
        write_page(tmp_path / "page.html", params, **{**settings, "model": holding})
    with pytest.raises(UserError, match="not all finite in int8"):
        write_page(tmp_path / "page.html", with_weight(np.nan), **settings)
    assert not list(tmp_path.iterdir())
