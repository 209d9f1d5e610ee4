"""Dynamic evaluation: the weights go on learning while they are evaluated.

The text is read in one pass, a short segment at a time, and the carry is kept. Each segment is
scored with the weights theta of the moment. Only then do they take a step on its loss. With the
gradient g of the mean loss of the segment, and the root mean square r of such gradients on training
text, for each weight:

  theta <- theta - rate g / (r + epsilon) + min(decay r / mean(r), 1) (theta_0 - theta)

The last term draws the weights back towards the trained ones, theta_0, the more the more the
training text has to say about them. No character is learned from before it has been scored.

Source: Krause et al. 2017, "Dynamic evaluation of neural sequence models", arXiv:1709.07432,
section 5 (RMS dynamic evaluation with an RMS global prior).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.metrics import cross_entropy
from charrnn_jax.evaluation.protocol import Protocol
from charrnn_jax.models.char_rnn import Carry, CharRNN, Params, forward

_SEGMENTS = 64  # in one call; does not affect the result
_FIT_CHARS = 20_000  # of the training text, whose gradients give r


@dataclass(frozen=True)
class Dynamic(Protocol):
    """One pass over the text, in which the carry is kept and the weights learn.

    Attributes:
      rate: step size.
      decay: how far each step draws the weights back to the trained ones, as a share.
      epsilon: what is added to the root mean square of a gradient.
      segment: number of characters between two steps.
      rms: root mean square of the gradient of each parameter on training text, as `fit` sets it.
    """

    rate: float = 3e-4
    decay: float = 1e-3
    epsilon: float = 1e-4
    segment: int = 20
    rms: Params | None = field(default=None, repr=False, compare=False)
    name: ClassVar[str] = "dynamic"
    in_all: ClassVar[bool] = False

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Dynamic":
        return cls(
            rate=config.dynamic_rate,
            decay=config.dynamic_decay,
            epsilon=config.dynamic_epsilon,
            segment=config.dynamic_segment,
        )

    @property
    def description(self) -> str:
        return (
            "one pass over the split, in which the carry is kept and the weights learn from each "
            f"segment of {self.segment} characters after it has been scored"
        )

    def to_dict(self) -> dict[str, float]:
        """Returns the settings, without what `fit` measured, as plain data for JSON."""
        names = ("rate", "decay", "epsilon", "segment")
        return {name: getattr(self, name) for name in names}

    def describe_numbers(self) -> str:
        """Returns the three numbers as text."""
        return f"rate {self.rate:.3g}, decay {self.decay:.3g}, epsilon {self.epsilon:.3g}"

    def fit(self, params: Params, tokens: np.ndarray, *, model: CharRNN) -> "Dynamic":
        """Measures the gradients on the beginning of the training text.

        Args:
          params: parameters of the model, as returned by `initialize_params`.
          tokens: [n] ids of the training text.
          model: the model.

        Raises:
          UserError: the text is shorter than two characters.
        """
        if len(tokens) < 2:
            raise UserError("dynamic evaluation needs the training text, and there is none")
        carry = model.initialize_carry(1)
        total = jax.tree.map(jnp.zeros_like, params)
        num_segments = 0
        for batch in _segments(tokens[: _FIT_CHARS + 1], length=self.segment):
            carry, total = _add_squares(params, carry, total, batch, model=model)
            num_segments += int(batch.in_text[:, 0].sum())
        rms = jax.tree.map(lambda squares: jnp.sqrt(squares / num_segments), total)
        return replace(self, rms=rms)

    def losses(self, params: Params, tokens: np.ndarray, *, model: CharRNN) -> Iterator[np.ndarray]:
        for losses, _ in self._read(params, tokens, model=model):
            yield losses

    def adapt(self, params: Params, tokens: np.ndarray, *, model: CharRNN) -> Params:
        """Returns the parameters after they have learned from a text, as while it is scored.

        Args:
          params: parameters of the model, as returned by `initialize_params`.
          tokens: [1 + n] ids; the first is only context.
          model: the model.
        """
        adapted = params
        for _, now in self._read(params, tokens, model=model):
            adapted = now
        return adapted

    def _read(
        self, params: Params, tokens: np.ndarray, *, model: CharRNN
    ) -> Iterator[tuple[np.ndarray, Params]]:
        """Yields the losses of some segments, and the parameters after them."""
        if self.rms is None:
            raise UserError(
                "dynamic evaluation needs gradients on the training text: use "
                "Dynamic(...).fit(params, training_tokens, model=model)"
            )
        numbers = jnp.float32([self.rate, self.decay, self.epsilon])
        carry, now = model.initialize_carry(1), params
        for batch in _segments(tokens, length=self.segment):
            (now, carry), losses = _score_and_learn(
                params, now, carry, self.rms, numbers, batch, model=model
            )
            yield jax.device_get(losses)[jax.device_get(batch.in_text)], now


class _Segments(NamedTuple):
    """G segments of a text, or one of them.

    Attributes:
      inputs: [G, S] ids.
      targets: [G, S] ids.
      in_text: [G, S] whether the target is a character of the text; False: it fills up the end.
    """

    inputs: jax.Array
    targets: jax.Array
    in_text: jax.Array


def _segments(tokens: np.ndarray, *, length: int) -> Iterator[_Segments]:
    """Yields `_SEGMENTS` segments of `length` characters at a time."""
    size = _SEGMENTS * length
    for start in range(0, len(tokens) - 1, size):
        piece = np.asarray(tokens[start : start + size + 1], np.int32)
        padded = np.zeros(size + 1, np.int32)
        padded[: len(piece)] = piece
        in_text = np.arange(size) < len(piece) - 1
        rows = (x.reshape(_SEGMENTS, length) for x in (padded[:-1], padded[1:], in_text))
        yield _Segments(*map(jax.device_put, rows))


def _gradient(
    params: Params, carry: Carry, segment: _Segments, *, model: CharRNN
) -> tuple[Params, tuple[Carry, jax.Array]]:
    """Returns the gradient of a segment's mean loss, the carry after it, and its losses [S]."""
    inputs, targets, in_text = segment

    def mean_loss(params: Params) -> tuple[jax.Array, tuple[Carry, jax.Array]]:
        new_carry, logits = forward(params, carry, inputs[None], model=model)
        losses = cross_entropy(logits[0], targets)
        return (losses * in_text).sum() / jnp.maximum(in_text.sum(), 1), (new_carry, losses)

    return jax.grad(mean_loss, has_aux=True)(params)


