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
# # A model of your own text
#
# Your diary, a novel, ten years of chat messages, the source code of your project: any text file
# will do, in any language. This notebook makes a model of it, looks at what was learned, and uses
# the model in two ways: to write, and to judge how surprising a text is.

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
import os
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML

import charrnn_jax

IS_SMALL = bool(os.environ.get("CHARRNN_NOTEBOOK_SMALL"))  # for tests

# %% [markdown]
# ## The text
#
# Put your file beside this notebook and change the next line. On Colab, the folder symbol on the
# left uploads it. A folder or a pattern such as `"letters/**/*.txt"` works as well.
#
# If there is no such file, we make one, so that the notebook runs: the reference manual of Python
# as it comes with every Python. It is dry, but it is real prose, and you will see the model pick up
# its tone.

# %%
path = "my_text.txt"

# %%
if path == "my_text.txt" and not Path(path).exists():
    from pydoc_data.topics import topics

    manual = "\n\n".join(topics[name] for name in sorted(topics))
    Path(path).write_text(manual[:60_000] if IS_SMALL else manual, encoding="utf-8")

# %% [markdown]
# ## Look at it first
#
# A model learns everything that is in the file: the page numbers, too, the licence at the end, and
# the three letters from another alphabet. `load_dataset` reads the text as training will.

# %%
config = charrnn_jax.default_config()
config.data.path = path
dataset = charrnn_jax.load_dataset(config.data)
print(dataset.describe())

# %%
dataset.vocabulary

# %% [markdown]
# Each of these characters costs a row of weights, and a character that occurs twice cannot be
# learned. Here are the rarest. If they are accidents (a stray quotation mark, say), clean the file
# and run again.

# %%
tokens = dataset.splits.tokens
counts = np.bincount(tokens, minlength=dataset.vocabulary.size)[1:]
rarest = np.argsort(counts)[:12]
print("  ".join(f"{dataset.vocabulary.characters[i]!r} {counts[i]}" for i in rarest))

# %% [markdown]
# ## How large a model, and how long?
#
# Three rules of thumb, before you try:
#
# - **Less than 20,000 characters** are learned by heart. Use a small model and dropout, or start
#   from a model of a larger text (`config.train.init_from`).
# - **A few hundred thousand to some millions** suit the model below, or `experiments/own_text.py`
#   with 384 units.
# - **More**: a larger model, and steps instead of epochs.
#
# The last tenth of the text is kept for validation. The model never sees it, so the loss there says
# whether it has learned the language of the text or only the text.

# %%
config.data.batching = "lanes"
config.data.batch_size = 16
config.data.sequence_length = 64
config.model.embedding_size = 64
config.model.hidden_size = 64 if IS_SMALL else 256
config.optimizer.name = "adamw"
config.optimizer.learning_rate = 6e-3
config.optimizer.schedule = "cosine"
config.optimizer.warmup_steps = 20
config.optimizer.clip_norm = 1.0
config.optimizer.weight_decay = 0.01
config.evaluation.protocol = "carried"
config.train.num_steps = 60 if IS_SMALL else 1500
config.train.evaluate_every_steps = config.train.num_steps // 5
config.train.checkpoint_every_steps = config.train.num_steps // 5
config.train.sample_every_steps = config.train.num_steps // 3
config.sample.prompt = ""  # the start of a line
config.sample.num_chars = 200

# %% [markdown]
# ## Train
#
# Watch the samples. First the model learns how often letters occur, then short words, then which
# words follow each other. Interrupt it when you like: the run is saved, and the cell resumes it.

# %%
_ = charrnn_jax.train(config, "runs/own_text")

# %% [markdown]
# ## What has it learned?

# %%
rows = charrnn_jax.read_json_lines("runs/own_text/metrics.jsonl")
figure, axes = plt.subplots(figsize=(7, 2.8))
for name, style in [("train/loss", "-"), ("validation/loss", "o-")]:
    points = [(row["step"], row[name]) for row in rows if name in row]
    axes.plot(*zip(*points, strict=True), style, label=name)
axes.set(xlabel="step", ylabel="nats/char")
axes.legend()
plt.show()

