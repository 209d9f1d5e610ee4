"""`CheckpointMetadata`: what a checkpoint contains besides its arrays."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from charrnn_jax.config import Saved
from charrnn_jax.data.dataset import CorpusIdentity
from charrnn_jax.reading import Count, Finite, typed
from charrnn_jax.registry import Recorded
from charrnn_jax.workdir.json_lines import RowsWritten


class SavedTally(TypedDict):
    """A `Tally` of the recorder, as plain data."""

    nats: Finite
    chars: Count
    timed_chars: Count
    seconds: Finite


class SavedTimeLimit(TypedDict):
    """`TimeLimit.to_dict()`."""

    hook_seconds: dict[str, Finite]
    ended: Finite


class SavedEarlyStopping(TypedDict):
    """`EarlyStopping.to_dict()`."""

    best_step: Count
    best_loss: Finite | None
    num_since: Count


class SavedRecorder(TypedDict):
    """`Recorder.to_dict()`."""

    window: SavedTally
    epoch: SavedTally
    seconds: Finite
    first_loss: NotRequired[Finite | None]  # earlier versions lack this, and the next
    skipped_in_a_row: NotRequired[Count]
    time_limit: NotRequired[SavedTimeLimit]  # only runs with such a limit have this
    early_stopping: NotRequired[SavedEarlyStopping]  # earlier versions lack this


def digest_of(entry: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of plain data in hex, less the field "sha256" that it is kept in."""
    content = {name: value for name, value in entry.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Origin:
    """Another run whose weights a run started from.

    Attributes:
      workdir: workdir of the other run.
      step: step of the other run's checkpoint.
      corpus: text that the other run was trained on.
    """

    workdir: str
    step: Count
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
      data_devices: number of devices that shared a batch; None: earlier versions did not record it.
    """

    step: Count
    config: Saved
    vocabulary: dict[str, str]
    corpus: CorpusIdentity
    loss: float | None = None
    recorder: dict[str, Any] | None = None
    num_params: Count | None = None
    origin: Origin | None = None
    imported: bool = False
    registered: Recorded = field(default_factory=dict)
    rows: dict[str, RowsWritten] = field(default_factory=dict)
    data_devices: Count | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the metadata as plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "CheckpointMetadata":
        """Rebuilds metadata from its `to_dict()`, without fields that this version does not know.

        Raises:
          UserError: this is not the metadata of a checkpoint.
        """
        about = {"name": "the metadata", "remedy": "choose another checkpoint"}
        metadata = typed(saved, cls, **about)
        if metadata.recorder is not None:
            recorder = dict(typed(metadata.recorder, SavedRecorder, **about))
            metadata = replace(metadata, recorder=recorder)
        if "imported" in saved:
            return metadata
        # Before this field existed, an imported model was one whose text had length 0.
        return replace(metadata, imported=metadata.corpus.num_chars == 0)