@partial(jax.jit, static_argnames="model", donate_argnames="total")
def _add_squares(
    params: Params, carry: Carry, total: Params, batch: _Segments, *, model: CharRNN
) -> tuple[Carry, Params]:
    """Adds the squared gradient of each segment to `total`."""

    def step(state: tuple[Carry, Params], segment: _Segments) -> tuple[tuple[Carry, Params], None]:
        carry, total = state
        gradient, (carry, _) = _gradient(params, carry, segment, model=model)
        return (carry, jax.tree.map(lambda t, g: t + g * g, total, gradient)), None

    state, _ = jax.lax.scan(step, (carry, total), batch)
    return state


@partial(jax.jit, static_argnames="model")
def _score_and_learn(
    trained: Params,
    params: Params,
    carry: Carry,
    rms: Params,
    numbers: jax.Array,
    batch: _Segments,
    *,
    model: CharRNN,
) -> tuple[tuple[Params, Carry], jax.Array]:
    """Scores some segments, and learns from each.

    Args:
      trained: the trained parameters.
      params: parameters before the first segment.
      carry: carry before it, for one sequence.
      rms: see `Dynamic`.
      numbers: [3] rate, decay and epsilon.
      batch: the segments.
      model: the model.

    Returns:
      ((parameters, carry) after the last segment, losses [G, S] in nats).
    """
    rate, decay, epsilon = numbers
    sizes = [leaf.size for leaf in jax.tree.leaves(rms)]
    mean = sum(leaf.sum() for leaf in jax.tree.leaves(rms)) / sum(sizes)
    scale = jax.tree.map(lambda r: rate / (r + epsilon), rms)
    back = jax.tree.map(lambda r: jnp.minimum(decay * r / mean, 1.0), rms)

    def step(
        state: tuple[Params, Carry], segment: _Segments
    ) -> tuple[tuple[Params, Carry], jax.Array]:
        params, carry = state
        gradient, (carry, losses) = _gradient(params, carry, segment, model=model)
        in_text = segment.in_text[0]  # after the end, the weights stay

        params = jax.tree.map(
            lambda theta, g, s, b, theta_0: theta - s * g + in_text * b * (theta_0 - theta),
            *(params, gradient, scale, back, trained),
        )
        return (params, carry), losses

    return jax.lax.scan(step, (params, carry), batch)
