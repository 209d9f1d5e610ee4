"""Names that a config may contain, and the code that each stands for.

What is built in is declared here by name, so that a config can be checked without importing it, and
provided by the module that has it. An experiment file, or any program that uses this package, adds
its own:

    charrnn_jax.register_cell(Cell("mine", MyCell, ...))  # then config.model.cell = "mine"

A config and a workdir hold names only, never code. A run records which file registered each name
that it uses, with the SHA-256 of that file; opening the run with another version of it warns.
"""

import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from charrnn_jax.errors import UserError

T = TypeVar("T")
Recorded = dict[str, dict[str, dict[str, str]]]  # field -> name -> {"file": ..., "sha256": ...}


@dataclass(frozen=True)
class Source:
    """The file that registered a name.

    Attributes:
      file: its path; of a notebook, a name that is no file.
      sha256: of its content, in hex; "" if it is no file.
    """

    file: str
    sha256: str


class Registry(Generic[T]):
    """The code of one kind that a config may name.

    Args:
      kind: what the names stand for, as it is called in messages: "cell".
      field: the config's field that holds such a name.
      built_in: names of what this package provides.
      several: the field may hold any number of names, with commas between them.
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
        """Raises UserError: nothing has this name; says which names there are."""
        if name in self._provided:
            return self._provided[name]
        if name in self._registered:
            return self._registered[name]
        raise self.missing(name)

    def provide(self, name: str, value: T) -> None:
        """Gives a built-in name its code; for the module that has it."""
        if name not in self._built_in:
            raise ValueError(f"{name!r} is not among the built-in names of registry.py")
        self._provided[name] = value

    def names_in(self, value: str) -> list[str]:
        """Returns the names in the value of a field."""
        if not self._several:
            return [value]
        return [name.strip() for name in value.split(",") if name.strip()]

    def missing(self, name: str, *, file: str = "") -> UserError:
        """Returns the error for a name that nothing has. file: what registered it before."""
        where = f" (the run was made with {file})" if file else ""
        return UserError(
            f"config.{self.field} is {name!r}: no such {self.kind} is registered{where}; there are "
            f"{', '.join(self) or 'none built in'}, and those of an experiment file that is named "
            "with --config=FILE, or imported"
        )

    def register(self, name: str, value: T, *, depth: int = 1) -> None:
        """Gives `value` a name. The same file may do so again; another name is needed elsewhere.

        Args:
          name: letters, digits, "_" and "-".
          value: the code.
          depth: calls between this one and the file that registers.

        Raises:
          UserError: the name is taken, or is no such name.
        """
        if not name.replace("_", "").replace("-", "").isalnum():
            raise UserError(
                f"a {self.kind} cannot be called {name!r}: use letters, digits, _ and -"
            )
        source = _source(sys._getframe(depth).f_code.co_filename)
        known = self.sources.get(name, source)
        # A cell of a notebook has another name each time it is edited and run.
        is_other_file = known.file != source.file and known.sha256 and source.sha256
        if name in self._built_in or is_other_file:
            by = self.sources[name].file if name in self.sources else "charrnn_jax"
            raise UserError(f"there is a {self.kind} called {name!r} already, from {by}: rename it")
        self._registered[name] = value
        self.sources[name] = source


def _source(file: str) -> Source:
    path = Path(file)
    if not path.is_file():
        return Source(file, "")
    return Source(str(path.resolve()), hashlib.sha256(path.read_bytes()).hexdigest())


CELLS: Registry[Any] = Registry("cell", field="model.cell", built_in=["gru", "lstm", "rnn"])
OPTIMIZERS: Registry[Any] = Registry(
    "optimizer", field="optimizer.name", built_in=["adam", "adamw", "rmsprop", "sgd"]
)
LOSSES: Registry[Any] = Registry("loss", field="train.loss", built_in=["cross_entropy"])
TRAIN_STEPS: Registry[Any] = Registry("train step", field="train.step", built_in=["standard"])
HOOKS: Registry[Any] = Registry("hook", field="train.hooks", built_in=[], several=True)
PROTOCOLS: Registry[Any] = Registry(
    "protocol", field="evaluation.protocol", built_in=["cold", "carried"]
)
RULES: Registry[Any] = Registry("rule", field="sample.rules", built_in=[], several=True)

ALL = (CELLS, OPTIMIZERS, LOSSES, TRAIN_STEPS, HOOKS, PROTOCOLS, RULES)


def register_cell(cell: Any) -> None:
    """Makes a `Cell` available as `config.model.cell`, under its own name."""
    CELLS.register(cell.name, cell, depth=2)


def register_optimizer(name: str, make: Callable[..., Any]) -> None:
    """Makes an optimizer available as `config.optimizer.name`.

    Args:
      name: that the config uses.
      make: (config.optimizer, learning_rate=, weight_decay=) -> a sequence of Optax
        transformations, such as [optax.lion(learning_rate)]. The learning rate is the schedule of
        the config, step -> rate. Clipping comes before, as the config says.
    """
    OPTIMIZERS.register(name, make, depth=2)


def register_loss(name: str, loss_fn: Callable[..., Any]) -> None:
    """Makes a loss available as `config.train.loss`.

    Args:
      name: that the config uses.
      loss_fn: (logits [B, T, V], targets [B, T]) -> losses [B, T]; their mean is minimised.
    """
    LOSSES.register(name, loss_fn, depth=2)


def register_train_step(name: str, train_step: Callable[..., Any]) -> None:
    """Makes a train step available as `config.train.step`; see `charrnn_jax.train`."""
    TRAIN_STEPS.register(name, train_step, depth=2)


def register_hook(name: str, make: Callable[..., Any]) -> None:
    """Makes a hook available for `config.train.hooks`.

    Args:
      name: that the config uses.
      make: (config) -> hook; see `charrnn_jax.train`.
    """
    HOOKS.register(name, make, depth=2)


def register_protocol(protocol: Any) -> None:
    """Makes an evaluation protocol available, under its own name; see `evaluation.protocols`."""
    PROTOCOLS.register(protocol.name, protocol, depth=2)


def register_rule(name: str, make: Callable[..., Any]) -> None:
    """Makes a rule of drawing available for `config.sample.rules` and `charrnn sample --rule`.

    Args:
      name: that the config uses.
      make: (vocabulary) -> rule; see `generation.rules.Rule`.
    """
    RULES.register(name, make, depth=2)


def has_registered() -> bool:
    """Whether anything was registered in this process."""
    return any(registry.sources for registry in ALL)


def describe_registered(config: Mapping[str, Any]) -> Recorded:
    """Returns what a run records of the names that it uses, as plain data for JSON.

    Args:
      config: {"section.field": value}.

    Returns:
      {"model.cell": {"mine": {"file": its name, "sha256": in hex}}, ...}; built-in names left out.
    """
    recorded: Recorded = {}
    for registry in ALL:
        for name in registry.names_in(config[registry.field]):
            if name in registry.sources:
                source = registry.sources[name]
                file = Path(source.file).name  # its folder is nobody else's business
                about = {"file": file, "sha256": source.sha256}
                recorded.setdefault(registry.field, {})[name] = about
    return recorded


def compare_registered(recorded: Recorded, *, needed: str = "") -> None:
    """Compares what a run recorded with what is registered now; warns where a file has changed.

    Args:
      recorded: by `describe_registered`.
      needed: the field without whose code the run cannot be used.

    Raises:
      UserError: a name that is needed is not registered.
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
