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
# # Text generation with an RNN, in JAX
#
# This notebook follows the TensorFlow tutorial [Text generation with an
# RNN](https://www.tensorflow.org/text/tutorials/text_generation), section by section, with
# `charrnn_jax`. A recurrent network reads Shakespeare one character at a time and learns to predict
# the next one. Calling it repeatedly on its own predictions generates new text, such as the texts
# at the end of *Generate text*. What to look for in them:
#
# - The model works with characters. It starts without any word, or the idea that there are words.
# - The text looks like a play: speakers' names in capitals, then what they say.
# - Training reads pieces of 100 characters, but the text holds together for longer than that.
#
# On Colab: *Runtime > Change runtime type* and choose a GPU or TPU.

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

# %% [markdown]
# ### Import the libraries

# %%
import logging
import os
import shutil
import subprocess
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import charrnn_jax

print(jax.__version__, jax.devices())

# %% [markdown]
# All settings are in one config, with the tutorial's values as defaults: a GRU with 1024 units,
# Adam, 20 epochs on the whole text. On a CPU this takes most of an hour, so there the notebook
# trains a smaller model for three epochs. The outputs below are from such a run, on two cores.

# %%
config = charrnn_jax.default_config()
config.data.offline_corpus = "python-stdlib"  # when there is no network
config.data.validation_fraction = 0.0  # as the tutorial; other notebooks keep a tenth
config.train.num_epochs = 20
if jax.default_backend() == "cpu":  # remove this to train the tutorial's model on a CPU
    config.model.embedding_size = 64
    config.model.hidden_size = 256
    config.optimizer.learning_rate = 4e-3
    config.train.num_epochs = 3
if os.environ.get("CHARRNN_NOTEBOOK_SMALL"):  # for tests
    config.data.max_chars = 50_000
    config.model.hidden_size = 128
    config.sample.num_chars = 200

# %% [markdown]
# ## Download the Shakespeare dataset
#
# ### Read the data
# `data.corpus` names a known corpus; for your own text, set `data.path` to a file, a folder or a
# glob. A known corpus is read from `$CHARRNN_DATA_DIR` or your cache folder, or downloaded if it is
# not there. Its checksum is verified.

# %%
dataset = charrnn_jax.load_dataset(config.data)
print(dataset.describe())

# %% [markdown]
# ## Process the text
#
# ### Vectorize the text
# A `Vocabulary` turns characters into ids and back. Id 0 is `[UNK]`, which stands for characters
# that it does not know.

# %%
example_texts = ["abcdefg", "xyz"]
vocabulary = dataset.vocabulary
ids = [vocabulary.encode(text) for text in example_texts]
print(ids)

# %%
print([vocabulary.decode(row) for row in ids])

# %% [markdown]
# ### The prediction task
# Given all characters so far, what is the most probable next one? The input is a sequence of
# characters, and the model predicts the character that follows each of them.
#
# ### Create training examples and targets
# The whole text becomes one array of ids.

# %%
all_ids = dataset.splits["train"]
print(all_ids)
print(list(vocabulary.decode(all_ids[:10])))

# %% [markdown]
# It is split into chunks of `sequence_length + 1` characters:

# %%
length = config.data.sequence_length + 1
for i in range(5):
    print(repr(vocabulary.decode(all_ids[i * length : (i + 1) * length])))

# %% [markdown]
# The input is a chunk without its last character, the target the chunk without its first. For a
# text of ten characters:

# %%
word = charrnn_jax.Vocabulary.build(["Tensorflow"])
example = charrnn_jax.make_batches(
    word.encode("Tensorflow"), batching="chunks", batch_size=1, sequence_length=9, seed=0
)[0]
print("Input: ", list(word.decode(example.inputs)))
print("Target:", list(word.decode(example.targets)))

# %% [markdown]
# ### Create training batches
# Chunks are shuffled again for each epoch and packed into batches: with the whole text, 172 of
# them. A batch depends only on the step, so a resumed run continues with exactly the batch that
# would have come next.

# %%
batches = charrnn_jax.make_batches(
    dataset.splits["train"],
    batching=config.data.batching,
    batch_size=config.data.batch_size,
    sequence_length=config.data.sequence_length,
    seed=config.seed,
)
batch = batches[0]
print(batches.steps_per_epoch, "batches an epoch, each", batch.inputs.shape)
print("Input: ", repr(vocabulary.decode(batch.inputs[0])))
print("Target:", repr(vocabulary.decode(batch.targets[0])))

