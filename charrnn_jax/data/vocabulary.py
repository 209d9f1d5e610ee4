"""`Vocabulary`: characters (Unicode code points) or bytes <-> token ids.

Id 0 is `[UNK]`, which `encode` returns only on request. Known characters and bytes have ids from 1.
Knows nothing of files or models.
"""

import codecs
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypedDict

import numpy as np

from charrnn_jax.errors import UserError
from charrnn_jax.reading import parse_json, typed
from charrnn_jax.tables import table

UNK_ID = 0
UNK = "[UNK]"
_MOST_SHOWN = 200  # characters, in a notebook
_REMEDY = "restore it from where it comes from"


class UnknownCharacterError(UserError):
    """A text has characters that are not in the vocabulary."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a model knows.

    >>> vocabulary = Vocabulary.build(["hello"])
    >>> vocabulary.size, vocabulary.encode("hello").tolist()
    (5, [2, 1, 3, 3, 4])
    >>> vocabulary.decode([2, 1, 3, 3, 4])
    'hello'

    Attributes:
      characters: the known characters in code point order; their ids are 1, 2, ... For kind
        "bytes" it is empty and byte b has id b + 1.
      kind: "characters" or "bytes".
    """

    characters: str = ""
    kind: str = "characters"

    @classmethod
    def build(cls, blocks: Iterable[str | bytes], *, kind: str = "characters") -> "Vocabulary":
        """Builds the vocabulary of a text.

        Args:
          blocks: the text, in pieces.
          kind: "characters" or "bytes".

        Raises:
          UserError: the text is empty.
        """
        if kind == "bytes":
            return cls(kind="bytes")
        unique: set[str] = set()
        for block in blocks:
            unique.update(block)  # type: ignore[arg-type]  # blocks of kind "characters" are str
        if not unique:
            raise UserError("the text is empty: there is nothing to learn")
        return cls("".join(sorted(unique)))

    @property
    def size(self) -> int:
        """V, the number of ids, including `[UNK]`."""
        return 1 + (256 if self.kind == "bytes" else len(self.characters))

    @property
    def unit(self) -> str:
        """What one token is: "char" or "byte"."""
        return "byte" if self.kind == "bytes" else "char"

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned integer type that holds every id."""
        return np.min_scalar_type(self.size - 1)

    def encode(self, text: str | bytes, *, unk: str = "error") -> np.ndarray:
        """Turns text into token ids.

        Args:
          text: text as str, or for kind "bytes" also as bytes.
          unk: what to do with unknown characters: "error", "skip" (drop them) or "keep" (encode
            them as `UNK_ID`).

        Returns:
          [num_chars] ids of type `dtype`, or [num_bytes] for kind "bytes".

        Raises:
          UnknownCharacterError: the text has unknown characters and `unk` is "error"; the message
            names each of them and its first position.
        """
        if unk not in ("error", "skip", "keep"):
            raise ValueError(f"unk is {unk!r}; it must be one of error, skip, keep")
        if self.kind == "bytes":
            raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
            return np.frombuffer(raw, np.uint8).astype(self.dtype) + self.dtype.type(1)
        if isinstance(text, bytes):
            raise TypeError("a vocabulary of characters encodes str, not bytes")
        points = code_points(text)
        ids = self._id_of_point[np.minimum(points, len(self._id_of_point) - 1)]
        if unk == "keep" or (known := ids != UNK_ID).all():
            return ids
        if unk == "skip":
            return ids[known]
        first: dict[str, int] = {}
        for position in np.flatnonzero(~known).tolist():
            first.setdefault(text[position], position)
        named = [f"{char!r} at position {position}" for char, position in first.items()]
        raise UnknownCharacterError(
            f"not in the vocabulary: {', '.join(named[:8])}{', ...' if named[8:] else ''} "
            f"(it has {len(self.characters)} characters)"
        )

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """Turns token ids into text.

        `UNK_ID` becomes `[UNK]`, and bytes that are not UTF-8 become U+FFFD.

        Raises:
          ValueError: an id is not in the vocabulary.
        """
        ids = np.asarray(ids, np.int64).reshape(-1)
        if ids.size and (ids.min() < 0 or ids.max() >= self.size):
            raise ValueError(
                f"token ids must be from 0 to {self.size - 1}; got {ids.min()} to {ids.max()}"
            )
        if self.kind == "bytes":
            decode = self.make_decoder()
            return decode(ids) + decode(None)
        symbols = [UNK, *self.characters]
        return "".join([symbols[i] for i in ids.tolist()])

    def make_decoder(self) -> Callable[[np.ndarray | None], str]:
        """Returns a function that decodes a text piece by piece.

        It is called with the next ids and returns the text that they complete. Bytes of an
        unfinished character wait for the next call. None ends the text and returns the rest.
        """
        if self.kind == "characters":
            return lambda ids: "" if ids is None else self.decode(ids)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")

        def decode(ids: np.ndarray | None) -> str:
            if ids is None:
                return decoder.decode(b"", final=True)
            known = np.split(ids, np.flatnonzero(ids == UNK_ID))
            texts = []
            for index, part in enumerate(known):
                if index:  # every part but the first begins with [UNK]
                    texts.append(decoder.decode(b"", final=True) + UNK)
                texts.append(decoder.decode(bytes((part[part != UNK_ID] - 1).tolist())))
            return "".join(texts)

        return decode

    def _repr_html_(self) -> str:
        """Returns what a notebook shows of the vocabulary."""
        facts = [("vocabulary", f"{self.kind}, {self.size:,} ids"), (UNK, str(UNK_ID))]
        if self.kind == "bytes":
            return table([*facts, ("byte b", "b + 1")])
        shown = self.characters[:_MOST_SHOWN]
        ids = ", ".join(f"{char!r}: {number}" for number, char in enumerate(shown, start=1))
        if rest := len(self.characters) - len(shown):
            ids += f", and {rest:,} more"
        return table([*facts, ("characters", ids)])

    def to_dict(self) -> dict[str, str]:
        """Returns the vocabulary as plain data for JSON."""
        return {"kind": self.kind, "characters": self.characters}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Vocabulary":
        """Rebuilds a vocabulary from `to_dict`.

        Raises:
          UserError: these are not the data of a vocabulary.
        """
        return _checked(typed(data, _Saved, name="the vocabulary", remedy=_REMEDY))

    def to_json(self) -> str:
        """Returns the vocabulary as JSON, in ASCII."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str | bytes) -> "Vocabulary":
        """Rebuilds a vocabulary from `to_json`.

        Raises:
          UserError: this is not the JSON of a vocabulary.
        """
        return _checked(parse_json(text, _Saved, name="the vocabulary", remedy=_REMEDY))

    @cached_property
    def _id_of_point(self) -> np.ndarray:
        """Ids by code point, [largest known + 2]; the last entry stands for all larger ones."""
        points = code_points(self.characters)
        table = np.full(int(points.max()) + 2, UNK_ID, self.dtype)
        table[points] = np.arange(1, self.size)
        return table


class _Saved(TypedDict):
    """What `to_dict` returns."""

    kind: Literal["characters", "bytes"]
    characters: str


def _checked(saved: _Saved) -> Vocabulary:
    """Returns a vocabulary after a check that every character has one id."""
    points = code_points(saved["characters"]).astype(np.int64)
    if saved["kind"] == "bytes" and points.size:
        raise UserError(f"the vocabulary of bytes lists {points.size} characters: {_REMEDY}")
    if saved["kind"] == "characters" and not (points.size and (np.diff(points) > 0).all()):
        raise UserError(
            "the vocabulary is damaged (its characters are not in the order of their code points, "
            f"each once): {_REMEDY}"
        )
    return Vocabulary(characters=saved["characters"], kind=saved["kind"])


def code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
