"""The programs that are compared: each does the whole work of a workload with one library.

All have the same equations (GRU with the reset gate after the recurrent product), shapes, loss and
Adam. A library is imported only by its own peer. A peer returns a `Program`, which does the work
once and waits for the result. If a library offers several forms, the fastest one in a trial is used
and named in the note.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.workloads import Workload

LEARNING_RATE = 1e-3
NUM_CHARS = 1_115_394  # length of the text, as in Tiny Shakespeare


class Program(NamedTuple):
    """A prepared workload.

    Attributes:
      run: function that does the work once and waits for the result.
      num_params: number of model parameters.
      note: form of the program that was chosen.
    """

    run: Callable[[], Any]
    num_params: int = 0
    note: str = ""


def make_tokens(workload: Workload) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(1, workload.vocabulary_size, NUM_CHARS, dtype=np.uint8)


def make_batches(workload: Workload) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns eight batches (inputs, targets), each [B, T] int32."""
    length, count = workload.length + 1, workload.batch_size * 8
    rng = np.random.default_rng(0)
    pieces = rng.integers(1, workload.vocabulary_size, (count, length), dtype=np.int32)
    return [(piece[:, :-1], piece[:, 1:]) for piece in np.split(pieces, 8)]


def fastest(forms: dict[str, Callable[[], Program]]) -> Program:
    """Returns a new program of the fastest form, timed over three runs after two to warm up."""

    def seconds_of(program: Program) -> float:
        program.run(), program.run()
        start = time.perf_counter()
        program.run(), program.run(), program.run()
        return time.perf_counter() - start

    seconds = {name: seconds_of(make()) for name, make in forms.items()}
    best = min(seconds, key=lambda name: seconds[name])
    return forms[best]()._replace(note=best)


def cycle(batches: Sequence[Any], step: Callable[..., Any]) -> Callable[[], Any]:
    """Returns a function that calls step(*batch) with one batch after the other."""
    position = iter(range(1 << 62))
    return lambda: step(*batches[next(position) % len(batches)])


# --- ours ---------------------------------------------------------------------------------------


def _our_model(workload: Workload, implementation: str) -> Any:
    from charrnn_jax.models.char_rnn import CharRNN

    return CharRNN(
        workload.vocabulary_size,
        workload.embedding_size,
        workload.hidden_size,
        cell=workload.cell,
        implementation=implementation,
        dtype=workload.dtype,
    )


def _our_train(workload: Workload, implementation: str, steps_per_call: int = 1) -> Program:
    import jax
    import optax

    from charrnn_jax.data.batches import make_batches
    from charrnn_jax.training.dispatch import calls, make_run_steps, put_on_device
    from charrnn_jax.training.train_step import create_train_state, train_step

    model = _our_model(workload, implementation)
    state = create_train_state(
        model, optax.adam(LEARNING_RATE), seed=0, batch_size=workload.batch_size
    )
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    tokens = make_tokens(workload)
    batches = make_batches(
        tokens,
        batching="chunks",
        batch_size=workload.batch_size,
        sequence_length=workload.length,
        seed=0,
    )
    run_steps = make_run_steps(
        train_step, sequence_length=workload.length, num_steps=steps_per_call
    )
    on_device = put_on_device(tokens)
    queue = calls(
        batches,
        start=0,
        stop=1 << 30,
        num_steps=steps_per_call,
        next_stop=lambda step: 1 << 30,
        on_device=True,
    )
    next(queue)  # the first call has only one step

    def run() -> None:
        nonlocal state
        call = next(queue)
        state, metrics = run_steps(state, on_device, call.where, np.int32(steps_per_call))
        jax.device_get(metrics)

    return Program(run, num_params)


def _our_sample(workload: Workload, implementation: str = "fused", **choice: Any) -> Program:
    import jax

    from charrnn_jax.data.vocabulary import Vocabulary
    from charrnn_jax.generation.sampler import Sampler
    from charrnn_jax.models.char_rnn import initialize_params

    model = _our_model(workload, implementation)
    params = initialize_params(model, jax.random.key(0))
    characters = "".join(map(chr, range(33, 33 + workload.vocabulary_size - 1)))
    sampler = Sampler(params, model=model, vocabulary=Vocabulary(characters))
    prompts = ["A"] * workload.batch_size
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    num_chars = workload.length
    run = partial(sampler.generate, prompts, num_chars=num_chars, **choice)
    return Program(run, num_params, note=" ".join(f"{k}={v}" for k, v in choice.items()))


def _our_input(workload: Workload) -> Program:
    import jax

    from charrnn_jax.data.batches import make_batches

    batches = make_batches(
        make_tokens(workload),
        batching="chunks",
        batch_size=workload.batch_size,
        sequence_length=workload.length,
        seed=0,
    )
    position = iter(range(1 << 62))
    return Program(lambda: jax.block_until_ready(jax.device_put(batches[next(position)])))


def scan(workload: Workload) -> Program:
    """This project, `implementation="scan"`."""
    return (_our_train if workload.kind != "sample" else _our_sample)(workload, "scan")


