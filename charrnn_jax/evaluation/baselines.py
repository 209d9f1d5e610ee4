"""Baselines: what counting and compressing achieve on a split, to compare a network with.

They see the training text that the network was trained on, and are scored on the same characters of
the split. Large texts are cut to a size that takes seconds, and a baseline says so. This module
knows tokens, a vocabulary and protocols, but not how the network scores.
"""

import math
from dataclasses import dataclass

import numpy as np

from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.evaluation.compressors import compressed_sizes
from charrnn_jax.evaluation.dynamic import Dynamic
from charrnn_jax.evaluation.metrics import CrossEntropy
from charrnn_jax.evaluation.ngram import KneserNey
from charrnn_jax.evaluation.protocol import Protocol
from charrnn_jax.evaluation.protocols import Carried, Cold

ORDER = 6  # characters of context
MOST_COUNTED = 5_000_000  # characters of the training text that are counted
_MOST_READ = 10_000_000  # characters of a split that are counted while they are read
_COMPRESSED = (2_000_000, 1_000_000)  # characters of the training text, and of the split
_FEWEST_BYTES = 100  # in fewer, headers and the ends of blocks count for more than the text


@dataclass(frozen=True)
class Baseline:
    """The loss of a baseline.

    Attributes:
      label: name under which it is reported.
      loss: the loss.
      note: which part of the texts was used; "": all of them.
    """

    label: str
    loss: CrossEntropy
    note: str = ""

    def to_dict(self) -> dict[str, float | str]:
        """Returns the mean loss, the number of characters and the note, as data for JSON."""
        return {**self.loss.to_dict(), "note": self.note}


def fit_ngram(
    train: np.ndarray, *, vocabulary: Vocabulary, order: int = ORDER, most: int = MOST_COUNTED
) -> tuple[KneserNey, str]:
    """Counts a training text, or its end if it is large.

    Args:
      train: [num_chars] ids.
      vocabulary: vocabulary of the ids.
      order: number of characters of context.
      most: number of characters that are counted at most.

    Returns:
      (the model, which part it has counted; "" for all of it).
    """
    model = KneserNey.fit(train[-most:], order=order, vocabulary_size=vocabulary.size)
    return model, _last_of(len(train), most, vocabulary)


def matching_losses(ngram: KneserNey, tokens: np.ndarray, protocol: Protocol) -> np.ndarray | None:
    """Scores a text with the context that a protocol gives to a network.

    Args:
      ngram: the n-gram model.
      tokens: [1 + num_chars] ids; the first is only context.
      protocol: the protocol.

    Returns:
      [num_chars] losses in nats; None if an n-gram model has nothing like this protocol.
    """
    if isinstance(protocol, Cold):
        return ngram.losses(tokens, window=protocol.window)
    if isinstance(protocol, Carried):
        return ngram.losses(tokens)
    if isinstance(protocol, Dynamic):
        return ngram.losses_while_reading(tokens)
    return None


def ngram_baselines(
    ngram: KneserNey,
    tokens: np.ndarray,
    *,
    protocols: list[Protocol],
    is_read: bool = True,
    note: str = "",
) -> list[Baseline]:
    """Scores a split under protocols, and while counting it.

    Args:
      ngram: the n-gram model of the training text.
      tokens: [1 + num_chars] ids; the first is only context.
      protocols: the protocols; one without a counterpart is left out.
      is_read: whether to score a model that is updated while it reads, too.
      note: which part of the training text was counted.

    Returns:
      A baseline for each protocol, and one for the model that is updated while it reads, unless
      the split is larger than 10 million characters.
    """
    name = f"kneser-ney-{ngram.order}"
    baselines = []
    for protocol in protocols:
        losses = None if isinstance(protocol, Dynamic) else matching_losses(ngram, tokens, protocol)
        if losses is not None:
            baselines.append(Baseline(f"{name} {protocol.label}", CrossEntropy.of(losses), note))
    if is_read and len(tokens) <= _MOST_READ:
        losses = ngram.losses_while_reading(tokens)
        baselines.append(Baseline(f"{name} updated while reading", CrossEntropy.of(losses), note))
    return baselines


def compressor_baselines(
    train: np.ndarray, tokens: np.ndarray, *, vocabulary: Vocabulary
) -> list[Baseline]:
    """Compresses the training text with and without the split after it.

    Args:
      train: [num_chars] ids of the training text.
      tokens: [1 + num_chars] ids; the first is not counted.
      vocabulary: vocabulary of the ids.

    Returns:
      For each compressor, the bits that the split adds, the best one first; none for a compressor
      to which it adds less than 100 bytes. Characters are compressed as UTF-8.
    """
    most_train, most_split = _COMPRESSED
    parts = [_last_of(len(train), most_train, vocabulary)]
    if len(tokens) - 1 > most_split:
        parts.append(f"the first {most_split:,} {vocabulary.kind} of the split")
    split = tokens[1 : most_split + 1]
    sizes = compressed_sizes(
        _as_bytes(split, vocabulary), before=_as_bytes(train[-most_train:], vocabulary)
    )
    note = " and ".join(filter(None, parts))
    return [
        Baseline(name, CrossEntropy(8 * size * math.log(2), len(split)), note)
        for name, size in sorted(sizes.items(), key=lambda item: item[1])
        if size >= _FEWEST_BYTES
    ]


def _last_of(length: int, most: int, vocabulary: Vocabulary) -> str:
    return f"the last {most:,} of {length:,} {vocabulary.kind} of train" if length > most else ""


def _as_bytes(tokens: np.ndarray, vocabulary: Vocabulary) -> bytes:
    if vocabulary.kind == "bytes":
        return (tokens - 1).astype(np.uint8).tobytes()
    return vocabulary.decode(tokens).encode()
