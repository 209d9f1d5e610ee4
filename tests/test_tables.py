"""What objects show of themselves in a notebook."""

import re
from html import unescape

import numpy as np
import pytest

from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.evaluation.comparison import Difference, paired_difference
from charrnn_jax.evaluation.metrics import CrossEntropy
from charrnn_jax.evaluation.samples import judge
from charrnn_jax.generation.writer import Sample
from charrnn_jax.workdir.compare import Comparison, Pair, Scored

HOSTILE = '<script>alert("$x$")</script>&amp;'
DIFFERENCE = Difference(-0.01, -0.02, -0.005, 0.004, 0.003, 256, 0.0, 10_000)
COMPARISON = Comparison(
    split="validation",
    protocol="carried",
    unit="char",
    num_chars=10_000,
    corpus=HOSTILE,
    runs=(Scored(HOSTILE, 10, 1.5, 0.01), Scored("b", 10, 1.51, 0.01)),
    pairs=(Pair(0, 1, DIFFERENCE, 0.003, 1, (), ()),),
)
REAL = "the cat sat on the mat and the dog ran after it. " * 60


def _cells(page: str) -> list[list[str]]:
    rows = re.findall("<tr>(.*?)</tr>", page)
    return [[unescape(cell) for cell in re.findall("<t[hd].*?>(.*?)</t[hd]>", row)] for row in rows]


@pytest.mark.parametrize(
    "shown",
    [
        Vocabulary.build([HOSTILE]),
        Sample(HOSTILE, HOSTILE, "length", len(HOSTILE), 1.0),
        COMPARISON,
        judge({HOSTILE: [REAL[:300]]}, training_text=REAL, real_text=REAL),
    ],
    ids=lambda shown: type(shown).__name__,
)
def test_a_notebook_shows_texts_and_obeys_none(
    shown: Vocabulary | Sample | Comparison,
) -> None:
    page = shown._repr_html_()
    tags = set(re.findall("<(?!/)(.*?)>", page))
    assert {tag.split()[0] for tag in tags} <= {"table", "tr", "th", "td", "pre", "b"}
    assert all("mathjax_ignore" in tag for tag in tags if tag.split()[0] in ("table", "pre"))
    assert "&lt;" in page


def test_a_notebook_shows_a_vocabulary_with_the_id_of_each_character() -> None:
    vocabulary = Vocabulary.build(["b a\n\u202e"])
    rows = dict(_cells(vocabulary._repr_html_()))
    assert rows["vocabulary"] == "characters, 6 ids"
    shown = dict(re.findall(r"('.+?'): (\d+)", rows["characters"]))
    assert shown == {repr(char): str(vocabulary.encode(char)[0]) for char in vocabulary.characters}
    assert dict(_cells(Vocabulary(kind="bytes")._repr_html_()))["byte b"] == "b + 1"
    many = Vocabulary("".join(map(chr, range(0x4E00, 0x4E00 + 5000))))
    assert many._repr_html_().count("'") < 5000
    assert "and 4,800 more" in many._repr_html_()


def test_a_notebook_shows_a_sample_with_its_prompt_and_loss() -> None:
    sample = Sample("To ", "be\nor", "stop", 5, 1.25)
    assert re.findall(r"<pre .*?>(.*?)</pre>", sample._repr_html_(), re.DOTALL) == [
        "\n<b>To </b>be\nor"  # HTML drops the first line break
    ]
    rows = dict(_cells(sample._repr_html_()))
    assert rows == {"length": "5", "loss in nats": "1.2500 under the model itself", "end": "stop"}
    empty = Sample("To ", "", "stop", 0, float("nan"))
    assert "nan" not in empty._repr_html_()


def test_a_notebook_shows_losses_and_differences_as_tables() -> None:
    assert dict(_cells(CrossEntropy(150.0, 100)._repr_html_()))["nats/char"] == "1.5000"
    losses = np.random.default_rng(0).normal(size=(2, 10_000))
    found = paired_difference(*losses)
    rows = dict(_cells(found._repr_html_()))
    assert rows["95% interval"] == f"{found.low:+.4f} to {found.high:+.4f}"
    header, first, second, pair = _cells(COMPARISON._repr_html_())
    assert header == ["", "validation carried, 10,000 characters", "nats/char ± standard error"]
    assert first == ["A", HOSTILE, "1.5000 ± 0.0100"]
    assert second[0] == "B"
    assert pair == ["AB", COMPARISON.pairs[0].describe("AB", unit="char")]


def test_a_notebook_shows_a_judgement_with_a_column_for_each_group() -> None:
    judgement = judge({"a": [REAL[:300]], "b": ["x" * 300]}, training_text=REAL, real_text=REAL)
    header, *rows, verdicts = _cells(judgement._repr_html_())
    assert header[2:] == ["a", "b"]
    assert verdicts[2:] == [judgement.groups[name].verdict for name in "ab"]
    known = judgement.real.figures["known_words"]
    assert rows[0][:2] == [
        "known_words",
        f"{known.mean:.3f} ({known.low:.3f} to {known.high:.3f})",
    ]
