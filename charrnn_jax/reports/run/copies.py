"""`Copies`: which spans of samples stand in the training text of a run."""

from collections.abc import Sequence

from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.copies import Span, copied_spans, longest_matches
from charrnn_jax.reports.document import Mark
from charrnn_jax.workdir.run import Run

SHORTEST_COPY = 30  # characters of a copied span that is marked


class Copies:
    """Finds copied spans, and remembers them: a report that is written again has few new samples.

    The training text is read when it is first needed.

    Args:
      run: the run.
      path: path of its text, if it was moved; "": where it was. For an imported model, a text to
        look in instead of the one that is not known.
    """

    def __init__(self, run: Run, *, path: str = ""):
        self._run = run
        self._path = path
        self._text: str | None = None
        self._is_missing = run.imported and not path
        self._found: dict[str, list[Mark]] = {}

    def marks(self, samples: Sequence[str]) -> list[list[Mark]] | None:
        """Returns the marks of each sample; None if the training text is not there.

        Raises:
          UserError: the path was given, and is not the text of the run.
        """
        if new := [text for text in samples if text not in self._found]:
            if (training_text := self._read()) is None:
                return None
            for text, matches in zip(new, longest_matches(new, training_text), strict=True):
                spans = copied_spans(matches, at_least=SHORTEST_COPY)
                self._found[text] = _to_marks(spans, training_text)
        return [self._found[text] for text in samples]

    def _read(self) -> str | None:
        if self._text is None and not self._is_missing:
            try:
                dataset = self._run.load_dataset(self._path)
            except (UserError, OSError):
                if self._path:
                    raise
                self._is_missing = True
                return None
            self._text = self._run.vocabulary.decode(dataset.splits["train"])
        return self._text


def _to_marks(spans: Sequence[Span], training_text: str) -> list[Mark]:
    """Returns marks that do not overlap, of spans that may."""
    marks, end = [], 0
    for span in spans:
        start, stop = max(span.start, end), span.start + span.length
        if stop > start:
            place = span.place + start - span.start
            line = training_text.count("\n", 0, place) + 1
            note = f"from character {place:,}, line {line:,}, of the training text"
            marks.append(Mark(start, stop - start, note))
            end = stop
    return marks