# %% [markdown]
# - Both curves still fall: train longer.
# - Training falls, validation rises: the text is learned by heart. Stop, or use dropout. The best
#   checkpoint is kept in any case.
# - Training is much lower than validation from the start: the end of the file is another kind of
#   text than the rest.
#
# A number needs a neighbour. An *n-gram model* only counts which character follows which six. If
# the network is not better than that, it has learned little.

# %%
run = charrnn_jax.load_run("runs/own_text")
train_tokens, validation = dataset.splits["train"], dataset.splits.with_context("validation")
counted = charrnn_jax.KneserNey.fit(train_tokens, vocabulary_size=run.vocabulary.size)
network = charrnn_jax.evaluate(
    run.params, validation, model=run.model, protocol=charrnn_jax.Carried()
)
print(f"n-grams {counted.losses(validation).mean():.4f} nats/char")
print(f"network {network.describe()}")

# %% [markdown]
# If the n-grams are ahead, as in our run, the network has learned little that counting does not
# know: a manual repeats its formulas, and counting is good at repetition. More steps, a larger
# model or dropout may change that. Try it.
#
# `charrnn report` writes all of this as one page, `report.html`, with curves, samples, and the
# spans in them that were copied from the text:

# %% language="bash"
# charrnn report --workdir=runs/own_text --quiet

# %% [markdown]
# ## Let it write
#
# The *temperature* says how daring it is. Low: safe and repetitive. High: original and wrong.

# %%
sampler = charrnn_jax.Sampler(run.params, model=run.model, vocabulary=run.vocabulary)
for temperature in (0.4, 0.7, 1.0):
    sample = sampler.generate([""], num_chars=300, temperature=temperature, seed=3)[0]
    print(f"--- temperature {temperature}\n{sample.text}\n")

# %% [markdown]
# Give it the beginning of a sentence of yours. Characters that the text does not have are an error,
# unless you say `unk="skip"`.

# %%
sampler.generate(
    ["The meaning of life is "], num_chars=200, temperature=0.6, unk="skip", stop=["\n\n"]
)[0]

# %% [markdown]
# ## Let it judge
#
# The same numbers, read the other way: how surprised is the model by a text? `char_losses` returns
# the surprise of every character in nats; divided by $\ln 2$ they are bits. A text like yours costs
# few bits, a strange one many.


# %%
def surprise(text):
    """Returns the bits of every character of a text, read after a line break."""
    ids = run.vocabulary.encode("\n" + text, unk="keep")
    losses = charrnn_jax.char_losses(
        run.params, ids, model=run.model, protocol=charrnn_jax.Carried()
    )
    return losses / np.log(2)


held_out = run.vocabulary.decode(validation[1:])
start = held_out.index("\n", 2000) + 1
sentence = " ".join(held_out[start : start + 200].split())
words = np.array(sentence.split())
shuffled = " ".join(np.random.default_rng(0).permutation(words))
letters = "".join(np.random.default_rng(0).permutation(list(sentence)))
for name, text in [
    ("as written", sentence),
    ("words shuffled", shuffled),
    ("letters shuffled", letters),
]:
    print(f"{name:16} {surprise(text).mean():.2f} bits/char  {text[:60]}...")

# %% [markdown]
# So it knows a good deal about spelling and something about the order of words. *Where* is it
# surprised? The redder, the more bits. Look at the beginnings of words, and at our two typing
# errors:


# %%
def colour(text):
    spans = []
    for character, bits in zip(text, surprise(text), strict=True):
        shown = escape(character).replace("\n", "↵\n")
        alpha = min(bits / 12, 1)
        spans.append(f'<span style="background:rgba(220,60,40,{alpha:.1f})">{shown}</span>')
    return HTML(
        "<pre style='font-family:monospace; white-space:pre-wrap; line-height:1.5'>"
        + "".join(spans)
        + "</pre>"
    )


colour("The value of the expression is an objetc of the same type, or an excepttion is raised.")

# %% [markdown]
# `charrnn score --workdir=runs/own_text --text_file=FILE --html=score.html` makes such a page for a
# whole file, with what the model expected at each place.
#
# ## Where to go from here
#
# - A larger model and a longer training: `experiments/own_text.py`, and the page *Your own text* of
#   the documentation, which also explains encodings, many files, and starting from another model.
# - Is the writing good, or copied? `charrnn judge` compares generated text with real text.
# - Take it with you: `charrnn_jax.export_page(run, "model.html")` puts the model into one web page
#   that runs it in a browser.
