"""`import_run`: makes a run from a model that was trained with PyTorch or Keras.

It reads two files: the weights, as plain arrays and never as a pickle, and the characters in the
order of the model's ids. In this package `[UNK]` comes first and then the code points in order, so
rows and columns are reordered; the logits stay the same.
"""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors import safe_open
from safetensors.numpy import load_file

from charrnn_jax.config import default_config, to_json
from charrnn_jax.data.dataset import CorpusIdentity
from charrnn_jax.data.vocabulary import UNK, Vocabulary
from charrnn_jax.errors import UserError, file_error, shortened, shown
from charrnn_jax.files import locked, replacing
from charrnn_jax.models.char_rnn import change_vocabulary, make_model
from charrnn_jax.models.conversion import from_keras, from_pytorch
from charrnn_jax.reading import Count, read_json, read_npz
from charrnn_jax.workdir.checkpoints import Checkpoints, steps
from charrnn_jax.workdir.metadata import CheckpointMetadata
from charrnn_jax.workdir.run import Run, load_run

# Logit of [UNK] for a model without it. exp(-1e4) is 0, so all other probabilities stay the same;
# unlike -inf, it is a finite number, also in gradients.
_IMPOSSIBLE = -1e4

_SAVE_PYTORCH = 'safetensors.torch.save_model(model, "model.safetensors")'
_SAVE_KERAS = 'numpy.savez("model.npz", *model.get_weights())'
_SAVE_VOCABULARY = (
    'json.dump(characters, open("vocabulary.json", "w")), in the TensorFlow tutorial with '
    "characters = ids_from_chars.get_vocabulary()"
)


def import_run(weights: str | Path, vocabulary: str | Path, *, workdir: str | Path) -> Run:
    """Makes a run at step 0, which can be sampled, evaluated, and used to start further training.

    Args:
      weights: path of a .safetensors or .npz file: the state dict of a PyTorch model, see
        `models.conversion.from_pytorch`, or the arrays of a Keras model, see `from_keras`.
      vocabulary: path of a JSON list of the characters in the order of the model's ids, or of an
        object {character: id} or {id: character}; one of the characters may be "[UNK]".
      workdir: workdir of the new run.

    Returns:
      The run, opened from the workdir.

    Raises:
      UserError: a file cannot be used, the two do not fit together, or the workdir already has a
        run. Nothing was written.
    """
    weights, vocabulary, workdir = (
        Path(path).expanduser() for path in (weights, vocabulary, workdir)
    )
    config, known, params = _convert(weights, vocabulary)
    metadata = CheckpointMetadata(
        step=0,
        config=config.to_dict(),
        vocabulary=known.to_dict(),
        corpus=CorpusIdentity(
            name=f"an unknown text (imported from {weights.name})",
            sha256=_sha256(weights),
            num_chars=0,
        ),
        num_params=sum(param.size for param in jax.tree.leaves(params)),
        imported=True,
    )
    with locked(workdir, doing="training"):
        if (workdir / "config.json").exists() or steps(workdir):
            raise UserError(f"{workdir} already holds a run: give another --workdir")
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(jax.device_put(params), None, metadata=metadata)
        with replacing(workdir / "config.json") as partial_file:
            partial_file.write_text(to_json(config) + "\n")
    return load_run(workdir)


