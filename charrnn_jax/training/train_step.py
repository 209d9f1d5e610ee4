"""`TrainState` and `train_step`: everything that one step of training needs and does."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from charrnn_jax.data.batches import Batch
from charrnn_jax.evaluation.metrics import CrossEntropy, cross_entropy
from charrnn_jax.models.char_rnn import Carry, CharRNN, forward, initialize_params

# (logits [B, T, V], targets [B, T]) -> losses [B, T] in nats
LossFn = Callable[[jax.Array, Any], jax.Array]


@struct.dataclass
class TrainState:
    """All that training carries from step to step; with it, step k+1 follows from batch k+1 alone.

    Attributes:
      step: steps done.
      params: of the model.
      opt_state: of the optimizer.
      carry: recurrent state behind the last batch, for B sequences.
      key: never changes; step k draws its randomness from fold_in(key, k).
      model: static.
      optimizer: static.
      reset_every_steps: static; the carry is set to zero before every so many steps.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    carry: Carry
    key: jax.Array
    model: CharRNN = struct.field(pytree_node=False)
    optimizer: optax.GradientTransformation = struct.field(pytree_node=False)
    reset_every_steps: int = struct.field(pytree_node=False)


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]


def create_train_state(
    model: CharRNN,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    batch_size: int,
    reset_every_steps: int = 1,
) -> TrainState:
    """Draws the parameters and returns the state before the first step."""
    params_key, key = jax.random.split(jax.random.key(seed))
    # Jitted: one program starts sooner than the many small ones of its operations.
    params = jax.jit(partial(initialize_params, model))(params_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=jax.jit(optimizer.init)(params),
        carry=model.initialize_carry(batch_size),
        key=key,
        model=model,
        optimizer=optimizer,
        reset_every_steps=reset_every_steps,
    )


def train_step(
    state: TrainState, batch: Batch, *, loss_fn: LossFn = cross_entropy
) -> tuple[TrainState, dict[str, Any]]:
    """One step of truncated back-propagation through time: the gradient stops at the carry.

    Args:
      state: before the step.
      batch: inputs and targets [B, T].
      loss_fn: losses [B, T] from logits [B, T, V] and targets; their mean is minimised.

    Returns:
      (state behind the step, metrics: "loss" before the update as sum and count, and
      "gradient_norm" before clipping).
    """
    reset = state.step % state.reset_every_steps == 0
    carry = jax.tree.map(lambda c: jnp.where(reset, jnp.zeros_like(c), c), state.carry)
    dropout_key = jax.random.fold_in(state.key, state.step)

    def mean_loss(params: Any) -> tuple[jax.Array, tuple[Carry, CrossEntropy]]:
        new_carry, logits = forward(
            params, carry, batch.inputs, model=state.model, dropout_key=dropout_key
        )
        losses = loss_fn(logits, batch.targets)
        return losses.mean(), (new_carry, CrossEntropy(losses.sum(), jnp.asarray(losses.size)))

    gradient, (new_carry, loss) = jax.grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = state.optimizer.update(gradient, state.opt_state, state.params)
    new_state = replace(
        state,
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        carry=new_carry,
    )
    return new_state, {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}
