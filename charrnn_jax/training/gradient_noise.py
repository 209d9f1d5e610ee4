"""The gradient-noise scale: how large a batch is useful.

The gradient g of a batch of B sequences has a mean G and a covariance Sigma / B. The noise scale is
trace(Sigma) / |G|^2, in sequences. With batches far below it, twice the batch saves nearly half of
the steps; far above it, hardly any.

Both numbers are estimated without bias from the gradients g_k of K equal parts of one batch:

  small  = mean of |g_k|^2              E[small] = |G|^2 + trace(Sigma) / b, with b = B / K
  large  = |mean of g_k|^2              E[large] = |G|^2 + trace(Sigma) / B
  |G|^2       ~  (B large - b small) / (B - b)
  trace(Sigma) ~  (small - large) / (1 / b - 1 / B)

One estimate is noisy. Average each of the two numbers over rows, and divide then.

Source: McCandlish et al. 2018 (arXiv:1812.06162), appendix A.1.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from charrnn_jax.data.batches import Batch, slice_batch
from charrnn_jax.models.char_rnn import Params, make_model
from charrnn_jax.registry import LOSSES
from charrnn_jax.training.devices import own_rows, place_rows
from charrnn_jax.training.recorder import Recorder
from charrnn_jax.training.setup import Setup
from charrnn_jax.training.train_step import LossFn, TrainState, minimised_loss, reset_carry

_MOST_PARTS = 8


class GradientNoise(NamedTuple):
    """An estimate of the two numbers whose ratio is the noise scale.

    Attributes:
      square: |G|^2, which a noisy estimate may make negative.
      variance: trace(Sigma), for batches of one sequence.
    """

    square: float
    variance: float

    @classmethod
    def estimate(
        cls, small: float, large: float, *, part_size: int, batch_size: int
    ) -> "GradientNoise":
        """Returns the estimate.

        Args:
          small: mean squared norm of the gradients of the parts.
          large: squared norm of the gradient of the batch.
          part_size: b, in sequences.
          batch_size: B, in sequences.
        """
        b, B = part_size, batch_size
        return cls((B * large - b * small) / (B - b), (small - large) / (1 / b - 1 / B))


@dataclass(frozen=True)
class WriteGradientNoise:
    """Writes the noise scale of the next batch, at a cost of about one training step."""

    every_steps: int
    setup: Setup
    recorder: Recorder

    def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
        config, batches = self.setup.config, self.setup.batches
        size = config.data.batch_size
        rows = own_rows(size)
        own = slice_batch(
            batches.tokens,
            batches.starts(step)[rows],
            sequence_length=batches.length(step),
            resets=batches.resets(step)[rows],
        )
        batch = place_rows(jax.tree.map(lambda x: x[None], own), self.setup.mesh)
        num_parts = choose_num_parts(size)
        # Of the config, since replicas share the model of one of them.
        model = make_model(config.model, vocabulary_size=self.setup.dataset.vocabulary.size)
        small, large = squared_norms(
            replace(state, model=model),
            batch,
            num_parts=num_parts,
            loss_fn=LOSSES[config.train.loss],
        )
        noise = GradientNoise.estimate(
            float(small), float(large), part_size=size // num_parts, batch_size=size
        )
        row = {"train/gradient_square": noise.square, "train/gradient_variance": noise.variance}
        if noise.square > 0:
            row["train/gradient_noise"] = noise.variance / noise.square
        self.recorder.write(step, row)


def choose_num_parts(batch_size: int) -> int:
    """Returns into how many parts a batch of at least 2 is divided: at most 8 if possible."""
    divisors = [n for n in range(2, batch_size + 1) if batch_size % n == 0]
    return max((n for n in divisors if n <= _MOST_PARTS), default=divisors[0])


@partial(jax.jit, static_argnames=("num_parts", "loss_fn"))
def squared_norms(
    state: TrainState, batch: Batch, *, num_parts: int, loss_fn: LossFn
) -> tuple[jax.Array, jax.Array]:
    """Returns (mean squared norm of the gradients of parts, that of the gradient of the batch).

    Args:
      state: state before the step of this batch.
      batch: inputs and targets, [1, B, T] each.
      num_parts: K, which divides B.
      loss_fn: loss to minimise; see `train_step`.
    """
    batch = jax.tree.map(lambda x: x[0], batch)
    carry = reset_carry(state.carry, batch.resets, model=state.model)
    key = jax.random.fold_in(state.key, state.step)

    def in_parts(x: jax.Array) -> jax.Array:
        """[B, ...] -> [K, b, ...]; each part has rows of every device."""
        return x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1)

    parts = jax.tree.map(in_parts, (carry, batch.inputs, batch.targets))
    keys = jax.random.split(key, num_parts)

    gradient_of = jax.grad(minimised_loss, has_aux=True)

    def add(sums: tuple[Params, jax.Array], part: Any) -> tuple[tuple[Params, jax.Array], None]:
        carry, inputs, targets, key = part
        gradient, _ = gradient_of(
            state.params,
            carry,
            Batch(inputs, targets),
            model=state.model,
            regularisers=state.regularisers,
            loss_fn=loss_fn,
            key=key,
        )
        total, squares = sums
        return (optax.tree.add(total, gradient), squares + optax.tree.norm(gradient) ** 2), None

    start = optax.tree.zeros_like(state.params), jnp.zeros(())
    (total, squares), _ = jax.lax.scan(add, start, (*parts, keys))
    return squares / num_parts, (optax.tree.norm(total) / num_parts) ** 2
