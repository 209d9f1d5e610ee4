"""A whole run against a plain loop in NumPy that shares nothing with it but the first parameters.

Batches, schedule, clipping, decay, optimizer, windows of the log, epochs and evaluation are written
out once more, as the schema and the docstrings define them; gradients are those of flax's own cell.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import SENTENCE
from flax import linen as nn
from helpers import slow
from ml_collections import ConfigDict

from charrnn_jax import default_config, generate, load_run, train
from charrnn_jax.models.char_rnn import make_model
from charrnn_jax.training.train_step import TrainState, create_train_state
from charrnn_jax.workdir.json_lines import read_json_lines

TEXT = SENTENCE * 12  # 984 characters
NUM_TRAINED = 787  # of them: the first 80%
B, T, WINDOW, LOG_EVERY, EVALUATE_EVERY = 4, 14, 7, 5, 6
VARIANTS: dict[str, dict[str, Any]] = {
    "lanes": {
        "data.batching": "lanes",
        "model.cell": "gru",
        "optimizer.name": "adamw",
        "optimizer.schedule": "cosine",
        "optimizer.beta1": 0.8,
        "optimizer.clip_norm": 0.24,
        "evaluation.protocol": "cold",
    },
    "chunks": {
        "data.batching": "chunks",
        "model.cell": "rnn",
        "optimizer.name": "sgd",
        "optimizer.momentum": 0.5,
        "optimizer.clip_norm": 0.4,
        "optimizer.schedule": "linear",
        "evaluation.protocol": "carried",
    },
}


@dataclass
class Reference:
    """What the run should have given, step by step: index k holds what is so after step k."""

    params: list[Any]
    losses: list[float]
    norms: list[float]
    rates: list[float]
    steps_per_epoch: int


def make_config(text: Path, variant: str) -> ConfigDict:
    config = default_config()
    config.update_from_flattened_dict(
        {
            "seed": 3,
            "data.path": str(text),
            "data.validation_fraction": 0.2,
            "data.batch_size": B,
            "data.sequence_length": T,
            "model.embedding_size": 5,
            "model.hidden_size": 8,
            "optimizer.learning_rate": 0.05,
            "optimizer.warmup_steps": 4,
            "optimizer.final_fraction": 0.1,
            "optimizer.weight_decay": 0.2,
            "train.num_epochs": 2,
            "train.log_every_steps": LOG_EVERY,
            "train.evaluate_every_steps": EVALUATE_EVERY,
            "train.sample_every_steps": EVALUATE_EVERY,
            "evaluation.window": WINDOW,
            "evaluation.batch_size": 3,
            "sample.prompt": "The",
            "sample.num_chars": 30,
            "sample.num_samples": 2,
            "sample.temperature": 0.6,
            **VARIANTS[variant],
        }
    )
    return config


def encode(text: str) -> np.ndarray:
    characters = sorted(set(TEXT))
    return np.array([1 + characters.index(char) for char in text])


def run_cell(params: Any, carry: jax.Array, tokens: Any, *, cell: str) -> Any:
    """Returns (carry, logits [B, T, V]), one character after the other."""
    module = {"gru": nn.GRUCell, "rnn": nn.SimpleCell}[cell](features=8)
    outputs = []
    for t in range(tokens.shape[1]):
        x = params["embedding"]["embedding"][tokens[:, t]]
        carry, y = module.apply({"params": params["layers_0"]["cell"]}, carry, x)
        outputs.append(y @ params["dense"]["kernel"] + params["dense"]["bias"][None])
    return carry, jnp.stack(outputs, axis=1)


def losses_of(logits: jax.Array, targets: Any) -> jax.Array:
    log_probabilities = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    return -jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]


def batches_of(step: int, *, batching: str) -> np.ndarray:
    """[B, T + 1] ids."""
    tokens = encode(TEXT)[:NUM_TRAINED]
    if batching == "lanes":
        length = (NUM_TRAINED - 1) // B
        starts = np.arange(B) * length + step % (length // T) * T
    else:
        num_chunks = NUM_TRAINED // (T + 1)
        epoch, index = divmod(step, num_chunks // B)
        order = np.random.default_rng([3, epoch]).permutation(num_chunks)
        starts = order[index * B : (index + 1) * B] * (T + 1)
    return tokens[starts[:, None] + np.arange(T + 1)[None]]


def make_reference(config: ConfigDict) -> Reference:
    batching, optimizer = config.data.batching, config.optimizer
    steps_per_epoch = (
        (NUM_TRAINED - 1) // B // T if batching == "lanes" else NUM_TRAINED // (T + 1) // B
    )
    num_steps = 2 * steps_per_epoch
    state = create_train_state(
        make_model(config.model, vocabulary_size=1 + len(set(TEXT))),
        optax.identity(),
        seed=config.seed,
        batch_size=B,
    )

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def gradient_of(params, carry, batch):
        carry, logits = run_cell(params, carry, batch[:, :-1], cell=config.model.cell)
        return losses_of(logits, batch[:, 1:]).mean(), carry

    leaves, treedef = jax.tree.flatten(jax.device_get(state.params))
    leaves = [np.asarray(leaf, np.float64) for leaf in leaves]
    first = [np.zeros_like(leaf) for leaf in leaves]
    second = [np.zeros_like(leaf) for leaf in leaves]
    reference = Reference([state.params], [math.nan], [math.nan], [math.nan], steps_per_epoch)
    carry = np.zeros((B, 8), np.float32)
    for step in range(num_steps):
        if batching == "chunks" or step % steps_per_epoch == 0:
            carry = np.zeros((B, 8), np.float32)
        batch = batches_of(step, batching=batching)
        (loss, carry), gradient = gradient_of(reference.params[-1], carry, batch)
        gradients = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradient)]
        norm = math.sqrt(sum(np.sum(g**2) for g in gradients))
        gradients = [g * min(1.0, optimizer.clip_norm / norm) for g in gradients]
        if step < 4:
            rate = 0.05 * (step + 1) / 4
        else:
            done = (step - 4) / (num_steps - 4)
            cosine = (1 + math.cos(math.pi * done)) / 2
            rate = 0.05 * (0.1 + 0.9 * (cosine if optimizer.schedule == "cosine" else 1 - done))
        for i, (w, g) in enumerate(zip(leaves, gradients, strict=True)):
            decay = 0.2 * w if w.ndim > 1 else 0.0
            if optimizer.name == "adamw":
                first[i] = 0.8 * first[i] + 0.2 * g
                second[i] = 0.999 * second[i] + 0.001 * g**2
                mean = first[i] / (1 - 0.8 ** (step + 1))
                square = second[i] / (1 - 0.999 ** (step + 1))
                update = mean / (np.sqrt(square) + 1e-7) + decay
            else:
                first[i] = update = g + decay + 0.5 * first[i]
            leaves[i] = w - rate * update
        reference.params.append(jax.tree.unflatten(treedef, [x.astype("f") for x in leaves]))
        reference.losses.append(float(loss))
        reference.norms.append(norm)
        reference.rates.append(rate)
    return reference


@dataclass
class Both:
    config: ConfigDict
    workdir: Path
    state: TrainState
    reference: Reference
    rows: list[dict[str, Any]]


@pytest.fixture(scope="module", params=["chunks", slow("lanes")])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """The run, and what it should be."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "text.txt").write_text(TEXT)
    config = make_config(folder / "text.txt", request.param)
    state = train(config, folder / "run")
    rows = read_json_lines(folder / "run" / "metrics.jsonl")
    return Both(config, folder / "run", state, make_reference(config), rows)


