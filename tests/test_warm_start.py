import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import SENTENCE
from helpers import assert_bitwise_equal
from ml_collections import ConfigDict

from charrnn_jax.config import default_config
from charrnn_jax.data.dataset import CorpusIdentity
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.models.char_rnn import make_model
from charrnn_jax.training.loop import train
from charrnn_jax.training.train_step import TrainState, create_train_state
from charrnn_jax.training.warm_start import warm_start
from charrnn_jax.workdir.checkpoints import Checkpoints, read_metadata
from charrnn_jax.workdir.metadata import CheckpointMetadata, Origin
from charrnn_jax.workdir.run import load_run

OTHER_TEXT = SENTENCE.replace(";", "é").replace("b", "ß")  # without ; and b


def save_run(workdir: Path, config: ConfigDict, vocabulary: Vocabulary) -> TrainState:
    """A run whose best checkpoint, at step 3, has the weights that are returned; others are worse,
    before and after it."""
    model = make_model(config.model, vocabulary_size=vocabulary.size)
    rng = np.random.default_rng(0)
    states = [create_train_state(model, optax.sgd(1), seed=s, batch_size=2) for s in (4, 5, 6)]
    states = [  # biases, too, are of some size
        replace(
            s, params=jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype("f"), s.params)
        )
        for s in states
    ]
    corpus = CorpusIdentity("a text", sha256="0" * 64, num_chars=9)
    with Checkpoints(workdir) as checkpoints:
        for step, loss, state in zip((2, 3, 4), (2.0, 1.0, 1.5), states, strict=True):
            metadata = CheckpointMetadata(
                step, config.to_dict(), vocabulary.to_dict(), corpus, loss=loss
            )
            checkpoints.save(*state.to_trees(), metadata=metadata)
    return states[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the model of `tiny_config`."""
    config, workdir = default_config(), tmp_path_factory.mktemp("source")
    config.model.embedding_size, config.model.hidden_size = 8, 16
    save_run(workdir, config, Vocabulary.build([SENTENCE]))
    return workdir


def test_shared_characters_keep_their_weights_and_new_ones_are_fresh(
    tiny_config: ConfigDict, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_run(source)
    vocabulary = Vocabulary.build([OTHER_TEXT])
    model = make_model(tiny_config.model, vocabulary_size=vocabulary.size)
    fresh = create_train_state(model, optax.sgd(1), seed=7, batch_size=2)
    started, origin = warm_start(
        fresh.params, source, config=tiny_config.model, vocabulary=vocabulary
    )

    def weights(params, token: int) -> np.ndarray:
        dense, embedding = params["dense"], params["embedding"]["embedding"]
        return np.concatenate(
            [embedding[token], dense["kernel"][:, token], dense["bias"][token, None]]
        )

    np.testing.assert_array_equal(weights(started, 0), weights(run.params, 0))
    for token, char in enumerate(vocabulary.characters, 1):
        new = char in "éß"
        params, old = (fresh.params, token) if new else (run.params, run.vocabulary.encode(char)[0])
        np.testing.assert_array_equal(weights(started, token), weights(params, old))
    jax.tree.map(np.testing.assert_array_equal, started["layers_0"], run.params["layers_0"])
    assert origin == Origin(str(source), 3, run.corpus)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == (
        f"Initialised from {source}, step 3: 31 characters kept, 2 ('ß', 'é') new, "
        "2 (';', 'b') dropped"
    )


def test_training_begins_with_the_weights_that_were_kept(
    tiny_config: ConfigDict, source: Path, tmp_path: Path
) -> None:
    """At a rate at which a step changes nothing; new characters in the middle of the others."""
    text = SENTENCE.replace(";", "8").replace("b", "k").replace("The", "T_e")
    (tmp_path / "text.txt").write_text(text * 40)
    tiny_config.data.path, tiny_config.train.init_from = str(tmp_path / "text.txt"), str(source)
    tiny_config.optimizer.name, tiny_config.optimizer.learning_rate = "sgd", 1e-30
    tiny_config.sample.prompt, tiny_config.train.num_steps, tiny_config.seed = "T_e", 1, 9
    state = train(tiny_config, tmp_path / "run")
    old, new = load_run(source), load_run(tmp_path / "run", checkpoint="latest")
    assert old.step == 3
    fresh = create_train_state(state.model, optax.sgd(1), seed=9, batch_size=2).params
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-25)
    assert set(new.vocabulary.characters) - set(old.vocabulary.characters) == {"8", "_"}
    for token, char in enumerate(["[UNK]", *new.vocabulary.characters]):
        params, at = fresh, token
        if token == 0 or char in old.vocabulary.characters:
            params, at = old.params, 1 + old.vocabulary.characters.index(char) if token else 0
        for kept, given in (
            (new.params["embedding"]["embedding"][token], params["embedding"]["embedding"][at]),
            (new.params["dense"]["kernel"][:, token], params["dense"]["kernel"][:, at]),
            (new.params["dense"]["bias"][token], params["dense"]["bias"][at]),
        ):
            close(kept, given)
    jax.tree.map(close, new.params["layers_0"], old.params["layers_0"])


def test_resume_is_bitwise_identical_and_needs_no_source(
    tiny_config: ConfigDict, source: Path, tmp_path: Path
) -> None:
    text, copied = tmp_path / "text.txt", tmp_path / "source"
    text.write_text(OTHER_TEXT * 40)
    shutil.copytree(source, copied)
    tiny_config.data.path, tiny_config.train.init_from = str(text), str(copied)
    tiny_config.train.num_steps = 3
    train(tiny_config, tmp_path / "two")
    tiny_config.train.num_steps = 9
    in_one_go = train(tiny_config, tmp_path / "one")
    shutil.rmtree(copied)
    assert_bitwise_equal(train(tiny_config, tmp_path / "two"), in_one_go)
    assert read_metadata(tmp_path / "two", 9).origin.step == 3
    assert load_run(tmp_path / "two").origin.describe().startswith("source, step 3, trained on ")
    tiny_config.train.init_from = ""
    with pytest.raises(UserError, match=r"another config \(train.init_from '.*source' -> ''\)"):
        train(tiny_config, tmp_path / "two")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.cell", "lstm", r"cell is 'lstm', not 'gru'\): set --config\.model\.cell=gru, or"),
        ("model.hidden_size", 17, "hidden_size is 17, not 16"),
        ("model.embedding_size", 9, "embedding_size is 9, not 8"),
        ("model.num_layers", 2, "num_layers is 2, not 1"),
        ("data.vocabulary", "bytes", r"set --config\.data\.vocabulary=characters"),
    ],
)
def test_other_model_is_refused(
    tiny_config: ConfigDict, source: Path, field: str, value: object, message: str
) -> None:
    tiny_config.update_from_flattened_dict({field: value})
    vocabulary = Vocabulary.build([OTHER_TEXT], kind=tiny_config.data.vocabulary)
    model = make_model(tiny_config.model, vocabulary_size=vocabulary.size)
    state = jax.eval_shape(lambda: create_train_state(model, optax.sgd(1), seed=0, batch_size=2))
    with pytest.raises(UserError, match=message):
        warm_start(state.params, source, config=tiny_config.model, vocabulary=vocabulary)


def test_nothing_is_written_when_there_is_no_run_to_start_from(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    tiny_config.train.init_from = str(tmp_path)
    with pytest.raises(UserError, match="which has no checkpoint: give the workdir of a run"):
        train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bytes_are_kept_whole(
    tiny_config: ConfigDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = Vocabulary(kind="bytes")
    saved = save_run(tmp_path, tiny_config, vocabulary)
    zero = replace(saved, params=jax.tree.map(jnp.zeros_like, saved.params))
    started, _ = warm_start(zero.params, tmp_path, config=tiny_config.model, vocabulary=vocabulary)
    jax.tree.map(np.testing.assert_array_equal, started, saved.params)
    assert "256 bytes kept, 0 new, 0 dropped" in capsys.readouterr().out
