"""`TrainState` and `train_step`: everything that one training step needs, and the step itself."""

from collections import defaultdict
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
from charrnn_jax.models.char_rnn import (
    Carry,
    CharRNN,
    Params,
    forward_in_training,
    initialize_params,
)
from charrnn_jax.models.regularisers import Regularisers
from charrnn_jax.registry import TRAIN_STEPS
from charrnn_jax.training.open_loop import OpenLoop
from charrnn_jax.training.schedule_free import averaged_weights

# (logits [B, T, V], targets [B, T]) -> losses [B, T] in nats
LossFn = Callable[[jax.Array, Any], jax.Array]


@struct.dataclass
class Average:
    """Averaged parameters, see `averaging`.

    Attributes:
      params: the average, a tree like the parameters.
      count: number of steps that it has averaged.
    """

    params: Params
    count: jax.Array


@struct.dataclass
class TrainState:
    """Everything that training carries from step to step; with a batch, it gives the next state.

    `params` are trained. `evaluated_params()` are what is evaluated, sampled from and exported;
    they are the same unless the weights are averaged.

    Attributes:
      step: number of steps done.
      params: parameters of the model, as returned by `initialize_params`.
      opt_state: state of the optimizer.
      carry: carry after the last batch, for B sequences.
      key: random key, which never changes; step k uses fold_in(key, k).
      model: the model; static.
      optimizer: the optimizer; static.
      average: average of the parameters; None: they are not averaged.
      regularisers: regularisers other than those that are fields of the model; their numbers are
        arrays, which do not change.
      open_loop: which inputs are the model's own characters; None: none; static.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    carry: Carry
    key: jax.Array
    model: CharRNN = struct.field(pytree_node=False)
    optimizer: optax.GradientTransformation = struct.field(pytree_node=False)
    average: Average | None = None
    regularisers: Regularisers = ()
    open_loop: OpenLoop | None = struct.field(pytree_node=False, default=None)

    def evaluated_params(self) -> Params:
        """Returns the parameters to evaluate, sample from and export: the average, if there is one.

        The optimizer "schedule_free" has an average of its own. Parameters that are not averaged
        are returned as they are, not as copies.
        """
        if self.average is None:
            return averaged_weights(self.params, self.opt_state)
        return self.average.params

    def to_trees(self) -> tuple[Any, dict[str, Any]]:
        """Returns (evaluated parameters, everything else) as in checkpoints.

        Whoever uses the model reads only the first. The second has the trained parameters as
        "raw_params" if they are others.
        """
        evaluated = self.evaluated_params()
        rest = {name: getattr(self, name) for name in ("step", "opt_state", "carry")}
        # The key as plain numbers, since Orbax before 0.12 cannot restore typed keys.
        rest["key"] = jax.random.key_data(self.key)
        if evaluated is not self.params:
            rest["raw_params"] = self.params
        if self.average is not None:
            rest["average_count"] = self.average.count
        return evaluated, rest

    def with_trees(self, params: Params, rest: dict[str, Any]) -> "TrainState":
        """Returns the state with the trees of `to_trees` in place of its own."""
        average = None if self.average is None else Average(params, rest["average_count"])
        return replace(
            self,
            step=rest["step"],
            params=rest.get("raw_params", params),
            opt_state=rest["opt_state"],
            carry=rest["carry"],
            key=jax.random.wrap_key_data(rest["key"]),
            average=average,
        )


@dataclass(frozen=True)
class Traced:
    """How a number of the config can be an argument of a compiled program.

    Attributes:
      goes_to: what uses it: "start" (only what a run starts from: its first state, the weights of
        penalties in it, and its batches), "model" (it is a field of `CharRNN`), "optimizer" (it is
        an argument of the optimizer's update), "averaging" or "open_loop" (it is a field of
        `OpenLoop`).
      zero_is_another_program: whether the program leaves something out if the number is zero (or
        negative). If so, zero cannot be traced.
    """

    goes_to: str
    zero_is_another_program: bool = False


# All such numbers. This table decides what runs may differ in and still share a program, what a
# program takes as arguments, and where these go.
TRACED_FIELDS = {
    "seed": Traced("start"),
    "data.carry_reset_rate": Traced("start"),
    "model.init_scale": Traced("start"),
    "model.dropout": Traced("model", zero_is_another_program=True),
    "model.embedding_dropout": Traced("model", zero_is_another_program=True),
    "model.input_dropout": Traced("model", zero_is_another_program=True),
    "model.output_dropout": Traced("model", zero_is_another_program=True),
    "model.weight_dropout": Traced("model", zero_is_another_program=True),
    "model.zoneout": Traced("model", zero_is_another_program=True),
    "optimizer.learning_rate": Traced("optimizer"),
    "optimizer.weight_decay": Traced("optimizer", zero_is_another_program=True),
    "train.activation_penalty": Traced("start", zero_is_another_program=True),
    "train.temporal_penalty": Traced("start", zero_is_another_program=True),
    "train.ema_decay": Traced("averaging"),
    "train.tail_fraction": Traced("averaging"),
    "train.sampled_share": Traced("open_loop", zero_is_another_program=True),
    "train.rollout_length": Traced("open_loop", zero_is_another_program=True),
}


_RATES = [name.split(".")[1] for name, traced in TRACED_FIELDS.items() if traced.goes_to == "model"]


@struct.dataclass
class TracedHyperparameters:
    """Numbers of a config as arguments of a compiled program, {name: number}.

    Attributes:
      model: numbers in place of fields of the model.
      optimizer: numbers in place of those that the optimizer was made with.
      averaging: numbers in place of the config's, see `averaging`.
      open_loop: numbers in place of fields of the state's `OpenLoop`, if it has one.
    """

    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    averaging: dict[str, Any] = field(default_factory=dict)
    open_loop: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: ConfigDict) -> "TracedHyperparameters":
        """Returns the numbers of a config as arrays, without zeros that cannot be traced."""
        numbers: dict[str, dict[str, Any]] = defaultdict(dict)
        for name, value in flatten(config).items():
            traced = TRACED_FIELDS.get(name)
            if traced and (value > 0 or not traced.zero_is_another_program):
                numbers[traced.goes_to][name.split(".")[-1]] = jnp.float32(value)
        numbers.pop("start", None)
        return cls(**numbers)


TrainStep = Callable[..., tuple[TrainState, dict[str, Any]]]  # (state, batch, maybe hyper=)


def create_train_state(
    model: CharRNN,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    batch_size: int,
    regularisers: Regularisers = (),
    open_loop: OpenLoop | None = None,
) -> TrainState:
    """Draws the parameters and returns the state before the first step.

    Args:
      model: the model.
      optimizer: the optimizer.
      seed: seed of the parameters and of the state's key.
      batch_size: B, in sequences.
      regularisers: regularisers other than those that are fields of the model.
      open_loop: which inputs are the model's own characters; None: none.
    """
    params_key, key = jax.random.split(jax.random.key(seed))
    # Jitted, since one program starts faster than one for each operation. Rates do not matter here;
    # without them, runs with different rates share the program.
    plain = model.clone(**{name: getattr(CharRNN, name) for name in _RATES})
    params = jax.jit(initialize_params, static_argnums=0)(plain, params_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=jax.jit(optimizer.init)(params),
        # Copies, since the state is donated and a cell may return the same zeros twice.
        carry=jax.tree.map(jnp.array, model.initialize_carry(batch_size)),
        key=key,
        model=model,
        optimizer=optimizer,
        regularisers=jax.tree.map(jnp.array, regularisers),
        open_loop=open_loop,
    )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    loss_fn: LossFn = cross_entropy,
    hyper: TracedHyperparameters | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """One step of truncated backpropagation through time: the gradient stops at the carry.

    Args:
      state: state before the step.
      batch: inputs and targets, [B, T] each, and which sequences start from the zero carry.
      loss_fn: function from logits [B, T, V] and targets [B, T] to losses [B, T]; their mean and
        the penalties of the regularisers are minimised.
      hyper: numbers in place of those that the model and the optimizer were made with.

    Returns:
      (state after the step, metrics). The metrics are "loss", before the update and without
      penalties, as a `CrossEntropy`, "gradient_norm", before clipping, "update_ratio", the norm of
      the update divided by the norm of the parameters before it, and, with scheduled sampling,
      "sampled_share", the probability that an input was the model's own character.
    """
    hyper = hyper or TracedHyperparameters()
    model = state.model.clone(**hyper.model)
    key = jax.random.fold_in(state.key, state.step)
    other_metrics = {}
    carry = reset_carry(state.carry, batch.resets, model=state.model)
    if state.open_loop:
        open_loop = replace(state.open_loop, **hyper.open_loop)
        progress = hyper.optimizer.get("progress", state.step / open_loop.num_steps)
        if open_loop.samples:
            other_metrics["sampled_share"] = open_loop.share(progress)
        batch = open_loop.replace_inputs(
            batch,
            params=state.params,
            carry=carry,
            model=state.model,
            zoneout=model.zoneout,
            progress=progress,
            key=key,
        )

    gradient, (new_carry, loss) = jax.grad(minimised_loss, has_aux=True)(
        state.params,
        carry,
        batch,
        model=model,
        regularisers=state.regularisers,
        loss_fn=loss_fn,
        key=key,
    )
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
    return new_state, {
        "loss": loss,
        "gradient_norm": optax.tree.norm(gradient),
        "update_ratio": optax.tree.norm(updates) / optax.tree.norm(state.params),
        **other_metrics,
    }


def minimised_loss(
    params: Params,
    carry: Carry,
    batch: Batch,
    *,
    model: CharRNN,
    regularisers: Regularisers,
    loss_fn: LossFn,
    key: jax.Array,
) -> tuple[jax.Array, tuple[Carry, CrossEntropy]]:
    """Returns (mean loss with penalties, (carry after the batch, loss without penalties)).

    Args:
      params: model parameters, as returned by `initialize_params`.
      carry: carry before the batch, for B sequences.
      batch: inputs and targets, [B, T] each.
      model: the model.
      regularisers: regularisers other than those that are fields of the model.
      loss_fn: function from logits [B, T, V] and targets [B, T] to losses [B, T].
      key: random key of the step.
    """
    new_carry, activations = forward_in_training(
        params, carry, batch.inputs, model=model, key=key, regularisers=regularisers
    )
    loss = counted_loss(loss_fn(activations.logits, batch.targets), batch.counted)
    minimised = loss.total / loss.count
    for regulariser in regularisers:
        minimised += regulariser.penalty(activations, params=params)
    return minimised, (new_carry, loss)


def reset_carry(carry: Carry, resets: Any, *, model: CharRNN) -> Carry:
    """Returns a carry with zeros, or what else the cell starts from, where `resets` says so.

    Args:
      carry: carry of B sequences.
      resets: [B] bool, see `Batch.resets`; None: all are reset.
      model: the model.
    """
    first = model.initialize_carry(jax.tree.leaves(carry)[0].shape[0])
    if resets is None:
        return first

    def choose_rows(first: jax.Array, kept: jax.Array) -> jax.Array:
        return jnp.where(resets.reshape(-1, *[1] * (kept.ndim - 1)), first, kept)

    return jax.tree.map(choose_rows, first, carry)


def counted_loss(losses: jax.Array, counted: jax.Array | None) -> CrossEntropy:
    """Returns the sum and the count of the losses [B, T] that count, see `Batch.counted`."""
    if counted is None:
        return CrossEntropy(losses.sum(), jnp.asarray(losses.size))
    return CrossEntropy(jnp.where(counted, losses, 0.0).sum(), counted.sum())


def apply_if_finite(train_step: TrainStep) -> TrainStep:
    """Returns a train step that keeps the state as it was if the loss or gradient is not finite.

    Only the count of steps increases then, so that the next step takes the next batch. The metrics
    are those of the step that was not applied.

    Args:
      train_step: (state, batch) -> (state, metrics), with "loss" and maybe "gradient_norm" among
        its metrics.
    """

    def guarded(
        state: TrainState, batch: Batch, **arguments: Any
    ) -> tuple[TrainState, dict[str, Any]]:
        new_state, metrics = train_step(state, batch, **arguments)
        checked = metrics["loss"].total, metrics.get("gradient_norm", 0.0)
        is_finite = jnp.array([jnp.isfinite(value).all() for value in checked]).all()
        kept = jax.tree.map(partial(jnp.where, is_finite), new_state, state)
        return replace(kept, step=new_state.step), metrics

    return guarded


TRAIN_STEPS.provide("standard", train_step)