close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)


def test_parameters_are_those_of_the_plain_loop(both: Both) -> None:
    reference = both.reference
    assert int(both.state.step) == len(reference.params) - 1 == 2 * reference.steps_per_epoch
    jax.tree.map(close, both.state.params, reference.params[-1])
    clipped = [norm > both.config.optimizer.clip_norm for norm in reference.norms[1:]]
    assert any(clipped)
    assert not all(clipped)


def test_rows_of_training_are_means_of_their_windows(both: Both) -> None:
    """A window may lie in two epochs; the other numbers are those of its last step."""
    reference = both.reference
    rows = [row for row in both.rows if "train/loss" in row]
    num_steps = len(reference.params) - 1
    assert [row["step"] for row in rows] == list(range(LOG_EVERY, num_steps + 1, LOG_EVERY))
    for row in rows:
        step = row["step"]
        assert row["epoch"] == pytest.approx(step / reference.steps_per_epoch)
        close(row["train/loss"], np.mean(reference.losses[step - LOG_EVERY + 1 : step + 1]))
        close(row["train/learning_rate"], reference.rates[step])
        close(row["train/gradient_norm"], reference.norms[step])


def test_rows_of_epochs_are_means_of_their_epochs(both: Both) -> None:
    rows = [row for row in both.rows if "epoch/train_loss" in row]
    size = both.reference.steps_per_epoch
    assert [(row["step"], row["epoch"]) for row in rows] == [(size, 1), (2 * size, 2)]
    for row in rows:
        losses = both.reference.losses[row["step"] - size + 1 : row["step"] + 1]
        close(row["epoch/train_loss"], np.mean(losses))


