"""The schema: every field of an experiment, once, with its unit and default.

The config says WHAT is trained; where it is written (`--workdir`) is no part of it. Two levels,
scalars, strings and tuples only. Knows nothing of the code that reads it.
"""

import difflib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from charrnn_jax import registry
from charrnn_jax.errors import UserError


def default_config() -> ConfigDict:
    """Returns every field with its default: the TensorFlow tutorial's model and procedure.

    The config is locked: a field that is not in the schema cannot be set.

    Source: "Text generation with an RNN", https://www.tensorflow.org/text/tutorials/text_generation
    """
    config = ConfigDict()
    config.seed = 0  # seeds initialisation, shuffling, dropout and the samples on the way

    config.data = ConfigDict()
    config.data.corpus = "shakespeare"  # a name that `charrnn corpora` lists
    config.data.offline_corpus = ""  # used with a warning if `corpus` cannot be had; "": an error
    config.data.path = ""  # own text instead of `corpus`: a file, a folder, a glob, or "-" (stdin)
    config.data.vocabulary = "characters"  # "characters" (Unicode code points) or "bytes"
    config.data.max_chars = 0  # only the first so many characters (bytes) of the text; 0: all
    config.data.validation_fraction = 0.1  # of the characters, from the end
    config.data.test_fraction = 0.0  # of the characters, after the validation split
    config.data.batching = "chunks"  # "chunks": shuffled, zero carry; "lanes": contiguous, carried
    config.data.batch_size = 64  # sequences
    config.data.sequence_length = 100  # characters predicted a sequence

    config.model = ConfigDict()
    config.model.cell = "gru"  # "gru", "lstm", "rnn", or a registered cell
    config.model.embedding_size = 256  # units
    config.model.hidden_size = 1024  # units a layer
    config.model.num_layers = 1  # recurrent layers
    config.model.input_dropout = 0.0  # rate on the embedding
    config.model.dropout = 0.0  # rate on the output of every recurrent layer
    config.model.dropout_noise = "step"  # drawn for every "step", or "locked" for a whole sequence
    config.model.implementation = "auto"  # "auto", "scan", "fused" or "parallel", as cells have it
    config.model.init_scale = 1.0  # factor of all matrices as they are drawn
    config.model.dtype = "float32"  # of the operands of products; or "bfloat16", sums in float32

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"  # "adam", "adamw", "rmsprop", "sgd", or a registered one
    config.optimizer.learning_rate = 1e-3  # peak
    config.optimizer.schedule = "constant"  # after warm-up: "constant", "linear" or "cosine"
    config.optimizer.warmup_steps = 0  # steps, linear from peak / warmup_steps to the peak
    config.optimizer.final_fraction = 0.0  # of the peak, at the end of a linear or cosine schedule
    config.optimizer.clip_norm = 0.0  # global norm of the gradient; 0: no clipping
    config.optimizer.weight_decay = 0.0  # on matrices; decoupled for adamw, else added to gradient
    config.optimizer.beta1 = 0.9  # adam, adamw: decay of the mean
    config.optimizer.beta2 = 0.999  # adam, adamw: decay of the squared mean
    config.optimizer.epsilon = 1e-7  # adam, adamw, rmsprop; Keras's default
    config.optimizer.rms_decay = 0.9  # rmsprop: decay of the squared mean; Keras's default
    config.optimizer.momentum = 0.0  # sgd

    config.train = ConfigDict()
    config.train.init_from = ""  # workdir of another run, to start from its best weights; "": none
    config.train.loss = "cross_entropy"  # that is minimised: this, or a registered loss
    config.train.step = "standard"  # "standard", or a registered train step
    config.train.hooks = ""  # registered hooks, with commas between them
    config.train.num_epochs = 20  # passes over the training split
    config.train.num_steps = 0  # ends after so many steps instead; 0: num_epochs decides
    config.train.data_devices = 0  # that share a batch; 0: all accelerators, or one CPU a process
    config.train.model_devices = 1  # that share the hidden units
    config.train.steps_per_call = 0  # steps at once on the device; 0: several if they are small
    config.train.log_every_steps = 50  # steps whose mean loss is one row of metrics.jsonl
    config.train.evaluate_every_steps = 0  # steps; 0: once an epoch; saves a checkpoint, too
    config.train.sample_every_steps = 0  # steps; 0: once an epoch
    config.train.checkpoint_every_steps = 0  # steps; 0: once an epoch

    config.evaluation = ConfigDict()
    config.evaluation.protocol = "cold"  # while training: "cold", "carried", or registered
    config.evaluation.window = 256  # characters of a window of the cold protocol
    config.evaluation.batch_size = 64  # windows at once

    config.sample = ConfigDict()
    config.sample.prompt = "ROMEO:"  # text; "": a line break, the start of a line
    config.sample.num_chars = 400  # characters of a sample on the way
    config.sample.temperature = 1.0  # 0: greedy
    config.sample.rules = ""  # registered rules of drawing, with commas between them
    config.sample.num_samples = 1  # samples at once
    return config.lock()


