"""Code from outside: registered by name, recorded by file, never taken from a workdir."""

import dataclasses
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

import charrnn_jax
from charrnn_jax.config import flatten, validate
from charrnn_jax.errors import UserError
from charrnn_jax.experiment import load_experiment, register_file
from charrnn_jax.main import main
from charrnn_jax.models.cells import Cell, CellWeights, Weights
from charrnn_jax.models.recurrence import Recurrence, choose_form
from charrnn_jax.registry import ALL, CELLS, HOOKS, OPTIMIZERS, PROTOCOLS, Registry
from charrnn_jax.training import setup
from charrnn_jax.training.replicas import program_key
from charrnn_jax.workdir.checkpoints import read_metadata, steps

pytestmark = pytest.mark.usefixtures("own_registries")

ELMAN = '''
import charrnn_jax
import sibling
import jax.numpy as jnp
from flax import linen as nn

class GatedElman(nn.RNNCellBase):
    """h' = g * tanh(W x + b + U h) + (1 - g) * h, g = sigmoid(V x)"""
    features: int

    @nn.compact
    def __call__(self, h, x):
        g = nn.sigmoid(nn.Dense(self.features, name="v")(x))
        new = nn.Dense(self.features, name="w")(x)
        new += nn.Dense(self.features, use_bias=False, name="u")(h)
        h = g * jnp.tanh(new) + (1 - g) * h
        return h, h

    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self):
        return 1

charrnn_jax.register_cell(
    charrnn_jax.Cell("gated_elman", GatedElman, "h = ...", recurrent=("u",))
)

def get_config():
    config = sibling.get_config()
    config.model.cell = "gated_elman"
    return config
'''


