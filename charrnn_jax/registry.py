"""Names that a config may contain, and the code that each one stands for.

Built-in names are declared here, so that a config can be checked without importing their code; the
module that defines the code provides it. An experiment file, or any program that uses this package,
registers its own:

    charrnn_jax.register_cell(Cell("mine", MyCell, ...))  # then config.model.cell = "mine"

A config and a workdir hold names, never code. A run records the file that registered each name it
uses, and the SHA-256 of that file. If the file has changed, opening the run gives a warning.
"""

import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar

from charrnn_jax.errors import UserError, shortened, shown

T = TypeVar("T")


class RecordedSource(TypedDict):
    """A `Source` as a run records it."""

    file: str
    sha256: str


Recorded = dict[str, dict[str, RecordedSource]]  # field -> name -> source


@dataclass(frozen=True)
class Source:
    """The file that registered a name.

    Attributes:
      file: path of the file; in a notebook, a name that is not a file.
      sha256: SHA-256 of its content, in hex; "" if it is not a file.
    """

    file: str
    sha256: str


class Registry(Generic[T]):
    """Code of one kind, by the names that a config may use.

    Args:
      kind: what a name stands for, such as "cell"; used in messages.
      field: config field that holds such a name, as "section.field".
      built_in: names that this package provides.
      several: whether the field may hold any number of names, separated by commas.
    """

    def __init__(self, kind: str, *, field: str, built_in: Sequence[str], several: bool = False):
        self.kind = kind
        self.field = field
        self._several = several
        self._built_in = tuple(built_in)
        self._provided: dict[str, T] = {}
        self._registered: dict[str, T] = {}
        self.sources: dict[str, Source] = {}

    def __iter__(self) -> Iterator[str]:
        return iter([*self._built_in, *self._registered])

    def __len__(self) -> int:
        return len(self._built_in) + len(self._registered)

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in self._registered

    def __getitem__(self, name: str) -> T:
        """Returns the code of a name.

        Raises:
          UserError: the name is not registered; the message lists the names that are.
        """
        if name in self._provided:
            return self._provided[name]
        if name in self._registered:
            return self._registered[name]
        raise self.missing(name)

    def provide(self, name: str, value: T) -> None:
        """Sets the code of a built-in name; for the module that defines it."""
        if name not in self._built_in:
            raise ValueError(f"{name!r} is not among the built-in names of registry.py")
        self._provided[name] = value

    def names_in(self, value: str) -> list[str]:
        """Returns the names in a value of the field."""
        if not self._several:
            return [value]
        return [name.strip() for name in value.split(",") if name.strip()]

    def missing(self, name: str, *, file: str = "") -> UserError:
        """Returns the error for a name that is not registered.

        Args:
          name: the name.
          file: file that registered the name when the run was made; "": not known.
        """
        where = f" (the run was made with {shortened(file)})" if file else ""
        return UserError(
            f"config.{self.field} is {shown(name)}: no such {self.kind} is registered{where}; "
            f"there are {', '.join(self) or 'none yet'}. To use your own, give the file that "
            "registers it as --config=FILE, or import it"
        )

    def register(self, name: str, value: T, *, depth: int = 1) -> None:
        """Registers code under a name. Only the file that took a name may register it again.

        Args:
          name: a name of letters, digits, "_" and "-".
          value: the code.
          depth: number of calls between the registering file and this function, 1 for a direct one.

        Raises:
          UserError: the name is taken or not valid.
        """
        if not name.replace("_", "").replace("-", "").isalnum():
            raise UserError(
                f"the {self.kind} name {name!r} is not valid: use letters, digits, _ and -"
            )
        source = _source(sys._getframe(depth).f_code.co_filename)
        known = self.sources.get(name, source)
        # A notebook cell gets a new file name each time it is edited and run.
        is_other_file = known.file != source.file and known.sha256 and source.sha256
        if name in self._built_in or is_other_file:
            by = self.sources[name].file if name in self.sources else "charrnn_jax"
            raise UserError(
                f"the {self.kind} {name!r} is already registered by {by}: choose another name"
            )
        self._registered[name] = value
        self.sources[name] = source


def _source(file: str) -> Source:
    path = Path(file)
    if not path.is_file():
        return Source(file, "")
    return Source(str(path.resolve()), hashlib.sha256(path.read_bytes()).hexdigest())


CELLS: Registry[Any] = Registry(
    "cell",
    field="model.cell",
    built_in=[
        "gru",
        "lstm",
        "rnn",
        "layer_norm_gru",
        "layer_norm_lstm",
        "mogrifier_lstm",
        "slstm",
        "min_gru",
        "min_lstm",
        "rg_lru",
    ],
)
OPTIMIZERS: Registry[Any] = Registry(
    "optimizer",
    field="optimizer.name",
    built_in=["adam", "adamw", "rmsprop", "sgd", "lion", "adan", "muon", "schedule_free"],
)
LOSSES: Registry[Any] = Registry("loss", field="train.loss", built_in=["cross_entropy"])
REGULARISERS: Registry[Any] = Registry(
    "regulariser", field="train.regularisers", built_in=[], several=True
)
TRAIN_STEPS: Registry[Any] = Registry("train step", field="train.step", built_in=["standard"])
HOOKS: Registry[Any] = Registry(
    "hook", field="train.hooks", built_in=["tensorboard", "wandb"], several=True
)
PROTOCOLS: Registry[Any] = Registry(
    "protocol", field="evaluation.protocol", built_in=["cold", "carried", "dynamic"]
)
RULES: Registry[Any] = Registry("rule", field="sample.rules", built_in=[], several=True)

