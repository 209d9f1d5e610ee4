"""The web page of a model, in a real browser; what it computes against `step`."""

import inspect
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
from helpers import slow
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.probes import PROBES
from charrnn_jax.evaluation.protocols import Carried, char_losses
from charrnn_jax.export.page import PAGE_DTYPES, page_weights, write_page
from charrnn_jax.generation.rules import TopP
from charrnn_jax.generation.sampler import encode_prompt
from charrnn_jax.models.char_rnn import CharRNN, initialize_params
from charrnn_jax.models.stepping import StepWeights, prepare, step

SOURCES = Path(inspect.getfile(write_page)).parent
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
      probabilities: [N, V], of the token after each, without [UNK].
      bits: [N], what each token cost, with [UNK]; 0 for the first.
      activations: [N, L, H], after reading each.
    """

    tokens: np.ndarray
    probabilities: np.ndarray
    bits: np.ndarray
    activations: np.ndarray


def greedy(
    weights: StepWeights, prompt: np.ndarray, num_tokens: int, *, model: CharRNN
) -> Reference:
    @jax.jit
    def read(carry: Any, token: jax.Array) -> Any:
        carry, logits = step(weights, carry, token[None], model=model)
        probabilities = jax.nn.softmax(logits[0].at[UNK_ID].set(-jnp.inf))
        bits = -jax.nn.log_softmax(logits[0]) / jnp.log(2)
        activations = jnp.stack([jax.tree.leaves(layer)[-1][0] for layer in carry])
        return carry, probabilities, bits, activations

    carry, tokens, read_so_far = model.initialize_carry(1), prompt.tolist(), []
    for index in range(len(prompt) + num_tokens):
        carry, *seen = read(carry, jnp.asarray(tokens[index]))
        read_so_far.append(seen)
        if index + 1 == len(tokens):
            tokens.append(int(seen[0].argmax()))
    probabilities, bits, activations = map(np.stack, zip(*read_so_far, strict=True))
    read_tokens = np.array(tokens[:-1])
    cost = bits[np.arange(len(read_tokens) - 1), read_tokens[1:]]
    return Reference(read_tokens, probabilities, np.concatenate([[0], cost]), activations)


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

    def read(self, text: str) -> str:
        """Has the page read a text of the reader's own; returns the status."""
        return self.generate("read", own=text)

    def run_source(self, name: str, body: str, *arguments: Any) -> Any:
        """Runs a file of the page's script, with the data of this page, and then `body`."""
        return self.script((SOURCES / name).read_text(encoding="utf-8") + body, *arguments)

    def colour_by(self, name: str) -> None:
        self.script("document.querySelector(`input[value=${arguments[0]}]`).click()", name)

    def wait(self, start: str = "") -> str:
        """Returns the status when all is written, and it starts like this."""
        end = time.monotonic() + 20
        while (status := self.find("status").text).endswith("…") or not status.startswith(start):
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


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("gru", "float16"),
        ("lstm of 2 layers", "int8"),
        *(slow(case, dtype) for case in ("rnn", "gru of bytes") for dtype in PAGE_DTYPES),
        slow("gru", "int8"),
        slow("lstm of 2 layers", "float16"),
    ],
)
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


def test_top_p_keeps_what_the_rule_of_python_keeps(page: Page) -> None:
    model, params = make_model()
    page.open(model, params)
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (60, LETTERS.size)).round(1).astype(np.float32)  # some are equal
    logits[:, UNK_ID] = -np.inf
    keep = jax.jit(lambda rule, logits: jax.nn.softmax(rule(logits)))
    for temperature, p in ((0.7, 0.9), (1.0, 0.1), (1.0, 0.5), (1.6, 0.97)):
        expected = np.asarray(keep(TopP(p), logits / np.float32(temperature)))
        assert 0 < (expected == 0).sum() < expected.size
        shown = page.run_source(
            "network.js",
            "return arguments[0].map((row) => { logits.set(row); "
            "return [...distribution(arguments[1], arguments[2])] })",
            *(np.nan_to_num(logits, neginf=0).tolist(), temperature, p),
        )
        np.testing.assert_array_equal(np.array(shown) > 0, expected > 0)
        np.testing.assert_allclose(shown, expected, atol=1e-6)
    page.generate(temperature=0, length=60)
    greedy_text = page.text
    page.set(**{"top-p": 0.01})
    page.generate(temperature=1)
    assert page.text == greedy_text