@pytest.fixture
def experiment(tiny_config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that brings a cell and imports a sibling."""
    monkeypatch.delitem(sys.modules, "sibling", raising=False)
    (tmp_path / "sibling.py").write_text(
        "from charrnn_jax.config import from_json\n"
        f"def get_config(): return from_json({charrnn_jax.config.to_json(tiny_config)!r})\n"
    )
    file = tmp_path / "my cell.py"
    file.write_text(ELMAN)
    return file


def forget() -> None:
    """As in a new process: nothing of the user's is registered."""
    for registry in ALL:
        registry._registered.clear()
        registry.sources.clear()


def test_run_with_an_own_cell_needs_the_file_that_registers_it_and_warns_if_it_changed(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    assert main([f"--config={experiment}", f"--workdir={workdir}"]) == 0
    recorded = read_metadata(workdir, steps(workdir)[-1]).registered
    assert recorded["model.cell"]["gated_elman"]["file"] == "my cell.py"
    sample = ["sample", f"--workdir={workdir}", "--num_chars=5"]
    forget()
    assert main(sample) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "'gated_elman'" in error
    assert "my cell.py" in error
    assert "--config=FILE" in error
    assert main([*sample, f"--config={experiment}"]) == 0
    assert "changed" not in capsys.readouterr().err
    experiment.write_text(ELMAN + "\n# another version\n")
    forget()
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # the command shows it
        assert main([*sample, f"--config={experiment}"]) == 0
    assert "my cell.py has changed since" in capsys.readouterr().err


def test_no_code_is_taken_out_of_a_workdir(experiment: Path, tmp_path: Path) -> None:
    """Neither a source nor a pickle is in it, and paths in it are not followed."""
    assert main([f"--config={experiment}", f"--workdir={tmp_path / 'run'}"]) == 0
    texts = [file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert not any(
        b"GatedElman" in text or str(tmp_path / "my cell.py").encode() in text for text in texts
    )


def test_own_cell_is_what_a_plain_loop_over_its_module_gives(experiment: Path) -> None:
    register_file(str(experiment))
    layer = Recurrence("gated_elman", 5)
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 3)), jnp.float32)
    carry = CELLS["gated_elman"].initialize_carry(2, 5)
    variables = layer.init(jax.random.key(0), carry, inputs)
    last, outputs = layer.apply(variables, carry, inputs)
    module = CELLS["gated_elman"].module(features=5, parent=None)
    for t in range(7):
        carry, y = module.apply({"params": variables["params"]["cell"]}, carry, inputs[:, t])
        np.testing.assert_allclose(outputs[:, t], y, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(last, carry, rtol=1e-6, atol=1e-6)


def test_cell_counts_the_weights_of_its_module() -> None:
    for name, gates in {"gru": 3, "lstm": 4, "rnn": 1}.items():
        assert CELLS[name].count_weights(5, 7) == (gates * 5 * 7, gates * 7 * 7)


def test_a_form_that_a_cell_lacks_is_refused_in_one_line(
    experiment: Path, tiny_config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "can_train_in_bfloat16", lambda: True)  # old jaxlibs cannot
    register_file(str(experiment))
    tiny_config.model.cell = "gated_elman"
    for field, value in (("implementation", "fused"), ("dtype", "bfloat16")):
        changed = tiny_config.copy_and_resolve_references()
        changed.model[field] = value
        with pytest.raises(UserError, match="'gated_elman'"):
            charrnn_jax.train(changed, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"scan.*float32"):
        choose_form(CELLS["gru"], implementation="scan", dtype="bfloat16")


class Decay(nn.RNNCellBase):
    """h' = a * h + W x, a number of its own a unit: linear in the carry."""

    features: int

    @nn.compact
    def __call__(self, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        a = self.param("a", nn.initializers.constant(0.5), (self.features,))
        h = a[None] * h + nn.Dense(self.features, name="w")(x)
        return h, h

    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self) -> int:
        return 1


DECAY = charrnn_jax.Fused(
    lambda params: CellWeights(
        Weights({"w": params["w"]["kernel"]}, {"w": params["w"]["bias"]}),
        Weights({}, {"a": params["a"]}),
    ),
    lambda ops, x: ops.times("w", x) + ops.vectors["w"],
    lambda ops, h, x: (ops.vectors["a"] * h + x,) * 2,
)


def decay_at_once(ops: Any, h: jax.Array, x: jax.Array) -> Any:
    outputs = charrnn_jax.linear_recurrence(ops.vectors["a"], x, h)
    return outputs[-1], outputs


def test_parallel_form_is_the_best_one_and_equals_the_scan(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    """In values and in gradients, with a carry that is not zero."""
    charrnn_jax.register_cell(
        Cell(
            "decay",
            Decay,
            "h = a * h + x @ w/kernel + w/bias",
            (),
            fused=DECAY,
            parallel=decay_at_once,
        )
    )
    both = replace(CELLS["gru"], parallel=decay_at_once)
    for cell in (CELLS["decay"], both):
        assert choose_form(cell, implementation="auto", dtype="float32") == "parallel"
    rng = np.random.default_rng(0)
    inputs, carry = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 9, 3), (2, 5)))
    variables = Recurrence("decay", 5).init(jax.random.key(0), carry, inputs)

    def loss(variables: Any, carry: Any, inputs: Any, implementation: str) -> jax.Array:
        last, outputs = Recurrence("decay", 5, implementation).apply(variables, carry, inputs)
        return (outputs**2).sum() + (last**3).sum()

    gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)), static_argnums=3)
    scan, parallel = (gradients(variables, carry, inputs, form) for form in ("scan", "auto"))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), scan, parallel
    )
    tiny_config.model.cell, tiny_config.train.num_steps = "decay", 3
    assert int(charrnn_jax.train(tiny_config, tmp_path).step) == 3