def _convert(weights: Path, vocabulary: Path) -> tuple[ConfigDict, Vocabulary, Any]:
    """Returns (config, vocabulary, params) of the model in two files."""
    arrays = _read_arrays(weights)
    # Keras arrays are identified by their order, which a .safetensors file does not keep.
    is_pytorch = weights.suffix == ".safetensors" or any("weight_ih_l0" in name for name in arrays)
    try:
        if is_pytorch:
            settings, params = from_pytorch(arrays, shared=_shares_a_weight(weights))
        else:
            settings, params = from_keras(arrays)
    except UserError as error:
        raise UserError(f"{weights} cannot be imported: {error}") from error
    symbols = _read_symbols(vocabulary)
    size = len(params["embedding"]["embedding"])
    if len(symbols) != size:
        raise UserError(
            f"{vocabulary} lists {len(symbols)} characters, but the model of {weights} has {size} "
            "ids: list one character for each id, in their order"
        )
    known = Vocabulary.build(symbol for symbol in symbols if symbol != UNK)
    ids = {symbol: token for token, symbol in enumerate([UNK, *known.characters])}
    config = default_config()
    config.model.update(settings)
    config.data.corpus = ""
    config.sample.prompt = ""
    model = make_model(config.model, vocabulary_size=known.size)
    without_unk = {
        "embedding": {"embedding": np.zeros((known.size, model.embedding_size), np.float32)},
        "dense": {
            "kernel": np.zeros((model.hidden_size, known.size), np.float32),
            "bias": np.full(known.size, _IMPOSSIBLE, np.float32),
        },
    }
    params = change_vocabulary(
        params,
        tokens=np.arange(size),
        new=without_unk,
        new_tokens=[ids[symbol] for symbol in symbols],
    )
    return config, known, params


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by name; from an .npz file, in the order they were saved in."""
    if not file.is_file():
        raise UserError(f"there is no file {file}: give the file with the model's weights")
    if file.suffix not in (".safetensors", ".npz"):
        raise UserError(
            f"{file} is not a .safetensors or .npz file, and other files are not opened: save the "
            f"weights again, in PyTorch with {_SAVE_PYTORCH}, in Keras with {_SAVE_KERAS}"
        )
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return read_npz(file)
    except Exception as error:  # safetensors and NumPy raise errors of many types
        cause = error.__cause__ if isinstance(error, UserError) else error
        if isinstance(cause, OSError) and cause.errno:  # nothing is wrong with what it holds
            raise file_error(cause, path=file, doing="read") from error
        reason = shortened(str(cause or error))
        raise UserError(
            f"{file} cannot be read ({reason}): save the weights again, as float32"
        ) from error


def _shares_a_weight(file: Path) -> bool:
    """Returns whether `save_model` left out a tensor because it is another one, as it notes."""
    if file.suffix != ".safetensors":
        return False
    with safe_open(file, "numpy") as opened:
        notes, names = opened.metadata() or {}, set(opened.keys())
    return any(kept in names and left_out not in names for left_out, kept in notes.items())


def _in_order(listed: dict[str, str | int], file: Path) -> list[str]:
    """Returns the characters of {character: id} or {id: character} in the order of their ids."""
    if all(isinstance(value, str) for value in listed.values()):
        by_id = {int(token): str(symbol) for token, symbol in listed.items() if _is_id(token)}
    else:
        by_id = {token: symbol for symbol, token in listed.items() if isinstance(token, int)}
    if by_id.keys() != set(range(len(listed))):
        raise UserError(
            f"{file} is not a JSON list of strings, and as an object it does not give each of its "
            f"characters one id from 0 to {len(listed) - 1}: write it with {_SAVE_VOCABULARY}"
        )
    return [by_id[token] for token in range(len(listed))]


def _is_id(token: str) -> bool:
    return token.isdecimal() and len(token) < 10


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _read_symbols(file: Path) -> list[str]:
    """Returns the characters of a model, with `[UNK]` if it has one, in the order of its ids."""
    remedy = f"write it with {_SAVE_VOCABULARY}"
    shape: Any = list[str] | dict[str, str | Count]
    listed = read_json(file, shape, remedy=remedy)
    symbols = listed if isinstance(listed, list) else _in_order(listed, file)
    if longer := [symbol for symbol in symbols if len(symbol) != 1 and symbol != UNK]:
        raise UserError(
            f"{file} has tokens that are not single characters: "
            f"{', '.join(map(shown, longer[:8]))}; the token for unknown characters must be named "
            f"{UNK!r}, and a model with other such tokens cannot be imported"
        )
    if twice := [symbol for symbol, count in Counter(symbols).items() if count > 1]:
        raise UserError(
            f"{file} lists {', '.join(map(repr, twice[:8]))} more than once: list each once"
        )
    return symbols