def _one_of(*choices: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in choices, "one of " + ", ".join(choices)


def _at_least(low: float) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value >= low, f"at least {low}"


def _between(low: float, high: float) -> tuple[Callable[[Any], bool], str]:
    """low <= value < high."""
    return lambda value: low <= value < high, f"at least {low} and below {high}"


_POSITIVE = (lambda value: value > 0, "above 0")
_ANY = (lambda value: True, "")

# What a value must be, field by field; a test holds that no field of the schema is missing here.
# Fields that hold registered names are checked by their registries.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": _at_least(0),
    "data.corpus": _ANY,
    "data.offline_corpus": _ANY,
    "data.path": _ANY,
    "data.vocabulary": _one_of("characters", "bytes"),
    "data.max_chars": _at_least(0),
    "data.validation_fraction": _between(0, 1),
    "data.test_fraction": _between(0, 1),
    "data.batching": _one_of("chunks", "lanes"),
    "data.batch_size": _at_least(1),
    "data.sequence_length": _at_least(1),
    "model.cell": _ANY,
    "model.embedding_size": _at_least(1),
    "model.hidden_size": _at_least(1),
    "model.num_layers": _at_least(1),
    "model.input_dropout": _between(0, 1),
    "model.dropout": _between(0, 1),
    "model.dropout_noise": _one_of("step", "locked"),
    "model.implementation": _one_of("auto", "scan", "fused", "parallel"),
    "model.init_scale": _POSITIVE,
    "model.dtype": _one_of("float32", "bfloat16"),
    "optimizer.name": _ANY,
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.schedule": _one_of("constant", "linear", "cosine"),
    "optimizer.warmup_steps": _at_least(0),
    "optimizer.final_fraction": _between(0, 1),
    "optimizer.clip_norm": _at_least(0),
    "optimizer.weight_decay": _at_least(0),
    "optimizer.beta1": _between(0, 1),
    "optimizer.beta2": _between(0, 1),
    "optimizer.epsilon": _POSITIVE,
    "optimizer.rms_decay": _between(0, 1),
    "optimizer.momentum": _between(0, 1),
    "train.init_from": _ANY,
    "train.loss": _ANY,
    "train.step": _ANY,
    "train.hooks": _ANY,
    "train.num_epochs": _at_least(1),
    "train.num_steps": _at_least(0),
    "train.data_devices": _at_least(0),
    "train.model_devices": _at_least(1),
    "train.steps_per_call": _at_least(0),
    "train.log_every_steps": _at_least(1),
    "train.evaluate_every_steps": _at_least(0),
    "train.sample_every_steps": _at_least(0),
    "train.checkpoint_every_steps": _at_least(0),
    "evaluation.protocol": _ANY,
    "evaluation.window": _at_least(1),
    "evaluation.batch_size": _at_least(1),
    "sample.prompt": _ANY,
    "sample.num_chars": _at_least(1),
    "sample.temperature": (
        lambda value: value == 0 or 1e-6 <= value <= 1e6,
        "0, or from 1e-6 to 1e6",
    ),
    "sample.rules": _ANY,
    "sample.num_samples": _at_least(1),
}


