"""Open-loop training: some inputs are the model's own characters, as when it generates.

Usually a model is trained on true text only, so it never sees its own mistakes. Here a step has two
passes. The first, without gradient, reads the sequences one character at a time, draws a character
from each prediction, and writes down the inputs: true characters, and drawn ones where a mask says
so. The second is the usual training step on these inputs, with the true targets. Since no gradient
flows through a drawn character, both together equal one pass that draws and differentiates at once,
in values and in gradients.

The first input of a sequence is always true. Dropout is off in the first pass, as it is when the
model generates. There, as then, [UNK] is never drawn, and the temperature is 1.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from charrnn_jax.data.batches import Batch
from charrnn_jax.data.vocabulary import UNK_ID
from charrnn_jax.models.char_rnn import Carry, CharRNN, Params
from charrnn_jax.models.stepping import prefers_transposed, prepare, step

_KEY = 1  # what is drawn here uses fold_in(the step's key, _KEY); dropout uses the key itself
_INVERSE_SIGMOID_K = 100.0


@dataclass(frozen=True)
class OpenLoop:
    """Which inputs are the model's own characters. Both ways can be combined.

    Scheduled sampling: a coin for each character decides whether it is true or drawn. The share of
    drawn ones grows from zero to `sampled_share` during training: a curriculum.

    Rollouts: in each sequence, the model writes a span of `rollout_length` characters, at a random
    place; true text goes on after it. The losses inside the span do not count, since its characters
    have nothing to do with the targets. So the model learns to recover from its own text: Professor
    Forcing (Lamb et al. 2016, arXiv:1610.09038) wants the same, that the carry after own text is
    like the carry after true text, and trains a discriminator of the two for it.

    Attributes:
      sampled_inputs: "none", or how the share grows: "linear" or "inverse_sigmoid".
      sampled_share: share of drawn inputs at the end of training, from 0 to 1; 0: none.
      rollout_length: length of a span, in characters, at most T - 2; 0: there are none.
      num_steps: number of steps of the whole training.

    Source: Bengio et al. 2015, "Scheduled Sampling for Sequence Prediction with Recurrent Neural
    Networks" (arXiv:1506.03099).
    """

    sampled_inputs: str
    sampled_share: float | jax.Array
    rollout_length: int | jax.Array
    num_steps: int

    @property
    def samples(self) -> bool:
        """Whether there is scheduled sampling."""
        return self.sampled_inputs != "none" and is_on(self.sampled_share)

    def share(self, progress: ArrayLike) -> jax.Array:
        """Returns the probability that an input of a step is drawn.

        With the progress u:

          linear           u * sampled_share
          inverse_sigmoid  (1 - k / (k + exp(i / k))) * sampled_share, with i / k = 2 u ln(k)
                           = sigmoid((2 u - 1) ln(k)) * sampled_share, k = 100

        The paper gives the share of true inputs, and leaves the constants open. These spread the
        curves over the whole training: the inverse sigmoid goes from 1% to 99%.

        Args:
          progress: share of the training that is over, from 0 to 1; more counts as 1.
        """
        progress = jnp.minimum(progress, 1.0)
        if self.sampled_inputs == "inverse_sigmoid":
            progress = jax.nn.sigmoid((2 * progress - 1) * jnp.log(_INVERSE_SIGMOID_K))
        return progress * self.sampled_share

    def replace_inputs(
        self,
        batch: Batch,
        *,
        params: Params,
        carry: Carry,
        model: CharRNN,
        zoneout: ArrayLike,
        progress: ArrayLike,
        key: jax.Array,
    ) -> Batch:
        """Returns a batch in which some inputs are the model's own characters.

        Args:
          batch: batch of true text.
          params: parameters of the model, as returned by `initialize_params`.
          carry: carry before the batch.
          model: the model.
          zoneout: its rate of zoneout, which may differ between replicas.
          progress: share of the training that is over, from 0 to 1.
          key: random key of the step.
        """
        coin_key, span_key, draw_key = jax.random.split(jax.random.fold_in(key, _KEY), 3)
        shape = num_rows, length = batch.inputs.shape
        is_own, counted = jnp.zeros(shape, bool), batch.counted
        positions = jnp.arange(length)[None]  # [1, T]
        if is_on(self.rollout_length):
            # From 1, the first that can be drawn, so that the last input is true again.
            first = jax.random.uniform(span_key, (num_rows, 1)) * (length - 1 - self.rollout_length)
            first = 1 + jnp.floor(first)
            is_own = (positions >= first) & (positions < first + self.rollout_length)
            counted = ~is_own if counted is None else counted & ~is_own
        if self.samples:
            is_own |= jax.random.uniform(coin_key, shape) < self.share(progress)
        inputs = mix_inputs(
            batch.inputs,
            is_own & (positions > 0),
            params=params,
            carry=carry,
            model=model,
            zoneout=zoneout,
            key=draw_key,
        )
        return batch._replace(inputs=inputs, counted=counted)


def is_on(number: float | jax.Array) -> bool:
    """Returns whether a number is not zero; one that differs between replicas is not."""
    return isinstance(number, jax.Array) or number != 0


def mix_inputs(
    inputs: ArrayLike,
    is_own: jax.Array,
    *,
    params: Params,
    carry: Carry,
    model: CharRNN,
    key: jax.Array,
    zoneout: ArrayLike = 0.0,
) -> jax.Array:
    """Reads sequences, and replaces characters by ones drawn from the prediction before them.

    Args:
      inputs: [B, T] ids.
      is_own: [B, T] bool, which of them are replaced; not the first of a sequence.
      params: parameters of the model, as returned by `initialize_params`.
      carry: carry before the first character.
      model: the model.
      key: random key.
      zoneout: rate of zoneout of the model, which acts outside of training, too.

    Returns:
      [B, T] int32 ids.
    """
    inputs = jnp.asarray(inputs, jnp.int32)
    num_rows, length = inputs.shape
    transposed = prefers_transposed(num_rows, dtype=model.dtype)
    weights = prepare(params, model=model, transposed=transposed)
    model = model.clone(zoneout=zoneout)  # here it may be traced
    # Before the loop, in which every operation, however small, makes all steps slower.
    noise = jax.random.gumbel(key, (length, num_rows, model.vocabulary_size))
    noise = noise.at[:, :, UNK_ID].set(-jnp.inf)

    def read(
        carried: tuple[Carry, jax.Array], x: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[Carry, jax.Array], jax.Array]:
        carry, drawn = carried
        true, own, noise = x
        token = jnp.where(own, drawn, true)
        carry, logits = step(weights, carry, token, model=model)
        return (carry, jnp.argmax(logits + noise, axis=-1).astype(jnp.int32)), token

    first = carry, inputs[:, 0]
    return jax.lax.scan(read, first, (inputs.T, is_own.T, noise))[1].T


def make_open_loop(config: ConfigDict, *, num_steps: int) -> OpenLoop | None:
    """Returns what a `config.train` section asks for; None: all inputs are true.

    Args:
      config: the `config.train` section.
      num_steps: number of steps of the whole training.
    """
    samples = config.sampled_inputs != "none" and config.sampled_share
    if not samples and not config.rollout_length:
        return None
    return OpenLoop(config.sampled_inputs, config.sampled_share, config.rollout_length, num_steps)