def test_own_text_costs_the_bits_that_score_counts(page: Page) -> None:
    model, params = make_model("lstm", 2, LETTERS, 2)
    text = "dead beef\nhad a cafe"
    tokens = LETTERS.encode(text)
    page.open(model, params)
    status = page.read(text.replace("h", "h\u0301"))
    assert "Read 20 characters" in status
    assert "does not know ◌\u0301: skipped in your text." in status
    assert page.text == text
    shown = float(page.script("return document.querySelector('#measured data').value"))
    weights = page_weights(params, model=model, dtype="float16").weights
    expected = greedy(weights, tokens, 0, model=model)
    np.testing.assert_allclose(shown, expected.bits[1:].mean(), rtol=1e-5)
    losses = char_losses(params, tokens, model=model, protocol=Carried())
    np.testing.assert_allclose(shown, losses.mean() / np.log(2), rtol=3e-3)  # float16 weights
    page.choose(7)
    assert f"{expected.bits[7]:.1f} bits" in page.find("chosen").text
    assert "Paste two characters" in page.read("a")
    assert "no character of this text" in page.read("XYZ")
    assert page.text == text
    page.generate("continue", length=9)
    assert len(page.text) == len(text) + 9


@pytest.mark.parametrize("layer", [0, 1])
def test_a_held_neuron_keeps_its_value_and_acts_on_what_comes_next(layer: int, page: Page) -> None:
    model, params = make_model("lstm", 2, LETTERS, 2)
    value, neuron = -0.7, 4

    def hold(output: jax.Array, index: int) -> jax.Array:
        return output.at[..., neuron].set(value) if index == layer else output

    @jax.jit
    def read(carry: Any, token: jax.Array) -> tuple[Any, jax.Array]:
        variables = {"params": params}
        carry, seen = model.apply(variables, carry, token[None, None], transform=hold, method="run")
        held = tuple((c, hold(h, index)) for index, (c, h) in enumerate(carry))
        return held, jax.nn.softmax(seen.logits[0, 0].at[UNK_ID].set(-jnp.inf))

    page.open(model, params)
    page.generate(temperature=1, length=60, seed=3)
    free = page.text
    page.colour_by("neuron")
    page.script("document.getElementById('hold').click()")
    status = page.generate(layer=layer, neuron=neuron, held=value)
    assert f"with neuron {layer}:{neuron} held at \N{MINUS SIGN}0.70." in status
    assert page.find("seed").get_attribute("value") == "3"  # it is the neuron that differs
    assert page.text != free
    carry = model.initialize_carry(1)
    for index, token in enumerate(LETTERS.encode(page.text)[:-1]):
        carry, probabilities = read(carry, jnp.asarray(token))
        if index in (0, 5, 30, 60):
            page.choose(index + 1)
            shown = [probability for _, probability in page.alternatives()]
            np.testing.assert_allclose(shown, np.sort(probabilities)[:-6:-1], atol=3e-3)
    colours = page.script(
        "return [...document.querySelectorAll('#text span')].map((span) => "
        "(span.classList.contains('cold') ? -1 : 1) * span.style.getPropertyValue('--a'))"
    )
    np.testing.assert_allclose(colours, value, atol=0.005)
    page.colour_by("probability")  # a neuron that is not shown is not held
    assert "held" not in page.generate()
    assert page.text == free