ALL = (CELLS, OPTIMIZERS, LOSSES, REGULARISERS, TRAIN_STEPS, HOOKS, PROTOCOLS, RULES)


def register_cell(cell: Any) -> None:
    """Registers a cell for `config.model.cell`.

    Args:
      cell: a `Cell`, registered under its own name.
    """
    CELLS.register(cell.name, cell, depth=2)


def register_optimizer(name: str, make: Callable[..., Any]) -> None:
    """Registers an optimizer for `config.optimizer.name`.

    Args:
      name: name that the config uses.
      make: function (config.optimizer, learning_rate=, weight_decay=) -> sequence of Optax
        transformations, such as [optax.nadam(learning_rate)]. The learning rate is the config's
        schedule, a function of the step. The gradient is already clipped as the config says.
    """
    OPTIMIZERS.register(name, make, depth=2)


def register_loss(name: str, loss_fn: Callable[..., Any]) -> None:
    """Registers a loss for `config.train.loss`.

    Args:
      name: name that the config uses.
      loss_fn: function (logits [B, T, V], targets [B, T]) -> losses [B, T], whose mean is
        minimised.
    """
    LOSSES.register(name, loss_fn, depth=2)


def register_regulariser(name: str, make: Callable[..., Any]) -> None:
    """Registers a regulariser for `config.train.regularisers`.

    Args:
      name: name that the config uses.
      make: function (config) -> `Regulariser`.
    """
    REGULARISERS.register(name, make, depth=2)


def register_train_step(name: str, train_step: Callable[..., Any]) -> None:
    """Registers a train step for `config.train.step`.

    Args:
      name: name that the config uses.
      train_step: function (state, batch) -> (state, metrics); see `charrnn_jax.train`.
    """
    TRAIN_STEPS.register(name, train_step, depth=2)


def register_hook(name: str, make: Callable[..., Any]) -> None:
    """Registers a hook for `config.train.hooks`.

    Args:
      name: name that the config uses.
      make: function (config) -> hook, or (config, workdir) -> hook if it has an argument of this
        name: the folder of the run, a `Path`; see `charrnn_jax.train`.
    """
    HOOKS.register(name, make, depth=2)


def register_protocol(protocol: Any) -> None:
    """Registers an evaluation protocol for `config.evaluation.protocol`.

    Args:
      protocol: a subclass of `Protocol`, registered under its own name.
    """
    PROTOCOLS.register(protocol.name, protocol, depth=2)


def register_rule(name: str, make: Callable[..., Any]) -> None:
    """Registers a rule of drawing for `config.sample.rules` and `charrnn sample --rule`.

    Args:
      name: name that the config uses.
      make: function (vocabulary) -> `Rule`.
    """
    RULES.register(name, make, depth=2)


def has_registered() -> bool:
    """Returns whether any code was registered in this process."""
    return any(registry.sources for registry in ALL)


def describe_registered(config: Mapping[str, Any]) -> Recorded:
    """Returns a record of the registered names that a run uses, as plain data for JSON.

    Args:
      config: config of the run, as {"section.field": value}.

    Returns:
      {"model.cell": {"mine": {"file": its name, "sha256": in hex}}, ...}, without built-in names.
    """
    recorded: Recorded = {}
    for registry in ALL:
        for name in registry.names_in(config[registry.field]):
            if name in registry.sources:
                source = registry.sources[name]
                file = Path(source.file).name  # its folder is nobody else's business
                about = RecordedSource(file=file, sha256=source.sha256)
                recorded.setdefault(registry.field, {})[name] = about
    return recorded


def compare_registered(recorded: Recorded, *, needed: str = "") -> None:
    """Compares the record of a run with what is registered now, and warns about changed files.

    Args:
      recorded: record of the run, from `describe_registered`.
      needed: field whose code the run cannot be used without, such as "model.cell"; "": none.

    Raises:
      UserError: the name in the needed field is not registered.
    """
    for registry in ALL:
        for name, source in recorded.get(registry.field, {}).items():
            if name not in registry:
                if registry.field == needed:
                    raise registry.missing(name, file=source["file"])
            elif name in registry.sources and registry.sources[name].sha256 != source["sha256"]:
                warnings.warn(
                    f"{registry.sources[name].file} has changed since it registered the "
                    f"{registry.kind} {name!r} for this run",
                    stacklevel=2,
                )
