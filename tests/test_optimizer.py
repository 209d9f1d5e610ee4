from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers import assert_bitwise_equal, assert_same_run, signal_at
from ml_collections import ConfigDict

from charrnn_jax.config import override_values
from charrnn_jax.errors import Interrupted, UserError
from charrnn_jax.training.loop import train
from charrnn_jax.training.optimizer import make_optimizer
from charrnn_jax.training.replicas import train_replicas
from charrnn_jax.training.schedule_free import averaged_weights
from charrnn_jax.training.schedules import make_schedule
from charrnn_jax.workdir.run import load_run


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "sgd"])
def test_optimizers_equal_pytorchs(tiny_config: ConfigDict, name: str, weight_decay: float) -> None:
    torch = pytest.importorskip("torch")
    config = tiny_config.optimizer
    config.name, config.weight_decay, config.momentum = name, weight_decay, 0.9
    rng = np.random.default_rng(0)
    start = {"matrix": rng.normal(size=(3, 4)).astype("f"), "bias": rng.normal(size=4).astype("f")}
    gradients = [
        {k: rng.normal(size=v.shape).astype("f") for k, v in start.items()} for _ in "12345"
    ]

    tensors = {k: torch.tensor(v.copy()) for k, v in start.items()}
    groups = [
        {"params": [tensors["matrix"]], "weight_decay": weight_decay},
        {"params": [tensors["bias"]], "weight_decay": 0.0},
    ]
    settings = {"lr": config.learning_rate}
    if name in ("adam", "adamw"):
        settings |= {"betas": (config.beta1, config.beta2), "eps": config.epsilon}
    elif name == "rmsprop":
        settings |= {"alpha": config.rms_decay, "eps": config.epsilon}
    else:
        settings |= {"momentum": config.momentum}
    names = {"adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop", "sgd": "SGD"}
    theirs = getattr(torch.optim, names[name])(groups, **settings)

    ours = make_optimizer(config, num_steps=5)
    params = jax.tree.map(jnp.asarray, start)
    opt_state = ours.init(params)
    for gradient in gradients:
        for key, tensor in tensors.items():
            tensor.grad = torch.tensor(gradient[key])
        theirs.step()
        updates, opt_state = ours.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
    for key, tensor in tensors.items():
        np.testing.assert_allclose(params[key], tensor.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, 1.0, 0.8682, 0.55, 0.2318, 0.1]),
        ("wsd", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.3636, 0.1]),  # down by 1 - sqrt(1 / 2)
    ],
)
def test_schedule_warms_up_and_ends_where_it_should(
    tiny_config: ConfigDict, schedule: str, expected: list[float]
) -> None:
    config = tiny_config.optimizer
    config.learning_rate, config.schedule = 1.0, schedule
    config.warmup_steps, config.final_fraction, config.decay_fraction = 4, 0.1, 0.25
    rates = [float(make_schedule(config, num_steps=8)(step)) for step in range(9)]
    np.testing.assert_allclose(rates, expected, atol=1e-4)


def test_gradient_is_clipped_to_the_global_norm(tiny_config: ConfigDict) -> None:
    config = tiny_config.optimizer
    config.name, config.clip_norm, config.learning_rate = "sgd", 1.0, 1.0
    optimizer = make_optimizer(config, num_steps=1)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    gradient = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(optax.tree.norm(updates), 1.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "sgd"])
