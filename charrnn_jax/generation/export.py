"""A model as a folder that needs none of this code: `export`.

  step.stablehlo       one step: ids in, the next ids out; any number of texts; CPU, CUDA and TPU
  prepare.stablehlo    lays the weights out for it
  weights.safetensors  the parameters
  vocabulary.json, config.json
  generate.py          writes text with all that: `standalone.py`
  README.md            the model card

Knows a model, its parameters, a vocabulary and what it is told of their origin; no workdir.
"""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export as jax_export
from safetensors.numpy import save

from charrnn_jax import __version__
from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.evaluation.metrics import CrossEntropy
from charrnn_jax.files import creating
from charrnn_jax.generation import standalone
from charrnn_jax.generation.rules import Allow, Greedy, Temperature, choose
from charrnn_jax.generation.sampler import Sampler
from charrnn_jax.models.char_rnn import Carry, CharRNN, initialize_params
from charrnn_jax.models.stepping import prepare, step

PLATFORMS = ("cpu", "cuda", "tpu")
SAMPLE_CHARS, SAMPLE_TEMPERATURE = 400, 0.8  # of the card


@dataclass(frozen=True)
class Origin:
    """What the card tells of a model beyond the model itself.

    Attributes:
      name: of the model.
      step: of its training, in steps.
      config: of its training, as plain data for JSON.
      corpus: what it was trained on; `data.dataset.Dataset.identity()`.
      losses: nats/char by split and protocol: {"validation": {"carried": 1.48}}.
      prompt: of the card's sample.
      started_from: another model, in words, whose weights the training began with.
    """

    name: str
    step: int
    config: dict[str, Any]
    corpus: dict[str, Any]
    losses: dict[str, dict[str, float]]
    prompt: str
    started_from: str = ""


def export(
    folder: Path, params: Any, *, model: CharRNN, vocabulary: Vocabulary, origin: Origin
) -> None:
    """Writes the folder, whole or not at all.

    Args:
      folder: a new one, or an empty one.
      params: of the model.
      model: of the params.
      vocabulary: of the model.
      origin: of the model.

    Raises:
      UserError: the folder holds something, or the vocabulary lacks a character of the prompt.
    """
    with creating(folder) as partial:
        with _no_source_lines():
            functions = make_functions(model)
        for name, function in functions.items():
            (partial / f"{name}.stablehlo").write_bytes(function.serialize())
        weights = jax.device_get(flatten_dict(params, sep="/"))
        about = {"model": json.dumps(_settings(model))}
        (partial / "weights.safetensors").write_bytes(save(weights, metadata=about))
        (partial / "vocabulary.json").write_text(vocabulary.to_json() + "\n")
        (partial / "config.json").write_text(json.dumps(origin.config, indent=2) + "\n")
        (partial / "generate.py").write_bytes(Path(standalone.__file__).read_bytes())
        sampler = Sampler(params, model=model, vocabulary=vocabulary)
        (sample,) = sampler.generate(
            [origin.prompt], num_chars=SAMPLE_CHARS, temperature=SAMPLE_TEMPERATURE
        )
        sizes = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
        card = _card(
            origin, weights, sizes, sample.prompt + sample.text, model=model, vocabulary=vocabulary
        )
        (partial / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")


def make_functions(model: CharRNN) -> dict[str, jax_export.Exported]:
    """Returns the two functions of a model for all platforms, as `jax.export` has them.

    prepare: (parameters by name) -> weights, laid out for `step`.
    step: (weights, ids [B] int32, carry, key [B], temperature) -> (ids [B], carry); B is symbolic.
    """
    template = jax.eval_shape(partial(initialize_params, model), jax.random.key(0))
    parameters = flatten_dict(template, sep="/")

    def lay_out(parameters: dict[str, jax.Array]) -> Any:
        # Transposed is fastest for one text.
        return prepare(unflatten_dict(parameters, sep="/"), model=model, transposed=True)

    # The structure is of classes of ours, which the folder lacks: there it is a tuple of arrays.
    leaves, structure = jax.tree.flatten(jax.eval_shape(lay_out, parameters))

    def prepare_parameters(parameters: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        return tuple(jax.tree.leaves(lay_out(parameters)))

    def sample_step(
        weights: tuple[jax.Array, ...],
        ids: jax.Array,
        carry: Carry,
        key: jax.Array,
        temperature: jax.Array,
    ) -> tuple[jax.Array, Carry]:
        carry, logits = step(jax.tree.unflatten(structure, weights), carry, ids, model=model)
        return _draw(logits, key=key, temperature=temperature), carry

    (batch_size,) = jax_export.symbolic_shape("B")
    one_row = jax.eval_shape(
        lambda: (jnp.zeros(1, jnp.int32), model.initialize_carry(1), jax.random.key(0)[None])
    )
    rows = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), one_row
    )
    temperature = jax.ShapeDtypeStruct((), jnp.float32)
    make = partial(jax_export.export, platforms=PLATFORMS)
    return {
        "prepare": make(jax.jit(prepare_parameters))(parameters),
        "step": make(jax.jit(sample_step))(tuple(leaves), *rows, temperature),
    }


