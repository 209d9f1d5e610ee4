"""Text from an n-gram model, to be read beside the text of a network."""

from collections.abc import Sequence

import jax
import numpy as np

from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.evaluation.ngram import KneserNey
from charrnn_jax.generation.prompts import encode_prompt, row_keys
from charrnn_jax.generation.writer import Sample


def generate_counted(
    ngram: KneserNey,
    prompts: Sequence[str],
    *,
    vocabulary: Vocabulary,
    num_chars: int,
    temperature: float = 1.0,
    seed: int = 0,
    unk: str = "error",
) -> list[Sample]:
    """Continues each prompt. `[UNK]` is never drawn.

    Args:
      ngram: the n-gram model.
      prompts: the prompts.
      vocabulary: vocabulary of the model.
      num_chars: number of characters of each text.
      temperature: 0: always the most likely character; 1: the model's distribution.
      seed: with the prompt, decides what is drawn.
      unk: what to do with unknown characters in a prompt: "error", or "skip".

    Raises:
      UserError: see `encode_prompt` and `row_keys`.
    """
    encoded = [encode_prompt(prompt, vocabulary, unk=unk) for prompt in prompts]
    keys = jax.random.key_data(row_keys(seed, encoded, num_rows=len(encoded)))
    samples = []
    for prompt, context, key in zip(prompts, encoded, np.asarray(keys), strict=True):
        rng = np.random.default_rng(key)
        tokens, nats = context.tolist(), 0.0
        for _ in range(num_chars):
            p = ngram.distribution(tokens[-ngram.order :] if ngram.order else [])
            tokens.append(_draw(p, temperature=temperature, rng=rng))
            nats -= float(np.log(p[tokens[-1]]))
        text = vocabulary.decode(tokens[len(context) :])
        samples.append(Sample(prompt, text, "length", num_chars, nats / num_chars))
    return samples


def _draw(p: np.ndarray, *, temperature: float, rng: np.random.Generator) -> int:
    logits = np.log(p)
    logits[UNK_ID] = -np.inf
    if temperature == 0:
        return int(logits.argmax())
    # The Gumbel-max trick: no sums, so no temperature is too low or too high.
    noise = rng.gumbel(size=len(logits))
    return int(np.argmax(logits + temperature * noise))
