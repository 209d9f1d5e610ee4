"""The model card: the public facts about a model, other than its parameters.

The README of an exported folder and the texts of a web page are both written from a `ModelCard`.
"""

import json
import math
import re
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from charrnn_jax.data.dataset import CorpusIdentity
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.evaluation.metrics import CrossEntropy
from charrnn_jax.evaluation.protocols import make_protocol
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.char_rnn import CharRNN
from charrnn_jax.registry import PROTOCOLS
from charrnn_jax.workdir.run import Run
from charrnn_jax.workdir.sessions import version_of

SAMPLE_CHARS, SAMPLE_TEMPERATURE = 400, 0.8  # for the sample in the README


@dataclass(frozen=True)
class ModelCard:
    """Public facts about a model, other than its parameters.

    Attributes:
      name: name of the model, which is the name of its run's folder.
      step: number of training steps.
      model: the Flax module.
      vocabulary: characters or bytes that the model knows.
      config: training config as plain data for JSON, with the names but not the folders of files.
      corpus: text that the model was trained on, with its name but not its folder.
      losses: nats/char by split and protocol, such as {"validation": {"carried": 1.48}}.
      protocols: description of each protocol, by its label.
      prompt: prompt of the samples.
      started_from: description of the model whose weights the training started from; "": none.
      imported: whether the model was trained elsewhere, so that its text is not known.
    """

    name: str
    step: int
    model: CharRNN
    vocabulary: Vocabulary
    config: dict[str, Any]
    corpus: CorpusIdentity
    losses: dict[str, dict[str, float]]
    protocols: dict[str, str]
    prompt: str
    started_from: str = ""
    imported: bool = False


class Contents(NamedTuple):
    """What an exported folder contains, as listed in its README.

    Attributes:
      shapes: shape of each tensor, by its name.
      sizes: size of each file in bytes, by its name.
      platforms: platforms that the programs run on, such as "cpu".
      sample: a prompt and the `SAMPLE_CHARS` characters generated after it at `SAMPLE_TEMPERATURE`.
    """

    shapes: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    platforms: tuple[str, ...]
    sample: str


def make_card(run: Run) -> ModelCard:
    """Returns the card of a run, with the names but not the folders of local texts and other runs.

    Raises:
      UserError: `evaluation.json` is damaged.
    """
    protocols = [make_protocol(run.config.evaluation, name) for name in PROTOCOLS]
    return ModelCard(
        name=run.workdir.resolve().name,
        step=run.step,
        model=run.model,
        vocabulary=run.vocabulary,
        config=run.config_without_folders().to_dict(),
        corpus=run.corpus.without_folders(),
        losses=run.losses(),
        protocols={protocol.label: protocol.description for protocol in protocols},
        prompt=run.config.sample.prompt,
        started_from=run.origin.describe() if run.origin else "",
        imported=run.imported,
    )


# --- for a web page -----------------------------------------------------------------------------


def page_title(card: ModelCard) -> str:
    """Returns the title, such as "A model of Shakespeare's plays: GRU, 512 units"."""
    model = card.model
    layers = f"{model.num_layers} layers of " if model.num_layers > 1 else ""
    return (
        f"A model of {card.corpus.title}: {model.cell.upper()}, {layers}{model.hidden_size:,} units"
    )


def page_description(card: ModelCard) -> str:
    """Returns the paragraph below the title of the page."""
    noun = _noun(card)
    return (
        f"A recurrent network trained on {card.corpus.title} that continues a text, {noun} by "
        f"{noun}. The model runs in this page; nothing is sent anywhere."
    )


def page_facts(card: ModelCard) -> dict[str, str]:
    """Returns the facts listed under "About this model", name -> text."""
    unit = card.vocabulary.unit
    started = {"Started from": card.started_from} if card.started_from else {}
    losses = {
        f"Loss, {split}, {protocol}": f"{nats:.4f} nats/{unit}"
        for split, by_protocol in card.losses.items()
        for protocol, nats in by_protocol.items()
    }
    run = {"Run": card.name, "Step": f"{card.step:,}"}
    return {"Text": card.corpus.describe(), **started, **run, **losses}


