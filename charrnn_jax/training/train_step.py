"""`TrainState` and `train_step`: everything that one step of training needs and does."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from ml_collections import ConfigDict

from charrnn_jax.config import flatten
from charrnn_jax.data.batches import Batch
from charrnn_jax.evaluation.metrics import CrossEntropy, cross_entropy
from charrnn_jax.models.char_rnn import Carry, CharRNN, forward, initialize_params
from charrnn_jax.registry import TRAIN_STEPS

# (logits [B, T, V], targets [B, T]) -> losses [B, T] in nats
LossFn = Callable[[jax.Array, Any], jax.Array]


@struct.dataclass
class TrainState:
    """All that training carries from step to step; with it, step k+1 follows from batch k+1 alone.

    Attributes:
      step: steps done.
      params: parameters of the model.
      opt_state: state of the optimizer.
      carry: recurrent state after the last batch, for B sequences.
      key: never changes; step k draws its randomness from fold_in(key, k).
      model: static.
      optimizer: static.
      reset_every_steps: static; the carry is that of `initialize_carry` again before every so many
        steps.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    carry: Carry
    key: jax.Array
    model: CharRNN = struct.field(pytree_node=False)
    optimizer: optax.GradientTransformation = struct.field(pytree_node=False)
    reset_every_steps: int = struct.field(pytree_node=False)

    def to_trees(self) -> tuple[Any, dict[str, Any]]:
        """Returns (params, all else) as checkpoints hold them: sampling reads the first alone."""
        rest = {name: getattr(self, name) for name in ("step", "opt_state", "carry")}
        # As plain numbers: Orbax before 0.12 cannot restore typed keys.
        return self.params, {**rest, "key": jax.random.key_data(self.key)}

    def with_trees(self, params: Any, rest: dict[str, Any]) -> "TrainState":
        """Returns the state with what `to_trees` gave."""
        return replace(
            self, **{**rest, "params": params, "key": jax.random.wrap_key_data(rest["key"])}
        )


@dataclass(frozen=True)
class Traced:
    """A number of the config that may be an argument of a compiled program.

    Attributes:
      goes_to: what takes it: "start" (only the state before the first step depends on it), "model"
        (a field of `CharRNN`) or "optimizer" (an argument of the optimizer's update).
      zero_is_another_program: at zero the program leaves something out, so whether the number is
        zero cannot be traced.
    """

    goes_to: str
    zero_is_another_program: bool = False


# All of them. What runs may differ in and still share a program, what a program takes as arguments,
# and where these go all follow from this table.
TRACED_FIELDS = {
    "seed": Traced("start"),
    "model.init_scale": Traced("start"),
    "model.dropout": Traced("model", zero_is_another_program=True),
    "model.input_dropout": Traced("model", zero_is_another_program=True),
    "optimizer.learning_rate": Traced("optimizer"),
    "optimizer.weight_decay": Traced("optimizer", zero_is_another_program=True),
}


@struct.dataclass
class TracedHyperparameters:
    """Numbers of one training as arguments of its program, {name: number}.

    Attributes:
      model: in place of fields of the model.
      optimizer: in place of what the optimizer was made with.
    """

    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: ConfigDict) -> "TracedHyperparameters":
        """Returns those of a config as arrays, without a zero that is another program."""
        numbers: dict[str, dict[str, Any]] = {"start": {}, "model": {}, "optimizer": {}}
        for name, value in flatten(config).items():
            traced = TRACED_FIELDS.get(name)
            if traced and (value or not traced.zero_is_another_program):
                numbers[traced.goes_to][name.split(".")[-1]] = jnp.float32(value)
        return cls(numbers["model"], numbers["optimizer"])


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
        # Copies, since the state is donated: a cell may give the same zeros twice.
        carry=jax.tree.map(jnp.array, model.initialize_carry(batch_size)),
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
    hyper: TracedHyperparameters | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """One step of truncated back-propagation through time: the gradient stops at the carry.

    Args:
      state: before the step.
      batch: inputs and targets [B, T].
      loss_fn: losses [B, T] from logits [B, T, V] and targets; their mean is minimised.
      hyper: in place of what the model and the optimizer were made with.

    Returns:
      (state after the step, metrics: "loss" before the update as sum and count, and
      "gradient_norm" before clipping).
    """
    reset = state.step % state.reset_every_steps == 0
    first_carry = state.model.initialize_carry(batch.inputs.shape[0])
    carry = jax.tree.map(partial(jnp.where, reset), first_carry, state.carry)
    dropout_key = jax.random.fold_in(state.key, state.step)
    hyper = hyper or TracedHyperparameters()
    model = state.model.clone(**hyper.model)

    def mean_loss(params: Any) -> tuple[jax.Array, tuple[Carry, CrossEntropy]]:
        new_carry, logits = forward(
            params, carry, batch.inputs, model=model, dropout_key=dropout_key
        )
        losses = loss_fn(logits, batch.targets)
        return losses.mean(), (new_carry, CrossEntropy(losses.sum(), jnp.asarray(losses.size)))

    gradient, (new_carry, loss) = jax.grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = state.optimizer.update(
        gradient, state.opt_state, state.params, **hyper.optimizer
    )
    new_state = replace(
        state,
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        carry=new_carry,
    )
    return new_state, {"loss": loss, "gradient_norm": optax.tree.norm(gradient)}


TRAIN_STEPS.provide("standard", train_step)
