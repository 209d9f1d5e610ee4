"""The schema: every field of a config, with its unit and default.

A config says what is trained; where the run is written (`--workdir`) is not part of it. It has two
levels and holds only numbers and strings. This module knows nothing of the code that reads it.
"""

import difflib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from charrnn_jax import registry
from charrnn_jax.errors import UserError as UserError  # for experiments
from charrnn_jax.errors import shortened, shown
from charrnn_jax.reading import Scalar, parse_json, typed

Saved = dict[str, Scalar | dict[str, Scalar]]  # `ConfigDict.to_dict()` of a config


def default_config() -> ConfigDict:
    """Returns a config with all defaults: the TensorFlow tutorial's model and procedure.

    The config is locked: a field that is not in the schema cannot be set.

    Source: "Text generation with an RNN", https://www.tensorflow.org/text/tutorials/text_generation
    """
    config = ConfigDict()
    config.seed = 0  # seed of initialisation, shuffling, dropout and samples; at least 0

    config.data = ConfigDict()
    config.data.corpus = "shakespeare"  # a name from `charrnn corpora`; may be "" if `path` is set
    config.data.offline_corpus = ""  # used, with a warning, if `corpus` is unavailable; "": none
    config.data.path = ""  # instead of `corpus`: a file, folder, glob, or "-" (stdin); "": none
    config.data.vocabulary = "characters"  # "characters" (Unicode code points) or "bytes"
    config.data.max_chars = 0  # characters (or bytes) to use, from the start of the text; 0: all
    config.data.validation_fraction = 0.1  # share of the text, before the test split; 0 to below 1
    config.data.test_fraction = 0.0  # share of the text, at its end; from 0 to below 1
    config.data.batching = "chunks"  # "chunks": shuffled, zero carry; "lanes": contiguous, carried
    config.data.batch_size = 64  # sequences in a batch, over all devices; at least 1
    config.data.sequence_length = 100  # characters predicted per sequence; at least 1
    config.data.offset = "fixed"  # "random": each epoch begins at another of the first characters
    config.data.carry_reset_rate = 0.0  # lanes: how often a lane's carry is reset; 0 to below 1

    config.model = ConfigDict()
    config.model.cell = "gru"  # name of a built-in cell, see docs/cells.md, or of a registered one
    config.model.embedding_size = 256  # units of the embedding of a character; 1 to 2**20
    config.model.hidden_size = 1024  # units of each recurrent layer; from 1 to 2**20
    config.model.num_layers = 1  # recurrent layers; from 1 to 100
    config.model.residual = "none"  # "none"; "add": each layer above the first adds what it reads
    config.model.readout = "last"  # layers that the dense layer reads: "last" or "all"
    config.model.output_embedding = "own"  # "own" kernel; "tied": the dense layer shares the table
    config.model.embedding_rank = 0  # columns of the first factor of the table; 0: not factored
    config.model.embedding_dropout = 0.0  # rate of dropping a character, once per training step
    config.model.input_dropout = 0.0  # dropout rate on the embedding; from 0 to below 1
    config.model.dropout = 0.0  # dropout rate on the output of each recurrent layer; 0 to below 1
    config.model.output_dropout = -1.0  # the same for the last layer alone; -1: as model.dropout
    config.model.dropout_noise = "step"  # "step": drawn per character; "locked": once per sequence
    config.model.weight_dropout = 0.0  # dropout rate on recurrent kernels, once per training step
    config.model.zoneout = 0.0  # rate at which units of the carry keep their value; 0 to below 1
    config.model.implementation = "auto"  # "auto" (the cell's best), "scan", "fused" or "parallel"
    config.model.init_scale = 1.0  # factor of all matrices at initialisation; above 0
    config.model.dtype = "float32"  # type of the operands of products: "float32" or "bfloat16"

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"  # "adam", "adamw", "lion" (all in docs/methods.md), or your own
    config.optimizer.learning_rate = 1e-3  # peak learning rate; above 0
    config.optimizer.schedule = "constant"  # after warm-up: "constant", "linear", "cosine", "wsd"
    config.optimizer.warmup_steps = 0  # training steps of linear warm-up to the peak; 0: none
    config.optimizer.final_fraction = 0.0  # unless constant: last rate / peak; from 0 to below 1
    config.optimizer.decay_fraction = 0.2  # wsd: share of the training that decays; above 0, to 1
    config.optimizer.clip_norm = 0.0  # largest global norm of the gradient; 0: no clipping
    config.optimizer.weight_decay = 0.0  # of matrices; L2 in adam, rmsprop, sgd; 0: none
    config.optimizer.beta1 = 0.9  # adam, adamw: decay rate of the mean gradient; from 0 to below 1
    config.optimizer.beta2 = 0.999  # adam, adamw: decay rate of the squared gradient; 0 to below 1
    config.optimizer.epsilon = 1e-7  # adam, adamw, rmsprop: added to the denominator; above 0
    config.optimizer.rms_decay = 0.9  # rmsprop: decay rate of the squared gradient; 0 to below 1
    config.optimizer.momentum = 0.0  # sgd: momentum, from 0 to below 1; 0: none
    config.optimizer.muon_ratio = 0.2  # muon: RMS of a kernel's update / learning rate; above 0

    config.train = ConfigDict()
    config.train.init_from = ""  # workdir of a run whose best weights to start from; "": none
    config.train.loss = "cross_entropy"  # loss to minimise: "cross_entropy", or a registered loss
    config.train.regularisers = ""  # registered regularisers, separated by commas; "": none
    config.train.activation_penalty = 0.0  # weight of the mean square of the last outputs; 0: none
    config.train.temporal_penalty = 0.0  # weight of the mean square of their changes; 0: none
    config.train.step = "standard"  # "standard", or a registered train step
    config.train.hooks = ""  # "tensorboard", "wandb", registered ones, between commas; "": none
    config.train.num_epochs = 20  # passes over the training split; at least 1
    config.train.num_steps = 0  # training steps in all; 0: as many as num_epochs takes
    config.train.length_warmup_steps = 0  # training steps in which sequences grow; 0: none
    config.train.initial_length = 8  # characters per sequence at the start of that; at least 1
    config.train.sampled_inputs = "none"  # own inputs: "none", "linear" or "inverse_sigmoid" growth
    config.train.sampled_share = 0.5  # share of inputs that are the model's own at the end; 0 to 1
    config.train.rollout_length = 0  # characters that the model writes in each sequence; 0: none
    config.train.max_seconds = 0.0  # training ends after this time, or its steps if earlier; 0: off
    config.train.patience = 0  # training ends after so many evaluations without a new best; 0: off
    config.train.averaging = "none"  # evaluated weights: "none" (the last ones), "ema" or "tail"
    config.train.ema_decay = 0.999  # ema: share of the average that a step keeps; 0 to below 1
    config.train.tail_fraction = 0.25  # tail: share of the training that is averaged; above 0, to 1
    config.train.on_nonfinite = "stop"  # a step with a NaN is never applied: "stop", or "skip" it
    config.train.max_skipped_steps = 10  # "skip": training stops after more than this in a row
    config.train.max_loss_ratio = 3.0  # stops if a row's loss is above this x the first; 0: off
    config.train.data_devices = 0  # devices that share a batch; 0: all, or on CPUs what is faster
    config.train.model_devices = 1  # devices that share the hidden units; at least 1
    config.train.steps_per_call = 0  # training steps in one call of the device; 0: chosen by size
    config.train.log_every_steps = 50  # steps averaged in one row of metrics.jsonl; at least 1
    config.train.gradient_noise = "off"  # "on": measured at each evaluation, for one step's time
    config.train.evaluate_every_steps = 0  # steps between evaluations, which save too; 0: one epoch
    config.train.sample_every_steps = 0  # steps between samples; 0: one epoch
    config.train.checkpoint_every_steps = 0  # steps between checkpoints; 0: one epoch

    config.evaluation = ConfigDict()
    config.evaluation.protocol = "cold"  # in training: "cold", "carried", or a registered protocol
    config.evaluation.window = 256  # characters in a window of the cold protocol; at least 1
    config.evaluation.batch_size = 64  # windows evaluated at once by the cold protocol; at least 1
    config.evaluation.dynamic_rate = 3e-4  # step size of the dynamic protocol; at least 0
    config.evaluation.dynamic_decay = 1e-3  # its decay to the trained weights, a share from 0 to 1
    config.evaluation.dynamic_epsilon = 1e-4  # what it adds to the RMS of a gradient; above 0
    config.evaluation.dynamic_segment = 20  # characters between two of its steps; at least 1

    config.sample = ConfigDict()
    config.sample.prompt = "ROMEO:"  # text to continue; "": a line break, the start of a line
    config.sample.num_chars = 400  # characters per sample during training; at least 1
    config.sample.temperature = 1.0  # 0 (always the likeliest character), or from 1e-6 to 1e6
    config.sample.rules = ""  # names of registered rules of drawing, separated by commas; "": none
    config.sample.num_samples = 1  # samples drawn each time during training; at least 1
    return config.lock()