# Probe, text, and the characters that it marks; numbers are marked above their median.
MARKED = [
    ("inside quotes", """It's "now" 'or never', 'tis.""", "     +++++ ++++++++++       "),
    ("inside quotes", '"a\n\n"b" “c” d', "    +++ +++  "),
    ("inside brackets", "f(a[i], b) ]+ (no\n\nend", " ++++++++     ++++    "),
    ("upper-case word", "AN OLD O, Big ÉTÉ_ HÉ", "++ +++             ++"),
    ("speaker line", "\nFirst Lord:\nAy: no.\n", " +++++++++++         "),
    ("distance since newline", "abc\nabcd\n", "  +   ++ "),
    ("position in line", "ab\nabcd\n", " +   ++ "),
    ("position in word", "abcd it's!", "  ++   ++ "),
    ("syllable", "banana a!", "   +++ "),
]


def test_probes_mark_what_their_names_say(page: Page) -> None:
    page.open(*make_model())
    for probe, text, marks in MARKED:
        shown = page.run_source(
            "probes.js", "return PROBES[arguments[0]](arguments[1])", probe, text
        )
        assert "".join(" +"[mark] for mark in shown).rstrip() == marks.rstrip(), (probe, text)


def test_probes_are_those_of_the_command(page: Page) -> None:
    page.open(*make_model())
    rng = np.random.default_rng(0)
    letters = list("aeAEbB'\".:\n ([}é\u2019\u201c\u201d0_")
    for text in ("".join(rng.choice(letters, 400)) for _ in range(20)):
        shown = page.run_source(
            "probes.js",
            "return Object.fromEntries(Object.entries(PROBES).map(([name, probe]) => "
            "[name, probe(arguments[0])]))",
            text,
        )
        assert set(shown) == set(PROBES)
        for name, probe in PROBES.items():
            values = probe(text)
            expected = values if values.dtype == bool else values > np.median(values)
            np.testing.assert_array_equal(shown[name], expected, err_msg=f"{name}: {text!r}")


def test_finder_ranks_neurons_by_their_auc_and_a_click_selects_one(page: Page) -> None:
    model, params = make_model("lstm", 2, LETTERS, 2)
    weights = page_weights(params, model=model, dtype="float16").weights
    page.open(model, params)
    page.generate(temperature=1, length=300)
    page.colour_by("neuron")
    page.script("document.getElementById('finder').open = true")
    text = page.text
    pages = greedy(weights, LETTERS.encode(text), 0, model=model).activations
    values = np.rint(127 * pages).reshape(len(text), -1)
    page.generate("find", probe="own regular expression", pattern="[a-c]")
    marks = np.array([character in "abc" for character in text])
    assert f"True at {marks.sum()} of {len(text)} characters." in page.find("finding").text
    higher = np.sign(values[marks][:, None] - values[~marks][None])  # [marked, others, L H]
    expected = (higher.mean((0, 1)) + 1) / 2
    buttons = page.driver.find_elements("css selector", "#found button")
    assert len(buttons) == 8
    best = np.argsort(-abs(expected - 0.5))[:8]
    for button, unit in zip(buttons, best, strict=True):
        area = page.script("return arguments[0].querySelector('data').value", button)
        np.testing.assert_allclose(float(area), expected[unit], atol=2e-3)
    layer, neuron = divmod(int(best[0]), model.hidden_size)
    assert buttons[0].text.split()[0] == f"{layer}:{neuron}"
    page.script("arguments[0].click()", buttons[0])
    assert page.find("layer").get_property("value") == str(layer)
    assert page.find("neuron").get_property("value") == str(neuron)
    colours = page.script(
        "return [...document.querySelectorAll('#text span')].map((span) => "
        "(span.classList.contains('cold') ? -1 : 1) * span.style.getPropertyValue('--a'))"
    )
    np.testing.assert_allclose(colours, pages[:, layer, neuron], atol=0.005)
    page.generate("find", pattern="(")
    assert "regular expression" in page.find("finding").text
    page.generate("find", pattern="[A-Z]")
    assert "True at 0 of" in page.find("finding").text
    assert not page.driver.find_elements("css selector", "#found button")
    page.open(*make_model("gru", 2, BYTES, 12), vocabulary=BYTES)
    page.read("é a")  # 4 bytes
    page.colour_by("neuron")
    page.script("document.getElementById('finder').open = true")
    page.generate("find", probe="own regular expression", pattern="é")
    assert "True at 1 of 3 characters." in page.find("finding").text


