"""`judgement.json`: how good the text of a run is, as `charrnn judge` has found."""

import json
from dataclasses import asdict
from typing import Any, TypedDict

from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.samples import FIGURES, Judgement
from charrnn_jax.files import replacing
from charrnn_jax.reading import Count, Sha256, read_json, typed
from charrnn_jax.workdir.metadata import digest_of
from charrnn_jax.workdir.run import Run

JUDGEMENT_FILE = "judgement.json"
_REMEDY = "delete it, and judge again"


class Saved(TypedDict):
    """Content of `judgement.json`.

    `step` is that of the checkpoint, and `prompt` is the text that every text continues.
    """

    step: Count
    prompt: str
    judgement: dict[str, Any]
    sha256: Sha256


def save_judgement(run: Run, judgement: Judgement, *, prompt: str) -> None:
    """Writes what was found of texts that the checkpoint of a run has written."""
    entry = {"step": run.step, "prompt": prompt, "judgement": asdict(judgement)}
    with replacing(run.workdir / JUDGEMENT_FILE) as partial:
        partial.write_text(json.dumps({**entry, "sha256": digest_of(entry)}, indent=2) + "\n")


def read_judgement(run: Run) -> tuple[Judgement, str] | None:
    """Returns what was found and the prompt; None if this checkpoint was not judged.

    Raises:
      UserError: `judgement.json` is damaged.
    """
    file = run.workdir / JUDGEMENT_FILE
    if not file.exists():
        return None
    saved = read_json(file, Saved, remedy=_REMEDY)
    if saved["sha256"] != digest_of(saved):
        raise UserError(f"{file} does not match its checksum: {_REMEDY}")
    if saved["step"] != run.step:
        return None
    judgement = typed(saved["judgement"], Judgement, name=str(file), remedy=_REMEDY)
    for texts in (judgement.real, *judgement.groups.values()):
        if missing := FIGURES.keys() - texts.figures.keys():
            raise UserError(f"{file} lacks {min(missing)}: {_REMEDY}")
    return judgement, saved["prompt"]
