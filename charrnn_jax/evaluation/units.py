"""Which unit follows a probe? Units are chosen on the first half of a text, scored on the second.

The score is the AUC of `association`; a probe of numbers is split at its median for it. A unit may
be high or low where the probe is true; the first half decides which. So the best of many units has
no luck left in its score. Beside it stand two others, both fitted on the first half: the AUC of a
linear probe of all units of its layer, as what is spread over many units is in the layer, too; and
that of the character itself, which alone says much about some probes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from charrnn_jax.evaluation.association import (
    aucs,
    entropy,
    fit_linear_probes,
    information,
    shifted_aucs,
)
from charrnn_jax.evaluation.comparison import holm

FEWEST_RUNS = 5  # stretches in each half where a probe is true; with fewer it is not scored
SIGNIFICANT, FOLLOWED = 0.05, 0.9  # the corrected p below which, and the AUC from which


@dataclass(frozen=True)
class UnitScore:
    """How well a unit follows a probe.

    Attributes:
      probe: name of the probe.
      layer: layer of the unit, from 0.
      unit: number of the unit in its layer, from 0.
      sign: 1 if the unit is high where the probe is true, -1 if it is low.
      chosen_auc: AUC on the half that chose the unit, with this sign.
      auc: AUC on the other half, with this sign; all below is of that half, too.
      null: AUC that 5% of the shifted probes exceed.
      p: share of the shifts, the one by 0 included, that reach this AUC.
      corrected_p: p with Holm's correction for all units and probes that are scored.
      information: mutual information of unit and probe, bits.
      linear_auc: AUC of the linear probe of the layer.
    """

    probe: str
    layer: int
    unit: int
    sign: int
    chosen_auc: float
    auc: float
    null: float
    p: float
    corrected_p: float
    information: float
    linear_auc: float


@dataclass(frozen=True)
class ProbeScore:
    """Who follows a probe.

    Attributes:
      name: name of the probe.
      criterion: number above which the probe counts as true; None: it is true or false itself.
      share: share of the characters where it is true.
      entropy: entropy of the probe on the second half, bits, which no mutual information exceeds.
      units: best units, as the first half has chosen them; empty if the probe is true in too few
        places.
      linear_auc: AUC of the linear probe of the layer that the first half has chosen.
      character_auc: AUC of how often the probe is true at the same character.
      least_p: lowest corrected p that a text of this length can give.
    """

    name: str
    criterion: float | None
    share: float
    entropy: float
    units: tuple[UnitScore, ...] = ()
    linear_auc: float = 0.5
    character_auc: float = 0.5
    least_p: float = 0.0

    @property
    def verdict(self) -> str:
        """What follows the probe.

        "one unit"       the best unit has an AUC of at least 0.9, and more than the character
        "many units"     only the linear probe has
        "in part"        one of both has more than the character
        "the character"  neither has
        "nothing"        the AUC of the best unit may be chance, and the linear probe's is below 0.9
        "too rare"       the probe is true in too few places
        "too short"      no p of so many units can be below 0.05 on so short a text
        """
        if not self.units:
            return "too rare"
        if self.least_p >= SIGNIFICANT:
            return "too short"
        best = self.units[0]
        is_real = best.corrected_p < SIGNIFICANT
        if not is_real and self.linear_auc < FOLLOWED:
            return "nothing"
        if is_real and best.auc >= FOLLOWED and best.auc > self.character_auc:
            return "one unit"
        if max(best.auc, self.linear_auc) <= self.character_auc:
            return "the character"
        return "many units" if self.linear_auc >= FOLLOWED else "in part"


def score_units(
    outputs: np.ndarray,
    probes: Mapping[str, np.ndarray],
    *,
    characters: np.ndarray,
    num_best: int,
) -> list[ProbeScore]:
    """Finds the units that follow each probe.

    Args:
      outputs: [N, L, H] outputs of the units.
      probes: {name: [N]}, bools or numbers.
      characters: [N] number of each character, from 0.
      num_best: number of units that are scored for each probe.

    Returns:
      One result for each probe, in their order.
    """
    first, second = slice(len(outputs) // 2), slice(len(outputs) // 2, len(outputs))
    found, truths = {}, {}
    for name, values in probes.items():
        criterion = _criterion(values[first])
        truth = values if criterion is None else values > criterion
        found[name] = ProbeScore(name, criterion, float(truth.mean()), entropy(values[second]))
        if all(_count_runs(truth[half]) >= FEWEST_RUNS for half in (first, second)):
            truths[name] = truth
    if not truths:
        return list(found.values())
    truth = np.stack(list(truths.values()), axis=1)  # [N, P]
    chosen = np.stack([aucs(layer[first], truth[first]) for layer in outputs.swapaxes(0, 1)])
    linear = [_linear_aucs(layer, truth, first, second) for layer in outputs.swapaxes(0, 1)]
    linear_aucs, reached_before = (np.stack(each) for each in zip(*linear, strict=True))  # [L, P]
    best_layers = reached_before.argmax(axis=0)
    shares = _shares(truth[first], characters[first], num=1 + int(characters.max()))
    character = np.diagonal(aucs(shares[characters[second]], truth[second]))
    for column, name in enumerate(truths):
        flat = chosen[..., column].ravel()
        best = np.argsort(-abs(flat - 0.5), kind="stable")[:num_best]
        units = (
            _score_unit(
                outputs[second, layer, unit],
                truth[second, column],
                place=(int(layer), int(unit)),
                first_auc=float(chosen[layer, unit, column]),
                linear_auc=float(linear_aucs[layer, column]),
                probe=name,
                probe_values=probes[name][second],
            )
            for layer, unit in zip(*np.unravel_index(best, chosen.shape[:2]), strict=True)
        )
        found[name] = replace(
            found[name],
            units=tuple(units),
            linear_auc=float(linear_aucs[best_layers[column], column]),
            character_auc=float(character[column]),
        )
    return _corrected(list(found.values()), num_shifts=len(outputs) - len(outputs) // 2)


def _score_unit(
    output: np.ndarray,
    truth: np.ndarray,
    *,
    place: tuple[int, int],
    first_auc: float,
    linear_auc: float,
    probe: str,
    probe_values: np.ndarray,
) -> UnitScore:
    """Scores a unit on the second half, with the sign that its AUC on the first half has."""
    sign = 1 if first_auc >= 0.5 else -1
    reached = shifted_aucs(sign * output, truth)
    p = float(np.mean(reached >= reached[0]))
    return UnitScore(
        probe=probe,
        layer=place[0],
        unit=place[1],
        sign=sign,
        chosen_auc=0.5 + abs(first_auc - 0.5),
        auc=float(reached[0]),
        null=float(np.quantile(reached, 1 - SIGNIFICANT)),
        p=p,
        corrected_p=p,
        information=information(sign * output, probe_values),
        linear_auc=linear_auc,
    )


def best_units(probes: list[ProbeScore], *, num: int) -> list[UnitScore]:
    """Returns the units with the highest AUC on the first half, each with its best probe."""
    scores = sorted((u for probe in probes for u in probe.units), key=lambda u: -u.chosen_auc)
    by_unit: dict[tuple[int, int], UnitScore] = {}
    for score in scores:
        by_unit.setdefault((score.layer, score.unit), score)
    return list(by_unit.values())[:num]


def _criterion(values: np.ndarray) -> float | None:
    """Returns the number above which values count as true: the median, unless none is above it."""
    if values.dtype == bool:
        return None
    median = np.median(values)
    lower = values[values < median]
    return float(lower.max() if len(lower) and not (values > median).any() else median)


def _count_runs(truth: np.ndarray) -> int:
    """Returns the number of stretches of true values, but none if there is no false one."""
    return 0 if truth.all() else int(truth[0]) + int(np.count_nonzero(truth[1:] & ~truth[:-1]))


def _linear_aucs(
    values: np.ndarray, truth: np.ndarray, first: slice, second: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the AUCs [P] of linear probes: on the second half, and on the end of the first.

    The first half has fitted them.
    """
    weights, reached = fit_linear_probes(values[first], truth[first])
    return np.diagonal(aucs(values[second] @ weights, truth[second])), reached


def _shares(truth: np.ndarray, characters: np.ndarray, *, num: int) -> np.ndarray:
    """Returns how often each probe is true at each character, [num, P]; new ones as all."""
    counts = np.bincount(characters, minlength=num)[:, None]
    sums = np.zeros((num, truth.shape[1]))
    np.add.at(sums, characters, truth)
    return np.where(counts > 0, sums / np.maximum(counts, 1), truth.mean(axis=0))


def _corrected(probes: list[ProbeScore], *, num_shifts: int) -> list[ProbeScore]:
    every = [unit.p for probe in probes for unit in probe.units]
    corrected = iter(holm(every))
    return [
        replace(
            probe,
            least_p=min(len(every) / num_shifts, 1.0),
            units=tuple(replace(unit, corrected_p=next(corrected)) for unit in probe.units),
        )
        for probe in probes
    ]
