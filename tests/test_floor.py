import json
import math
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
import pytest
from helpers import last_line_of_error

from charrnn_jax import registry
from charrnn_jax.config import default_config
from charrnn_jax.data.batches import Batch
from charrnn_jax.data.dataset import load_dataset
from charrnn_jax.data.sources import parse_source
from charrnn_jax.errors import LeakError
from charrnn_jax.evaluation.floor import Floor, find_floor
from charrnn_jax.evaluation.metrics import cross_entropy
from charrnn_jax.evaluation.protocols import Carried, Protocol
from charrnn_jax.main import main
from charrnn_jax.models.char_rnn import forward
from charrnn_jax.training.train_step import train_step
from charrnn_jax.workdir.json_lines import read_json_lines

SOURCE = parse_source("golden-mean")


def coin(chance: float, *, num_chars: int, seed: int) -> tuple[Floor, np.ndarray]:
    """The floor of a coin, and its throws."""
    throws = np.random.default_rng(seed).random(num_chars) < chance
    return Floor(SOURCE, "validation", -np.log(np.where(throws, chance, 1 - chance))), throws


def test_excess_is_the_mean_difference_with_the_error_of_block_means() -> None:
    rng = np.random.default_rng(0)
    optimal, losses = rng.exponential(size=1000), rng.exponential(size=1000)
    excess = Floor(SOURCE, "validation", optimal).excess(losses.astype(np.float32))
    assert excess.floor == pytest.approx(optimal.mean())
    assert excess.excess == pytest.approx((losses - optimal).mean(), rel=1e-5)
    means = (losses - optimal).reshape(100, 10).mean(1)
    expected = math.sqrt(((means - means.mean()) ** 2).sum() / 99 / 100)
    assert excess.standard_error == pytest.approx(expected, rel=1e-5)
    assert Floor(SOURCE, "test", optimal[:1]).excess(losses[:1]).standard_error == math.inf


@pytest.mark.parametrize("believed", [0.01, 0.009, 0.005, 0.001, 0.02])
def test_honest_models_are_not_called_leaks(believed: float) -> None:
    """Even if they doubt what is rare, and the text is so short that it is mostly absent."""
    alarms = [0, 0]
    for seed in range(200):
        floor, throws = coin(0.01, num_chars=100, seed=seed)
        excess = floor.excess(-np.log(np.where(throws, believed, 1 - believed)))
        below = -excess.excess > 3 * excess.standard_error
        alarms[0] += excess.is_leak
        alarms[1] += below
    assert alarms[0] == 0
    if believed < 0.01:  # three standard errors alone would be wrong in a third of all texts
        assert alarms[1] > 50


def test_a_model_that_sees_one_target_in_fifty_is_a_leak() -> None:
    for seed in range(20):
        floor, _ = coin(0.5, num_chars=5000, seed=seed)
        losses = floor.losses + 0.001
        losses[::50] = 0.01
        excess = floor.excess(losses)
        assert excess.is_leak
        with pytest.raises(LeakError, match=r"below the floor of source:golden-mean:seed=0"):
            floor.check(excess, protocol=Carried())
        Floor(SOURCE, "train", floor.losses).check(excess, protocol=Carried())


