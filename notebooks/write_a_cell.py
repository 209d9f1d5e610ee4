# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     provenance: []
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Write a cell
#
# The *cell* is the heart of a recurrent network: the few equations that turn an old state and a new
# input into a new state. Here we invent one, check it, train it beside a GRU, look inside it, and
# make it fast. Forty lines are enough, all of them in this notebook.

# %% [markdown]
# ## Setup

# %%
# Brings the package to Colab. Elsewhere: pip install -e . in a clone, before you start Jupyter.
import glob
import subprocess
import sys

if "google.colab" in sys.modules:
    address = ""  # on GitHub; "": an archive or a folder that you have uploaded
    places = ["/content/charrnn_jax*", "/content/drive/MyDrive/charrnn_jax*"]
    found = [f"git+https://github.com/{address}"] if address else glob.glob(places[0])
    if not found:
        from google.colab import drive

        drive.mount("/content/drive")
        found = glob.glob(places[1])
    if not found:
        raise SystemExit("upload charrnn_jax, as .zip or as a folder, to /content or to your Drive")
    # No extra such as [tpu]: Colab's own jax and flax, which fit its machine, are kept.
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", found[0]], check=True)

# %%
import logging
import os
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import linen as nn

import charrnn_jax

IS_SMALL = bool(os.environ.get("CHARRNN_NOTEBOOK_SMALL"))  # for tests

# %% [markdown]
# ## The idea
#
# A GRU decides at every character, unit by unit, how much to keep. That decision, the gate, costs a
# third of its weights. What if each unit learned *once* how slow it is, and stayed so?
#
# $$n_t = \tanh(x_t W + b + h_{t-1} U), \qquad
# h_t = a * h_{t-1} + (1 - a) * n_t, \qquad a = \sigma(p)$$
#
# One number $p$ for each unit, not for each character. A unit with $a$ near 1 is slow and
# remembers; one with $a$ near 0 is quick and forgets. Units of this kind are known as *leaky
# integrators* (Jaeger et al. 2007). We call the cell `leaky`.

# %% [markdown]
# ## The cell as a Flax module
#
# A cell is a module that maps `(carry, x)` to `(carry, y)` for one time step. Ours carries `h`, and
# also returns it. The slowness starts spread out, so that there are units for letters and units for
# sentences: $p$ is drawn between -2 and 4.


# %%
def spread(key, shape):
    return jax.random.uniform(key, shape, minval=-2.0, maxval=4.0)


class LeakyCell(nn.RNNCellBase):
    features: int

    @nn.compact
    def __call__(self, h, x):
        recurrent = nn.Dense(
            self.features, use_bias=False, kernel_init=nn.initializers.orthogonal(), name="h"
        )
        n = jnp.tanh(nn.Dense(self.features, name="i")(x) + recurrent(h))
        a = jax.nn.sigmoid(self.param("p", spread, (self.features,)))[None]
        h = a * h + (1 - a) * n
        return h, h

    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self):
        return 1


# %% [markdown]
# ## Check it against a slow loop
#
# Before you train a cell, write its equations a second time, as plainly as you can, and compare.
# The loop below uses NumPy and one character at a time. It cannot share a mistake with the code
# above, except one in your head.

# %%
cell = LeakyCell(features=5)
x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)  # 7 steps, 3 inputs
params = cell.init(jax.random.key(0), jnp.zeros((1, 5)), x[:1])["params"]
print(jax.tree.map(jnp.shape, params))

# %%
w, b = np.array(params["i"]["kernel"]), np.array(params["i"]["bias"])
u, p = np.array(params["h"]["kernel"]), np.array(params["p"])
h, carry = np.zeros(5), jnp.zeros((1, 5))
for t in range(7):
    n = np.tanh(x[t] @ w + b + h @ u)
    a = 1 / (1 + np.exp(-p))
    h = a * h + (1 - a) * n
    carry, _ = cell.apply({"params": params}, carry, x[t : t + 1])
    print(f"step {t}: largest difference {np.abs(h - carry[0]).max():.1e}")

