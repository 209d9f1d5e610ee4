"""A base class of dataclasses that are arguments of compiled functions."""

from flax import struct


@struct.dataclass
class TypedDataclass:
    """A dataclass of arrays with a structure that depends on its type.

    A compiled function finds its program by the structure of its arguments. For JAX (0.10.2), two
    dataclasses of different types have equal structures if they have as many fields, and it runs
    the program of the wrong one if their hashes collide as well, about once in a hundred pairs.
    Here, the type is static data, which is compared. A subclass is a `flax.struct.dataclass`.

    Attributes:
      dataclass_type: type of the instance; always set by the instance itself.
    """

    dataclass_type: type | None = struct.field(
        pytree_node=False, default=None, kw_only=True, repr=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "dataclass_type", type(self))  # the dataclass is frozen
