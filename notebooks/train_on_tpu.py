# ---
# jupyter:
#   accelerator: TPU
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
# # Train on a TPU
#
# A TPU usually has several *cores*, each a device of its own, and a free one may be taken away at
# any moment. This notebook trains a character model on all cores, keeps the run in a folder that
# outlives the machine, and shows that a run which was cut off resumes as if nothing had happened.
#
# On Colab: *Runtime > Change runtime type*, and choose a TPU. Without one, the notebook does the
# same with a small model on the cores of a CPU. That is how the outputs below were made.

# %% [markdown]
# ## Setup
#
# On Colab, JAX is there already and knows the TPU. Elsewhere you choose the *extra* that brings the
# right JAX when you install the package: `pip install -e ".[tpu]"` on a Cloud TPU machine,
# `".[cuda12]"` or `".[cuda13]"` with NVIDIA GPUs, and no extra for CPUs.

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
import os

import jax

# For CPUs only: make two devices of its cores. Other machines have theirs.
jax.config.update("jax_num_cpu_devices", 2)

import charrnn_jax

# %% [markdown]
# ## Which devices are there?
#
# If this says `cpu` although you asked for a TPU, the runtime has none: choose another one before
# you wait for hours.

# %%
device = jax.devices()[0]
print(f"{jax.device_count()} devices: {device.platform}, {device.device_kind}")
is_small = device.platform == "cpu"

# %% [markdown]
# ## A folder that stays
#
# A Colab machine forgets its disk when it ends. Your Drive does not, so the run goes there.
# Elsewhere it goes into the folder `runs`.

# %%
if "google.colab" in sys.modules:
    from google.colab import drive

    drive.mount("/content/drive")
    workdir = "/content/drive/MyDrive/charrnn_runs/tpu"
else:
    workdir = "runs/tpu"

# %% [markdown]
# ## Settings
#
# Each core gets its own rows of the batch, so the batch must be a multiple of their number. The
# text is cut into that many long *lanes*, which are read side by side; the carry, the memory of the
# network, is kept from batch to batch.
#
# `checkpoint_every_steps` is what a lost machine can cost you: at most that many steps.

# %%
config = charrnn_jax.default_config()
config.data.offline_corpus = "python-stdlib"  # when there is no network
config.data.batching = "lanes"
config.data.batch_size = 32 * jax.device_count()
config.train.data_devices = jax.device_count()
config.data.sequence_length = 128
config.model.hidden_size = 1024
config.model.dtype = "bfloat16"
config.optimizer.name = "adamw"
config.optimizer.learning_rate = 3e-3
config.optimizer.schedule = "cosine"
config.optimizer.clip_norm = 1.0
config.evaluation.protocol = "carried"
config.train.num_steps = 3000
config.train.evaluate_every_steps = 500
config.train.checkpoint_every_steps = 500
config.train.sample_every_steps = 1000
config.sample.num_chars = 300
if is_small:
    config.data.batch_size = 16
    config.data.sequence_length = 64
    config.model.embedding_size = 64
    config.model.hidden_size = 256
    config.model.dtype = "float32"
    config.optimizer.learning_rate = 8e-3
    config.train.num_steps = 600
    config.train.evaluate_every_steps = 200
    config.train.checkpoint_every_steps = 200
    config.train.sample_every_steps = 600
if os.environ.get("CHARRNN_NOTEBOOK_SMALL"):  # for tests
    config.data.max_chars = 40_000
    config.model.hidden_size = 32
    config.train.num_steps = 60
    config.train.evaluate_every_steps = config.train.checkpoint_every_steps = 20
    config.train.sample_every_steps = 60

# %% [markdown]
# ## Train, and lose the connection
#
# `train` compiles one program for all devices. After the first step it says how long the rest will
# take.
#
# We do not wait for Colab to take the machine away. The hook below does it for us: it fails in the
# middle of the run, between two checkpoints. On a day without such plans, leave out `hooks`.


# %%
class Disconnected(Exception):
    pass


class LoseConnection:
    """Fails as suddenly as a machine that is gone."""

    every_steps = config.train.num_steps * 5 // 12

    def __call__(self, step, state, metrics):
        raise Disconnected(f"the machine is gone after {step} steps")


# %%
try:
    charrnn_jax.train(config, workdir, hooks=[LoseConnection()])
except Disconnected as error:
    print("\nDisconnected:", error)

# %% [markdown]
# ## Resume
#
# Connect again, run the cells above except the last one (they take seconds), and call `train` with
# the same config and the same folder. There is nothing else to remember: it finds the last
# checkpoint, goes back to that place in the text, and repeats the few steps that were lost. The
# result equals that of a run which was never disturbed, bit for bit.

# %%
state = charrnn_jax.train(config, workdir)

# %% [markdown]
# ### Were all cores used?
#
# Ask the arrays themselves. The carry has one row for each lane; each device holds its own rows.
# The parameters are the same everywhere.

# %%
carry = jax.tree.leaves(state.carry)[0]
kernel = state.params["dense"]["kernel"]
print("carry:     ", carry.shape, "on", len(carry.sharding.device_set), "devices")
for shard in carry.addressable_shards:
    start, stop, _ = shard.index[0].indices(len(carry))
    print(f"   device {shard.device.id} has rows {start} to {stop - 1}")
print("dense layer:", kernel.shape, "whole on each:", kernel.sharding.is_fully_replicated)

# %% [markdown]
# ### The course of the loss
#
# The dashed line marks the disconnection. It leaves no mark on the curve.

# %%
import matplotlib.pyplot as plt

rows = charrnn_jax.read_json_lines(f"{workdir}/metrics.jsonl")
figure, axes = plt.subplots(figsize=(7, 2.8))
for name, style in [("train/loss", "-"), ("validation/loss", "o-")]:
    points = [(row["step"], row[name]) for row in rows if name in row]
    axes.plot(*zip(*points, strict=True), style, label=name)
axes.axvline(LoseConnection.every_steps, color="gray", linestyle="--")
axes.set(xlabel="step", ylabel="nats/char")
axes.legend()
plt.show()

# %% [markdown]
# ## Sample
#
# The run is a folder: `load_run` opens it here, or tomorrow on your laptop. A checkpoint does not
# remember how many devices have made it.

# %%
run = charrnn_jax.load_run(workdir)
run

# %%
sampler = charrnn_jax.Sampler(run.params, model=run.model, vocabulary=run.vocabulary)
for sample in sampler.generate(["ROMEO:", "JULIET:"], num_chars=300, temperature=0.7):
    print(sample.prompt + sample.text + "\n" + "_" * 80)

# %% [markdown]
# ## Where to go from here
#
# - More steps: raise `config.train.num_steps` and call `train` again. It resumes at the end of the
#   run; the learning rate, however, follows a cosine that now ends later.
# - Another text: set `config.data.path`, as in the notebook `your_own_text`.
# - Several machines: the page *Distributed training* of the documentation.
