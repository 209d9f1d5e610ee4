"""Hidden units held at a value while a model writes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SMOKE, VOCABULARY, H, last_line_of_error, make, sampler, slow

from charrnn_jax.errors import UserError
from charrnn_jax.generation.continuation import Continuation
from charrnn_jax.generation.sampler import Sampler, generate, sample_chunk
from charrnn_jax.main import main
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.clamping import clamp_units
from charrnn_jax.models.stepping import prepare

CLAMP = {(0, 1): 1.5, (1, 0): -0.75, (1, 7): 0.0}


def write_by_hand(model, params, prompt: str, *, num_chars: int) -> tuple[str, float]:
    """Writes greedily with the Flax module of the cell, one step of one layer at a time, and sets
    the clamped units in its output and in every array of its carry that is equal to the output."""
    module = CELLS[model.cell].module(features=H, parent=None)
    step = jax.jit(lambda params, carry, x: module.apply({"params": params}, carry, x))
    carry = list(model.initialize_carry(1))
    token, *unread = VOCABULARY.encode(prompt).tolist()
    written, losses = [], []
    while len(written) < num_chars:
        x, outputs = params["embedding"]["embedding"][None, token], []
        for layer in range(model.num_layers):
            carry[layer], y = step(params[f"layers_{layer}"]["cell"], carry[layer], x)
            clamped = np.array(y)
            for (of_layer, unit), value in CLAMP.items():
                if of_layer == layer:
                    clamped[0, unit] = value
            carry[layer] = jax.tree.map(
                lambda array, y=y, clamped=clamped: (
                    jnp.asarray(clamped) if np.array_equal(array, y) else array
                ),
                carry[layer],
            )
            x = clamped + x if layer and model.residual == "add" else clamped
            outputs.append(x)
        read = np.concatenate(outputs if model.readout == "all" else outputs[-1:], axis=-1)
        logits = (read @ params["dense"]["kernel"] + params["dense"]["bias"][None])[0]
        if unread:
            token = unread.pop(0)
            continue
        token = 1 + int(np.argmax(logits[1:]))  # anything but [UNK]
        losses.append(-float(jax.nn.log_softmax(logits)[token]))
        written.append(token)
    return VOCABULARY.decode(written), float(np.mean(losses))


FIELDS = {"residual": "add", "readout": "all"}


@pytest.mark.parametrize(
    ("cell", "fields"),
    [
        ("gru", {}),
        ("lstm", {"implementation": "scan"}),
        ("gru", FIELDS),
        *(
            slow(cell, {**more, "implementation": implementation})
            for cell in CELLS
            for more in ({}, FIELDS)
            for implementation in ("auto", "scan")
        ),
    ],
)
def test_clamped_text_equals_a_loop_that_sets_the_units_by_hand(cell: str, fields: dict) -> None:
    model, params, _, _ = make(cell, num_layers=2, **fields)
    prompts = ["bad", "a"]
    ours = generate(
        params,
        prompts,
        model=model,
        vocabulary=VOCABULARY,
        num_chars=30,
        temperature=0.0,
        clamp=CLAMP,
    )
    for prompt, sample in zip(prompts, ours, strict=True):
        text, nats = write_by_hand(model, params, prompt, num_chars=30)
        assert sample.text == text
        assert sample.nats_per_char == pytest.approx(nats, rel=1e-4)


@pytest.mark.parametrize("implementation", ["fused", slow("scan")])
def test_a_clamped_unit_of_a_gru_is_at_its_value_after_every_step(implementation: str) -> None:
    model, params, _, _ = make("gru", num_layers=2, implementation=implementation)
    ours = Sampler(params, model=model, vocabulary=VOCABULARY, clamp=CLAMP)
    for story in (Continuation.start(ours, "bad").write(9), Continuation.start(ours, "ab")):
        for (layer, unit), value in CLAMP.items():
            assert story.state.carry[layer][0, unit] == value


def test_all_ways_to_write_agree_and_all_clamps_share_one_program() -> None:
    plain = sampler()
    settings = {"num_chars": 60, "seed": 5}
    free = plain.generate(["bad"], **settings)
    before = sample_chunk._cache_size()
    for clamp in ({(0, 1): 0.9}, CLAMP):
        ours = plain.with_clamp(clamp)
        (sample,) = ours.generate(["bad"], **settings)
        assert sample.text != free[0].text
        assert "".join(piece for (piece,) in ours.stream(["bad"], **settings)) == sample.text
        story = Continuation.start(ours, "bad", seed=5).write(23).write(37)
        assert story.text == "bad" + sample.text
        assert sampler(clamp=clamp).generate(["bad"], **settings) == [sample]
    assert sample_chunk._cache_size() == before + 1
    assert plain.generate(["bad"], **settings) == free
    assert ours.with_clamp({}).generate(["bad"], **settings) == free


def test_without_a_clamp_the_weights_are_those_of_prepare() -> None:
    model, params, _, _ = make("gru")
    weights = prepare(params, model=model, transposed=False)
    assert clamp_units(weights, {}, model=model) is weights


@pytest.mark.parametrize(
    ("clamp", "message"),
    [
        ({(2, 0): 1.0}, "clamp has 2:0=1, but the last layer is 1; the first is 0"),
        ({(-1, 0): 1.0}, "the last layer is 1"),
        ({(0, H): 0.5}, f"clamp has 0:{H}=0.5, but the last unit is {H - 1}; the first is 0"),
        ({(0, 0): float("nan")}, "0:0=nan, but the value must be a finite number"),
        ({(0, 0): 1e39}, "the value must be a finite number of 32 bits"),
    ],
)
def test_a_clamp_that_the_model_cannot_have_is_an_error(clamp: dict, message: str) -> None:
    for use in (lambda: sampler(clamp=clamp), lambda: sampler().with_clamp(clamp)):
        with pytest.raises(UserError, match=message):
            use()


def test_the_command_clamps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["sample", f"--workdir={tmp_path}", "--prompt=T", "--num_chars=60", "--temperature=0"]

    def sample(*clamps: str) -> str:
        assert main([*flags, *clamps]) == 0
        return capsys.readouterr().out

    assert main([SMOKE, f"--workdir={tmp_path}"]) == 0
    capsys.readouterr()
    once = sample("--clamp=0:1=30, 0:2=-30")
    assert once == sample("--clamp=0:1=3e1", "--clamp=0:2=-30")
    assert once != sample()
    for clamps, message in (
        (["--clamp=0:1=1,0:2=1", "--clamp=0:1=2"], "--clamp has 0:1 twice: give each unit once"),
        (["--clamp=0:1=x"], "'0:1=x' is not LAYER:UNIT=VALUE, such as 0:217=0.9"),
        (["--clamp=0:-1=1"], "'0:-1=1' is not LAYER:UNIT=VALUE"),
        (["--clamp=9:1=1"], "clamp has 9:1=1, but the last layer is"),
        (["--clamp=0:1=inf"], "the value must be a finite number"),
        (["--clamp=0:1=1", "--baseline"], "--clamp is not for --baseline"),
    ):
        assert main([*flags, *clamps]) == 2
        assert message in last_line_of_error(capsys)
