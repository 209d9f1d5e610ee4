"""`generate_novel`: texts that copy no long span of the training text."""

from collections.abc import Sequence
from typing import NamedTuple, Unpack

from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.copies import Span, copied_spans, longest_matches
from charrnn_jax.generation.sampler import Sampler, Settings
from charrnn_jax.generation.writer import Sample

MOST_TRIES = 20
SHORTEST_SPAN = 16  # characters; in real text, about one position in 70 begins a longer copy


class Novel(NamedTuple):
    """A sample, and what of it stands in the training text.

    Attributes:
      sample: the sample.
      copied: copied spans of its text, of at least `SHORTEST_SPAN` characters, or of what is
        allowed if that is less.
    """

    sample: Sample
    copied: list[Span]


def generate_novel(
    sampler: Sampler,
    prompts: Sequence[str],
    *,
    training_text: str,
    most_copied: int,
    best_of: int = 1,
    **settings: Unpack[Settings],
) -> list[Novel]:
    """Continues every prompt, and rejects texts with a copied span of more than `most_copied`.

    Whole texts are drawn, so an accepted text is distributed as the model's texts that copy no more
    than that. Try k uses the seed plus k. Only the text after the prompt is searched.

    Args:
      sampler: the sampler.
      prompts: texts to continue.
      training_text: text that is not to be copied.
      most_copied: length of the longest span that may be copied, in characters.
      best_of: see `Sampler.generate`, as for the settings.

    Returns:
      For each prompt, the first text that was not rejected.

    Raises:
      UserError: all of the 20 texts for a prompt were rejected; or as `Sampler.generate`.
    """
    seed = settings.pop("seed", 0)
    accepted: dict[int, Novel] = {}
    shortest = dict.fromkeys(range(len(prompts)), len(training_text))  # of the longest copies
    for attempt in range(MOST_TRIES):
        # All prompts again: a text does not depend on whether others were rejected.
        settings["seed"] = (seed + attempt) % 2**32
        samples = sampler.generate(prompts, best_of=best_of, **settings)
        matches = longest_matches([sample.text for sample in samples], training_text)
        for index, (sample, match) in enumerate(zip(samples, matches, strict=True)):
            longest = int(match.lengths.max(initial=0))
            shortest[index] = min(shortest[index], longest)
            if longest <= most_copied and index not in accepted:
                spans = copied_spans(match, at_least=min(SHORTEST_SPAN, most_copied))
                accepted[index] = Novel(sample, spans)
        if len(accepted) == len(prompts):
            return [accepted[index] for index in range(len(prompts))]
    raise UserError(
        f"{len(prompts) - len(accepted)} of {len(prompts)} texts copied more than {most_copied} "
        f"characters in each of {MOST_TRIES} tries (at least {max(shortest.values())}): write "
        "shorter texts, at a higher temperature, or allow longer copies"
    )
