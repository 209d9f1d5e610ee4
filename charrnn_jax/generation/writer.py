"""`Writer`: one row of drawn tokens becomes a text, up to where it ends."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.errors import UserError


class Sample(NamedTuple):
    """A prompt and the text that the model wrote behind it.

    Attributes:
      prompt: as it was given.
      text: behind the prompt.
      finish: why the text ends: "length", "stop" (a stop string came, which is not in the text),
        "match" (the pattern's end was drawn; a text of full length may match, too) or
        "interrupted".
      num_chars: of the text (for a vocabulary of bytes: bytes).
      nats_per_char: its loss by the model itself, whatever the rules; nan for an empty text.
      stop: the stop string that came.
    """

    prompt: str
    text: str
    finish: str
    num_chars: int
    nats_per_char: float
    stop: str = ""


class Writer:
    """Collects tokens until there are enough, a stop string came, or the pattern ended.

    What may be the beginning of a stop string is held back until it is known not to be one.

    Args:
      vocabulary: of the tokens.
      num_chars: tokens at most.
      stop: strings before which the text ends.
      behind: tokens of a text that this one goes on with, and that may be gone on with: the pieces
        then complete its last character, and leave an unfinished one of theirs to what comes.

    Attributes:
      tokens: of the text so far; none that is held back.
      finish: see `Sample`; "" while the text goes on.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        num_chars: int,
        stop: Sequence[str] = (),
        behind: np.ndarray | None = None,
    ):
        self.vocabulary = vocabulary
        self.num_chars = num_chars
        self.stop = encode_stop(stop, vocabulary)
        self.stopped_by = ""
        self.tokens: list[int] = []
        self.finish = ""
        self._held = ""
        self._losses: list[np.ndarray] = []
        self._decode = vocabulary.make_decoder()
        self._is_whole = behind is None
        if behind is not None:
            self._decode(behind)

    def add(self, tokens: np.ndarray, log_probabilities: np.ndarray) -> str:
        """Takes the next tokens, [n] each, and returns the text that they make certain."""
        if self.finish:
            return ""
        num_known = len(self.tokens) + len(self._held)
        tokens = tokens[: self.num_chars - num_known]
        self._losses.append(-log_probabilities)
        if num_known + len(tokens) == self.num_chars:
            self.finish = "length"
        if (ends := np.flatnonzero(tokens == UNK_ID)).size:
            tokens = tokens[: ends[0]]
            self.finish = "match"
        text = self._held + _as_text(tokens)
        found = [(at + len(stop), at, stop) for stop in self.stop if (at := text.find(stop)) >= 0]
        if found:  # the one that is complete first
            self.finish = "stop"
            _, at, self.stopped_by = min(found)
            text, self._held = text[:at], ""
        elif self.finish:
            self._held = ""
        else:
            at = len(text) - self._num_to_hold(text)
            text, self._held = text[:at], text[at:]
        return self._write(text)

    def _num_to_hold(self, text: str) -> int:
        """Returns the length of the longest end of the text that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self.stop), default=0)
        for at in range(max(0, len(text) - longest), len(text)):
            if any(stop.startswith(text[at:]) for stop in self.stop):
                return len(text) - at
        return 0

    def _write(self, text: str) -> str:
        new = _as_tokens(text)
        self.tokens += new.tolist()
        is_last = self.finish and self._is_whole
        return self._decode(new) + (self._decode(None) if is_last else "")

    def interrupt(self) -> None:
        """Ends the text before what is held back."""
        self.finish = "interrupted"

    def sample(self, prompt: str) -> Sample:
        """Returns the text as it is now."""
        num_chars = len(self.tokens)
        losses = np.concatenate([*self._losses, np.zeros(0)])[:num_chars]
        loss = float(losses.mean(dtype=np.float64)) if num_chars else float("nan")
        text = self.vocabulary.decode(self.tokens)
        stop = self.vocabulary.decode(_as_tokens(self.stopped_by))
        return Sample(prompt, text, self.finish, num_chars, loss, stop)


def encode_stop(stop: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """Returns stop strings as strings of ids, see `_as_text`.

    Raises:
      UserError: an empty one, or one with characters that the model does not know.
      TypeError: `stop` is one string.
    """
    if isinstance(stop, str):
        raise TypeError("stop is one text; give a list of texts: [stop]")
    if not all(stop):
        raise UserError("a stop string is empty: give at least one character")
    try:
        return [_as_text(vocabulary.encode(text)) for text in stop]
    except UserError as error:
        raise UserError(f"a stop string has characters {error}") from error


def _as_text(tokens: np.ndarray) -> str:
    """A string whose characters have the ids as code points: Python searches strings fast."""
    return "".join(map(chr, tokens.tolist()))


def _as_tokens(text: str) -> np.ndarray:
    return np.array([ord(char) for char in text], np.int64)
