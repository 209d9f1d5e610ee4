import math
import runpy

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from charrnn_jax import config as config_lib
from charrnn_jax.config import (
    default_config,
    diff,
    flatten,
    from_json,
    to_json,
    validate,
)
from charrnn_jax.errors import UserError
from charrnn_jax.experiment import load_experiment, override


def test_the_default_is_the_tutorials_model_and_procedure() -> None:
    """https://www.tensorflow.org/text/tutorials/text_generation"""
    config = default_config()
    model, data, optimizer = config.model, config.data, config.optimizer
    assert (model.cell, model.embedding_size, model.hidden_size) == ("gru", 256, 1024)
    assert (model.num_layers, model.dropout, model.dtype) == (1, 0.0, "float32")
    assert (data.batch_size, data.sequence_length, data.batching) == (64, 100, "chunks")
    assert (optimizer.name, optimizer.learning_rate, optimizer.epsilon) == ("adam", 1e-3, 1e-7)
    assert (optimizer.beta1, optimizer.beta2, config.train.num_epochs) == (0.9, 0.999, 20)


def test_every_field_has_a_rule_and_a_valid_default() -> None:
    assert flatten(default_config()).keys() == config_lib._RULES.keys()
    validate(default_config())


@given(
    prompt=st.text(),
    learning_rate=st.floats(min_value=1e-12, max_value=1e3),
    seed=st.integers(0, 2**31 - 1),
)
def test_json_round_trip_is_exact(prompt: str, learning_rate: float, seed: int) -> None:
    config = default_config()
    config.sample.prompt = prompt
    config.optimizer.learning_rate = learning_rate
    config.seed = seed
    assert diff(config, from_json(to_json(config))) == {}


def test_config_saved_before_a_field_existed_gets_its_default() -> None:
    saved = default_config().unlock()
    del saved.model["dropout"]
    assert from_json(to_json(saved)) == default_config()


def test_config_saved_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(UserError, match="schema"):
        from_json('{"model": {"colour": "red"}}')


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer.learning_rate", math.nan),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.clip_norm", math.inf),
        ("data.batch_size", 0),
        ("data.validation_fraction", 1.0),
        ("data.vocabulary", "words"),
        ("model.cell", "transformer"),
        ("model.dropout", 1.0),
        ("sample.temperature", -1.0),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    config = default_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=f"config.{field} is"):
        validate(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [("train.num_steps", None), ("seed", True), ("optimizer.clip_norm", "1"), ("data.path", 3)],
)
def test_values_of_another_type_are_refused_by_name(field: str, value: object) -> None:
    section, _, name = field.rpartition(".")
    config = default_config().unlock()
    (config[section] if section else config).unlock()
    with (config[section] if section else config).ignore_type():
        (config[section] if section else config)[name] = value
    with pytest.raises(UserError, match=f"config.{field} is .* must be (a|text)"):
        validate(config)


def test_splits_that_leave_no_training_text_are_refused() -> None:
    config = default_config()
    config.data.validation_fraction = config.data.test_fraction = 0.5
    with pytest.raises(UserError, match="nothing is left"):
        validate(config)


def test_overrides_set_fields_of_every_type() -> None:
    config = override(
        default_config(),
        [
            "--config.data.batch_size=3",
            "--config.optimizer.learning_rate=1",
            "--config.data.path=a=b c",
            "--config.sample.prompt=",
        ],
    )
    assert diff(default_config(), config) == {
        "data.batch_size": (64, 3),
        "optimizer.learning_rate": (1e-3, 1.0),
        "data.path": ("", "a=b c"),
        "sample.prompt": ("ROMEO:", ""),
    }


def test_overriding_values_leaves_the_config_as_it_is() -> None:
    config = default_config()
    assert config_lib.override_values(config, {"seed": 5, "model.cell": "lstm"}).seed == 5
    assert diff(default_config(), config) == {}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.data.batch_sise=3", "did you mean config.data.batch_size"),
        ("--config.nonsense=3", "no field config.nonsense"),
        (
            "--config.data.batch_size=many",
            "config.data.batch_size is 'many'; it must be a whole number",
        ),
        ("--config.data=3", "no field config.data"),
        ("--config.seed", "what is"),
        ("--learning_rate=1", "what is"),
        ("stray", "what is"),
    ],
)
def test_wrong_overrides_are_refused(argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(default_config(), [argument])


@pytest.mark.parametrize(
    "experiment",
    [
        "shakespeare",
        "shakespeare:tutorial",
        "shakespeare:lstm",
        "shakespeare:two_layers",
        "quick",
        "smoke",
        "smoke:builtin",
    ],
)
def test_experiments_give_valid_configs(experiment: str) -> None:
    name, _, arg = experiment.partition(":")
    validate(load_experiment(str(ROOT / "experiments" / f"{name}.py"), arg))


def test_own_text_demands_a_path() -> None:
    config = load_experiment(str(ROOT / "experiments" / "own_text.py"))
    with pytest.raises(UserError, match=r"--config\.data\.path=FILE"):
        validate(config)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "no function get_config"),
        ("def get_config(arg=''): return {}", "not a ConfigDict"),
        ("def get_config(arg=''): return 1 / 0", "does not run: ZeroDivisionError"),
        ("def broken(", "does not run: SyntaxError"),
    ],
)
def test_broken_experiment_files_are_named(tmp_path, source: str, message: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(source)
    with pytest.raises(UserError, match=message):
        load_experiment(str(file))
    with pytest.raises(UserError, match="no experiment file"):
        load_experiment(str(tmp_path / "absent.py"))


def test_page_of_the_fields_is_current() -> None:
    """After a change of the schema: python docs/generate_config.py"""
    generate = runpy.run_path(str(ROOT / "docs" / "generate_config.py"))
    assert generate["PAGE"].read_text(encoding="utf-8") == generate["page"]()
    assert all(f"| `{name}` |" in generate["page"]() for name in flatten(default_config()))