# %% [markdown]
# ## Register it
#
# `register_cell` gives the cell a name for the config. A `Cell` says what the rest of the package
# needs to know: the module, the equations (an exported model shows them), and which parameters
# multiply the carry. From now on `config.model.cell = "leaky"` works everywhere: training,
# resuming, evaluation, sampling, sweeps and export.

# %%
EQUATIONS = """\
n = tanh(x @ i/kernel + i/bias + h @ h/kernel)
h = sigmoid(p) * h + (1 - sigmoid(p)) * n"""
charrnn_jax.register_cell(
    charrnn_jax.Cell(name="leaky", module=LeakyCell, equations=EQUATIONS, recurrent=("h",))
)


# %% [markdown]
# ## Train it beside a GRU
#
# A fair comparison needs a rule. Ours: about the same number of parameters, the same text, the same
# steps, the same learning rate. A leaky layer has a third of the weights of a GRU layer of the same
# width, so it may be wider.


# %%
def make_config(cell, hidden_size):
    config = charrnn_jax.default_config()
    config.data.offline_corpus = "python-stdlib"  # when there is no network
    config.data.max_chars = 50_000 if IS_SMALL else 500_000
    config.data.batching = "lanes"
    config.data.batch_size = 16
    config.data.sequence_length = 64
    config.model.cell = cell
    config.model.embedding_size = 64
    config.model.hidden_size = hidden_size
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.clip_norm = 1.0
    config.evaluation.protocol = "carried"
    config.train.num_steps = 40 if IS_SMALL else 800
    config.train.evaluate_every_steps = config.train.num_steps // 4
    config.train.sample_every_steps = config.train.num_steps
    config.train.checkpoint_every_steps = config.train.num_steps
    return config


gru = make_config("gru", hidden_size=128)
leaky = make_config("leaky", hidden_size=230)
vocabulary = charrnn_jax.load_dataset(gru.data).vocabulary
for config in (gru, leaky):
    model = charrnn_jax.make_model(config.model, vocabulary_size=vocabulary.size)
    print(charrnn_jax.summary(model))

# %% [markdown]
# `summary` says `scan`: the cell runs as Flax's loop over the module. That is slow, but it is
# correct, and it is the reference for what follows. To hear less while they train, we set the level
# of the package's logger.

# %%
logging.getLogger("charrnn_jax").setLevel(logging.WARNING)
for config in (gru, leaky):
    start = time.time()
    charrnn_jax.train(config, f"runs/{config.model.cell}")
    run = charrnn_jax.load_run(f"runs/{config.model.cell}")
    print(f"{config.model.cell:5}  {run.loss:.4f} nats/char  in {time.time() - start:.0f} s")

# %%
figure, axes = plt.subplots(figsize=(7, 2.8))
for name in ("gru", "leaky"):
    rows = charrnn_jax.read_json_lines(f"runs/{name}/metrics.jsonl")
    points = [(row["step"], row["validation/loss"]) for row in rows if "validation/loss" in row]
    axes.plot(*zip(*points, strict=True), "o-", label=name)
axes.set(xlabel="step", ylabel="validation, nats/char")
axes.legend()
plt.show()

# %% [markdown]
# Is the difference real? `compare` answers for *these two runs*: would other text of the same kind
# show it, too? Whether leaky cells in general lose to GRUs is another question. It needs several
# seeds and a learning rate tuned for each; the notebook `ablation` shows how.

# %%
runs = [charrnn_jax.load_run(f"runs/{name}") for name in ("gru", "leaky")]
charrnn_jax.compare(*runs)

# %% [markdown]
# ## Look inside
#
# We wanted slow and quick units. Did training keep them? A unit with leak $a$ forgets by half in
# $\ln 2 / -\ln a$ characters.

# %%
cell_params = runs[1].params["layers_0"]["cell"]
a = np.array(jax.nn.sigmoid(cell_params["p"]))
half_life = np.log(2) / -np.log(a)
figure, axes = plt.subplots(figsize=(7, 2.2))
axes.hist(half_life, bins=np.geomspace(0.1, 100, 40))
axes.set(xscale="log", xlabel="half-life in characters", ylabel="units")
plt.show()
print(f"quickest {half_life.min():.2f}, median {np.median(half_life):.1f}, ", end="")
print(f"slowest {half_life.max():.1f} characters")

