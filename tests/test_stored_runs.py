"""Runs that an earlier version wrote can still be used.

The archives in tests/stored_runs hold runs of version 0.1.0 with jax 0.10.2, stopped at step 200 of
240: a GRU in lanes (AdamW, cosine, clipping), two LSTM layers with dropout (RMSprop), and a model
imported from PyTorch. `expected.json` has what that version went on to do.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, slow

import charrnn_jax
from charrnn_jax.config import from_json
from charrnn_jax.workdir.json_lines import read_json_lines

STORED = ROOT / "tests" / "stored_runs"
EXPECTED = json.loads((STORED / "expected.json").read_text())


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    for archive in STORED.glob("*.tar.xz"):
        with tarfile.open(archive) as opened:
            opened.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.mark.parametrize("name", ["gru_lanes", slow("two_lstms_dropout")])
def test_stored_run_resumes_as_the_version_that_wrote_it(
    unpacked: Path, text_file: Path, name: str
) -> None:
    workdir, expected = unpacked / name, EXPECTED[name]
    config = from_json((workdir / "config.json").read_text())
    config.data.path = str(text_file)
    assert int(charrnn_jax.train(config, workdir).step) == 240
    rows = read_json_lines(workdir / "metrics.jsonl")
    for field, kind in (("train/loss", "losses"), ("validation/loss", "validation")):
        later = {str(row["step"]): row[field] for row in rows if row["step"] > 200 and field in row}
        assert later.keys() == expected[kind].keys()
        for step, loss in expected[kind].items():
            # Another jax, or another processor, rounds differently.
            np.testing.assert_allclose(later[step], loss, rtol=1e-3)


@pytest.mark.parametrize("name", list(EXPECTED))
def test_stored_run_writes_the_same_text_and_exports(unpacked: Path, name: str) -> None:
    run = charrnn_jax.load_run(unpacked / name)
    assert run.imported == (name == "imported")
    prompt = "abc" if run.imported else "The "
    sampler = charrnn_jax.Sampler(run.params, model=run.model, vocabulary=run.vocabulary)
    (sample,) = sampler.generate([prompt], num_chars=40, temperature=0.0)
    assert sample.text == EXPECTED[name]["text"]
    charrnn_jax.export(run, unpacked / "exported")
    assert (unpacked / "exported" / "step.stablehlo").is_file()


@pytest.mark.parametrize("name", ["gru_lanes", "two_lstms_dropout"])
def test_stored_run_has_the_loss_that_it_had(unpacked: Path, text_file: Path, name: str) -> None:
    run = charrnn_jax.load_run(unpacked / name)
    tokens = run.load_dataset(str(text_file)).splits.with_context("validation")
    loss = charrnn_jax.evaluate(
        run.params, tokens, model=run.model, protocol=charrnn_jax.Cold(window=32)
    )
    np.testing.assert_allclose(loss.nats_per_char, EXPECTED[name]["cold"], rtol=1e-5)


@pytest.mark.slow
def test_stored_import_can_be_started_from_but_not_resumed(
    unpacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "letters.txt"
    text.write_text("abcde\n" * 100)
    config = charrnn_jax.default_config()
    config.data.path = str(text)
    config.data.batch_size = 2
    config.data.sequence_length = 10
    config.model.embedding_size, config.model.hidden_size = 5, 7
    config.sample.prompt, config.train.num_steps = "abc", 3
    with pytest.raises(ValueError, match="imported model"):
        charrnn_jax.train(config, unpacked / "imported")
    config.train.init_from = str(unpacked / "imported")
    charrnn_jax.train(config, tmp_path / "new")
    assert "6 characters kept" in capsys.readouterr().out