def test_clipping_comes_first_and_decay_before_or_after_the_preconditioner(
    tiny_config: ConfigDict, name: str
) -> None:
    """The whole chain against NumPy: for "adamw" decay is decoupled, for the others it is not."""
    config = tiny_config.optimizer
    config.name, config.clip_norm, config.weight_decay = name, 0.5, 0.3
    config.learning_rate, config.warmup_steps, config.momentum = 0.1, 3, 0.6
    rng = np.random.default_rng(0)
    weights = {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}
    # Of many sizes, so that it matters what is clipped: some are below the norm.
    gradients = [
        {key: scale * rng.normal(size=value.shape) for key, value in weights.items()}
        for scale in (1.0, 0.03, 10.0, 0.1, 3.0)
    ]
    ours = make_optimizer(config, num_steps=5)
    params = jax.tree.map(jnp.float32, weights)
    opt_state = ours.init(params)
    first = dict.fromkeys(weights, 0.0)
    second = dict.fromkeys(weights, 0.0)
    for step, gradient in enumerate(gradients):
        norm = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
        rate = 0.1 * min((step + 1) / 3, 1.0)
        for key, w in weights.items():
            g = gradient[key] * min(1.0, 0.5 / norm)
            decay = 0.3 * w if key == "kernel" else 0.0
            if name != "adamw":
                g = g + decay
            if name in ("adam", "adamw"):
                first[key] = 0.9 * first[key] + 0.1 * g
                second[key] = 0.999 * second[key] + 0.001 * g**2
                mean = first[key] / (1 - 0.9 ** (step + 1))
                square = second[key] / (1 - 0.999 ** (step + 1))
                update = mean / (np.sqrt(square) + 1e-7)
            elif name == "rmsprop":
                second[key] = 0.9 * second[key] + 0.1 * g**2
                update = g / (np.sqrt(second[key]) + 1e-7)
            else:
                first[key] = update = g + 0.6 * first[key]
            if name == "adamw":
                update = update + decay
            weights[key] = w - rate * update
        updates, opt_state = ours.update(jax.tree.map(jnp.float32, gradient), opt_state, params)
        params = optax.apply_updates(params, updates)
        for key, w in weights.items():
            np.testing.assert_allclose(params[key], w, rtol=1e-4, atol=1e-5)


CELL_PARAMS = {  # of a cell with a kernel per gate, and of one with four gates side by side
    "embedding": {"embedding": (7, 3)},
    "layers_0": {"cell": {"ir": {"kernel": (3, 4)}, "hr": {"kernel": (4, 4), "bias": (4,)}}},
    "layers_1": {"cell": {"h": {"kernel": (4, 16)}, "p": (3, 4)}},
    "dense": {"kernel": (4, 7), "bias": (7,)},
}


def draw(rng: np.random.Generator, scale: float = 1.0) -> dict[str, np.ndarray]:
    shapes = flatten_dict(CELL_PARAMS, sep="/")
    return {name: scale * rng.normal(size=shape) for name, shape in shapes.items()}


class NumpyAdam:
    b1, b2 = 0.9, 0.999

    def __init__(self) -> None:
        self.m, self.v = 0.0, 0.0

    def __call__(self, g: np.ndarray, step: int) -> np.ndarray:
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g**2
        mean, square = self.m / (1 - self.b1**step), self.v / (1 - self.b2**step)
        return mean / (np.sqrt(square) + 1e-7)


class NumpyLion:
    def __init__(self) -> None:
        self.m = 0.0

    def __call__(self, g: np.ndarray, step: int) -> np.ndarray:
        direction = np.sign(0.9 * self.m + 0.1 * g)
        self.m = 0.99 * self.m + 0.01 * g
        return direction


class NumpyAdan:
    """With the paper's betas, which are 1 minus those of the code."""

    def __init__(self) -> None:
        self.last, self.m, self.v, self.n = None, 0.0, 0.0, 0.0

    def __call__(self, g: np.ndarray, step: int) -> np.ndarray:
        d = 0.0 if self.last is None else g - self.last
        self.last = g
        self.m = (1 - 0.02) * self.m + 0.02 * g
        self.v = (1 - 0.08) * self.v + 0.08 * d
        self.n = (1 - 0.01) * self.n + 0.01 * (g + (1 - 0.08) * d) ** 2
        m, v, n = (x / (1 - b**step) for x, b in ((self.m, 0.98), (self.v, 0.92), (self.n, 0.99)))
        return (m + (1 - 0.08) * v) / (np.sqrt(n) + 1e-8)


