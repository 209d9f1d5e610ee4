import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import SENTENCE
from helpers import SMOKE
from hypothesis import given
from hypothesis import strategies as st

from charrnn_jax.evaluation import contamination
from charrnn_jax.evaluation.contamination import shared_share
from charrnn_jax.main import main


@given(st.text("ab", max_size=40), st.text("ab", max_size=60), st.integers(1, 6))
def test_share_is_that_of_strings(split: str, train: str, length: int) -> None:
    def pieces(text: str) -> list[str]:
        return [text[i : i + length] for i in range(len(text) - length + 1)]

    ids = (np.array([" ab".index(c) for c in text], np.uint16) for text in (split, train))
    known = [piece in set(pieces(train)) for piece in pieces(split)]
    assert shared_share(*ids, length=length) == pytest.approx(np.mean(known) if known else 0.0)


def test_texts_of_many_blocks_give_the_share_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    train = rng.integers(1, 60, 3000)
    split = np.concatenate([rng.integers(1, 60, 500), train[700:1200]])
    whole = shared_share(split, train)
    assert whole == pytest.approx(451 / 951)
    monkeypatch.setattr(contamination, "_BLOCK", 100)
    assert shared_share(split, train) == whole
    monkeypatch.setattr(contamination, "_MOST_PIECES", 200)
    assert shared_share(split, train) == pytest.approx(whole, abs=0.01)


def test_evaluate_warns_when_the_split_stands_in_the_training_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(SENTENCE * 30)
    flags = [f"--config.data.path={text}", "--config.train.num_steps=1", "--config.sample.prompt="]
    assert main([SMOKE, f"--workdir={tmp_path / 'run'}", *flags]) == 0
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["evaluate", f"--workdir={tmp_path / 'run'}", "--baseline=none"]) == 0
    warning = "charrnn: warning: 100.0% of the 50-character pieces of the validation split"
    assert warning in capsys.readouterr().err
