"""`load_run`: opens a run, finished or still in training, to use its model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jax
from ml_collections import ConfigDict

from charrnn_jax.config import from_dict
from charrnn_jax.data.dataset import CorpusIdentity, Dataset, load_dataset
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.protocols import make_protocol
from charrnn_jax.models.char_rnn import CharRNN, Params, initialize_params, make_model
from charrnn_jax.reading import read_json, typed
from charrnn_jax.registry import CELLS, compare_registered
from charrnn_jax.tables import table
from charrnn_jax.workdir.checkpoints import choose_step, exists, read_metadata, read_params
from charrnn_jax.workdir.metadata import Origin, digest_of

_MOST_TRIES = 20  # to open a checkpoint before training deletes it


class EvaluatedText(TypedDict):
    """The text in an entry of `evaluation.json`."""

    sha256: str


class EvaluatedLoss(TypedDict):
    """A loss in an entry of `evaluation.json`."""

    nats_per_char: float
    standard_error: NotRequired[float | None]  # earlier versions lack it, and other models


class Evaluated(TypedDict):
    """What is used of an entry of `evaluation.json`, which has one for each split.

    `losses` has a loss for each protocol, and `baselines` those of models without a network.
    """

    step: int
    corpus: EvaluatedText
    losses: dict[str, EvaluatedLoss]
    baselines: NotRequired[dict[str, EvaluatedLoss]]


@dataclass(frozen=True)
class Run:
    """A trained model and where it comes from, all from one checkpoint.

    Attributes:
      workdir: workdir of the run.
      step: number of training steps before the checkpoint.
      config: config of the run.
      vocabulary: vocabulary of the model.
      corpus: text that the model was trained on.
      model: the model.
      params: parameters of the model.
      loss: validation loss in nats/char, under the protocol of `config.evaluation`; None: not
        measured.
      origin: run whose weights this one started from; None: it started from random weights.
      imported: whether the model was trained elsewhere, on a text that is not known.
    """

    workdir: Path
    step: int
    config: ConfigDict = field(repr=False)
    vocabulary: Vocabulary
    corpus: CorpusIdentity
    model: CharRNN
    params: Params = field(repr=False)
    loss: float | None
    origin: Origin | None = None
    imported: bool = False

    def load_dataset(self, path: str = "") -> Dataset:
        """Reads the text of the run again, and checks that it is the same text.

        Args:
          path: path of the text, if it was moved; "": where it was. For an imported model, any
            text.

        Raises:
          UserError: the text is missing, or is another one.
        """
        if self.imported and not path:
            raise UserError(
                f"the run in {self.workdir} is an imported model, whose text is not known: give "
                "one with --path=TEXT"
            )
        config = self.config.data.copy_and_resolve_references()
        config.path = path or config.path
        recorded = None if self.imported else self.corpus
        return load_dataset(
            config, vocabulary=self.vocabulary, recorded=recorded, path_is_recorded=not path
        )

    def losses(self) -> dict[str, dict[str, float]]:
        """Returns the known losses on the run's own text, as {split: {protocol: nats/char}}.

        Raises:
          UserError: `evaluation.json` is damaged.
        """
        losses: dict[str, dict[str, float]] = {}
        if self.loss is not None:
            losses["validation"] = {make_protocol(self.config.evaluation).label: self.loss}
        for split, entry in self.evaluations().items():
            by_protocol = losses.setdefault(split, {})
            for protocol, loss in entry["losses"].items():
                by_protocol[protocol] = loss["nats_per_char"]
        return losses

    def _repr_html_(self) -> str:
        """Returns what a notebook shows of the run."""
        model = self.model
        losses = [
            (f"{split} loss, {protocol}", f"{nats:.4f} nats/{self.vocabulary.unit}")
            for split, by_protocol in self.losses().items()
            for protocol, nats in by_protocol.items()
        ]
        num_params = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        facts = [
            ("run", f"{self.workdir}, step {self.step:,}"),
            ("text", self.corpus.without_folders().describe()),
            ("vocabulary", f"{self.vocabulary.size:,} {self.vocabulary.kind}, with [UNK]"),
            ("model", f"{model.cell}, {model.num_layers} x {model.hidden_size:,} hidden units"),
            ("parameters", f"{num_params:,}"),
            *losses,
        ]
        return table(facts)

    def config_without_folders(self) -> ConfigDict:
        """Returns a copy of the config for publication: paths are reduced to their last parts."""
        config = self.config.copy_and_resolve_references()
        config.data.path = Path(config.data.path).name
        config.train.init_from = Path(config.train.init_from).name
        return config

    def evaluations(self) -> dict[str, Evaluated]:
        """Returns what `charrnn evaluate` found on the run's own text, by split.

        Raises:
          UserError: `evaluation.json` is damaged.
        """
        file, remedy = self.workdir / "evaluation.json", "delete it, and evaluate again"
        if not file.exists():
            return {}
        saved = read_json(file, dict[str, dict[str, Any]], remedy=remedy)
        evaluated = typed(saved, dict[str, Evaluated], name=str(file), remedy=remedy)
        for entry in saved.values():
            digest = digest_of(entry)
            if entry.get("sha256", digest) != digest:  # earlier versions wrote none
                raise UserError(f"{file} does not match its checksums: {remedy}")
        return {
            split: entry
            for split, entry in evaluated.items()
            if entry["step"] == self.step and entry["corpus"]["sha256"] == self.corpus.sha256
        }


def load_run(workdir: str | Path, *, checkpoint: str | int = "best") -> Run:
    """Opens a run, without reading its text.

    Args:
      workdir: workdir of the run.
      checkpoint: "best" (lowest validation loss, or the latest if there was no validation),
        "latest", or a step.

    Raises:
      UserError: there is no such checkpoint, it is damaged, or its cell is not registered.
    """
    workdir = Path(workdir)
    for _ in range(_MOST_TRIES):
        step = choose_step(workdir, checkpoint)
        try:
            return _open(workdir, step)
        except UserError:
            if exists(workdir, step):
                raise
            # A process that trains this run has saved new checkpoints and deleted this one.
    raise UserError(f"{workdir} is being trained and saves too often to be read: try again")


def _open(workdir: Path, step: int) -> Run:
    metadata = read_metadata(workdir, step)
    compare_registered(metadata.registered, needed=CELLS.field)
    config = from_dict(metadata.config)
    vocabulary = Vocabulary.from_dict(metadata.vocabulary)
    model = make_model(config.model, vocabulary_size=vocabulary.size)
    template = jax.eval_shape(lambda: initialize_params(model, jax.random.key(0)))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(template))
    if metadata.num_params not in (None, num_params):
        raise UserError(
            f"the checkpoint of step {step:,} in {workdir} is damaged (its config describes "
            f"{num_params:,} parameters, but it has {metadata.num_params:,}): choose another with "
            "--checkpoint=STEP"
        )
    return Run(
        workdir=workdir,
        step=step,
        config=config,
        vocabulary=vocabulary,
        corpus=metadata.corpus,
        model=model,
        params=read_params(workdir, step, template=template),
        loss=metadata.loss,
        origin=metadata.origin,
        imported=metadata.imported,
    )
