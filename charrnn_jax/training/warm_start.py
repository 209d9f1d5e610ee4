"""A new run that starts from the weights of another one, on another text.

The recurrent layers are taken over whole. Of the embedding and the dense layer so are the rows and
columns of the characters that both texts have, and of `[UNK]`; a new character keeps the values
drawn for it, a dropped one is gone.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from charrnn_jax.config import from_dict
from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.models.char_rnn import change_vocabulary, initialize_params, make_model
from charrnn_jax.training.checkpoints import choose_step, read_metadata, read_params, steps
from charrnn_jax.training.devices import say_once
from charrnn_jax.training.train_step import TrainState

_MUST_AGREE = ("cell", "embedding_size", "hidden_size", "num_layers")


def warm_start(
    state: TrainState, workdir: str | Path, *, config: ConfigDict, vocabulary: Vocabulary
) -> tuple[TrainState, dict[str, Any]]:
    """Gives a new state the weights of the best checkpoint of another run; prints what was kept.

    Args:
      state: before the first step; all but its parameters stays.
      workdir: of the other run.
      config: the `config.model` section of the new run.
      vocabulary: of the new run.

    Returns:
      (state, where its weights come from as plain data for JSON: workdir, step, corpus).

    Raises:
      UserError: there is no such run, or its model or kind of vocabulary is another.
    """
    workdir = Path(workdir).expanduser()
    if not steps(workdir):
        raise UserError(
            f"config.train.init_from is {str(workdir)!r}, which holds no checkpoint: give the "
            "workdir of a run"
        )
    step = choose_step(workdir, "best")
    metadata = read_metadata(workdir, step)
    old_config = from_dict(metadata["config"]).model
    differing = [name for name in _MUST_AGREE if old_config[name] != config[name]]
    if differing:
        values = (f"{name} is {config[name]!r}, there {old_config[name]!r}" for name in differing)
        flags = (f"--config.model.{name}={old_config[name]}" for name in differing)
        raise UserError(
            f"config.model is not the model of the run {workdir} to start from ({'; '.join(values)}"
            f"): set {' '.join(flags)}, or another --config.train.init_from"
        )
    old = Vocabulary.from_dict(metadata["vocabulary"])
    if old.kind != vocabulary.kind:
        raise UserError(
            f"config.data.vocabulary is {vocabulary.kind!r}, but {old.kind!r} in the run {workdir} "
            f"to start from: set --config.data.vocabulary={old.kind}, or another "
            "--config.train.init_from"
        )
    model = make_model(old_config, vocabulary_size=old.size)
    template = jax.eval_shape(lambda: initialize_params(model, jax.random.key(0)))
    params = jax.device_get(read_params(workdir, step, template=template))
    kept: str | bytes
    if vocabulary.kind == "bytes":
        kept, added, dropped = bytes(range(256)), "", ""
    else:
        before, now = set(old.characters), set(vocabulary.characters)
        kept, added, dropped = (
            "".join(sorted(chars)) for chars in (now & before, now - before, before - now)
        )
    params = change_vocabulary(
        params,
        tokens=[UNK_ID, *old.encode(kept)],
        new=state.params,
        new_tokens=[UNK_ID, *vocabulary.encode(kept)],
    )
    say_once(
        f"Initialised from {workdir}, step {step:,}: {len(kept)} {vocabulary.kind} kept, "
        f"{_listing(added)} new, {_listing(dropped)} dropped"
    )
    origin = {"workdir": str(workdir), "step": step, "corpus": metadata["corpus"]}
    return replace(state, params=jax.device_put(params)), origin


def _listing(chars: str) -> str:
    """Returns how many they are, and the first: 9 ('a', 'b', ...)."""
    named = ", ".join([*map(repr, chars[:8]), *["..."] * bool(chars[8:])])
    return f"{len(chars)} ({named})" if chars else "0"
