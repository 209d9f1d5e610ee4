"""Spaces that a search draws values from: a range or a choice for each field of the config.

An experiment file's `get_search(space)` is called with this module and returns
{"section.field": values}:

>>> loguniform(1e-4, 1e-1)
LogUniform(low=0.0001, high=0.1)
>>> print(integers(64, 256, log=True))
from 64 to 256, logarithmic

This file only describes the values; `sweeps/search.py` draws them.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real

from charrnn_jax.errors import UserError

Scalar = bool | int | float | str | None


@dataclass(frozen=True)
class Uniform:
    """Numbers from low to high."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_range("uniform", self.low, self.high)

    def ends(self) -> tuple[Scalar, ...]:
        """Returns the values to check against the schema; if they are valid, so are the others."""
        return float(self.low), float(self.high)

    def __str__(self) -> str:
        return f"from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class LogUniform:
    """Numbers from low to high, uniform in their logarithm; low is above 0."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_range("loguniform", self.low, self.high, log=True)

    def ends(self) -> tuple[Scalar, ...]:
        """See `Uniform.ends`."""
        return float(self.low), float(self.high)

    def __str__(self) -> str:
        return f"from {self.low:g} to {self.high:g}, logarithmic"


@dataclass(frozen=True)
class Integers:
    """Whole numbers from low to high, both included; log: uniform in their logarithm."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        _check_range("integers", self.low, self.high, log=self.log, whole=True)

    def ends(self) -> tuple[Scalar, ...]:
        """See `Uniform.ends`."""
        return int(self.low), int(self.high)

    def __str__(self) -> str:
        return f"from {self.low} to {self.high}" + ", logarithmic" * self.log


@dataclass(frozen=True)
class Choice:
    """One of the values."""

    values: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise UserError("get_search: space.choice([]) has no values: give at least one")
        for value in self.values:
            if not isinstance(value, Scalar):
                raise UserError(
                    f"get_search: space.choice has {value!r}, of type {type(value).__name__}: "
                    "give numbers, texts, True or False"
                )

    def ends(self) -> tuple[Scalar, ...]:
        """Returns all values; see `Uniform.ends`."""
        return self.values

    def __str__(self) -> str:
        return "one of " + ", ".join(map(str, self.values))


Values = Uniform | LogUniform | Integers | Choice


def uniform(low: float, high: float) -> Uniform:
    """Numbers from low to high."""
    return Uniform(low, high)


def loguniform(low: float, high: float) -> LogUniform:
    """Numbers from low to high, uniform in their logarithm; low is above 0."""
    return LogUniform(low, high)


def integers(low: int, high: int, *, log: bool = False) -> Integers:
    """Whole numbers from low to high, both included; log: uniform in their logarithm."""
    return Integers(low, high, log)


def choice(values: Iterable[Scalar]) -> Choice:
    """One of the values."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise UserError(f"get_search: space.choice({values!r}): give a list of values")
    return Choice(tuple(values))


def _check_range(
    function: str, low: float, high: float, *, log: bool = False, whole: bool = False
) -> None:
    """Raises UserError unless low and high are finite, in order and, for a logarithm, above 0."""
    call = f"get_search: space.{function}({low!r}, {high!r})"
    kind, needed = (Integral, "whole") if whole else (Real, "finite")
    for value in (low, high):
        is_number = isinstance(value, kind) and not isinstance(value, bool)
        if not is_number or not abs(value) <= sys.float_info.max:  # nan is not
            raise UserError(f"{call}: {value!r} is not a {needed} number")
    if low > high:
        raise UserError(f"{call}: {low} is above {high}; give the lower end first")
    if log and low <= 0:
        raise UserError(f"{call}: a logarithmic range must start above 0")