def fused(workload: Workload) -> Program:
    """This project, `implementation="fused"`, the default."""
    if workload.kind == "input":
        return _our_input(workload)
    return (_our_train if workload.kind != "sample" else _our_sample)(workload, "fused")


def fused_16(workload: Workload) -> Program:
    """This project, with 16 steps in one call of the device."""
    return _our_train(workload, "fused", 16)


# --- flax.linen ---------------------------------------------------------------------------------


def flax(workload: Workload) -> Program:
    """flax.linen's `nn.RNN` over its own cell, with Optax's Adam, jitted and donated."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import linen as nn

    class Model(nn.Module):
        @nn.compact
        def __call__(self, tokens: Any) -> Any:
            x = nn.Embed(workload.vocabulary_size, workload.embedding_size)(tokens)
            cell = {"gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}[workload.cell]
            x = nn.RNN(cell(workload.hidden_size))(x)
            return nn.Dense(workload.vocabulary_size)(x)

    model, adam = Model(), optax.adam(LEARNING_RATE)
    batches = make_batches(workload)
    params = jax.jit(model.init)(jax.random.key(0), jnp.asarray(batches[0][0]))
    opt_state = adam.init(params)

    def step(params: Any, opt_state: Any, inputs: Any, targets: Any) -> Any:
        def loss_fn(params: Any) -> Any:
            logits = model.apply(params, inputs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

        loss, gradient = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = adam.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    jitted = jax.jit(step, donate_argnums=(0, 1))

    def run(inputs: Any, targets: Any) -> float:
        nonlocal params, opt_state
        params, opt_state, loss = jitted(params, opt_state, inputs, targets)
        return float(loss)

    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Program(cycle(batches, run), num_params)


# --- PyTorch ------------------------------------------------------------------------------------


def _torch_model(workload: Workload, batch_first: bool) -> Any:
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(workload.vocabulary_size, workload.embedding_size)
            kind = {"gru": nn.GRU, "lstm": nn.LSTM}[workload.cell]
            self.rnn = kind(workload.embedding_size, workload.hidden_size, batch_first=batch_first)
            self.dense = nn.Linear(workload.hidden_size, workload.vocabulary_size)

        def forward(self, tokens: Any, carry: Any = None) -> Any:
            x, carry = self.rnn(self.embedding(tokens), carry)
            return self.dense(x), carry

    return Model().to("cuda" if torch.cuda.is_available() else "cpu")


def _torch_train(workload: Workload, batch_first: bool) -> Program:
    import torch
    from torch.nn import functional

    model = _torch_model(workload, batch_first)
    device = next(model.parameters()).device
    adam = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    rounded = workload.dtype == "bfloat16"

    def run(inputs: Any, targets: Any) -> float:
        inputs, targets = inputs.to(device), targets.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=rounded):
            logits, _ = model(inputs)
        loss = functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        return loss.item()

    def put(x: np.ndarray) -> Any:
        return torch.from_numpy(np.ascontiguousarray(x if batch_first else x.T)).long()

    batches = [(put(inputs), put(targets)) for inputs, targets in make_batches(workload)]
    return Program(cycle(batches, run), sum(p.numel() for p in model.parameters()))


def _torch_sample(workload: Workload) -> Program:
    import torch

    model = _torch_model(workload, batch_first=False).eval()
    device = next(model.parameters()).device
    rounded = workload.dtype == "bfloat16"

    @torch.inference_mode()
    def run() -> Any:
        token, carry, tokens = torch.ones(1, workload.batch_size, dtype=torch.long), None, []
        token = token.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=rounded):
            for _ in range(workload.length):
                logits, carry = model(token, carry)
                logits = logits[0].float()
                logits[:, 0] = -torch.inf
                token = torch.multinomial(torch.softmax(logits, -1), 1).T
                tokens.append(token)
        return torch.cat(tokens).cpu()

    return Program(run, sum(p.numel() for p in model.parameters()))


def torch(workload: Workload) -> Program:
    """PyTorch in eager mode: `nn.GRU` or `nn.LSTM`, fused Adam, autocast for bfloat16."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    if workload.kind == "sample":
        return _torch_sample(workload)
    if workload.kind == "input":
        length = workload.length + 1
        tokens = torch.from_numpy(make_tokens(workload))
        pieces = tokens[: len(tokens) // length * length].reshape(-1, length)
        loader = DataLoader(
            TensorDataset(pieces), batch_size=workload.batch_size, shuffle=True, drop_last=True
        )
        return Program(cycle_iterator(loader, lambda batch: batch[0].long()))
    if workload.kind == "start":
        return _torch_train(workload, batch_first=False)
    return fastest(
        {
            "time first": lambda: _torch_train(workload, batch_first=False),
            "batch first": lambda: _torch_train(workload, batch_first=True),
        }
    )


def cycle_iterator(items: Any, use: Callable[[Any], Any]) -> Callable[[], Any]:
    """Returns a function that uses the next item and starts again after the last one."""
    iterator = iter(items)

    def run() -> Any:
        nonlocal iterator
        try:
            return use(next(iterator))
        except StopIteration:
            iterator = iter(items)
            return use(next(iterator))

    return run


# --- Keras --------------------------------------------------------------------------------------


def _keras_model(workload: Workload) -> Any:
    import keras

    tokens = keras.Input((None,), batch_size=workload.batch_size, dtype="int32")
    x = keras.layers.Embedding(workload.vocabulary_size, workload.embedding_size)(tokens)
    kind = {"gru": keras.layers.GRU, "lstm": keras.layers.LSTM}[workload.cell]
    x = kind(workload.hidden_size, return_sequences=True)(x)
    return keras.Model(tokens, keras.layers.Dense(workload.vocabulary_size)(x))


def _tensorflow_sample(workload: Workload) -> Program:
    """The tutorial's one-step model: a tf.function that Python calls for every character."""
    import keras
    import tensorflow as tf

    embedding = keras.layers.Embedding(workload.vocabulary_size, workload.embedding_size)
    rnn = keras.layers.GRU(workload.hidden_size, return_sequences=True, return_state=True)
    dense = keras.layers.Dense(workload.vocabulary_size)
    mask = tf.constant([-np.inf] + [0.0] * (workload.vocabulary_size - 1))

    @tf.function
    def one_step(token: Any, carry: Any) -> Any:
        x, carry = rnn(embedding(token[:, None]), initial_state=carry)
        logits = dense(x)[:, -1] + mask
        return tf.random.categorical(logits, 1, dtype=tf.int32)[:, 0], carry

    def run() -> Any:
        token = tf.ones(workload.batch_size, tf.int32)
        carry, tokens = tf.zeros((workload.batch_size, workload.hidden_size)), []
        for _ in range(workload.length):
            token, carry = one_step(token, carry)
            tokens.append(token)
        return tf.stack(tokens).numpy()

    run_once = tf.ones(workload.batch_size, tf.int32)
    one_step(run_once, tf.zeros((workload.batch_size, workload.hidden_size)))  # builds the layers
    return Program(run, sum(layer.count_params() for layer in (embedding, rnn, dense)))


def tensorflow(workload: Workload) -> Program:
    """The tutorial's Keras model on TensorFlow, with the compiled step of its last section."""
    import keras
    import tensorflow as tf

    if workload.kind == "sample":
        return _tensorflow_sample(workload)
    if workload.kind == "input":
        length = workload.length + 1
        dataset = (
            tf.data.Dataset.from_tensor_slices(make_tokens(workload))
            .batch(length, drop_remainder=True)
            .map(lambda piece: (piece[:-1], piece[1:]))
            .shuffle(10_000)
            .batch(workload.batch_size, drop_remainder=True)
            .prefetch(tf.data.AUTOTUNE)
        )
        return Program(cycle_iterator(dataset, lambda batch: batch))
    model = _keras_model(workload)
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    adam = keras.optimizers.Adam(LEARNING_RATE)

    @tf.function
    def step(inputs: Any, targets: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_fn(targets, model(inputs, training=True))
        variables = model.trainable_variables
        adam.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    batches = [tuple(map(tf.constant, batch)) for batch in make_batches(workload)]
    return Program(cycle(batches, lambda *batch: float(step(*batch))), model.count_params())


def keras_jax(workload: Workload) -> Program:
    """The same Keras model on JAX, trained with `train_on_batch`."""
    import keras

    model = _keras_model(workload)
    model.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return Program(cycle(make_batches(workload), model.train_on_batch), model.count_params())


class Peer(NamedTuple):
    """A peer: its function, and the modules, kinds of workloads and number types it supports."""

    make: Callable[[Workload], Program]
    modules: tuple[str, ...]
    kinds: tuple[str, ...]
    dtypes: tuple[str, ...] = ("float32",)
    only: tuple[str, ...] = ()  # names of workloads; (): all workloads of its kinds


# The cost of each rule of drawing, compared with "fused".
_RULES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "top_k": {"top_k": 20},
    "top_p": {"top_p": 0.95},
    "min_p": {"min_p": 0.05},
    "no_repeat": {"no_repeat": 30},
    "pattern": {"pattern": "[!-Z]{1001,}"},  # cannot end within 1000 characters
    "stop": {"stop": ["ABC"]},
}
_OURS = ("jax", "flax", "optax", "charrnn_jax.training.dispatch")
_BOTH = ("float32", "bfloat16")
PEERS = {
    "tensorflow": Peer(tensorflow, ("tensorflow", "keras"), ("train", "sample", "input", "start")),
    "keras_jax": Peer(keras_jax, ("keras", "jax"), ("train", "start")),
    "torch": Peer(torch, ("torch",), ("train", "sample", "input", "start"), _BOTH),
    "flax": Peer(flax, ("jax", "flax", "optax"), ("train", "start")),
    "scan": Peer(scan, _OURS, ("train", "sample", "start")),
    "fused": Peer(fused, _OURS, ("train", "sample", "input", "start"), _BOTH),
    "fused_16": Peer(fused_16, _OURS, ("train",), only=("T3",)),
    **{
        rule: Peer(partial(_our_sample, **choice), _OURS, ("sample",), only=("S1", "S64"))
        for rule, choice in _RULES.items()
    },
}
