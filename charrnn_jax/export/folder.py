"""A model as a folder that needs none of this code: `export`.

step.stablehlo       one step: ids in, the next ids out; any number of texts; CPU, CUDA and TPU
prepare.stablehlo    lays the weights out for it
weights.safetensors  the parameters
vocabulary.json, config.json
generate.py          writes text with all that: `standalone.py`
README.md            the model card
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export as jax_export
from safetensors.numpy import save

from charrnn_jax.data.vocabulary import UNK_ID
from charrnn_jax.errors import UserError
from charrnn_jax.export import standalone
from charrnn_jax.export.card import (
    SAMPLE_CHARS,
    SAMPLE_TEMPERATURE,
    Contents,
    ModelCard,
    make_card,
    model_settings,
    readme,
)
from charrnn_jax.files import creating
from charrnn_jax.generation.rules import Allow, Greedy, Temperature, choose
from charrnn_jax.generation.sampler import Sampler
from charrnn_jax.models.char_rnn import Carry, CharRNN, initialize_params
from charrnn_jax.models.stepping import prepare, step
from charrnn_jax.workdir.run import Run

PLATFORMS = ("cpu", "cuda", "tpu")


def export(run: Run, folder: str | Path) -> None:
    """Writes the model of a run as a folder that needs none of this code; its README says how.

    Args:
      run: from `load_run`.
      folder: a new one, or an empty one.

    Raises:
      UserError: the folder holds something, or `evaluation.json` is damaged.
    """
    write_folder(Path(folder), run.params, card=make_card(run))


def write_folder(folder: Path, params: Any, *, card: ModelCard) -> None:
    """Writes the folder, whole or not at all.

    Args:
      folder: a new one, or an empty one.
      params: of the card's model.
      card: of the model.

    Raises:
      UserError: the folder holds something, or the vocabulary lacks a character of the prompt.
    """
    with creating(folder) as partial:
        for name, program in _make_programs(card.model).items():
            (partial / f"{name}.stablehlo").write_bytes(program)
        weights = jax.device_get(flatten_dict(params, sep="/"))
        about = {"model": json.dumps(model_settings(card.model))}
        (partial / "weights.safetensors").write_bytes(save(weights, metadata=about))
        (partial / "vocabulary.json").write_text(card.vocabulary.to_json() + "\n")
        (partial / "config.json").write_text(json.dumps(card.config, indent=2) + "\n")
        (partial / "generate.py").write_bytes(Path(standalone.__file__).read_bytes())
        contents = Contents(
            shapes={name: tensor.shape for name, tensor in weights.items()},
            sizes={file.name: file.stat().st_size for file in sorted(partial.iterdir())},
            platforms=PLATFORMS,
            sample=_sample(params, card=card),
        )
        text = readme(card, contents)
        (partial / "README.md").write_text(text, encoding="utf-8", errors="backslashreplace")


def _make_programs(model: CharRNN) -> dict[str, bytearray]:
    carry = model.initialize_carry(1)
    if any(np.any(leaf) for leaf in jax.tree.leaves(carry)):
        raise UserError(
            f"the carry of the cell {model.cell!r} does not begin with zeros, as generate.py of an "
            "exported folder does: such a model cannot be exported"
        )
    with _no_source_lines():
        functions = make_functions(model)
    try:
        return {name: function.serialize() for name, function in functions.items()}
    except ValueError as error:
        raise UserError(
            f"the carry of the cell {model.cell!r} cannot be exported ({error}): make it of "
            "tuples, lists and dicts"
        ) from error


def _sample(params: Any, *, card: ModelCard) -> str:
    """The card's prompt and how the model continues it."""
    sampler = Sampler(params, model=card.model, vocabulary=card.vocabulary)
    (sample,) = sampler.generate(
        [card.prompt], num_chars=SAMPLE_CHARS, temperature=SAMPLE_TEMPERATURE
    )
    return sample.prompt + sample.text


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

    # The tree is made of our classes, which the folder lacks: there it is a tuple of arrays.
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
    """Keeps the names of this machine's files out of programs made inside."""
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