@pytest.mark.parametrize("vocabulary", ["characters", "bytes"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_floor_of_a_split_is_that_of_its_predicted_characters(
    split: str, vocabulary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn_jax.data.corpora.BLOCK_SIZE", 64)
    config = default_config().data
    config.update(corpus="source:even", max_chars=500, test_fraction=0.3, vocabulary=vocabulary)
    dataset = load_dataset(config)
    text = parse_source("even").generate(500)
    (whole,) = parse_source("even").optimal_losses([text])
    start, stop = {"train": (1, 300), "validation": (300, 350), "test": (350, 500)}[split]
    floor = find_floor(dataset, split, of=dataset.identity(), config=config)
    assert floor
    np.testing.assert_array_equal(floor.losses, whole[start:stop])
    assert len(floor.losses) == len(dataset.splits.with_context(split)) - 1


def test_a_text_of_ones_own_has_no_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("source:even").write_text("0110" * 50)
    config = default_config().data
    config.path = "source:even"
    dataset = load_dataset(config)
    assert dataset.identity().name == "source:even"
    assert find_floor(dataset, "validation", of=dataset.identity(), config=config) is None


# --- from the command line ----------------------------------------------------------------------


class Shifted(Protocol):
    """The mistake of one place: each character is predicted from itself."""

    name: ClassVar[str] = "shifted"
    in_all: ClassVar[bool] = False

    def losses(self, params, tokens, *, model):
        targets = np.asarray(tokens[None, 1:], np.int32)
        _, logits = forward(params, model.initialize_carry(1), targets, model=model)
        yield jax.device_get(cross_entropy(logits, targets))[0]


def shifted_step(state, batch):
    return train_step(state, Batch(batch.targets, batch.targets))


def flags(tmp_path: Path, *changed: str) -> list[str]:
    file = tmp_path / "experiment.py"
    file.write_text(
        "from charrnn_jax.config import default_config\n\n\ndef get_config():\n"
        "    config = default_config()\n"
        "    config.data.update(corpus='source:golden-mean', max_chars=12_000, batching='lanes')\n"
        "    config.data.update(batch_size=8, sequence_length=32)\n"
        "    config.model.update(embedding_size=4, hidden_size=16)\n"
        "    config.optimizer.learning_rate = 0.02\n"
        "    config.train.update(num_steps=120, log_every_steps=60, evaluate_every_steps=60)\n"
        "    config.evaluation.protocol = 'carried'\n"
        "    config.sample.update(prompt='1', num_chars=20)\n"
        "    return config\n"
    )
    return [f"--config={file}", f"--workdir={tmp_path / 'run'}", *changed]


def test_an_honest_run_shows_its_excess(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = f"--workdir={tmp_path / 'run'}"
    assert main(flags(tmp_path)) == 0
    assert main(flags(tmp_path)) == 0
    assert "Nothing is left to train" in capsys.readouterr().out
    rows = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    during = [row["validation/excess"] for row in rows if "validation/excess" in row]
    assert len(during) == 2
    assert 0 < during[1] < 0.02
    for command in ("evaluate", "check"):
        assert main([command, workdir]) == 0
    shown = capsys.readouterr().out
    assert "source:golden-mean:seed=0, 12,000 long" in shown
    saved = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    carried = saved["validation"]["losses"]["carried"]
    floor = carried["floor"]
    assert floor["excess"] == pytest.approx(min(during), abs=1e-6)
    assert carried["nats_per_char"] - floor["floor"] == pytest.approx(floor["excess"], abs=1e-6)
    assert floor["entropy_rate"] == pytest.approx(2 / 3 * math.log(2))
    line = f"  floor {floor['floor']:.4f} nats/char (entropy rate 0.4621), excess +"
    assert sum(row.startswith(line) for row in shown.splitlines()) == 2  # cold and carried


@pytest.mark.usefixtures("own_registries")
def test_a_run_whose_inputs_are_its_targets_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.register_protocol(Shifted)
    registry.register_train_step("shifted", shifted_step)
    leaking = ("--config.train.step=shifted", "--config.evaluation.protocol=shifted")
    saved_before = "--config.train.checkpoint_every_steps=50"
    assert main(flags(tmp_path, *leaking, saved_before)) == LeakError.exit_code == 1
    line = last_line_of_error(capsys)
    assert "the loss of the validation split (shifted) is 0.4" in line
    assert "below the floor of source:golden-mean:seed=0, which no model can beat" in line

    workdir = f"--workdir={tmp_path / 'run'}"
    assert main(["evaluate", workdir, "--protocol=carried"]) == 0  # which shows nothing
    before = (tmp_path / "run" / "evaluation.json").read_bytes()
    capsys.readouterr()
    assert main(["evaluate", workdir, "--protocol=shifted"]) == 1
    assert "(shifted) is 0." in last_line_of_error(capsys)
    assert (tmp_path / "run" / "evaluation.json").read_bytes() == before
    assert main(["evaluate", workdir, "--protocol=shifted", "--split=train"]) == 0
