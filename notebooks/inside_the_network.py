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
# # Inside the network
#
# In 2015, Andrej Karpathy [coloured a
# text](https://karpathy.github.io/2015/05/21/rnn-effectiveness/) by the activity of a single hidden
# unit, and found units that know whether a quotation is open or how far a line has come. Nobody had
# told the network about quotations or lines. Here you train a small network, look for such units
# yourself, and find out how to tell a discovery from a coincidence.

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

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML

import charrnn_jax

IS_SMALL = bool(os.environ.get("CHARRNN_NOTEBOOK_SMALL"))  # for tests

# %% [markdown]
# ## A network to look into
#
# A GRU with 192 units and one layer, a minute of training on Tiny Shakespeare. A longer training
# makes the units more interesting: put the folder of any run of yours into `workdir`, and `train`
# leaves it as it is if you skip the next cell.

# %%
workdir = "runs/inside"
config = charrnn_jax.default_config()
config.data.offline_corpus = "python-stdlib"  # when there is no network
config.data.batching = "lanes"
config.data.batch_size = 16
config.data.sequence_length = 64
config.model.embedding_size = 64
config.model.hidden_size = 192
config.optimizer.name = "adamw"
config.optimizer.learning_rate = 8e-3
config.optimizer.schedule = "cosine"
config.optimizer.clip_norm = 1.0
config.evaluation.protocol = "carried"
config.train.num_steps = config.train.sample_every_steps = 1600
config.train.evaluate_every_steps = config.train.checkpoint_every_steps = 800
if IS_SMALL:
    config.data.max_chars = 100_000
    config.model.hidden_size = 48
    config.train.num_steps = config.train.sample_every_steps = 100
    config.train.evaluate_every_steps = config.train.checkpoint_every_steps = 50

# %%
_ = charrnn_jax.train(config, workdir)

# %% [markdown]
# ## Read a text, and keep what every unit says
#
# `activations` runs the network over a text and returns the output of every unit after every
# character, `[B, T, L, H]`: texts, characters, layers, units. We read text that the network was not
# trained on.

# %%
run = charrnn_jax.load_run(workdir)
tokens = run.load_dataset().splits["validation"][:60_000].astype(np.int32)
text = run.vocabulary.decode(tokens)
carry = run.model.initialize_carry(1)
h = np.array(charrnn_jax.activations(run.params, carry, tokens[None], model=run.model))[0, :, 0]
print(h.shape, "# (characters, units); every value is between -1 and 1")

# %% [markdown]
# ### Karpathy's view
#
# Orange is a value near 1, blue a value near -1. `h[t]` is the state *after* character `t`: the
# network has just read it, and is about to predict the next one.


# %%
def colour(text, values):
    """Returns a text as HTML, with the background of each character by its value in [-1, 1]."""
    spans = []
    for character, value in zip(text, values, strict=True):
        rgb = "224,110,30" if value > 0 else "40,110,200"
        shown = escape(character).replace("\n", "↵\n")
        spans.append(f'<span style="background:rgba({rgb},{0.7 * abs(value):.1f})">{shown}</span>')
    return "<pre style='font-family:monospace; line-height:1.4'>" + "".join(spans) + "</pre>"


start = text.index("\n\n", 2000) + 2
part = slice(start, start + 400)
HTML(colour(text[part], h[part, 0]))

# %% [markdown]
# That was unit 0, which nobody has chosen. It probably tells you little. We could now page through
# all units until something strikes us. But among many units *something* always does. So we first
# write down what we look for.

# %% [markdown]
# ## Probes: questions with a yes or a no for each character
#
# A *probe* marks the characters where a property holds. All but the first look back only, as the
# network does; that a line is a speaker's, the network has to guess from its capitals.


# %%
def speaker(text):
    """Whether we are in a speaker's line, such as "ROMEO:", after its first letter."""
    marks = np.zeros(len(text), bool)
    start = 0
    for line in text.splitlines(keepends=True):
        if line.endswith(":\n") and line.isupper():
            marks[start + 1 : start + len(line) - 1] = True
        start += len(line)
    return marks


column = np.zeros(len(text), int)  # characters since the last line break
for t in range(1, len(text)):
    column[t] = 0 if text[t] == "\n" else column[t - 1] + 1
characters = np.array(list(text))
in_word = np.char.isalpha(characters)
word_start = in_word & ~np.concatenate([[False], in_word[:-1]])
probes = {
    "in a speaker's line": speaker(text),
    "late in a line (column above 30)": column > 30,
    "first letter of a word": word_start,
    "just after a space": characters == " ",
    "just after a vowel": np.isin(characters, list("aeiouAEIOU")),
    "after the end of a sentence": np.isin(characters, list(".?!")),
}
for name, marks in probes.items():
    print(f"{name:34} {marks.mean():6.1%} of the characters")

