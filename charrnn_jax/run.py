"""`load_run`: opens a finished or running training for everything that comes after it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from charrnn_jax.config import from_dict
from charrnn_jax.data.dataset import Dataset, describe_corpus, load_dataset
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.protocols import label
from charrnn_jax.models.char_rnn import CharRNN, initialize_params, make_model
from charrnn_jax.training.checkpoints import choose_step, read_metadata, read_params


@dataclass(frozen=True)
class Run:
    """A trained model and where it comes from; all of it out of one checkpoint.

    Attributes:
      workdir: of the run.
      step: of the checkpoint.
      config: of the run.
      vocabulary: of the model.
      corpus: what it was trained on; `data.dataset.Dataset.identity()`. An imported model's text is
        not known: num_chars is 0, and sha256 that of the file of weights.
      model: the module.
      params: its parameters.
      loss: of the checkpoint on the validation split, in nats/char by the protocol of
        `config.evaluation`; None: it was not measured.
      started_from: another run, in words, whose weights this one began with.
    """

    workdir: Path
    step: int
    config: ConfigDict
    vocabulary: Vocabulary
    corpus: dict[str, Any]
    model: CharRNN
    params: Any
    loss: float | None
    started_from: str = ""

    def load_dataset(self, path: str = "") -> Dataset:
        """Reads the text of the run again, and makes sure that it is the same.

        Args:
          path: where the text is now; "": where it was. For an imported model any text will do.

        Raises:
          UserError: the text is not there any more, or is another one.
        """
        imported = not self.corpus["num_chars"]
        if imported and not path:
            raise UserError(
                f"the run in {self.workdir} is an imported model, whose text is not known: give "
                "one with --path=TEXT"
            )
        config = self.config.data.copy_and_resolve_references()
        config.path = path or config.path
        recorded = None if imported else self.corpus
        return load_dataset(config, vocabulary=self.vocabulary, recorded=recorded)

    def losses(self) -> dict[str, dict[str, float]]:
        """Returns what was measured of the checkpoint on its own text, as nats/char by protocol by
        split.

        Raises:
          UserError: `evaluation.json` is damaged.
        """
        losses: dict[str, dict[str, float]] = {}
        if self.loss is not None:
            settings = self.config.evaluation
            losses["validation"] = {label(settings.protocol, window=settings.window): self.loss}
        file = self.workdir / "evaluation.json"
        try:
            evaluated = json.loads(file.read_text()) if file.exists() else {}
            for split, entry in evaluated.items():
                same_text = entry["corpus"]["sha256"] == self.corpus["sha256"]
                if entry["step"] == self.step and same_text:
                    by_protocol = losses.setdefault(split, {})
                    for protocol, loss in entry["losses"].items():
                        by_protocol[protocol] = float(loss["nats_per_char"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{file} is damaged: delete it, and evaluate again") from error
        return losses

    def public_corpus(self) -> dict[str, Any]:
        """Returns `corpus` as others may see it: an own text by the name of its file alone."""
        return _public(self.corpus)


def load_run(workdir: str | Path, *, checkpoint: str | int = "best") -> Run:
    """Opens a run; does not read its text.

    Args:
      workdir: of the run.
      checkpoint: "best" (lowest validation loss; the latest if there was no validation), "latest",
        or a step.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    workdir = Path(workdir)
    step = choose_step(workdir, checkpoint)
    metadata = read_metadata(workdir, step)
    config = from_dict(metadata["config"])
    vocabulary = Vocabulary.from_dict(metadata["vocabulary"])
    model = make_model(config.model, vocabulary_size=vocabulary.size)
    template = jax.eval_shape(lambda: initialize_params(model, jax.random.key(0)))
    params = read_params(workdir, step, template=template)
    return Run(
        workdir,
        step,
        config,
        vocabulary,
        metadata["corpus"],
        model,
        params,
        loss=metadata["loss"],
        started_from=_describe_origin(metadata.get("origin")),
    )


def _describe_origin(origin: dict[str, Any] | None) -> str:
    if not origin:
        return ""
    name, text = Path(origin["workdir"]).name, _public(origin["corpus"])
    return f"{name}, step {origin['step']:,}, trained on {describe_corpus(text)}"


def _public(corpus: dict[str, Any]) -> dict[str, Any]:
    """Without the folders of an own text, which are nobody else's business."""
    return {**corpus, "name": Path(corpus["name"]).name}