# %% [markdown]
# ## Sample
#
# Nothing special: a run with your cell is a run.

# %%
leaky_run = runs[1]
sampler = charrnn_jax.Sampler(
    leaky_run.params, model=leaky_run.model, vocabulary=leaky_run.vocabulary
)
sampler.generate(["ROMEO:"], num_chars=300, temperature=0.7)[0]

# %% [markdown]
# ## Make it fast
#
# The *fused* form says which part of a step does not depend on the carry (`read`, computed for all
# characters at once) and which does (`step`). `gather` sorts the parameters into these two sides.
# You write no gradient: it is derived from `step`.


# %%
def gather(params):
    inputs = charrnn_jax.Weights({"i": params["i"]["kernel"]}, {"i": params["i"]["bias"]})
    recurrent = charrnn_jax.Weights({"h": params["h"]["kernel"]}, {"p": params["p"]})
    return charrnn_jax.CellWeights(inputs, recurrent)


def read(ops, x):
    return ops.times("i", x) + ops.vectors["i"]


def step(ops, h, from_input):
    n = ops.tanh(from_input + ops.times("h", h))
    a = ops.sigmoid(ops.vectors["p"])
    h = a * h + (1 - a) * n
    return h, h


charrnn_jax.register_cell(
    charrnn_jax.Cell(
        name="leaky",
        module=LeakyCell,
        equations=EQUATIONS,
        recurrent=("h",),
        fused=charrnn_jax.Fused(gather, read, step),
    )
)

# %% [markdown]
# Both forms use the same parameters, so the trained run can be asked through either. First the
# question that matters: do they agree, in values and in gradients?

# %%
tokens = leaky_run.load_dataset().splits["validation"][: 16 * 65].reshape(16, 65).astype(np.int32)


def mean_loss(params, model):
    carry = model.initialize_carry(16)
    _, logits = charrnn_jax.forward(params, carry, tokens[:, :-1], model=model)
    return charrnn_jax.cross_entropy(logits, tokens[:, 1:]).mean()


results = {}
for form in ("scan", "fused"):
    model = leaky_run.model.clone(implementation=form)
    results[form] = jax.jit(jax.value_and_grad(mean_loss), static_argnums=1)(
        leaky_run.params, model
    )
    print(f"{form:5}  loss {results[form][0]:.6f}")
differences = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), *(r[1] for r in results.values()))
print(f"largest difference of any gradient: {max(jax.tree.leaves(differences)):.1e}")

# %% [markdown]
# Then the time of a training step:

# %%
batch = charrnn_jax.Batch(tokens[:, :-1], tokens[:, 1:], np.zeros(16, bool))
for form in ("scan", "fused"):
    state = charrnn_jax.create_train_state(
        leaky_run.model.clone(implementation=form),
        charrnn_jax.make_optimizer(leaky.optimizer, num_steps=100),
        seed=0,
        batch_size=16,
    )
    train_step = jax.jit(charrnn_jax.train_step, donate_argnums=0)
    state, _ = train_step(state, batch)  # compiles
    jax.block_until_ready(state.params)
    start = time.time()
    for _ in range(20):
        state, _ = train_step(state, batch)
    jax.block_until_ready(state.params)
    print(f"{form:5}  {(time.time() - start) / 20 * 1000:.1f} ms a step")

# %% [markdown]
# ## Where to go from here
#
# - Put the cell into a file of its own, `leaky.py`, with a `get_config`. Then `charrnn
#   --config=leaky.py` trains it from the shell. The page *Extending* of the documentation has a
#   complete example.
# - Let $a$ depend on the input again, but not on the carry. You have nearly reinvented the minimal
#   GRU (`min_gru`), which can be computed for all characters in parallel.
# - Ten cells come with the package. The page *Cells* has their equations and their sizes.