# %% [markdown]
# ## Which unit knows the answer?
#
# Use the value of a unit as a guess. The *AUC* is the chance that a character where the answer is
# yes has a higher value than one where it is no: 0.5 knows nothing, 1 knows all. A unit that is
# always *lower* there (AUC near 0) knows as much, so we count the distance from 0.5.
#
# The best of 192 units looks good even if all are noise. Two precautions:
#
# - **Choose on one half of the text, and score on the other.** The number in the table is from
#   characters that had no part in the choice.
# - **A null.** Shift the answers along the text by a random distance, so that they fit the wrong
#   characters but keep their rhythm, and search again. Its best unit shows what luck can do.


# %%
def ranks(values):
    """Returns the rank of each value in its column, from 1."""
    return values.argsort(axis=0).argsort(axis=0) + 1


def auc(ranks, marks):
    """Returns the AUC of each column for the marks [T], from the ranks [T, H]."""
    yes = marks.sum()
    return (ranks[marks].sum(0) - yes * (yes + 1) / 2) / (yes * (len(marks) - yes))


half = len(text) // 2
first, second = ranks(h[:half]), ranks(h[half:])


def best_unit(marks):
    """Returns (unit chosen on the first half, its AUC on the second half, turned if below 0.5)."""
    on_first = auc(first, marks[:half])
    unit = int(np.abs(on_first - 0.5).argmax())
    score = auc(second[:, unit], marks[half:])
    return unit, score if on_first[unit] > 0.5 else 1 - score


rng = np.random.default_rng(0)
found = {}
print(f"{'probe':34} unit    AUC   null (largest of 5)")
for name, marks in probes.items():
    unit, score = best_unit(marks)
    shifts = rng.integers(1000, len(text) - 1000, size=5)
    null = max(best_unit(np.roll(marks, shift))[1] for shift in shifts)
    found[name] = unit
    print(f"{name:34} {unit:4}  {score:.3f}  {null:.3f}")

# %% [markdown]
# Now look at the text again, coloured by the unit for speakers' lines:

# %%
HTML(colour(text[part], h[part, found["in a speaker's line"]]))

# %% [markdown]
# ... and by the unit for the end of a line:

# %%
HTML(colour(text[part], h[part, found["late in a line (column above 30)"]]))

# %% [markdown]
# Averages say more than one passage. Here is that unit by column:

# %%
unit = found["late in a line (column above 30)"]
columns = np.arange(55)
mean = [h[column == c, unit].mean() for c in columns]
spread = [h[column == c, unit].std() for c in columns]
figure, axes = plt.subplots(figsize=(7, 2.6))
axes.plot(columns, mean)
axes.fill_between(columns, np.subtract(mean, spread), np.add(mean, spread), alpha=0.2)
axes.set(xlabel="column", ylabel=f"unit {unit}, mean ± s.d.")
plt.show()

# %% [markdown]
# ## Distributed knowledge: a linear probe
#
# A weak best unit does not mean that the network is ignorant. The knowledge may be spread over many
# units. A *linear probe* asks all of them together: a weighted sum of the units, fitted on the
# first half by least squares, scored on the second.


# %%
def linear_probe(h, marks):
    with_bias = np.concatenate([h, np.ones((len(h), 1))], axis=1)
    inputs, target = with_bias[:half], marks[:half].astype(float)
    weights = np.linalg.solve(inputs.T @ inputs + np.eye(len(inputs.T)), inputs.T @ target)
    return auc(ranks(with_bias[half:] @ weights), marks[half:])


print(f"{'probe':34} one unit  all units")
for name, marks in probes.items():
    print(f"{name:34}    {best_unit(marks)[1]:.3f}      {linear_probe(h, marks):.3f}")

# %% [markdown]
# Be careful in the other direction, too. A probe on the character just read is easy for *any*
# network, even an untrained one: the character is its input. The next cell asks a network with
# random weights. Only what training adds is knowledge that was learned.

# %%
untrained = charrnn_jax.initialize_params(run.model, jax.random.key(1))
h0 = np.array(charrnn_jax.activations(untrained, carry, tokens[None], model=run.model))[0, :, 0]
print(f"{'linear probe':34} untrained  trained")
for name, marks in probes.items():
    print(f"{name:34}     {linear_probe(h0, marks):.3f}    {linear_probe(h, marks):.3f}")

# %% [markdown]
# In our run that is the position in the line. All other answers can be read off the last few
# characters, which even random weights pass on.
#
# ## Gates: who decides what is kept?
#
# A GRU computes two gates for each unit and character, from the embedding $x_t$ and the last state:
#
# $$r = \sigma(x W_{ir} + b_{ir} + h W_{hr}), \quad z = \sigma(x W_{iz} + b_{iz} + h W_{hz})$$
# $$n = \tanh(x W_{in} + b_{in} + r * (h W_{hn} + b_{hn})), \quad h' = (1 - z) * n + z * h$$
#
# The *update gate* $z$ says how much of the old state stays: at 1 the unit remembers, at 0 it is
# written anew. The parameters of a run are nested dictionaries, so we can compute the gates from
# the states that we have, and check that they give the next state.

