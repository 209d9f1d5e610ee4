"""Type checkers see the types of the package, and find mistakes of its users."""

import subprocess
import sys
from pathlib import Path

import pytest

import charrnn_jax

SCRIPT = """\
from collections.abc import Sequence
import jax
import charrnn_jax as c

config = c.default_config()
dataset = c.load_dataset(config.data)
corpus, ids = c.load_corpus("shakespeare"), c.Vocabulary("ab").encode("a")
batches = c.make_batches(ids, batching="lanes", batch_size=2, sequence_length=3, seed=0)
batch = c.Batch(ids[None], ids[None])
model: c.CharRNN = c.make_model(config.model, vocabulary_size=dataset.vocabulary.size + c.UNK_ID)
params, carry = c.initialize_params(model, jax.random.key(0)), model.initialize_carry(1)
carry, logits = c.forward(params, carry, batch.inputs, model=model)
units, table = c.activations(params, carry, batch.inputs, model=model), c.summary(model)
losses: jax.Array = c.cross_entropy(logits, batch.targets)
optimizer = c.make_optimizer(config.optimizer, num_steps=9)
state: c.TrainState = c.create_train_state(model, optimizer, seed=0, batch_size=2)
state, metrics = c.train_step(state, batch)
mean: c.CrossEntropy = metrics["loss"]
state = c.train(config, "runs/a")
c.train_replicas([config], ["runs/b"])
protocols: Sequence[c.Protocol] = (c.Cold(window=256, batch_size=64), c.Carried())
nats: float = c.evaluate(params, ids, model=model, protocol=protocols[0]).nats_per_char
per_char = c.char_losses(params, ids, model=model, protocol=protocols[0])
error: float = c.standard_error(per_char)
interval: tuple[float, float] = (c.paired_difference(per_char, per_char).low, error)
dynamic: c.Protocol = c.tune(
    c.Dynamic(rate=3e-4, decay=1e-3), params, ids, model=model
).fit(params, ids, model=model)
ngram = c.KneserNey.fit(ids, order=6, vocabulary_size=dataset.vocabulary.size)
judged: str = c.judge({"a": ["text"]}, training_text="a", real_text="b").groups["a"].verdict
sampler = c.Sampler(params, model=model, vocabulary=dataset.vocabulary)
text: str = sampler.generate(["a"], num_chars=5, temperature=0.5, stop=["b"])[0].text
story: str = c.Continuation.start(sampler, "a").write(9, top_k=3).text
one = c.generate(params, ["a"], model=model, vocabulary=dataset.vocabulary, num_chars=5)
rules: tuple[c.Rule, ...] = c.make_rules(dataset.vocabulary, top_p=0.9)
clamped = sampler.with_clamp({(0, 217): 0.9})
weights = c.prepare(params, model=model, transposed=False)
held = c.clamp_units(weights, clamped.clamp, model=model)
primed, drawn = c.prime, c.sample_step
run = c.load_run("runs/a")
p: float = c.compare(run, run, protocol="cold").pairs[0].corrected_p
auc: float = c.neurons(run, probes={"a": lambda text: per_char}).best[0].auc
c.write_neurons_page(c.neurons(run), "neurons.html")
c.export(run, "exported")
c.export_page(run, "model.html")
units = c.load_sweep("runs/s")
rows, imported = c.read_json_lines("runs/a/metrics.jsonl"), c.import_run
cell: type[c.Cell] = c.Cell
fused_form = (c.Fused, c.CellWeights, c.Weights, c.Operations)
hs: jax.Array = c.linear_recurrence(logits, logits, logits[0])
registered = (c.register_cell, c.register_hook, c.register_loss, c.register_optimizer)
registered_too = (c.register_protocol, c.register_rule, c.register_train_step)
regulariser, activations = c.Regulariser(), c.Activations((), (), logits)
c.register_regulariser("mine", lambda config: regulariser)
"""
MISTAKES = {
    "num_chars=5, temperature": "num_char=5, temperature",
    'c.train(config, "runs/a")': 'c.train(config, "runs/a", steps=3)',
    "window=256": 'window="256"',
}


def check(script: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", script.name],
        cwd=script.parent,
        capture_output=True,
        text=True,
    )
    return [line for line in done.stdout.splitlines() if ": error: " in line]


@pytest.mark.slow
def test_a_typed_script_of_every_public_name_is_clean_and_its_mistakes_are_found(
    tmp_path: Path,
) -> None:
    for name in charrnn_jax.__all__:
        assert f"c.{name}" in SCRIPT
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    assert not check(script)
    for right, wrong in MISTAKES.items():
        assert right in SCRIPT
        script.write_text(script.read_text().replace(right, wrong))
    errors = check(script)
    for line in ("num_char", "steps", "window"):
        assert any(line in error for error in errors), errors
    assert len({error.split(":")[1] for error in errors}) == 3
