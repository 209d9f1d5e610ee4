"""Several training steps in one call of the device, with the text on the device.

The host sends only the positions where the sequences of each step begin, and which of them start
from the zero carry, and the device slices the batches from the text. A text that is too large for
the device's memory is sent batch by batch. The same compiled program runs all calls with sequences
of the same length, however steps are grouped, so the results are the same.
"""

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from charrnn_jax.data.batches import Batches, slice_batch
from charrnn_jax.data.tokens import IN_MEMORY_BYTES
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.char_rnn import CharRNN
from charrnn_jax.models.dropout import drops
from charrnn_jax.models.recurrence import choose_form
from charrnn_jax.training.devices import replicated
from charrnn_jax.training.train_step import TracedHyperparameters, TrainState, TrainStep

_ACCELERATOR_BYTES = 1 << 30  # largest text on an accelerator; on a CPU, mapped texts stay mapped
_MOST_STEPS = 32  # largest number of steps in a call
_CALL_FLOPS = {"cpu": 1e9}  # work of a call: about 10 ms, many times its overhead
_ACCELERATOR_CALL_FLOPS = 1e12
_ALL = slice(None)


class Call(NamedTuple):
    """The steps of one call.

    Attributes:
      stop: number of steps done after the call.
      num_steps: number of steps in the call, at most N.
      sequence_length: length of the sequences of these steps, in characters.
      where: `Batches.starts` and `Batches.resets` of each step, or each batch itself, stacked
        along a first axis of length N; entries after the first `num_steps` are ignored.
    """

    stop: int
    num_steps: int
    sequence_length: int
    where: Any


# (state, tokens, where, count, maybe hyper) -> (state, metrics with a leading axis of N steps)
RunSteps = Callable[..., tuple[TrainState, dict[str, Any]]]