# %%
cell = run.params["layers_0"]["cell"]
x = run.params["embedding"]["embedding"][tokens]
before = np.concatenate([np.zeros((1, h.shape[1]), np.float32), h[:-1]])


def side(name, inputs):
    return inputs @ cell[name]["kernel"] + cell[name].get("bias", 0)


r = jax.nn.sigmoid(side("ir", x) + side("hr", before))
z = jax.nn.sigmoid(side("iz", x) + side("hz", before))
n = jnp.tanh(side("in", x) + r * side("hn", before))
print("largest difference to the network:", f"{np.abs((1 - z) * n + z * before - h).max():.1e}")

# %% [markdown]
# When is the memory written? Here is the mean of $1 - z$ over all units, by the character that was
# just read:

# %%
z = np.array(z)
written = 1 - z.mean(axis=1)
by_character = {c: written[characters == c].mean() for c in "\n :;,.!?'aeiounrst" if c in text}
order = sorted(by_character, key=by_character.get)
figure, axes = plt.subplots(figsize=(7, 2.4))
axes.bar([repr(c)[1:-1] if c != " " else "space" for c in order], [by_character[c] for c in order])
axes.set(ylabel="mean of 1 - z")
axes.tick_params(axis="x", labelsize=8)
plt.show()

# %% [markdown]
# ## Does the unit *cause* anything?
#
# A unit may know something that the network never uses. To see, take over the unit: *clamp* it,
# which means hold it at a value, while the network writes. `with_clamp` gives a sampler in which
# the unit of a layer has that value after every step.

# %%
unit = found["late in a line (column above 30)"]
sampler = charrnn_jax.Sampler(run.params, model=run.model, vocabulary=run.vocabulary)
low, high = np.quantile(h[:, unit], [0.02, 0.98])
for value in (None, low, high):
    clamped = sampler if value is None else sampler.with_clamp({(0, unit): float(value)})
    label = "left alone" if value is None else f"held at {value:+.2f}"
    text_of_unit = clamped.generate(["\n"], num_chars=250, temperature=0.7)[0].text
    print(f"--- unit {unit} {label}\n{text_of_unit}\n")

# %% [markdown]
# Does the network break its lines by this unit? One sample proves little. Let us write more,
# measure the mean length of a line, and compare with what happens when *other* units are held in
# the same way:

# %%
num_chars = 400 if IS_SMALL else 2000


def line_length(sampler):
    """Returns the mean number of characters between line breaks, without empty lines."""
    samples = sampler.generate(["\n"] * 4, num_chars=num_chars, temperature=0.7, seed=1)
    lines = [line for sample in samples for line in sample.text.split("\n") if line]
    return sum(map(len, lines)) / len(lines)


print(f"left alone: {line_length(sampler):.1f} characters a line")
others = np.delete(np.arange(h.shape[1]), unit)
for each in [unit, *rng.choice(others, size=2 if IS_SMALL else 6, replace=False)]:
    ends = np.quantile(h[:, each], [0.02, 0.98])
    held = [line_length(sampler.with_clamp({(0, int(each)): float(value)})) for value in ends]
    print(f"unit {each:4} held low {held[0]:.1f}, held high {held[1]:.1f}")

# %% [markdown]
# In our run the lines become two and a half times as long, or less than half as long, and no other
# unit moves them by more than a few characters. So this unit does not only follow the line: it is
# what the network breaks its lines by.
#
# ## The same by one command
#
# `charrnn neurons` asks such questions with more probes, for every layer, with a p value for each
# answer, and clamps the best units. It prints tables, and writes `neurons.html`, a page on which
# you can colour a text by any unit. `charrnn_jax.neurons` returns the same to Python.

# %%
atlas = charrnn_jax.neurons(run, num_chars=10_000 if IS_SMALL else 40_000, clamp=False)
print(f"{'probe':32} verdict         best unit    AUC  all units  character")
for probe in atlas.probes:
    if probe.units:
        best = probe.units[0]
        scores = f"{best.auc:.3f}      {probe.linear_auc:.3f}      {probe.character_auc:.3f}"
        print(f"{probe.name:32} {probe.verdict:14} {best.unit:10}  {scores}")
charrnn_jax.write_neurons_page(atlas, f"{workdir}/neurons.html")

# %% [markdown]
# The last column is the score of the character alone, which plays the part of our untrained
# network: a unit counts as following a probe only if it beats that score.

# %% [markdown]
# ## What to make of it
#
# - A number belongs beside each picture, and a null beside each number.
# - Choose units on one text and report them on another.
# - "No single unit knows it" is not "the network does not know it".
# - To know and to use are different things: hold the unit, and see what changes.
#
# Try a probe of your own: inside a question, after the name of a king, the third line of a speech.