# %% [markdown]
# ## Build the model
# The model has three layers: an embedding, which gives each character a vector; a GRU, which reads
# one vector after the other; and a dense layer, which gives each character of the vocabulary a
# *logit*, a score for being the next one. `config.model.cell = "lstm"` makes the GRU an LSTM, and
# `config.model.num_layers` stacks several.
#
# ```
# targets      i           r           s           t
#
# logits     [ V ]       [ V ]       [ V ]       [ V ]
#              ^           ^           ^           ^       dense
# carry  0 -> GRU ------> GRU ------> GRU ------> GRU ---> carry
#              ^           ^           ^           ^       embedding
# inputs       F           i           r           s
# ```
#
# The recurrent state, the *carry*, is both an input and an output, so the same model trains and
# generates.

# %%
model = charrnn_jax.make_model(config.model, vocabulary_size=vocabulary.size)
params = charrnn_jax.initialize_params(model, jax.random.key(0))

# %% [markdown]
# ## Try the model
# A model runs on inputs of any length. First the shape of what comes out:

# %%
carry = model.initialize_carry(config.data.batch_size)
carry, logits = charrnn_jax.forward(params, carry, batch.inputs, model=model)
print(logits.shape, "# (batch_size, sequence_length, vocabulary_size)")

# %%
print(charrnn_jax.summary(model))

# %% [markdown]
# The tutorial's model has 4,020,802 parameters here and 4,022,850 in Keras, which keeps a second
# set of biases for two of the gates.
#
# To get a prediction, *sample* from the distribution. Always taking the most likely character can
# easily get the model stuck in a loop. For the first example of the batch:

# %%
sampled_ids = jax.random.categorical(jax.random.key(1), logits[0])
print(np.array(sampled_ids))

# %% [markdown]
# Decoded, this is the text that the untrained model predicts:

# %%
print("Input:\n", repr(vocabulary.decode(batch.inputs[0])))
print("Next character predictions:\n", repr(vocabulary.decode(sampled_ids)))

# %% [markdown]
# ## Train the model
#
# ### Attach an optimizer, and a loss function
# The loss is the cross-entropy of the logits. An untrained model should not be sure of anything, so
# `exp(mean loss)` is about the size of the vocabulary.

# %%
mean_loss = charrnn_jax.cross_entropy(logits, batch.targets).mean()
print("Prediction shape:", logits.shape)
print("Mean loss:       ", mean_loss)
print("exp(mean loss):  ", jnp.exp(mean_loss))
print("Vocabulary size: ", vocabulary.size)

# %% [markdown]
# ### Configure checkpoints
# The run lives in a folder. A checkpoint there holds everything that training needs to continue,
# and is written after each epoch, or as often as `config.train.checkpoint_every_steps` says.

# %%
workdir = "runs/text_generation"

# %% [markdown]
# ### Execute the training
# `train` does the rest: Adam, checkpoints, and a sample after each epoch. If you interrupt it and
# run the cell again, it resumes where it stopped.

# %%
state = charrnn_jax.train(config, workdir)

# %% [markdown]
# The loss of each epoch. With the tutorial's model and 20 epochs we measured a train loss of 0.684
# nats/char in the last one, where the tutorial in TensorFlow has 0.736. A train loss that low means
# that the model has begun to learn the text by heart: the page *Results* of the documentation has
# all epochs, and models that are judged by text that they have not seen.

# %%
rows = charrnn_jax.read_json_lines(f"{workdir}/metrics.jsonl")
figure, axes = plt.subplots(figsize=(7, 2.8))
for name, style in [("train/loss", "-"), ("epoch/train_loss", "o")]:
    points = [(row["step"], row[name]) for row in rows if name in row]
    axes.plot(*zip(*points, strict=True), style, label=name)
axes.set(xlabel="step", ylabel="nats/char")
axes.legend()
plt.show()

# %% [markdown]
# ## Generate text
# To generate, call the model in a loop, and give it back its own prediction and its carry:
#
# ```
#               carry              carry              carry
#       model ---------->  model ---------->  model ----------> ...
#       ^   |              ^   |              ^   |
#       |   | logits       |   | logits       |   | logits
#       |   v              |   v              |   v
#       |  draw            |  draw            |  draw
#       |   |              |   |              |   |
# "ROMEO:"  "W" -----------+  "h" ------------+  "a" -----------> ...
# ```
#
# `load_run` opens the best checkpoint, and `prepare` converts its weights to a layout for
# generation. `sample_step` makes a prediction of one step: it takes the state (the carry, the last
# character and the random key) and returns the next state and character. Rules determine how the
# character is chosen; `[UNK]` is never chosen.

# %%
run = charrnn_jax.load_run(workdir)
prompt = run.vocabulary.encode("ROMEO:").astype(np.int32)
# Transposed is the fastest layout for one text.
weights = charrnn_jax.prepare(run.params, model=run.model, transposed=True)
rules = charrnn_jax.make_rules(run.vocabulary, temperature=1.0)
sample_state = charrnn_jax.prime(
    weights,
    prompt[None],
    lengths=np.array([len(prompt)], np.int32),
    key=jax.random.split(jax.random.key(0), 1),
    model=run.model,
    rules=rules,
)
characters = []
for _ in range(100):
    sample_state, drawn = charrnn_jax.sample_step(
        weights, sample_state, model=run.model, rules=rules
    )
    characters.append(run.vocabulary.decode(drawn.tokens))
    assert drawn.tokens[0] != charrnn_jax.UNK_ID