def choose_steps_per_call(model: CharRNN, *, batch_size: int, sequence_length: int) -> int:
    """Returns how many steps one call should have: several, if a step is too short for a call.

    On a CPU, a large step must not run in a loop, since XLA runs elementwise operations in a loop
    on a single core.

    Args:
      model: the model.
      batch_size: B, in sequences.
      sequence_length: T, in characters.
    """
    step_flops = count_step_flops(model, batch_size=batch_size, sequence_length=sequence_length)
    call_flops = _CALL_FLOPS.get(jax.default_backend(), _ACCELERATOR_CALL_FLOPS)
    return int(np.clip(call_flops // step_flops, 1, _MOST_STEPS))


def count_step_flops(model: CharRNN, *, batch_size: int, sequence_length: int) -> int:
    """Returns the floating-point operations of the matrix products of a training step.

      6 (B T W + R I + V r E)

    Each product is computed once forward, and twice backward, for the gradients of both operands.
    An operation is a multiplication or an addition. W is what `count_step_weights` returns. I is
    the number of input weights of the first layer, which multiply the R = min(V, B T) rows of the
    embedding table, or the R = B T inputs where the table cannot be used: in the form "scan", and
    with input dropout. r is the rank of a factored table, or 0.

    Not counted: what is elementwise, except a convolution over time; sums by character; what
    regularisers compute; the second pass of sampled inputs.

    Args:
      model: the model.
      batch_size: B, in sequences.
      sequence_length: T, in characters.
    """
    cell, embedding_size = CELLS[model.cell], model.embedding_size
    num_chars = batch_size * sequence_length
    inputs, _ = cell.count_weights(embedding_size, model.hidden_size)
    form = choose_form(
        cell, implementation=model.implementation, dtype=model.dtype, zoneout=model.zoneout
    )
    reads_table = form != "scan" and not drops(model.input_dropout)
    num_rows = min(model.vocabulary_size, num_chars) if reads_table else num_chars
    factors = model.vocabulary_size * model.embedding_rank * embedding_size
    return 6 * (num_chars * count_step_weights(model) + num_rows * inputs + factors)


def count_step_weights(model: CharRNN) -> int:
    """Returns how many weights are multiplied for every character.

    Input weights of the first layer are not included, since they can multiply the embedding table,
    once per step instead of once per character.
    """
    cell = CELLS[model.cell]
    _, first = cell.count_weights(model.embedding_size, model.hidden_size)
    inputs, recurrent = cell.count_weights(model.hidden_size, model.hidden_size)
    width, embedding_size = model.readout_size, model.embedding_size
    readout = width * model.vocabulary_size
    if model.output_embedding == "tied":
        projection = 0 if width == embedding_size else width * embedding_size
        readout = projection + embedding_size * model.vocabulary_size
    return first + (model.num_layers - 1) * (inputs + recurrent) + readout


def make_run_steps(
    train_step: TrainStep,
    *,
    sequence_length: int,
    num_steps: int,
    shardings: Any = None,
) -> RunSteps:
    """Compiles up to `num_steps` training steps into one program; the state is donated.

    The program's last argument, if there is one, is `hyper` for the train step.

    Args:
      train_step: train step, (state, batch) -> (state, metrics).
      sequence_length: T, in characters.
      num_steps: N, the largest number of steps in a call.
      shardings: shardings of the state, from `devices.state_shardings`; None: all arrays are on one
        device.
    """

    def one_step(
        state: TrainState, tokens: Any, where: Any, *hyper: TracedHyperparameters
    ) -> tuple[TrainState, dict[str, Any]]:
        if tokens is None:
            batch = where
        else:
            starts, resets = where
            batch = slice_batch(tokens, starts, sequence_length=sequence_length, resets=resets)
        return train_step(state, batch, **({"hyper": hyper[0]} if hyper else {}))

    def run_one(
        state: TrainState,
        tokens: Any,
        where: Any,
        count: ArrayLike,
        *hyper: TracedHyperparameters,
    ) -> Any:
        state, metrics = one_step(state, tokens, jax.tree.map(lambda x: x[0], where), *hyper)
        return state, jax.tree.map(lambda x: jnp.asarray(x)[None], metrics)

    def run_many(
        state: TrainState,
        tokens: Any,
        where: Any,
        count: ArrayLike,
        *hyper: TracedHyperparameters,
    ) -> Any:
        first = jax.tree.map(lambda x: x[0], where)
        shapes = jax.eval_shape(one_step, state, tokens, first, *hyper)[1]
        metrics = jax.tree.map(lambda x: jnp.zeros((num_steps, *x.shape), x.dtype), shapes)

        def body(i: jax.Array, carried: Any) -> Any:
            state, metrics = carried
            state, new = one_step(state, tokens, jax.tree.map(lambda x: x[i], where), *hyper)
            return state, jax.tree.map(lambda all, x: all.at[i].set(x), metrics, new)

        return jax.lax.fori_loop(0, count, body, (state, metrics))

    return jax.jit(
        run_one if num_steps == 1 else run_many,
        donate_argnums=0,
        out_shardings=shardings and (shardings, replicated(shardings.step.mesh)),
    )


def put_on_device(tokens: np.ndarray, mesh: Mesh | None = None) -> jax.Array | None:
    """Puts a text on every device of a mesh, or on one device.

    Args:
      tokens: [num_chars] ids of the text.
      mesh: mesh of the run; None: one device.

    Returns:
      The ids on the devices; None if the text is too large, or if there are several processes, each
      of which reads only its own rows.
    """
    limit = IN_MEMORY_BYTES if jax.default_backend() == "cpu" else _ACCELERATOR_BYTES
    fits = tokens.nbytes <= limit and jax.process_count() == 1
    return jax.device_put(tokens, mesh and replicated(mesh)) if fits else None


def calls(
    batches: Batches,
    *,
    start: int,
    stop: int,
    num_steps: int,
    next_stop: Callable[[int], int],
    on_device: bool,
    rows: slice = _ALL,
) -> Iterator[Call]:
    """Yields the calls that take training from step `start` to step `stop`.

    Args:
      batches: batches of the run.
      start: number of steps already done.
      stop: number of steps done at the end.
      num_steps: N, the largest number of steps in a call.
      next_stop: function from the steps done to the next step after which the host has something to
        do.
      on_device: whether the device slices the batches.
      rows: rows of a batch that this process needs.
    """

    def item(step: int) -> Any:
        starts, resets = batches.starts(step)[rows], batches.resets(step)[rows]
        if on_device:
            return starts.astype(np.int32), resets
        length = batches.length(step)
        return slice_batch(batches.tokens, starts, sequence_length=length, resets=resets)

    size = 1  # of the first call, which compiles; its loss, and the speed after it, are shown early
    while start < stop:
        end = min(start + size, next_stop(start), stop)
        length, together = next(groupby(range(start, end), key=batches.length))
        items = [item(step) for step in together]
        end = start + len(items)
        items += items[-1:] * (num_steps - len(items))
        where = jax.tree.map(lambda *steps: np.stack(steps), *items)
        yield Call(end, end - start, length, where)
        start, size = end, num_steps
