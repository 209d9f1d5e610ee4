"""Starts a new run from the weights of another run, usually on another text.

The recurrent layers are copied. In the embedding and the dense layer, the rows and columns of
`[UNK]` and of characters that both texts have are copied. A new character keeps its initial values,
and a character that only the old text has is dropped.
"""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.models.char_rnn import Params, change_vocabulary
from charrnn_jax.processes import say_once
from charrnn_jax.workdir.checkpoints import steps
from charrnn_jax.workdir.metadata import Origin
from charrnn_jax.workdir.run import load_run

_MUST_AGREE = (
    *("cell", "embedding_size", "hidden_size", "num_layers"),
    *("residual", "readout", "output_embedding", "embedding_rank"),
)


def warm_start(
    new_params: Params, workdir: str | Path, *, config: ConfigDict, vocabulary: Vocabulary
) -> tuple[Any, Origin]:
    """Takes the weights of the best checkpoint of another run, and prints what was kept.

    Args:
      new_params: initial parameters of the new run, kept for characters that the other run lacks.
      workdir: workdir of the other run.
      config: the `config.model` section of the new run.
      vocabulary: vocabulary of the new run.

    Returns:
      (params, where they come from).

    Raises:
      UserError: there is no such run, or it has another model or kind of vocabulary.
    """
    workdir = Path(workdir).expanduser()
    if not steps(workdir):
        raise UserError(
            f"config.train.init_from is {str(workdir)!r}, which has no checkpoint: give the "
            "workdir of a run"
        )
    run = load_run(workdir)
    theirs, old = run.config.model, run.vocabulary
    differing = [name for name in _MUST_AGREE if theirs[name] != config[name]]
    if differing:
        values = (f"{name} is {config[name]!r}, not {theirs[name]!r}" for name in differing)
        flags = (f"--config.model.{name}={theirs[name]}" for name in differing)
        raise UserError(
            f"config.model differs from that of the run {workdir} to start from "
            f"({'; '.join(values)}): set {' '.join(flags)}, or another --config.train.init_from"
        )
    if old.kind != vocabulary.kind:
        raise UserError(
            f"config.data.vocabulary is {vocabulary.kind!r}, but the run {workdir} to start from "
            f"has {old.kind!r}: set --config.data.vocabulary={old.kind}, or another "
            "--config.train.init_from"
        )
    kept: str | bytes
    if vocabulary.kind == "bytes":
        kept, added, dropped = bytes(range(256)), "", ""
    else:
        before, now = set(old.characters), set(vocabulary.characters)
        kept, added, dropped = (
            "".join(sorted(chars)) for chars in (now & before, now - before, before - now)
        )
    params = change_vocabulary(
        jax.device_get(run.params),
        tokens=[UNK_ID, *old.encode(kept)],
        new=new_params,
        new_tokens=[UNK_ID, *vocabulary.encode(kept)],
    )
    say_once(
        f"Initialised from {workdir}, step {run.step:,}: {len(kept)} {vocabulary.kind} kept, "
        f"{_listing(added)} new, {_listing(dropped)} dropped"
    )
    return jax.device_put(params), Origin(str(workdir), run.step, run.corpus)


def _listing(chars: str) -> str:
    """Returns the number of characters and the first of them, such as "9 ('a', 'b', ...)"."""
    named = ", ".join([*map(repr, chars[:8]), *["..."] * bool(chars[8:])])
    return f"{len(chars)} ({named})" if chars else "0"