@contextmanager
def _no_source_lines() -> Iterator[None]:
    """Programs made inside do not name the files of this machine that they come from."""
    limit = jax.config.jax_traceback_in_locations_limit  # type: ignore[attr-defined]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def _draw(logits: jax.Array, *, key: jax.Array, temperature: jax.Array) -> jax.Array:
    """[B] ids as `sampler` draws them: key [B] of this step, one a row."""
    logits = Allow(jnp.arange(logits.shape[-1]) != UNK_ID)(logits)
    is_greedy = temperature == 0
    tempered = Temperature(jnp.where(is_greedy, 1, temperature))(logits)
    noise = jax.vmap(partial(jax.random.gumbel, shape=logits.shape[-1:]))(key)
    return choose(jnp.where(is_greedy, Greedy()(logits), tempered), noise=noise)


# --- the card -----------------------------------------------------------------------------------

# One step, in the names of the parameters; vectors are rows, @ is the matrix product.
EQUATIONS = {
    "gru": """\
r = sigmoid(x @ ir/kernel + ir/bias + h @ hr/kernel)
z = sigmoid(x @ iz/kernel + iz/bias + h @ hz/kernel)
n = tanh(x @ in/kernel + in/bias + r * (h @ hn/kernel + hn/bias))
h = (1 - z) * n + z * h""",
    "lstm": """\
i = sigmoid(x @ ii/kernel + h @ hi/kernel + hi/bias)
f = sigmoid(x @ if/kernel + h @ hf/kernel + hf/bias)
g = tanh(x @ ig/kernel + h @ hg/kernel + hg/bias)
o = sigmoid(x @ io/kernel + h @ ho/kernel + ho/bias)
c = f * c + i * g
h = o * tanh(c)""",
    "rnn": """\
h = tanh(x @ i/kernel + i/bias + h @ h/kernel)""",
}


