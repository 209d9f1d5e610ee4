"""Numbers of dynamic evaluation that were tuned for a run, in `dynamic.json` in its workdir."""

import json
import warnings
from dataclasses import replace
from typing import Annotated, TypedDict

import msgspec

from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.dynamic import Dynamic
from charrnn_jax.evaluation.protocol import Protocol
from charrnn_jax.evaluation.protocols import make_protocol
from charrnn_jax.files import replacing
from charrnn_jax.reading import Count, Sha256, read_json
from charrnn_jax.workdir.metadata import digest_of
from charrnn_jax.workdir.run import Run

TUNED_FILE = "dynamic.json"
_REMEDY = "delete it, and tune again"


class Tuned(TypedDict):
    """Content of `dynamic.json`; `step` is that of the checkpoint, other fields as in `Dynamic`."""

    step: Count
    rate: Annotated[float, msgspec.Meta(ge=0, le=1e6)]
    decay: Annotated[float, msgspec.Meta(ge=0, le=1)]
    epsilon: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    segment: Annotated[int, msgspec.Meta(ge=1, le=2**20)]
    sha256: Sha256


def tuned_protocol(run: Run, name: str = "") -> Protocol:
    """Returns a protocol with the settings of a run, and the numbers that were tuned for it.

    Args:
      run: the run.
      name: name of the protocol; "": the one that the config names.

    Raises:
      UserError: no protocol has this name, or `dynamic.json` is damaged.
    """
    protocol = make_protocol(run.config.evaluation, name)
    return tuned_dynamic(run) if isinstance(protocol, Dynamic) else protocol


def tuned_dynamic(run: Run) -> Dynamic:
    """Returns dynamic evaluation with the numbers tuned for a checkpoint, or those of the config.

    Raises:
      UserError: `dynamic.json` is damaged.
    """
    protocol, file = Dynamic.from_config(run.config.evaluation), run.workdir / TUNED_FILE
    if not file.exists():
        return protocol
    saved = read_json(file, Tuned, remedy=_REMEDY)
    if saved["sha256"] != digest_of(saved):
        raise UserError(f"{file} does not match its checksum: {_REMEDY}")
    if saved["step"] != run.step:
        warnings.warn(
            f"{file} was tuned for step {saved['step']:,} and is not used for step {run.step:,}: "
            "tune again with --tune",
            stacklevel=2,
        )
        return protocol
    return replace(
        protocol,
        rate=saved["rate"],
        decay=saved["decay"],
        epsilon=saved["epsilon"],
        segment=saved["segment"],
    )


def save_tuned(run: Run, protocol: Dynamic) -> None:
    """Writes the numbers that were tuned for the checkpoint of a run."""
    entry = {"step": run.step, **protocol.to_dict()}
    with replacing(run.workdir / TUNED_FILE) as partial:
        partial.write_text(json.dumps({**entry, "sha256": digest_of(entry)}, indent=2) + "\n")
