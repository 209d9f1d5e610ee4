"""`neurons`: which hidden units of a run follow something that a person sees in a text."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.probes import PROBES, Probe, apply_probes
from charrnn_jax.evaluation.recording import record
from charrnn_jax.evaluation.units import ProbeScore, UnitScore, best_units, score_units
from charrnn_jax.generation.sampler import Sampler
from charrnn_jax.models.inside import OUTPUT
from charrnn_jax.workdir.run import Run

FEWEST_CHARS = 1000  # of a text
NUM_BEST = 10  # units that are clamped
_NUM_PER_PROBE = 4  # units that are scored
_NUM_TEXTS, _TEXT_CHARS = 16, 500  # written with a clamped unit
_EXTREME = 0.01  # a unit is held where it is lower, or higher, at this share of the characters


class Written(NamedTuple):
    """What a model writes, free or with a unit held.

    Attributes:
      value: what the unit is held at; None: it is free.
      rate: share of the characters where the probe of the unit is true, as a mean over the texts.
      standard_error: standard error of this rate, over the texts.
      text: the first text.
    """

    value: float | None
    rate: float
    standard_error: float
    text: str


@dataclass(frozen=True)
class Clamped:
    """What a unit does: texts of one seed with the unit free, held low and held high.

    Attributes:
      unit: the unit.
      free: texts with all units free.
      low: texts with the unit held at a value below which it is at 1% of the characters.
      high: the same with the value above which it is at 1%.
    """

    unit: UnitScore
    free: Written
    low: Written
    high: Written


@dataclass(frozen=True)
class Atlas:
    """The units of a run, and what they follow.

    Attributes:
      run: the run.
      split: split of its text.
      tokens: ids of the text, from the start of the split.
      text: the N characters of these tokens.
      ends: [N] position of the last token of each character: the last byte, if tokens are bytes.
      outputs: [N, L, H] output of each unit after each character.
      truths: {probe: [N]}, where it is true; a probe of numbers, where it is above its criterion.
      probes: who follows each probe, chosen on the first half of the text, scored on the second.
      best: the ten units with the highest AUC on the first half, each with its best probe.
      clamped: what the best units do, in their order; empty if nothing was written.
    """

    run: Run
    split: str
    tokens: np.ndarray
    text: str
    ends: np.ndarray
    outputs: np.ndarray
    truths: dict[str, np.ndarray]
    probes: tuple[ProbeScore, ...]
    best: tuple[UnitScore, ...]
    clamped: tuple[Clamped, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the scores, without the text and the outputs, as plain data for JSON."""
        return {
            "workdir": str(self.run.workdir),
            "step": self.run.step,
            "split": self.split,
            "num_chars": len(self.text),
            "probes": [asdict(probe) | {"verdict": probe.verdict} for probe in self.probes],
            "best": [asdict(unit) for unit in self.best],
            "clamped": [
                {
                    "probe": each.unit.probe,
                    "layer": each.unit.layer,
                    "unit": each.unit.unit,
                    **{name: getattr(each, name)._asdict() for name in ("free", "low", "high")},
                }
                for each in self.clamped
            ],
        }