# --- for a folder: its README -------------------------------------------------------------------


def readme(card: ModelCard, contents: Contents) -> str:
    """Returns the README as Markdown, with all names, prompts and samples escaped."""
    sections = {
        "Use": _use(card, contents.platforms),
        "Data": _data(card),
        "Losses": _losses(card),
        "A sample": _sample(card, contents.sample),
        "Weights": _weights(card, contents.shapes),
        "Files": _files(contents.sizes),
    }
    parts = [_head(card, contents.shapes)]
    parts += [f"## {title}\n\n{text}" for title, text in sections.items()]
    return "\n\n".join(parts) + "\n"


def _head(card: ModelCard, shapes: Mapping[str, tuple[int, ...]]) -> str:
    vocabulary = card.vocabulary
    num_parameters = sum(math.prod(shape) for shape in shapes.values())
    return f"""\
# {_code(card.name)}

A recurrent language model: it predicts the next {_noun(card)} of a text.
{num_parameters:,} parameters; exported after {card.step:,} steps of training.

{_fenced(json.dumps(model_settings(card.model), indent=2), "json")}

The vocabulary has {vocabulary.size:,} ids. Id 0 is `[UNK]`; the others stand for {vocabulary.kind}.
`vocabulary.json` lists the characters in the order of their ids, starting at 1; byte b has the id
b + 1. The full training config is in `config.json`."""


def model_settings(model: CharRNN) -> dict[str, Any]:
    """Returns the settings needed to use the weights in another program, as plain data for JSON."""
    names = (
        *("vocabulary_size", "embedding_size", "hidden_size", "num_layers", "cell", "dtype"),
        *("residual", "readout", "output_embedding", "embedding_rank"),
    )
    return {name: getattr(model, name) for name in names}


def _command(card: ModelCard) -> str:
    return (
        f"python generate.py --prompt {shlex.quote(card.prompt)} --seed 0 "
        f"--num_chars {SAMPLE_CHARS} --temperature {SAMPLE_TEMPERATURE}"
    )


def _use(card: ModelCard, platforms: tuple[str, ...]) -> str:
    noun, hidden_size = _noun(card), card.model.hidden_size
    carry = CELLS[card.model.cell].carry
    install = f'pip install "jax>={jax.__version__}" flatbuffers'
    return f"""\
{_fenced(f"{install}{chr(10)}{_command(card)}", "sh")}

`generate.py` reads the files of this folder and needs no other package. To use the model in a
program of your own, install safetensors as well (`pip install safetensors`):

```python
import jax
from jax import export
from safetensors.numpy import load_file

def load(name):
    with open(name, "rb") as file:
        return jax.jit(export.deserialize(bytearray(file.read())).call)

weights = load("prepare.stablehlo")(load_file("weights.safetensors"))
step = load("step.stablehlo")
ids, carry = step(weights, ids, carry, key, temperature)
```

- `ids`: [B] int32. The input is the last {noun} of each text, the output the next one. B is any
  number of texts.
- `carry`: a tuple with {carry} of each layer, [B, {hidden_size}] float32; it starts with zeros.
- `key`: [B] keys made with `jax.random.key`, new ones for each step: `fold_in(key, position)`.
- `temperature`: the logits are divided by it; 0 takes the most likely id. `[UNK]` is never drawn.

`functools.partial(step, weights)` maps (ids, carry, key, temperature) to (ids, carry). The programs
are lowered for {", ".join(platforms)}. They take any weights with these names and shapes. The
layout of the weights that `prepare` returns is internal to the two programs."""


def _data(card: ModelCard) -> str:
    corpus = card.corpus
    if card.imported:
        return f"{_code(corpus.name)}; sha256 of the weights: {_code(corpus.sha256)}"
    lines = [
        f"- name: {_code(corpus.name)}",
        f"- length: {corpus.num_chars:,} {card.vocabulary.kind}",
        f"- sha256: {_code(corpus.sha256)}",
    ]
    if corpus.instead_of:
        lines.append(f"- **INSTEAD OF** {_code(corpus.instead_of)}, which was not available")
    if card.started_from:
        lines.append(f"- training started from the weights of {_code(card.started_from)}")
    return "\n".join(lines)


