import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from charrnn_jax.training.optimizer import make_optimizer, make_schedule


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
    ],
)
def test_schedule_warms_up_and_ends_where_it_should(
    tiny_config: ConfigDict, schedule: str, expected: list[float]
) -> None:
    config = tiny_config.optimizer
    config.learning_rate, config.schedule = 1.0, schedule
    config.warmup_steps, config.final_fraction = 4, 0.1
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