def _one_of(*choices: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in choices, "one of " + ", ".join(choices)


def _at_least(low: float) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value >= low, f"at least {low}"


def _between(low: float, high: float) -> tuple[Callable[[Any], bool], str]:
    """low <= value < high."""
    return lambda value: low <= value < high, f"at least {low} and below {high}"


def _from_to(low: int, high: int) -> tuple[Callable[[Any], bool], str]:
    """low <= value <= high."""
    return lambda value: low <= value <= high, f"from {low} to {high}"


_POSITIVE = (lambda value: value > 0, "above 0")
_PATH = (lambda value: "\0" not in value, "a path without NUL characters")
_ANY = (lambda value: True, "")

# The valid values of each field; a test checks that no field of the schema is missing. Registered
# names are checked by their registries.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": _at_least(0),
    "data.corpus": _ANY,
    "data.offline_corpus": _ANY,
    "data.path": _PATH,
    "data.vocabulary": _one_of("characters", "bytes"),
    "data.max_chars": _at_least(0),
    "data.validation_fraction": _between(0, 1),
    "data.test_fraction": _between(0, 1),
    "data.batching": _one_of("chunks", "lanes"),
    "data.batch_size": _at_least(1),
    "data.sequence_length": _at_least(1),
    "data.offset": _one_of("fixed", "random"),
    "data.carry_reset_rate": _between(0, 1),
    "model.cell": _ANY,
    "model.embedding_size": _from_to(1, 2**20),
    "model.hidden_size": _from_to(1, 2**20),
    "model.num_layers": _from_to(1, 100),
    "model.residual": _one_of("none", "add"),
    "model.readout": _one_of("last", "all"),
    "model.output_embedding": _one_of("own", "tied"),
    "model.embedding_rank": _from_to(0, 2**20),
    "model.embedding_dropout": _between(0, 1),
    "model.input_dropout": _between(0, 1),
    "model.dropout": _between(0, 1),
    "model.output_dropout": (
        lambda value: value == -1 or 0 <= value < 1,
        "-1, or at least 0 and below 1",
    ),
    "model.dropout_noise": _one_of("step", "locked"),
    "model.weight_dropout": _between(0, 1),
    "model.zoneout": _between(0, 1),
    "model.implementation": _one_of("auto", "scan", "fused", "parallel"),
    "model.init_scale": _POSITIVE,
    "model.dtype": _one_of("float32", "bfloat16"),
    "optimizer.name": _ANY,
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.schedule": _one_of("constant", "linear", "cosine", "wsd"),
    "optimizer.warmup_steps": _at_least(0),
    "optimizer.final_fraction": _between(0, 1),
    "optimizer.decay_fraction": (lambda value: 0 < value <= 1, "above 0, and at most 1"),
    "optimizer.clip_norm": _at_least(0),
    "optimizer.weight_decay": _at_least(0),
    "optimizer.beta1": _between(0, 1),
    "optimizer.beta2": _between(0, 1),
    "optimizer.epsilon": _POSITIVE,
    "optimizer.rms_decay": _between(0, 1),
    "optimizer.momentum": _between(0, 1),
    "optimizer.muon_ratio": _POSITIVE,
    "train.init_from": _PATH,
    "train.loss": _ANY,
    "train.regularisers": _ANY,
    "train.activation_penalty": _at_least(0),
    "train.temporal_penalty": _at_least(0),
    "train.step": _ANY,
    "train.hooks": _ANY,
    "train.num_epochs": _at_least(1),
    "train.num_steps": _at_least(0),
    "train.length_warmup_steps": _at_least(0),
    "train.initial_length": _at_least(1),
    "train.sampled_inputs": _one_of("none", "linear", "inverse_sigmoid"),
    "train.sampled_share": _from_to(0, 1),
    "train.rollout_length": _at_least(0),
    "train.max_seconds": _at_least(0),
    "train.patience": _at_least(0),
    "train.averaging": _one_of("none", "ema", "tail"),
    "train.ema_decay": _between(0, 1),
    "train.tail_fraction": (lambda value: 0 < value <= 1, "above 0, and at most 1"),
    "train.on_nonfinite": _one_of("stop", "skip"),
    "train.max_skipped_steps": _at_least(0),
    "train.max_loss_ratio": _at_least(0),
    "train.data_devices": _at_least(0),
    "train.model_devices": _at_least(1),
    "train.steps_per_call": _at_least(0),
    "train.log_every_steps": _at_least(1),
    "train.gradient_noise": _one_of("off", "on"),
    "train.evaluate_every_steps": _at_least(0),
    "train.sample_every_steps": _at_least(0),
    "train.checkpoint_every_steps": _at_least(0),
    "evaluation.protocol": _ANY,
    "evaluation.window": _at_least(1),
    "evaluation.batch_size": _at_least(1),
    "evaluation.dynamic_rate": _at_least(0),
    "evaluation.dynamic_decay": _between(0, 1),
    "evaluation.dynamic_epsilon": _POSITIVE,
    "evaluation.dynamic_segment": _at_least(1),
    "sample.prompt": _ANY,
    "sample.num_chars": _at_least(1),
    "sample.temperature": (
        lambda value: value == 0 or 1e-6 <= value <= 1e6,
        "0, or from 1e-6 to 1e6",
    ),
    "sample.rules": _ANY,
    "sample.num_samples": _at_least(1),
}