_TYPES = {int: int, float: int | float, str: str}  # of a default -> of a value
_LARGEST = 2**31 - 1  # the largest integer that fits JAX's default type


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Returns {"section.field": value} in the order of the schema."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat.update({f"{name}.{field}": item for field, item in value.items()})
        else:
            flat[name] = value
    return flat


def validate(config: ConfigDict) -> None:
    """Checks every field by itself and the fields that depend on each other.

    Raises:
      UserError: names the field, its value and what it must be.
    """
    flat, defaults = flatten(config), flatten(default_config())
    for name, (accepts, requirement) in _RULES.items():
        if name not in flat:
            raise UserError(f"config.{name} is missing; start from charrnn_jax.default_config()")
        value, default = flat[name], defaults[name]
        if isinstance(value, bool) or not isinstance(value, _TYPES[type(default)]):
            raise UserError(
                f"config.{name} is {value!r}; it must be of type {type(default).__name__}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"config.{name} is {value}; it must be a finite number")
        if isinstance(value, int) and value > _LARGEST:
            raise UserError(f"config.{name} is {value}; it must be at most {_LARGEST}")
        if not accepts(value):
            raise UserError(f"config.{name} is {value!r}; it must be {requirement}")
    unknown = flat.keys() - _RULES.keys()
    if unknown:
        raise UserError(f"config.{min(unknown)} is not a field of the schema")
    if not (config.data.corpus or config.data.path):
        raise UserError(
            "no text to train on: give yours as --config.data.path=FILE (a file, a folder, a "
            "glob, or - for standard input), or a known one as --config.data.corpus=NAME"
        )
    for known in registry.ALL:
        for name in known.names_in(flat[known.field]):
            if name not in known:
                raise known.missing(name)
    held_out = config.data.validation_fraction + config.data.test_fraction
    if held_out >= 1:
        raise UserError(
            f"config.data.validation_fraction + test_fraction is {held_out}; nothing is left to "
            "train on: their sum must be below 1"
        )


def to_json(config: ConfigDict) -> str:
    """Returns the config as indented JSON, fields in the order of the schema."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
    """Rebuilds a config from `to_json`; see `from_dict`."""
    return from_dict(json.loads(text))


def from_dict(saved: Mapping[str, Any]) -> ConfigDict:
    """Rebuilds a config from `to_dict()`; fields added to the schema since then get their default.

    Raises:
      UserError: a field that the schema does not have, or one of another type.
    """
    config = default_config()
    try:
        config.update(saved)
    except (KeyError, AttributeError, TypeError) as error:
        raise UserError(f"saved config does not fit this version's schema: {error}") from error
    return config


def diff(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns {"section.field": (old value, new value)} where the two differ."""
    before, after = flatten(old), flatten(new)
    return {
        name: (before.get(name), after.get(name))
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    }


def override_values(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy with other values of some fields: {"section.field": value}.

    Raises:
      UserError: a field that is not there, or a value of another type.
    """
    config = config.copy_and_resolve_references()
    flat = flatten(config)
    for name, value in overrides.items():
        if name not in flat:
            raise no_such_field(name, flat)
        try:
            config.update_from_flattened_dict({name: value})
        except TypeError as error:
            kind = type(flat[name]).__name__
            raise UserError(f"config.{name} is {value!r}; it must be of type {kind}") from error
    return config


def no_such_field(name: str, flat: Mapping[str, Any]) -> UserError:
    """Returns the error for a field that is not in the schema. flat: {"section.field": value}."""
    near = difflib.get_close_matches(name, flat, n=1)
    hint = f"did you mean config.{near[0]}?" if near else "see config.json of a run"
    return UserError(f"there is no field config.{name}; {hint}")
