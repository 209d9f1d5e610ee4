"""Exports a model as a folder that works without this package: `export`.

step.stablehlo       one step, from ids to the next ids; any number of texts; CPU, CUDA and TPU
prepare.stablehlo    converts the parameters to the weights that the step reads
weights.safetensors  the parameters
vocabulary.json, config.json
generate.py          generates text from these files; a copy of `standalone.py`
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
from charrnn_jax.models.char_rnn import Carry, CharRNN, Params, initialize_params
from charrnn_jax.models.stepping import prepare, step
from charrnn_jax.workdir.run import Run

PLATFORMS = ("cpu", "cuda", "tpu")


def export(run: Run, folder: str | Path) -> None:
    """Writes the model of a run as a folder that works without this package.

    The README in the folder explains how to use it.

    Args:
      run: run to export, as returned by `load_run`.
      folder: path of the folder, which must be new or empty.

    Raises:
      UserError: the folder is not empty, `evaluation.json` is damaged, or the cell cannot be
        exported.
    """
    write_folder(Path(folder), run.params, card=make_card(run))


def write_folder(folder: Path, params: Params, *, card: ModelCard) -> None:
    """Writes the folder, complete or not at all.

    Args:
      folder: path of the folder, which must be new or empty.
      params: model parameters, as returned by `initialize_params`.
      card: card of the model.

    Raises:
      UserError: the folder is not empty, the cell cannot be exported, or the vocabulary lacks a
        character of the prompt.
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
            f"the cell {model.cell!r} cannot be exported: its carry does not begin with zeros, but "
            "generate.py of an exported folder always begins with zeros"
        )
    with _no_source_lines():
        functions = make_functions(model)
    try:
        return {name: function.serialize() for name, function in functions.items()}
    except ValueError as error:
        raise UserError(
            f"the carry of the cell {model.cell!r} cannot be exported ({error}): build it from "
            "tuples, lists and dicts only"
        ) from error


def _sample(params: Params, *, card: ModelCard) -> str:
    """Returns the card's prompt and the model's continuation of it."""
    sampler = Sampler(params, model=card.model, vocabulary=card.vocabulary)
    (sample,) = sampler.generate(
        [card.prompt], num_chars=SAMPLE_CHARS, temperature=SAMPLE_TEMPERATURE
    )
    return sample.prompt + sample.text


def make_functions(model: CharRNN) -> dict[str, jax_export.Exported]:
    """Returns the two functions of a model, exported by `jax.export` for all platforms.

    prepare: (parameters by name) -> weights in the layout that `step` reads.
    step: (weights, ids [B] int32, carry, key [B], temperature) -> (ids [B], carry); B is symbolic.
    """
    template = jax.eval_shape(partial(initialize_params, model), jax.random.key(0))
    parameters = flatten_dict(template, sep="/")

    def lay_out(parameters: dict[str, jax.Array]) -> Any:
        # Transposed is fastest for one text.
        return prepare(unflatten_dict(parameters, sep="/"), model=model, transposed=True)

    # The tree contains classes of this package, which the folder cannot use: it gets flat tuples.
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
    """Keeps this machine's file names out of programs that are exported inside."""
    limit = jax.config.jax_traceback_in_locations_limit  # type: ignore[attr-defined]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def _draw(logits: jax.Array, *, key: jax.Array, temperature: jax.Array) -> jax.Array:
    """Draws ids [B] as `Sampler` does. key: [B], the keys of this step, one for each text."""
    logits = Allow(jnp.arange(logits.shape[-1]) != UNK_ID)(logits)
    is_greedy = temperature == 0
    tempered = Temperature(jnp.where(is_greedy, 1, temperature))(logits)
    noise = jax.vmap(partial(jax.random.gumbel, shape=logits.shape[-1:]))(key)
    return choose(jnp.where(is_greedy, Greedy()(logits), tempered), noise=noise)