class NumpyMuon:
    """By the singular value decomposition; only its singular values go through the iteration."""

    def __init__(self) -> None:
        self.m = 0.0

    def __call__(self, g: np.ndarray, step: int) -> np.ndarray:
        self.m = 0.95 * self.m + 0.05 * g
        n = 0.95 * self.m / (1 - 0.95 ** (step + 1)) + 0.05 * g / (1 - 0.95**step)
        gates = []
        for gate in np.split(n, n.shape[1] // 4, axis=1):
            u, s, vt = np.linalg.svd(gate, full_matrices=False)
            s /= np.sqrt(np.sum(s**2))
            for _ in range(5):
                s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
            gates.append(0.2 * np.sqrt(max(gate.shape)) * (u * s) @ vt)
        return np.concatenate(gates, axis=1)


@pytest.mark.parametrize("name", ["lion", "adan", "muon"])
def test_optimizers_of_recent_papers_equal_a_few_lines_of_numpy(
    tiny_config: ConfigDict, name: str
) -> None:
    """Muon has the kernels of cells, gate by gate; the rest, and a peephole's matrix, has Adam."""
    config = tiny_config.optimizer
    config.name, config.weight_decay, config.learning_rate = name, 0.3, 0.01
    rng = np.random.default_rng(0)
    weights = draw(rng)
    methods = {
        key: {
            "lion": NumpyLion,
            "adan": NumpyAdan,
            "muon": NumpyMuon if "cell" in key and key.endswith("kernel") else NumpyAdam,
        }[name]()
        for key in weights
    }
    optimizer = make_optimizer(config, num_steps=9, hidden_size=4)
    params = jax.tree.map(jnp.float32, unflatten_dict(weights, sep="/"))
    opt_state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(1, 6):
        gradient = draw(rng, scale=10.0 ** rng.integers(-3, 2))
        for key, w in weights.items():
            decay = 0.3 * w if w.ndim > 1 else 0.0
            weights[key] = w - 0.01 * (methods[key](gradient[key], step) + decay)
        given = jax.tree.map(jnp.float32, unflatten_dict(gradient, sep="/"))
        updates, opt_state = update(given, opt_state, params)
        params = optax.apply_updates(params, updates)
        for key, value in flatten_dict(params, sep="/").items():
            np.testing.assert_allclose(value, weights[key], rtol=2e-4, atol=2e-5, err_msg=key)


def test_schedule_free_equals_a_few_lines_of_numpy_and_its_average_is_what_is_evaluated(
    tiny_config: ConfigDict,
) -> None:
    config = tiny_config.optimizer
    config.name, config.weight_decay, config.learning_rate = "schedule_free", 0.3, 0.1
    config.warmup_steps, config.beta1, config.beta2 = 3, 0.8, 0.99
    rng = np.random.default_rng(0)
    optimizer = make_optimizer(config, num_steps=9)
    y = {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}
    z, x, v = dict(y), dict(y), dict.fromkeys(y, 0.0)
    params = jax.tree.map(jnp.float32, y)
    opt_state = optimizer.init(params)
    sum_of_weights = 0.0
    for step in range(1, 6):
        rate = 0.1 * min(step / 3, 1.0)
        sum_of_weights += rate**2
        gradient = {key: rng.normal(size=value.shape) for key, value in y.items()}
        for key, g in gradient.items():
            v[key] = 0.99 * v[key] + 0.01 * g**2
            direction = g / (np.sqrt(v[key] / (1 - 0.99**step)) + 1e-7)
            z[key] = z[key] - rate * (direction + (0.3 * y[key] if key == "kernel" else 0.0))
            share = rate**2 / sum_of_weights
            x[key] = (1 - share) * x[key] + share * z[key]
            y[key] = 0.8 * x[key] + 0.2 * z[key]
        updates, opt_state = optimizer.update(
            jax.tree.map(jnp.float32, gradient), opt_state, params
        )
        params = optax.apply_updates(params, updates)
        close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
        jax.tree.map(close, params, y)
        jax.tree.map(close, averaged_weights(params, opt_state), x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["schedule_free", "lion", "adan", "muon"])
def test_a_run_that_is_resumed_or_a_replica_is_the_undisturbed_run_with_any_optimizer(
    tiny_config: ConfigDict, tmp_path: Path, heeded_signals: None, name: str
) -> None:
    """With "schedule_free", other weights are evaluated and saved as params than are trained."""
    config = override_values(
        tiny_config,
        {
            **{"optimizer.name": name, "optimizer.weight_decay": 0.1},
            **{"optimizer.schedule": "wsd", "train.num_steps": 12},
            **{"train.evaluate_every_steps": 5, "model.cell": "rnn"},
        },
    )
    undisturbed = train(config, tmp_path / "undisturbed")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", hooks=[signal_at(5)])
    assert_bitwise_equal(train(config, tmp_path / "run"), undisturbed)
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")
    other = override_values(config, {"optimizer.learning_rate": 2e-3, "seed": 1})
    folders = [tmp_path / "replica", tmp_path / "other"]
    assert train_replicas([config, other], folders, mapping="map") == [None, None]
    assert_same_run(tmp_path / "replica", tmp_path / "undisturbed")
    evaluated = load_run(tmp_path / "run", checkpoint="latest").params
    same = jax.tree.map(lambda a, b: bool((a == b).all()), evaluated, undisturbed.params)
    assert all(jax.tree.leaves(same)) == (name != "schedule_free")


def test_lion_and_muon_equal_optaxs(tiny_config: ConfigDict) -> None:
    """For square kernels, whose scale is 1 in Optax and 2 * muon_ratio here, with H = 4."""
    config = tiny_config.optimizer
    config.learning_rate, config.muon_ratio = 0.01, 0.5
    rng = np.random.default_rng(0)
    params = {"cell": {"hr": {"kernel": jnp.float32(rng.normal(size=(4, 4)))}}}
    others = {"lion": optax.lion(0.01, weight_decay=0.0), "muon": optax.contrib.muon(0.01)}
    for config.name, theirs in others.items():
        ours = make_optimizer(config, num_steps=9)
        states = [ours.init(params), theirs.init(params)]
        for _ in range(4):
            gradient = jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), params)
            updates = []
            for index, optimizer in enumerate((ours, theirs)):
                update, states[index] = jax.jit(optimizer.update)(gradient, states[index], params)
                updates.append(update)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), *updates)