def _card(
    origin: Origin,
    weights: dict[str, Any],
    sizes: dict[str, int],
    sample: str,
    *,
    model: CharRNN,
    vocabulary: Vocabulary,
) -> str:
    """The model card, in Markdown. sizes: bytes of the files of the folder."""
    unit = vocabulary.unit
    carry = "(c, h)" if model.cell == "lstm" else "h"
    num_parameters = sum(tensor.size for tensor in weights.values())
    install = f'pip install "jax>={jax.__version__}" flatbuffers'
    command = f"python generate.py --prompt {shlex.quote(origin.prompt)} --seed 0"
    command += f" --num_chars {SAMPLE_CHARS} --temperature {SAMPLE_TEMPERATURE}"
    tensors = "\n".join(f"| `{name}` | {list(x.shape)} |" for name, x in weights.items())
    files = "\n".join(f"| `{name}` | {size:,} |" for name, size in sizes.items())
    return f"""\
# {_code(origin.name)}

A language model with a recurrent network: it predicts the next {unit} of a text.
{num_parameters:,} parameters; exported after {origin.step:,} steps of training.

{_fenced(json.dumps(_settings(model), indent=2), "json")}

The vocabulary has {vocabulary.size:,} ids: 0 is `[UNK]`, the others stand for {vocabulary.kind}
(`vocabulary.json`: the characters in the order of their ids, from 1; byte b has the id b + 1). The
whole configuration of the training is in `config.json`.

## Use

{_fenced(f"{install}{chr(10)}{command}", "sh")}

No other package is needed: `generate.py` reads the files of this folder. In a program of your own
(`pip install safetensors`, too):

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

- `ids`: [B] int32, the last {unit} of every text; then the next one. B is any number of texts.
- `carry`: a tuple with {carry} of every layer, [B, {model.hidden_size}] float32; zeros at first.
- `key`: [B] keys of `jax.random.key`, a new one for every step: `fold_in(key, position)`.
- `temperature`: logits are divided by it; 0 takes the most likely id. `[UNK]` is never drawn.

`functools.partial(step, weights)` is (ids, carry, key, temperature) -> (ids, carry). The programs
are lowered for {", ".join(PLATFORMS)}. They take any weights of these names and shapes; the form in
which `prepare` lays them out is its own affair and `step`'s.

## Data

{_data(origin, vocabulary.kind)}

## Losses

{_losses(origin.losses, unit)}

## A sample

{_fenced(command, "sh")}

{_fenced(sample, "text")}

## Weights

`weights.safetensors`, float32; kernels are [inputs, outputs]:

| tensor | shape |
|---|---|
{tensors}

A step reads x = `embedding/embedding[id]`; every layer (`layers_0/cell/...` first) computes

{_fenced(EQUATIONS[model.cell], "text")}

and hands h on as the x of the next; the logits are `h @ dense/kernel + dense/bias` of the last.
Products (@) have operands of {model.dtype}; all else is float32.

## Files

| file | bytes |
|---|---|
{files}

Written by charrnn_jax {__version__} with jax {jax.__version__}. Newer versions of jax read the
programs for at least six months, older ones need not; weights and equations do not age.
"""


def _settings(model: CharRNN) -> dict[str, Any]:
    names = ("vocabulary_size", "embedding_size", "hidden_size", "num_layers", "cell", "dtype")
    return {name: getattr(model, name) for name in names}


def _data(origin: Origin, kind: str) -> str:
    corpus = origin.corpus
    if not corpus["num_chars"]:  # an imported model
        return f"{_code(corpus['name'])}; sha256 of the weights: {_code(corpus['sha256'])}"
    lines = [
        f"- name: {_code(corpus['name'])}",
        f"- length: {corpus['num_chars']:,} {kind}",
        f"- sha256: {_code(corpus['sha256'])}",
    ]
    if corpus["instead_of"]:
        lines.append(f"- **INSTEAD OF** {_code(corpus['instead_of'])}, which was not available")
    if origin.started_from:
        lines.append(f"- trained on from the weights of {_code(origin.started_from)}")
    return "\n".join(lines)


def _losses(losses: dict[str, dict[str, float]], unit: str) -> str:
    rows = []
    for split, by_protocol in losses.items():
        for protocol, nats in by_protocol.items():
            loss = CrossEntropy(nats, 1)
            numbers = f"{nats:.4f} | {loss.bits_per_char:.4f} | {loss.perplexity:.3f}"
            rows.append(f"| {split} | {protocol} | {numbers} |")
    if not rows:
        return "Not evaluated."
    head = f"| split | protocol | nats/{unit} | bits/{unit} | perplexity |\n|---|---|---|---|---|\n"
    explained = f"""

Losses of different protocols must not be compared. `cold-N`: windows of N {unit}s, each from a zero
carry; `carried`: one pass over the whole split, the carry kept."""
    return head + "\n".join(rows) + explained


def _fenced(text: str, language: str) -> str:
    """A block of code; its fence is longer than any in the text."""
    fence = "`" * max(3, 1 + _longest_run_of_backticks(text))
    return f"{fence}{language}\n{text}\n{fence}"


def _code(text: str) -> str:
    """Code inside a line: Markdown and HTML in the text are shown, not obeyed."""
    fence = "`" * (1 + _longest_run_of_backticks(text))
    space = " " if "`" in text else ""  # not shown
    return f"{fence}{space}{repr(text)[1:-1]}{space}{fence}"


def _longest_run_of_backticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
