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
# # An honest ablation
#
# *Does this change help?* is the question asked most often in research on networks, and the one
# most often answered wrongly. Two runs that differ in nothing but the random seed end with
# different losses. So a change that "wins" once may have won the draw of the seed.
#
# Here you try four small changes on five seeds each, read the table that comes out, and learn what
# it says and what it does not.

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
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown

import charrnn_jax

# %% [markdown]
# ## The experiment
#
# A sweep is a file with two functions. `get_config` returns what all runs share. `get_hyper`
# returns the runs: a list that says for each what it changes. Ours are the base and four changes,
# each with the same five seeds.
#
# - **A slightly higher learning rate**: 0.01 instead of 0.008.
# - **Stricter clipping**: gradients of a norm above 0.25 are scaled down, not only those above 1.
# - **A shorter memory of Adam**: `beta2` is 0.99 instead of 0.999.
# - **A little dropout**: one output of the layer in twenty is set to zero while it is trained.
#
# Which of them helps? Make a guess before you read on.

# %%
# %%writefile small_ablation.py
"""Four changes to a small GRU, five seeds each."""

import os

from charrnn_jax.config import default_config


def get_config():
    config = default_config()
    config.data.offline_corpus = "python-stdlib"  # when there is no network
    config.data.max_chars = 200_000
    config.data.batching = "lanes"
    config.data.batch_size = 16
    config.data.sequence_length = 32
    config.model.embedding_size = 32
    config.model.hidden_size = 64
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 8e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.clip_norm = 1.0
    config.evaluation.protocol = "carried"
    config.train.num_steps = 40 if os.environ.get("CHARRNN_NOTEBOOK_SMALL") else 600
    config.train.evaluate_every_steps = config.train.num_steps
    config.train.sample_every_steps = config.train.num_steps
    return config


def get_hyper(hyper):
    changes = [
        {},
        {"optimizer.learning_rate": 1e-2},
        {"optimizer.clip_norm": 0.25},
        {"optimizer.beta2": 0.99},
        {"model.dropout": 0.05},
    ]
    return hyper.product([changes, hyper.sweep("seed", range(5))])


# %% [markdown]
# Look before you run. `--dry_run` trains nothing:

# %% language="bash"
# charrnn sweep --config=small_ablation.py --workdir=runs/ablation --dry_run | head -8

# %% [markdown]
# Now train. Runs that differ only in their seeds are trained by one program, so 25 small runs do
# not take 25 starts. A sweep that was stopped resumes with the same command.

# %% language="bash"
# charrnn sweep --config=small_ablation.py --workdir=runs/ablation | tail -3

# %% [markdown]
# ## First look: one seed
#
# Suppose that you had run each configuration once, as one does on a Friday evening. This is what
# you would have seen, depending on the seed:

# %%
losses = {}  # change -> loss by seed
for unit in charrnn_jax.load_sweep("runs/ablation"):
    result = unit.read_result()
    settings = {name: value for name, value in result.settings.items() if name != "seed"}
    name = ", ".join(f"{field.split('.')[-1]}={value}" for field, value in settings.items())
    losses.setdefault(name or "base", []).append(result.loss)
losses = {name: np.array(values) for name, values in losses.items()}

for seed in range(5):
    ranked = sorted(losses, key=lambda name: losses[name][seed])
    print(f"seed {seed}:", "  <  ".join(f"{name} {losses[name][seed]:.4f}" for name in ranked))

# %% [markdown]
# Every line is an experiment that somebody might have published. In our run one change leads on
# each of them. For the others the seed decides: whether clipping beats the base, and who comes
# last.

# %% [markdown]
# ## All seeds

# %%
figure, axes = plt.subplots(figsize=(7, 2.4))
for row, values in enumerate(losses.values()):
    axes.plot(values, [row] * 5, "o", alpha=0.6)
    axes.plot(values.mean(), row, "k|", markersize=16)
axes.set(yticks=range(len(losses)), yticklabels=losses, xlabel="validation loss, nats/char")
axes.invert_yaxis()
plt.show()

# %% [markdown]
# ### The interval of a mean
#
# With losses $x_1, \dots, x_n$, mean $\bar x$ and standard deviation $s$, the 95% interval is $\bar
# x \pm t \, s / \sqrt n$. For five seeds $t$ is 2.78. It answers: if all of this were done again
# with other seeds, where might the mean be?

# %%
t = 2.776  # 97.5% quantile of Student's t with 4 degrees of freedom


def interval(values):
    half = t * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean(), values.mean() - half, values.mean() + half


for name, values in losses.items():
    mean, low, high = interval(values)
    print(f"{name:20} {mean:.4f}  [{low:.4f}, {high:.4f}]")

# %% [markdown]
# ### The interval of a difference
#
# Most of these intervals overlap with that of the base. That does *not* mean that there is no
# difference. Runs with the same seed start from the same weights, so part of their luck is shared.
# Subtract seed by seed, and that part is gone: this is the *paired* difference. If its interval
# does not contain 0, the change did something.

# %%
for name, values in losses.items():
    if name != "base":
        mean, low, high = interval(values - losses["base"])
        verdict = "contains 0" if low < 0 < high else "does not contain 0"
        print(f"{name:20} {mean:+.4f}  [{low:+.4f}, {high:+.4f}]  {verdict}")

# %% [markdown]
# See what pairing does: the change of `beta2` is smaller than the spread of the seeds, and yet it
# is there on every seed, with the same sign.
#
# ## The report
#
# The sweep has computed all of this, too. `sweep.html` is an interactive page; the same tables are
# in `sweep.md`. In addition it *corrects* for the number of questions asked. With twenty useless
# changes, one of them looks significant at 5% by chance. We asked four questions, so a p value has
# to be smaller to count. The column to look at is `p (Holm)`.

# %%
report = Path("runs/ablation/sweep.md").read_text()
Markdown(report[report.index("## Configurations") : report.index("## Effects")])

# %% [markdown]
# ## How to read it honestly
#
# - **Luck.** An interval that just misses 0 is not yet a finding: compare it with the corrected p.
#   Dropout is such a case in our run.
# - **Small or absent?** "Not significant" means: no effect was found that is larger than the
#   interval. The interval for clipping says how large a gain or harm could have gone unnoticed.
# - **Significant or important?** A difference may be certain and too small to matter.
# - **Under these conditions.** Dropout is meant for models that have seen their text too often. A
#   change that loses in this short run may win in a longer one, and the other way round.
# - **Tuned or not?** The higher learning rate won, so 0.008 was not the best base. With another
#   base, the other answers may change, too.
# - **Chosen after the fact.** Had we tried thirty changes and shown you the best four, their
#   intervals would be worth nothing. Report what you tried, and measure a winner again with new
#   seeds.
# - **One text.** The intervals cover the seed. Whether it holds on other text is a question for
#   another text.

# %% [markdown]
# ## Another question: these two models
#
# Sometimes the question is not about configurations at all: here are two trained models, which one
# should I use? Then the models are fixed and the *text* is the sample. `compare` scores both on the
# same characters.

# %%
units = charrnn_jax.load_sweep("runs/ablation")
runs = [charrnn_jax.load_run(units[index].workdir) for index in (0, 10)]
charrnn_jax.compare(*runs)

# %% [markdown]
# ## Where to go from here
#
# - Edit `small_ablation.py`: your own change, as one more line in `changes`. Run the sweep again;
#   what is done is not trained again.
# - `experiments/ablation.py` does the same with thirty changes and a larger model; its results are
#   on the page *Results* of the documentation.
# - On a cluster, add `--launcher=slurm`.