def test_names_that_nothing_has_are_refused_before_anything_is_written(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    for registry in ALL:
        config = tiny_config.copy_and_resolve_references()
        config.update_from_flattened_dict({registry.field: "nothing"})
        with pytest.raises(UserError, match=rf"config.{registry.field}.*'nothing'"):
            validate(config)
        with pytest.raises(UserError, match=rf"config.{registry.field}.*'nothing'"):
            charrnn_jax.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_name_is_taken_once_but_its_file_may_run_again(experiment: Path, tmp_path: Path) -> None:
    register_file(str(experiment))
    register_file(str(experiment))
    other = tmp_path / "other.py"
    other.write_text(ELMAN)
    with pytest.raises(UserError, match=r"already registered by .*my cell.py"):
        register_file(str(other))
    with pytest.raises(UserError, match="'gru' is already"):
        charrnn_jax.register_cell(CELLS["gru"])
    with pytest.raises(UserError, match="letters, digits"):
        charrnn_jax.register_hook("a,b", lambda config: None)


def test_every_built_in_name_stands_for_code_and_passes_validation(tiny_config: ConfigDict) -> None:
    for registry in ALL:
        assert registry.field in flatten(tiny_config)
        for name in registry:
            assert registry[name]
            config = tiny_config.copy_and_resolve_references()
            config.update_from_flattened_dict({registry.field: name})
            validate(config)


def test_registry_names_its_file_by_who_calls(tmp_path: Path) -> None:
    registry: Registry[int] = Registry("number", field="seed", built_in={})
    registry.register("one", 1)
    assert registry.sources["one"].file == str(Path(__file__).resolve())
    assert len(registry.sources["one"].sha256) == 64
    mine = SimpleNamespace(name="mine")
    charrnn_jax.register_cell(mine)
    charrnn_jax.register_protocol(mine)
    charrnn_jax.register_optimizer("mine", mine)
    charrnn_jax.register_loss("mine", mine)
    charrnn_jax.register_train_step("mine", mine)
    charrnn_jax.register_hook("mine", mine)
    charrnn_jax.register_regulariser("mine", mine)
    charrnn_jax.register_rule("mine", mine)
    assert {each.sources["mine"].file for each in ALL} == {str(Path(__file__).resolve())}


def test_a_field_of_several_names_holds_them_between_commas() -> None:
    assert HOOKS.names_in(" one,two , three,") == ["one", "two", "three"]
    assert HOOKS.names_in("") == []
    assert CELLS.names_in("one, two") == ["one, two"]


@dataclasses.dataclass
class Remember:
    every_steps: int
    calls: list[tuple[int, int, dict[str, Any]]] = dataclasses.field(default_factory=list)

    def __call__(self, step: int, state: Any, metrics: dict[str, Any]) -> None:
        self.calls.append((step, int(state.step), dict(metrics)))


@pytest.mark.parametrize("steps_per_call", [1, 8])
def test_own_hooks_come_last_and_see_step_state_and_metrics(
    tiny_config: ConfigDict, tmp_path: Path, steps_per_call: int
) -> None:
    """Whatever the length of a call; 21 steps an epoch, at whose end the loss is measured."""
    tiny_config.train.steps_per_call = steps_per_call
    tiny_config.train.log_every_steps = 1
    registered, given = Remember(10), Remember(0)
    charrnn_jax.register_hook("remember", lambda config: registered)
    tiny_config.train.hooks = "remember"
    charrnn_jax.train(tiny_config, tmp_path, hooks=[given])
    assert [call[:2] for call in registered.calls] == [(s, s) for s in (10, 20, 30, 40, 42)]
    assert [call[0] for call in given.calls] == [21, 42]
    rows = charrnn_jax.read_json_lines(tmp_path / "metrics.jsonl")
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    for step, _, metrics in [*registered.calls, *given.calls]:
        assert metrics["train/loss"] == losses[step]
        assert ("validation/loss" in metrics) == (step in (21, 42))
    assert steps(tmp_path) == [21, 42]


def test_what_a_hook_raises_ends_training_after_the_checkpoint(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    def stop(step: int, state: Any, metrics: dict[str, Any]) -> None:
        raise RuntimeError("enough")

    hook = Remember(0)
    hook_that_stops = dataclasses.make_dataclass(
        "Stop", [("every_steps", int)], namespace={"__call__": lambda self, *_: stop(*_)}
    )(0)
    with pytest.raises(RuntimeError, match="enough"):
        charrnn_jax.train(tiny_config, tmp_path, hooks=[hook, hook_that_stops])
    assert steps(tmp_path) == [21]
    assert int(charrnn_jax.train(tiny_config, tmp_path).step) == 42


@dataclasses.dataclass(frozen=True)
class Expensive(charrnn_jax.Protocol):
    name: ClassVar[str] = "expensive"
    in_all: ClassVar[bool] = False

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Expensive":
        return cls()

    def losses(self, params: Any, tokens: np.ndarray, *, model: Any) -> Any:
        yield np.full(len(tokens) - 1, 2.5, np.float32)


def test_expensive_protocol_is_run_only_where_it_is_named(
    tiny_config: ConfigDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    charrnn_jax.register_protocol(Expensive)
    tiny_config.train.num_steps = 3
    charrnn_jax.train(tiny_config, tmp_path)
    evaluate = ["evaluate", f"--workdir={tmp_path}"]
    assert main(evaluate) == 0
    assert "expensive" not in capsys.readouterr().out
    assert main([*evaluate, "--protocol=expensive"]) == 0
    assert "expensive: 2.5000 nats/char" in capsys.readouterr().out
    assert main([*evaluate, "--protocol=nothing"]) == 2
    assert "'nothing': no such protocol" in capsys.readouterr().err
    assert "expensive" in PROTOCOLS


def test_own_loss_and_optimizer_by_name_are_those_given_as_arguments(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    import optax

    def doubled(logits: jax.Array, targets: jax.Array) -> jax.Array:
        return 2 * charrnn_jax.cross_entropy(logits, targets)

    def plain(config: ConfigDict, *, learning_rate: Any, weight_decay: Any) -> Any:
        return [optax.sgd(learning_rate)]

    charrnn_jax.register_loss("doubled", doubled)
    charrnn_jax.register_optimizer("plain", plain)
    assert "plain" in OPTIMIZERS
    tiny_config.train.num_steps = 5
    tiny_config.optimizer.name, tiny_config.optimizer.learning_rate = "plain", 0.1
    tiny_config.train.loss = "doubled"
    by_name = charrnn_jax.train(tiny_config, tmp_path / "name")
    tiny_config.train.loss = "cross_entropy"
    by_argument = charrnn_jax.train(tiny_config, tmp_path / "argument", loss_fn=doubled)
    tiny_config.optimizer.name, tiny_config.optimizer.learning_rate = "sgd", 0.2
    twice_as_fast = charrnn_jax.train(tiny_config, tmp_path / "rate")
    for other in (by_argument, twice_as_fast):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            by_name.params,
            other.params,
        )


@pytest.mark.parametrize(("signature", "arg"), [("", ""), ("arg", "x"), ("arg=''", "")])
def test_get_config_with_and_without_an_argument(tmp_path: Path, signature: str, arg: str) -> None:
    file = tmp_path / "experiment.py"
    file.write_text(
        f"import charrnn_jax\ndef get_config({signature}): return charrnn_jax.default_config()\n"
    )
    assert load_experiment(str(file), arg).seed == 0
    if not signature:
        with pytest.raises(UserError, match="takes no argument, so leave out ':x'"):
            load_experiment(str(file), "x")


def test_warning_only_where_the_content_differs(experiment: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    assert main([f"--config={experiment}", f"--workdir={workdir}"]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        charrnn_jax.load_run(workdir)
    assert "gated_elman" not in HOOKS


class OddCarry(nn.RNNCellBase):
    """A carry that is a dict: h [B, H], how much was read [B] from 1 on, and slots [B, 3, H]."""

    features: int

    @nn.compact
    def __call__(self, carry: Any, x: jax.Array) -> Any:
        read = carry["read"] + 1
        slots = 0.5 * carry["slots"] + nn.Dense(self.features, name="w")(x)[:, None]
        h = jnp.tanh(slots.sum(1) / read[:, None] + nn.Dense(self.features, name="u")(carry["h"]))
        return {"h": h, "read": read, "slots": slots}, h

    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> Any:
        h = jnp.zeros((*input_shape[:-1], self.features))
        slots = jnp.zeros((*input_shape[:-1], 3, self.features))
        return {"h": h, "read": jnp.ones(input_shape[:-1]), "slots": slots}

    @property
    def num_feature_axes(self) -> int:
        return 1


def test_carry_of_any_shape_trains_from_its_first_value_and_is_sampled_row_by_row(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    charrnn_jax.register_cell(Cell("odd", OddCarry, "h = ...", recurrent=("u",)))
    tiny_config.model.cell, tiny_config.train.num_steps = "odd", 3
    tiny_config.train.data_devices = 2
    state = charrnn_jax.train(tiny_config, tmp_path / "run")
    # Chunks: the carry began anew, and 20 characters were read.
    np.testing.assert_array_equal(state.carry[0]["read"], np.full(8, 21.0))
    run = charrnn_jax.load_run(tmp_path / "run")
    sampler = charrnn_jax.Sampler(run.params, model=run.model, vocabulary=run.vocabulary)
    prompts = ["The quick", "T", "The "]  # as many as there are slots
    together = sampler.generate(prompts, num_chars=20)
    assert [s.text for s in together] == [
        sampler.generate([prompt], num_chars=20)[0].text for prompt in prompts
    ]
    with pytest.raises(UserError, match="does not begin with zeros"):
        charrnn_jax.export(run, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_what_is_no_hook_is_refused_before_anything_is_written(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    for hook in (print, Remember(-1), 3):
        with pytest.raises(UserError, match="is not a hook"):
            charrnn_jax.train(tiny_config, tmp_path / "run", hooks=[hook])
    charrnn_jax.register_hook("print", lambda config: print)
    tiny_config.train.hooks = "print"
    with pytest.raises(UserError, match="is not a hook"):
        charrnn_jax.train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_hook_that_fails_in_one_replica_does_not_end_the_others(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    @dataclasses.dataclass
    class FailsForSeed1:
        seed: int
        every_steps: int = 2

        def __call__(self, step: int, state: Any, metrics: Any) -> None:
            if self.seed == 1:
                raise RuntimeError("no more")

    charrnn_jax.register_hook("fails", lambda config: FailsForSeed1(config.seed))
    tiny_config.train.hooks, tiny_config.train.num_steps = "fails", 4
    configs = [tiny_config.copy_and_resolve_references() for _ in range(3)]
    for seed, config in enumerate(configs):
        config.seed = seed
    workdirs = [tmp_path / str(seed) for seed in range(3)]
    first, failed, last = charrnn_jax.train_replicas(configs, workdirs)
    assert (first, str(failed), last) == (None, "no more", None)
    assert [charrnn_jax.load_run(workdirs[seed]).step for seed in (0, 2)] == [4, 4]


def test_runs_whose_code_may_read_the_config_share_no_program(tiny_config: ConfigDict) -> None:
    """A registered optimizer or step would see the first run's numbers in all of them."""
    charrnn_jax.register_optimizer("mine", lambda config, **_: [])
    charrnn_jax.register_train_step("mine", lambda state, batch: (state, {}))
    for field, shares in (("optimizer.name", False), ("train.step", False), ("seed", True)):
        keys = set()
        for rate in (0.1, 0.2):
            config = tiny_config.copy_and_resolve_references()
            config.optimizer.learning_rate = rate
            config.update_from_flattened_dict({field: 1 if field == "seed" else "mine"})
            keys.add(program_key(config))
        assert (len(keys) == 1) == shares
    config.train.step = "mine"
    with pytest.raises(UserError, match="trained alone"):
        charrnn_jax.train_replicas([config], ["nowhere"])


def test_cell_of_a_notebook_may_be_edited_and_run_again() -> None:
    for number in (1, 2):
        exec(
            compile(
                "import charrnn_jax\ncharrnn_jax.register_loss('mine', len)",
                f"<cell {number}>",
                "exec",
            ),
            {},
        )


def test_training_without_a_validation_split_evaluates_nothing(
    tiny_config: ConfigDict, tmp_path: Path
) -> None:
    tiny_config.train.num_steps, tiny_config.data.validation_fraction = 3, 0.0
    assert int(charrnn_jax.train(tiny_config, tmp_path).step) == 3
    assert charrnn_jax.load_run(tmp_path).loss is None


def test_protocol_that_loses_a_character_is_noticed(tiny_config: ConfigDict) -> None:
    class Short(Expensive):
        def losses(self, params: Any, tokens: np.ndarray, *, model: Any) -> Any:
            yield np.zeros(len(tokens) - 2, np.float32)

    model = charrnn_jax.make_model(tiny_config.model, vocabulary_size=5)
    with pytest.raises(ValueError, match="3 losses for 4 characters"):
        charrnn_jax.evaluate({}, np.arange(5), model=model, protocol=Short())