print("ROMEO:" + "".join(characters))

# %% [markdown]
# A `Sampler` keeps the weights and runs fifty such steps in one call of the device, for one prompt
# or for several. The first text includes the compilation; the second one shows the time of
# generation alone.

# %%
sampler = charrnn_jax.Sampler(run.params, model=run.model, vocabulary=run.vocabulary)
sampler.generate(["ROMEO:"], num_chars=1000)
start = time.time()
samples = sampler.generate(["ROMEO:"], num_chars=1000, seed=1)
print(samples[0].prompt + samples[0].text)
print("_" * 80 + f"\nRun time: {time.time() - start:.2f} s")

# %% [markdown]
# The easiest thing you can do to improve the text is to train for longer. You can also try another
# prompt, another layer, or another temperature.
#
# Five texts at once take little longer than one. Prompts may differ in length; each gives exactly
# the text that it would give alone. A lower temperature makes the text more predictable, a higher
# one more surprising.

# %%
prompts = ["ROMEO:", "ROMEO:", "JULIET:", "First Citizen:\nWe", "O"]
sampler.generate(prompts, num_chars=1000)
start = time.time()
for sample in sampler.generate(prompts, num_chars=1000, seed=1, temperature=0.8):
    print(sample.prompt + sample.text[:200] + "\n" + "_" * 80)
print(f"Run time: {time.time() - start:.2f} s")

# %% [markdown]
# ## Export the generator
# The exported folder holds the model as XLA programs, its weights, and a `generate.py` that does
# not need this package. Load it in another process (on the CPU, because the device is in use) and
# generate 100 characters:

# %%
exported = workdir + "/exported"
shutil.rmtree(exported, ignore_errors=True)  # of an earlier pass
charrnn_jax.export(run, exported)
generate = [sys.executable, exported + "/generate.py", "--prompt=ROMEO:", "--num_chars=100"]
environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
print(subprocess.run(generate, env=environment, stdout=subprocess.PIPE, text=True).stdout)

# %% [markdown]
# ## Advanced: customized training
# Teacher forcing never feeds bad predictions back to the model, so the model does not learn to
# recover from its mistakes. To try something else, pass your own loss function to `train` ...


# %%
def label_smoothing(logits, targets):
    """Cross-entropy with a tenth of the probability spread over all characters."""
    uniform = -jax.nn.log_softmax(logits).mean(-1)
    return 0.9 * charrnn_jax.cross_entropy(logits, targets) + 0.1 * uniform


logging.getLogger("charrnn_jax").setLevel(logging.WARNING)  # do not repeat the overview
short = config.copy_and_resolve_references()
short.train.num_steps = 20
smoothed_state = charrnn_jax.train(short, workdir + "-smoothed", loss_fn=label_smoothing)


# %% [markdown]
# ... or your own step, a pure function `(state, batch) -> (state, metrics)` that runs in the same
# loop. This step replaces a tenth of the input characters, so that the model reads mistakes, as it
# does when it generates.


# %%
def noisy_train_step(state, batch):
    """The standard step, on inputs in which a tenth of the characters are drawn at random."""
    where_key, what_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    wrong = jax.random.bernoulli(where_key, 0.1, batch.inputs.shape)
    drawn = jax.random.randint(what_key, batch.inputs.shape, 1, state.model.vocabulary_size)
    inputs = jnp.where(wrong, drawn, batch.inputs)
    return charrnn_jax.train_step(state, batch._replace(inputs=inputs))


noisy_state = charrnn_jax.train(short, workdir + "-noisy", train_step=noisy_train_step)
print("Steps done:", noisy_state.step)

# %% [markdown]
# You can also write the loop yourself; it is short. This is one epoch:

# %%
own_state = charrnn_jax.create_train_state(
    model,
    charrnn_jax.make_optimizer(config.optimizer, num_steps=batches.steps_per_epoch),
    seed=0,
    batch_size=config.data.batch_size,
)
own_step = jax.jit(charrnn_jax.train_step, donate_argnums=0)
loss = charrnn_jax.CrossEntropy(0.0, 0)
start = time.time()
for step in range(batches.steps_per_epoch):
    own_state, metrics = own_step(own_state, batches[step])
    loss += metrics["loss"]
    if step % 50 == 0:
        print(f"Epoch 1 Batch {step} Loss {metrics['loss'].nats_per_char:.4f}")
print(f"\nEpoch 1 Loss: {loss.nats_per_char:.4f}")
print(f"Time taken for 1 epoch {time.time() - start:.2f} s")