def neurons(
    run: Run,
    *,
    split: str = "validation",
    num_chars: int = 40_000,
    probes: Mapping[str, Probe] | None = None,
    path: str = "",
    clamp: bool = True,
) -> Atlas:
    """Finds the units of a run that follow something that a person sees in the text.

    The text is read once, and the carry is kept. For each probe the first half of the text chooses
    the units, and the second half scores them; see `evaluation.units`. The best units are then held
    low and high while the model writes.

    Args:
      run: run, as returned by `load_run`.
      split: "train", "validation" or "test".
      num_chars: number of characters, from the start of the split; fewer if it is shorter.
      probes: further probes, name -> function text -> [N] bools or numbers. One with the name of a
        built-in probe takes its place.
      path: path of the text, if it was moved.
      clamp: whether to write texts with the best units held.

    Raises:
      UserError: the split has too few characters, the text of the run is missing, or a probe does
        not give a value for each character.
    """
    vocabulary = run.vocabulary
    tokens = np.asarray(run.load_dataset(path).splits[split][:num_chars])
    text, ends = _characters(tokens, vocabulary)
    if len(text) < FEWEST_CHARS:
        raise UserError(
            f"{len(text):,} characters of the {split} split of {run.workdir} are too few to find "
            f"units in: give at least {FEWEST_CHARS:,} (--num_chars), or another --split"
        )
    every = {**PROBES, **(probes or {})}
    values = apply_probes(text, every)
    outputs = record(run.params, tokens, model=run.model)[1][OUTPUT][ends]
    if not np.isfinite(outputs).all():
        raise UserError(f"{run.workdir} has units that are not finite: choose another checkpoint")
    characters = np.unique(list(text), return_inverse=True)[1]
    scores = score_units(outputs, values, characters=characters, num_best=_NUM_PER_PROBE)
    best = best_units(scores, num=NUM_BEST)
    return Atlas(
        run=run,
        split=split,
        tokens=tokens,
        text=text,
        ends=ends,
        outputs=outputs,
        truths={score.name: _truth(values[score.name], score) for score in scores},
        probes=tuple(scores),
        best=tuple(best),
        clamped=_clamp(run, best, scores, outputs, every) if clamp and best else (),
    )


def _truth(values: np.ndarray, score: ProbeScore) -> np.ndarray:
    return values if score.criterion is None else values > score.criterion


def _characters(tokens: np.ndarray, vocabulary: Vocabulary) -> tuple[str, np.ndarray]:
    """Returns the characters of a text, and the position of the last token of each.

    An unknown token, or a byte that is not UTF-8, is U+FFFD.
    """
    if vocabulary.kind == "characters":
        symbols = ["\ufffd", *vocabulary.characters]
        return "".join([symbols[i] for i in tokens.tolist()]), np.arange(len(tokens))
    is_known = tokens != UNK_ID
    raw = np.where(is_known, tokens.astype(np.int64) - 1, 0xFF).astype(np.uint8).tobytes()
    text = raw.decode("utf-8", "surrogateescape")
    lengths = [len(character.encode("utf-8", "surrogateescape")) for character in text]
    return re.sub("[\ud800-\udfff]", "\ufffd", text), np.cumsum(lengths) - 1


def _clamp(
    run: Run,
    units: list[UnitScore],
    scores: list[ProbeScore],
    outputs: np.ndarray,
    probes: Mapping[str, Probe],
) -> tuple[Clamped, ...]:
    """Writes texts with each unit free, low and high."""
    sampler = Sampler(run.params, model=run.model, vocabulary=run.vocabulary)
    by_name = {score.name: score for score in scores}
    prompt = "\n" if "\n" in run.vocabulary.characters or run.vocabulary.kind == "bytes" else ""

    def write(sampler: Sampler) -> list[str]:
        samples = sampler.generate([prompt] * _NUM_TEXTS, num_chars=_TEXT_CHARS, seed=0)
        return [sample.text for sample in samples]

    def judge(texts: list[str], unit: UnitScore, value: float | None) -> Written:
        probe = {unit.probe: probes[unit.probe]}
        rates = [
            _truth(apply_probes(text, probe)[unit.probe], by_name[unit.probe]).mean()
            for text in texts
        ]
        error = float(np.std(rates, ddof=1)) / len(rates) ** 0.5
        return Written(value, float(np.mean(rates)), error, texts[0])

    free, found = write(sampler), []
    for unit in units:
        of_unit = outputs[:, unit.layer, unit.unit]
        low, high = map(float, np.quantile(of_unit, [_EXTREME, 1 - _EXTREME]))
        held = (
            judge(write(sampler.with_clamp({(unit.layer, unit.unit): value})), unit, value)
            for value in (low, high)
        )
        found.append(Clamped(unit, judge(free, unit, None), *held))
    return tuple(found)