def test_a_schedule_by_time_warms_up_by_steps_and_decays_with_progress(
    tiny_config: ConfigDict,
) -> None:
    config = tiny_config.optimizer
    config.learning_rate, config.warmup_steps, config.final_fraction = 1.0, 4, 0.1
    config.decay_fraction = 0.25
    expected = {
        "constant": [1.0, 1.0, 1.0, 1.0],
        "linear": [1.0, 0.55, 0.1 + 0.9 * 0.1, 0.1],
        "cosine": [1.0, 0.55, 0.1 + 0.9 * (1 + np.cos(0.9 * np.pi)) / 2, 0.1],
        "wsd": [1.0, 1.0, 0.1 + 0.9 * (1 - np.sqrt((0.9 - 0.75) / 0.25)), 0.1],
    }
    for config.schedule, rates in expected.items():
        for progress, rate in zip((0.0, 0.5, 0.9, 1.0), rates, strict=True):
            schedule = make_schedule(config, num_steps=10**6, progress=progress)
            np.testing.assert_allclose(schedule(1000), rate, rtol=1e-5)
            np.testing.assert_allclose(schedule(1), min(0.5, rate), rtol=1e-5)


def test_schedule_free_without_an_average_is_refused(tiny_config: ConfigDict) -> None:
    config = tiny_config.optimizer
    config.name, config.beta1 = "schedule_free", 0.0
    with pytest.raises(UserError, match="beta1 is 0; for schedule_free it must be above 0"):
        make_optimizer(config, num_steps=1)