_TYPES = {int: int, float: int | float, str: str}  # type of a default -> valid types
TYPE_NAMES = {int: "a whole number", float: "a number", str: "text"}
_REMEDY = "restore it, or make the run again"
_LARGEST = 2**31 - 1  # the largest int32, JAX's default integer type


def flatten(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config as {"section.field": value}, in the order of the schema."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat.update({f"{name}.{field}": item for field, item in value.items()})
        else:
            flat[name] = value
    return flat


_DEFAULTS = flatten(default_config())


def _check_field(name: str, value: object) -> None:
    """Raises UserError if a field is not in the schema, or its value is not valid."""
    if name not in _RULES:
        raise UserError(f"config.{shortened(name)} is not a field of the schema")
    kind, (accepts, requirement) = type(_DEFAULTS[name]), _RULES[name]
    if isinstance(value, bool) or not isinstance(value, _TYPES[kind]):
        requirement = TYPE_NAMES[kind]
    elif isinstance(value, float) and not math.isfinite(value):
        requirement = "a finite number"
    elif isinstance(value, int) and value > _LARGEST:
        requirement = f"at most {_LARGEST}"
    elif accepts(value):
        return
    raise UserError(f"config.{name} is {shown(value)}; it must be {requirement}")


def validate(config: ConfigDict) -> None:
    """Checks each field, and the fields that depend on each other.

    Raises:
      UserError: a value is not valid; the message names the field, the value and the valid values.
    """
    flat = flatten(config)
    for name in _RULES:
        if name not in flat:
            raise UserError(f"config.{name} is missing; start from charrnn_jax.default_config()")
    for name, value in flat.items():
        _check_field(name, value)
    if not (config.data.corpus or config.data.path):
        raise UserError(
            "no text to train on: give yours as --config.data.path=FILE (a file, a folder, a "
            "glob, or - for standard input), or a known one as --config.data.corpus=NAME"
        )
    for known in registry.ALL:
        for name in known.names_in(flat[known.field]):
            if name not in known:
                raise known.missing(name)
    if config.train.gradient_noise == "on" and config.data.batch_size == 1:
        raise UserError(
            "config.train.gradient_noise compares parts of a batch, and config.data.batch_size is "
            "1: it must be at least 2"
        )
    if config.train.averaging != "none" and config.optimizer.name == "schedule_free":
        raise UserError(
            f"config.train.averaging is {config.train.averaging!r}, but the optimizer "
            "'schedule_free' has an average of its own: set --config.train.averaging=none"
        )
    held_out = config.data.validation_fraction + config.data.test_fraction
    if held_out >= 1:
        raise UserError(
            f"config.data.validation_fraction + test_fraction is {held_out}; nothing is left to "
            "train on: their sum must be below 1"
        )
    if config.data.carry_reset_rate and config.data.batching != "lanes":
        raise UserError(
            f"config.data.carry_reset_rate is {config.data.carry_reset_rate}, but with "
            f'config.data.batching="{config.data.batching}" every sequence starts from the zero '
            "carry: leave one of them out"
        )
    _check_lengths(config.data.sequence_length, config.train)


def _check_lengths(longest: int, train: ConfigDict) -> None:
    """Checks the fields of `config.train` that depend on the length of the sequences."""
    shortest = longest
    if train.length_warmup_steps:
        shortest = train.initial_length
        if shortest > longest:
            raise UserError(
                f"config.train.initial_length is {shortest}; it must be at most "
                f"config.data.sequence_length, which is {longest}"
            )
    if train.rollout_length > max(shortest - 2, 0):
        raise UserError(
            f"config.train.rollout_length is {train.rollout_length}; sequences of {shortest} "
            f"characters have room for {max(shortest - 2, 0)}, since their first and last inputs "
            "are true"
        )


def to_json(config: ConfigDict) -> str:
    """Returns a config as indented JSON, with fields in the order of the schema."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str | bytes) -> ConfigDict:
    """Rebuilds a config from the text of `to_json`; see `from_dict`."""
    return from_dict(parse_json(text, Saved, name="the saved config", remedy=_REMEDY))


def from_dict(saved: Mapping[str, Any]) -> ConfigDict:
    """Rebuilds a config from its `to_dict()`; fields added to the schema since get their default.

    The registered names in it may be unknown: whoever uses one looks it up.

    Raises:
      UserError: a field is not in the schema, or its value is not valid.
    """
    values = flatten(typed(saved, Saved, name="the saved config", remedy=_REMEDY))
    for name, value in values.items():
        try:
            _check_field(name, value)
        except UserError as error:
            raise UserError(f"the saved config cannot be used: {error}") from error
    config = default_config()
    config.update_from_flattened_dict(values)
    return config


def diff(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns the fields that differ, as {"section.field": (old value, new value)}."""
    before, after = flatten(old), flatten(new)
    return {
        name: (before.get(name), after.get(name))
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    }


def override_values(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy of a config with new values for some fields.

    Args:
      config: the config.
      overrides: new values, as {"section.field": value}.

    Raises:
      UserError: a field is not in the schema, or its new value has the wrong type.
    """
    config = config.copy_and_resolve_references()
    flat = flatten(config)
    for name, value in overrides.items():
        if name not in flat:
            raise no_such_field(name, flat)
        try:
            config.update_from_flattened_dict({name: value})
        except TypeError as error:
            kind = TYPE_NAMES[type(flat[name])]
            raise UserError(f"config.{name} is {shown(value)}; it must be {kind}") from error
    return config


def no_such_field(name: str, flat: Mapping[str, Any]) -> UserError:
    """Returns the error for a field that is not in the schema.

    Args:
      name: the field, as "section.field".
      flat: the config that should have it, as {"section.field": value}.
    """
    near = difflib.get_close_matches(name[:100], flat, n=1)
    hint = f"did you mean config.{near[0]}?" if near else "config.json of a run lists all fields"
    return UserError(f"there is no field config.{shortened(name)}; {hint}")
