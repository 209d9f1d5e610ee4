"""`TrainState` and `train_step`: everything that one step of training needs and does."""

from collections.abc import Callable
from dataclasses import replace
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


@struct.dataclass
class Hyperparameters:
    """Numbers of one training that its program can take as arguments; None: those of the config.

    Attributes:
      learning_rate: peak.
      weight_decay: rate; only if the config's is not zero.
      dropout: rate; only if the model's is not zero.
      input_dropout: the same.
    """

    learning_rate: Any = None
    weight_decay: Any = None
    dropout: Any = None
    input_dropout: Any = None


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
    # Jitted: one program starts sooner than the many small ones of its operations, and runs that
    # differ in what does not matter here share it.
    plain = model.clone(dropout=0.0, input_dropout=0.0)
    params = jax.jit(initialize_params, static_argnums=0)(plain, params_key)
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
    state: TrainState,
    batch: Batch,
    *,
    loss_fn: LossFn = cross_entropy,
    hyper: Hyperparameters | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """One step of truncated back-propagation through time: the gradient stops at the carry.

    Args:
      state: before the step.
      batch: inputs and targets [B, T].
      loss_fn: losses [B, T] from logits [B, T, V] and targets; their mean is minimised.
      hyper: in place of what the model and the optimizer were made with.

    Returns:
      (state behind the step, metrics: "loss" before the update as sum and count, and
      "gradient_norm" before clipping).
    """
    reset = state.step % state.reset_every_steps == 0
    carry = jax.tree.map(lambda c: jnp.where(reset, jnp.zeros_like(c), c), state.carry)
    dropout_key = jax.random.fold_in(state.key, state.step)
    model = state.model.clone(**_given(hyper, "dropout", "input_dropout"))

    def mean_loss(params: Any) -> tuple[jax.Array, tuple[Carry, CrossEntropy]]:
        new_carry, logits = forward(
            params, carry, batch.inputs, model=model, dropout_key=dropout_key
        )
        losses = loss_fn(logits, batch.targets)
        return losses.mean(), (new_carry, CrossEntropy(losses.sum(), jnp.asarray(losses.size)))

    gradient, (new_carry, loss) = jax.grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = state.optimizer.update(
        gradient, state.opt_state, state.params, **_given(hyper, "learning_rate", "weight_decay")
    )
    new_state = replace(
        state,
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        carry=new_carry,
    )
    return new_state, {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}


def _given(hyper: Hyperparameters | None, *names: str) -> dict[str, Any]:
    values = {name: getattr(hyper, name) for name in names} if hyper else {}
    return {name: value for name, value in values.items() if value is not None}
