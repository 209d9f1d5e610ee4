"""`CheckpointMetadata`: what a checkpoint contains besides its arrays."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from charrnn_jax.data.dataset import CorpusIdentity
from charrnn_jax.registry import Recorded
from charrnn_jax.workdir.json_lines import RowsWritten


@dataclass(frozen=True)
class Origin:
    """Another run whose weights a run started from.

    Attributes:
      workdir: workdir of the other run.
      step: step of the other run's checkpoint.
      corpus: text that the other run was trained on.
    """

    workdir: str
    step: int
    corpus: CorpusIdentity

    def describe(self) -> str:
        """Returns the origin in words, without the folders of this machine."""
        text = self.corpus.without_folders().describe()
        return f"{Path(self.workdir).name}, step {self.step:,}, trained on {text}"


@dataclass(frozen=True)
class CheckpointMetadata:
    """Everything that is needed to resume a run, or to use its model without its text.

    Attributes:
      step: number of training steps done.
      config: the config as plain data, `ConfigDict.to_dict()`.
      vocabulary: the vocabulary as plain data, `Vocabulary.to_dict()`.
      corpus: text that the run is trained on.
      loss: validation loss in nats/char, under the config's protocol; None: not measured.
      recorder: state of the recorder, `Recorder.to_dict()`; None: the model was not trained here.
      num_params: number of model parameters; None: not recorded.
      origin: run whose weights this one started from; None: it started from random weights.
      imported: whether the model was trained elsewhere, so that the run cannot be resumed.
      registered: files that registered the names in the config, see `registry`.
      rows: what the files of rows held, by their names.
    """

    step: int
    config: dict[str, Any]
    vocabulary: dict[str, Any]
    corpus: CorpusIdentity
    loss: float | None = None
    recorder: dict[str, Any] | None = None
    num_params: int | None = None
    origin: Origin | None = None
    imported: bool = False
    registered: Recorded = field(default_factory=dict)
    rows: dict[str, RowsWritten] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns the metadata as plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "CheckpointMetadata":
        """Rebuilds metadata from its `to_dict()`, without fields that this version does not know.

        Raises:
          KeyError, TypeError: this is not the metadata of a checkpoint.
        """
        known = {f.name: saved[f.name] for f in fields(cls) if f.name in saved}
        corpus = CorpusIdentity(**saved["corpus"])
        origin = saved.get("origin")
        if origin:
            origin = Origin(**{**origin, "corpus": CorpusIdentity(**origin["corpus"])})
        rows = {name: RowsWritten(**held) for name, held in saved.get("rows", {}).items()}
        # Before this field existed, an imported model was one whose text had length 0.
        imported = saved.get("imported", corpus.num_chars == 0)
        rebuilt = {"corpus": corpus, "origin": origin or None, "imported": imported, "rows": rows}
        return cls(**{**known, **rebuilt})