def test_validation_is_that_of_the_plain_loop_and_what_a_checkpoint_is_known_by(
    both: Both,
) -> None:
    """The protocol and the window are those of the config; the best checkpoint has the least."""
    rows = {row["step"]: row for row in both.rows if "validation/loss" in row}
    num_steps = int(both.state.step)
    assert set(rows) == {*range(EVALUATE_EVERY, num_steps + 1, EVALUATE_EVERY), num_steps}
    tokens = encode(TEXT)[NUM_TRAINED - 1 :]
    window = WINDOW if both.config.evaluation.protocol == "cold" else len(tokens)
    run = partial(run_cell, cell=both.config.model.cell)
    for step, row in rows.items():
        total = 0.0
        for start in range(0, len(tokens) - 1, window):
            piece = tokens[start : start + window + 1]
            _, logits = run_whole(both.reference.params[step], piece[None, :-1], run=run)
            total += float(losses_of(logits, piece[None, 1:]).sum())
        loss = total / (len(tokens) - 1)
        close(row["validation/loss"], loss)
        close(row["validation/bits_per_char"], loss / math.log(2))
        assert row["validation/protocol"] == both.config.evaluation.protocol
    losses = {step: row["validation/loss"] for step, row in rows.items()}
    best = load_run(both.workdir)
    assert best.step == min(losses, key=lambda step: losses[step])
    assert best.loss == losses[best.step]
    latest = load_run(both.workdir, checkpoint="latest")
    assert (latest.step, latest.loss) == (num_steps, losses[num_steps])


def run_whole(params: Any, tokens: np.ndarray, *, run: Any) -> Any:
    """As `run`, in compiled pieces of a few lengths."""
    carry, all_logits = jnp.zeros((1, 8)), []
    for start in range(0, tokens.shape[1], WINDOW):
        carry, logits = _jitted(run)(params, carry, tokens[:, start : start + WINDOW])
        all_logits.append(logits)
    return carry, jnp.concatenate(all_logits, axis=1)


_programs: dict[str, Any] = {}


def _jitted(run: Any) -> Any:
    return _programs.setdefault(run.keywords["cell"], jax.jit(run))


def test_samples_on_the_way_are_those_of_the_weights_seed_and_temperature(both: Both) -> None:
    rows = read_json_lines(both.workdir / "samples.jsonl")
    num_steps = int(both.state.step)
    steps = [*range(0, num_steps, EVALUATE_EVERY), num_steps]
    assert [row["step"] for row in rows] == [step for step in steps for _ in range(2)]
    run = load_run(both.workdir, checkpoint="latest")
    write = partial(
        generate,
        model=run.model,
        vocabulary=run.vocabulary,
        num_chars=30,
        temperature=0.6,
        seed=3,
    )
    for step, params in ((0, both.reference.params[0]), (num_steps, run.params)):
        texts = [sample.text for sample in write(params, ["The", "The"])]
        written = [row for row in rows if row["step"] == step]
        assert [row["text"] for row in written] == texts
        assert texts[0] != texts[1]
        assert {(row["prompt"], row["temperature"]) for row in written} == {("The", 0.6)}