def test_copy_and_save_give_exactly_the_text(page: Page) -> None:
    page.open(*make_model())
    browser = page.driver.execute_cdp_cmd
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    browser("Browser.grantPermissions", {"permissions": permissions})
    settings = {"behavior": "allow", "downloadPath": str(page.folder)}
    browser("Browser.setDownloadBehavior", settings)
    assert not page.find("copy").is_enabled()
    page.generate(temperature=1, length=300)
    assert "\n" in page.text
    page.find("copy").click()
    page.wait("Copied.")
    assert page.script("return navigator.clipboard.readText()") == page.text
    page.find("save").click()
    page.wait("Saved as text.txt.")
    file, end = page.folder / "text.txt", time.monotonic() + 20
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert file.read_text(encoding="utf-8") == page.text
    page.script("navigator.clipboard.writeText = () => Promise.reject(new Error('denied'))")
    page.find("copy").click()
    page.wait("The text is selected")
    selected = "return getSelection().getRangeAt(0).cloneContents().textContent"
    assert page.script(selected) == page.text


def test_texts_of_any_script_keep_their_direction_and_their_marks(page: Page) -> None:
    text = "שָׁלוֹם\nabc می‌خواهم\n"
    vocabulary = Vocabulary.build([text])
    model, params = make_model(vocabulary=vocabulary)
    page.open(model, params, vocabulary=vocabulary, prompt=text + "ظ")
    assert "does not know ظ: skipped in the prompt." in page.generate(length=1)
    assert page.text.startswith(text)
    directions = page.script(
        "return [document.getElementById('prompt'), ...document.querySelectorAll('#text p')]"
        ".map((e) => getComputedStyle(e).direction)"
    )
    assert directions[:3] == ["rtl", "rtl", "ltr"]
    named = page.driver.find_elements("css selector", "#text .named")
    assert named == []  # a joiner is part of a word, not shown as U+200C
    page.choose(text.index("\u200c"))
    assert page.find("chosen").text.startswith("U+200C")
    page.choose(1)
    assert page.find("chosen").text.startswith("◌")
    text_element = page.find("text")
    text_element.send_keys(Keys.ARROW_LEFT)  # to the left is the next letter
    selected = "return document.querySelector('#text .selected').index"
    assert page.script(selected) == 2


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
    page.script("document.getElementById('own').value = document.getElementById('prompt').value")
    page.generate("read")
    assert page.text == HOSTILE
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
    press(Keys.TAB, Keys.HOME, Keys.TAB, Keys.TAB)
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
        page.script("document.querySelectorAll('details').forEach((e) => { e.open = true })")
        page.colour_by("neuron")
        page.generate(length=300)
        page.choose(100)
        page.generate("find", probe="own regular expression", pattern="[a-d]")
        assert page.script("return document.documentElement.scrollWidth") == 375
        sizes = page.script(
            "return [...document.querySelectorAll('button, input, select, textarea, summary')]"
            ".filter((e) => e.checkVisibility())"
            ".map((e) => e.getBoundingClientRect()).map(({width, height}) => [width, height])"
        )
        assert len(sizes) > 30
        assert np.min(sizes) >= 44
        dock = "return document.querySelector('.dock').getBoundingClientRect().height"
        assert page.script(dock) < 667 / 3
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
