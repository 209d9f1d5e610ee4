"""`Writer`: turns the tokens drawn for one row into a text, and finds where it ends."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.tables import quote, table


class Sample(NamedTuple):
    """A prompt and the text that the model wrote after it.

    Attributes:
      prompt: the prompt, as given.
      text: text after the prompt.
      finish: why the text ended: "length", "stop" (before a stop string, which is not part of the
        text), "match" (the end of the pattern was drawn; a text of full length may match, too) or
        "interrupted".
      num_chars: number of characters in the text (for a vocabulary of bytes: bytes).
      nats_per_char: mean loss under the model itself, without any rules; NaN for an empty text.
      stop: the stop string that was found; "": none.
    """

    prompt: str
    text: str
    finish: str
    num_chars: int
    nats_per_char: float
    stop: str = ""

    def _repr_html_(self) -> str:
        """Returns what a notebook shows of the sample."""
        loss = f"{self.nats_per_char:.4f} under the model itself" if self.num_chars else "none"
        facts = [("length", f"{self.num_chars:,}"), ("loss in nats", loss), ("end", self.finish)]
        return quote(self.text, prompt=self.prompt) + table(facts)


class Writer:
    """Collects tokens until the text is long enough, has a stop string, or the pattern ends.

    What may be the beginning of a stop string is held back until more tokens decide it.

    Args:
      vocabulary: vocabulary of the tokens.
      num_chars: largest number of tokens.
      stop: strings before which the text ends.
      context: [n] last tokens of the text that this one continues, if it is one part of several.
        The first piece then completes the last character of that text, and an unfinished character
        at the end is left to the next part.

    Attributes:
      tokens: ids of the text so far, without those that are held back.
      finish: see `Sample`; "" until the text ends.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        num_chars: int,
        stop: Sequence[str] = (),
        context: np.ndarray | None = None,
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
        self._is_whole = context is None
        if context is not None:
            self._decode(context)

    def add(self, tokens: np.ndarray, log_probabilities: np.ndarray) -> str:
        """Adds the next tokens, [n] each, and returns the text that is certain now."""
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
        if found:  # the stop string that is complete first
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
        """Ends the text before anything that is held back."""
        self.finish = "interrupted"

    def sample(self, prompt: str) -> Sample:
        """Returns the text so far."""
        num_chars = len(self.tokens)
        losses = np.concatenate([*self._losses, np.zeros(0)])[:num_chars]
        loss = float(losses.mean(dtype=np.float64)) if num_chars else float("nan")
        text = self.vocabulary.decode(self.tokens)
        stop = self.vocabulary.decode(_as_tokens(self.stopped_by))
        return Sample(prompt, text, self.finish, num_chars, loss, stop)


def encode_stop(stop: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """Returns stop strings as strings of ids, see `_as_text`.

    Raises:
      UserError: a stop string is empty, or has characters that the model does not know.
      TypeError: `stop` is a single text.
    """
    if isinstance(stop, str):
        raise TypeError("stop is a single text; give a list of texts: [stop]")
    if not all(stop):
        raise UserError("a stop string is empty: give at least one character")
    try:
        return [_as_text(vocabulary.encode(text)) for text in stop]
    except UserError as error:
        raise UserError(f"a stop string has characters {error}") from error


def _as_text(tokens: np.ndarray) -> str:
    """Returns a string with the ids as code points, since Python searches strings fast."""
    return "".join(map(chr, tokens.tolist()))


def _as_tokens(text: str) -> np.ndarray:
    return np.array([ord(char) for char in text], np.int64)