def _losses(card: ModelCard) -> str:
    unit = card.vocabulary.unit
    rows = []
    for split, by_protocol in card.losses.items():
        for protocol, nats in by_protocol.items():
            loss = CrossEntropy(nats, 1)
            numbers = f"{nats:.4f} | {loss.bits_per_char:.4f} | {loss.describe_perplexity()}"
            rows.append(f"| {split} | {protocol} | {numbers} |")
    if not rows:
        return "Not evaluated."
    head = f"| split | protocol | nats/{unit} | bits/{unit} | perplexity |\n|---|---|---|---|---|\n"
    labels = dict.fromkeys(label for by_protocol in card.losses.values() for label in by_protocol)
    explained = "\n".join(
        f"- {_code(label)}: {card.protocols[label]}" for label in labels if label in card.protocols
    )
    warning = "Losses of different protocols cannot be compared."
    return head + "\n".join(rows) + f"\n\n{warning}\n\n{explained}".rstrip()


def _sample(card: ModelCard, sample: str) -> str:
    return f"{_fenced(_command(card), 'sh')}\n\n{_fenced(sample, 'text')}"


def _weights(card: ModelCard, shapes: Mapping[str, tuple[int, ...]]) -> str:
    tensors = "\n".join(f"| `{name}` | {list(shape)} |" for name, shape in shapes.items())
    row = "embedding/embedding[id]" + " @ embedding/kernel" * bool(card.model.embedding_rank)
    return f"""\
`weights.safetensors`, float32; kernels are [inputs, outputs]:

| tensor | shape |
|---|---|
{tensors}

A step starts from x = `{row}`. Each layer, `layers_0/cell/...` first, computes

{_fenced(CELLS[card.model.cell].equations, "text")}

{_connections(card.model)}"""


def _connections(model: CharRNN) -> str:
    """Returns what follows the equations of a layer: what it passes on, and the logits."""
    adds = "; from the second layer on, it passes h + x, which is called h from there on"
    passes = f"and passes its h to the next layer as x{adds * (model.residual == 'add')}."
    h = "the h of all layers side by side" if model.readout == "all" else "the h of the last layer"
    kernel, explained = "dense/kernel", ""
    if model.output_embedding == "tied":
        kernel, table = "table.T", "embedding/embedding"
        if model.embedding_rank:
            table += " @ embedding/kernel"
        if model.readout_size != model.embedding_size:
            kernel = "dense/projection @ table.T"
        explained = f" and table = `{table}`"
    text = (
        f"{passes} The logits are `h @ {kernel} + dense/bias`, with {h}{explained}. "
        f"The operands of products (@) are {model.dtype}; all else is float32."
    )
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _files(sizes: Mapping[str, int]) -> str:
    files = "\n".join(f"| `{name}` | {size:,} |" for name, size in sizes.items())
    return f"""\
| file | bytes |
|---|---|
{files}

Written by charrnn_jax {version_of("charrnn_jax")} with jax {jax.__version__}. Newer versions of jax
can read the programs for at least six months; older versions may not. The weights and equations do
not depend on the version of jax."""


def _noun(card: ModelCard) -> str:
    return card.vocabulary.kind.removesuffix("s")


def _fenced(text: str, language: str) -> str:
    """Returns a code block whose fence is longer than any run of backticks in the text."""
    fence = "`" * max(3, 1 + _longest_run_of_backticks(text))
    return f"{fence}{language}\n{text}\n{fence}"


def _code(text: str) -> str:
    """Returns inline code, in which Markdown and HTML have no effect."""
    fence = "`" * (1 + _longest_run_of_backticks(text))
    space = " " if "`" in text else ""  # Markdown does not show it
    return f"{fence}{space}{repr(text)[1:-1]}{space}{fence}"


def _longest_run_of_backticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
