"""Search: a sweep whose work units are chosen one after another by Optuna.

Every trial of a `Plan` is a work unit, trained by a worker process. The pruner may end it after any
evaluation. The study is saved in `search.journal` in the sweep's folder; everything else is read
from it, so a search that was killed can be resumed.

One process asks for trials and tells the study how they ended; the workers only report evaluations.

Source: Akiba et al. 2019, "Optuna", https://arxiv.org/abs/1907.10902; samplers: Bergstra & Bengio
2012, "Random search", and Bergstra et al. 2011, "Algorithms for hyper-parameter optimization"
(TPE); pruner: Li et al. 2020, "A system for massively parallel hyperparameter tuning" (ASHA),
https://arxiv.org/abs/1810.05934
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from charrnn_jax.config import Saved, from_dict, override_values, validate
from charrnn_jax.errors import BusyError, Interrupted, UserError, shortened
from charrnn_jax.files import locked
from charrnn_jax.messages import show
from charrnn_jax.models.char_rnn import check_model
from charrnn_jax.reading import Count, typed
from charrnn_jax.sweeps.hyper import Overrides
from charrnn_jax.sweeps.plan import REDUCTION_FACTOR, Plan, Space
from charrnn_jax.sweeps.space import (
    Choice,
    Integers,
    LogUniform,
    Uniform,
    Values,
    choice,
    integers,
    loguniform,
    uniform,
)
from charrnn_jax.sweeps.table import fraction_trained
from charrnn_jax.sweeps.units import SEARCH_FILE, WorkUnit, make_units, save_sweep
from charrnn_jax.sweeps.worker import write_failure
from charrnn_jax.training.loop import train
from charrnn_jax.workdir.json_lines import read_json_lines

try:
    import optuna
except ImportError as error:
    raise UserError('a search needs Optuna: pip install "charrnn_jax[search]"') from error
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

optuna.logging.set_verbosity(optuna.logging.WARNING)  # the table of the sweep shows the progress

SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "random": optuna.samplers.RandomSampler,
    "tpe": optuna.samplers.TPESampler,
}
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "asha": lambda: optuna.pruners.SuccessiveHalvingPruner(
        min_resource=1, reduction_factor=REDUCTION_FACTOR
    ),
    "none": optuna.pruners.NopPruner,
}
_MOST_DRAWS = 100  # after this many draws without new values, a space counts as exhausted
_STUDY = "search"
_MAX_BYTES = 1 << 28  # of the journal
_REMEDY = "start another search in another --workdir"


class _SavedPlan(TypedDict):
    """What `plan_to_dict` returns."""

    config: Saved
    space: dict[str, str]
    sampler: Literal["random", "tpe"]
    pruner: Literal["asha", "none"]
    experiment: list[str]


def to_distribution(values: Values) -> BaseDistribution:
    """Returns the Optuna distribution of these values."""
    match values:
        case Uniform(low, high):
            return FloatDistribution(low, high)
        case LogUniform(low, high):
            return FloatDistribution(low, high, log=True)
        case Integers(low, high, log):
            return IntDistribution(low, high, log=log)
        case Choice(choices):
            return CategoricalDistribution(choices)


def from_distribution(distribution: BaseDistribution) -> Values:
    """The inverse of `to_distribution`."""
    match distribution:
        case CategoricalDistribution():
            return choice(distribution.choices)
        case IntDistribution():
            return integers(distribution.low, distribution.high, log=distribution.log)
        case FloatDistribution():
            make = loguniform if distribution.log else uniform
            return make(distribution.low, distribution.high)
    raise TypeError(f"not a distribution of a search: {distribution!r}")


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """Returns a plan as plain data for the journal, with the space as Optuna's JSON."""
    space = {
        name: distribution_to_json(to_distribution(values)) for name, values in plan.space.items()
    }
    return {**vars(plan), "config": plan.config.to_dict(), "space": space}


def plan_from_dict(saved: Mapping[str, Any]) -> Plan:
    """The inverse of `plan_to_dict`."""
    plan = typed(saved, _SavedPlan, name="the plan of the search", remedy=_REMEDY)
    space = {
        name: from_distribution(json_to_distribution(text)) for name, text in plan["space"].items()
    }
    return Plan(
        config=from_dict(plan["config"]),
        space=space,
        sampler=plan["sampler"],
        pruner=plan["pruner"],
        experiment=plan["experiment"],
    )


class Search:
    """A search in a folder. Only one process may have it open.

    Attributes:
      workdir: folder of the search.
      plan: settings of the search.
      num_trials: budget, in trials.
      units: one work unit for each trial so far; the list grows in place.

    Raises:
      UserError: there is no search in the folder.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self.units: list[WorkUnit] = []
        _drop_unfinished_line(workdir / SEARCH_FILE)
        with _reading_journal(workdir):
            self._study = _load_study(workdir)
            self.plan = plan_from_dict(self._study.user_attrs["plan"])
            num_trials = self._study.user_attrs.get("num_trials", 0)
            self.num_trials = typed(num_trials, Count, name="the budget", remedy=_REMEDY)
            _trials(self._study, self.plan)  # reads all of it
        self._read_units()

    def set_budget(self, num_trials: int) -> None:
        """Sets the number of trials, including the ones that already exist."""
        with _reading_journal(self.workdir):
            self._study.set_user_attr("num_trials", num_trials)
        self.num_trials = num_trials

    def remaining(self) -> Iterator[WorkUnit]:
        """Yields the trials still to be trained; each is chosen when the caller asks for it.

        Trials that were running when the search was stopped come first.
        """
        yield from [unit for unit in self.units if not unit.has_ended()]
        while len(self.units) < self.num_trials:
            self.tell_ended()
            if not self._ask():
                return
            yield self.units[-1]

    def tell_ended(self) -> None:
        """Tells the study which trials ended, and how."""
        for unit, trial in zip(self.units, _trials(self._study, self.plan), strict=True):
            if trial.state == TrialState.RUNNING and unit.has_ended():
                result = unit.read_result()
                if result.status == "done" and result.loss is not None:
                    self._study.tell(trial.number, result.loss)
                else:  # divergence says something about the values, a failure does not
                    informative = result.status in ("pruned", "diverged")
                    state = TrialState.PRUNED if informative else TrialState.FAIL
                    self._study.tell(trial.number, state=state)

    def best(self) -> WorkUnit | None:
        """Returns the trial with the lowest final validation loss; None if no trial is done."""
        results = [(unit.read_result(), unit) for unit in self.units]
        done = [
            (result.loss, unit.index)
            for result, unit in results
            if result.status == "done" and result.loss is not None
        ]
        return self.units[min(done)[1]] if done else None

    def notes(self) -> list[str]:
        """Returns the notes of the report: the plan of the search, its cost and its best trial."""
        trained = saved = 0.0
        for unit in self.units:
            part = fraction_trained(unit, _rows(unit))
            trained += part
            saved += (1 - part) * (unit.read_status()["status"] == "pruned")
        head, *fields = self.plan.describe()
        notes = [
            f"{head} {'; '.join(fields)}",
            f"Cost: the {len(self.units)} trials took as many steps as {trained:.1f} full ones; "
            f"pruning saved the steps of {saved:.1f}.",
        ]
        if best := self.best():
            notes.append(
                f"Best trial: {best.name}, validation loss {best.read_result().loss:.4f} nats/char "
                "after its last step. It is the lowest of many, so train it again with other "
                "seeds before you trust the number."
            )
        return notes

    def _ask(self) -> bool:
        """Adds a unit with new values; returns whether there were any left.

        Every draw has a sampler with its own seed, so a search that was stopped continues as if it
        had not been.
        """
        for draw in range(_MOST_DRAWS):
            number = len(self._study.get_trials(deepcopy=False))
            seed = int(np.random.SeedSequence([self.plan.config.seed, number]).generate_state(1)[0])
            # TPE would propose the best values of a small space again and again.
            self._study.sampler = SAMPLERS[self.plan.sampler if draw == 0 else "random"](seed=seed)
            trial = self._study.ask(
                {name: to_distribution(values) for name, values in self.plan.space.items()}
            )
            known = len(self.units)
            self._read_units()
            if len(self.units) > known:
                return True
            self._study.tell(trial, state=TrialState.FAIL)  # tried before, or not valid together
        return False

    def _read_units(self) -> None:
        sweep = [_overrides(trial, self.plan.space) for trial in _trials(self._study, self.plan)]
        if sweep:
            self.units[:] = make_units(self.plan.config, sweep, workdir=self.workdir)
        save_sweep(self.workdir, config=self.plan.config, sweep=sweep)


def create_search(plan: Plan, workdir: Path, *, num_trials: int) -> Search:
    """Makes a search, or opens the one in the folder; only the budget of that one may differ.

    Args:
      plan: settings of the search, as returned by `make_plan`.
      workdir: folder of the sweep.
      num_trials: budget in trials, including the ones that already exist.

    Raises:
      UserError: the folder holds another search, or a sweep.
    """
    if (workdir / "sweep.json").exists() and not (workdir / SEARCH_FILE).exists():
        raise UserError(f"{workdir} holds a sweep, not a search: give another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    _drop_unfinished_line(workdir / SEARCH_FILE)
    with _reading_journal(workdir):
        study = optuna.create_study(
            storage=_storage(workdir), study_name=_STUDY, direction="minimize", load_if_exists=True
        )
        saved = study.user_attrs.get("plan")
        known = None if saved is None else plan_from_dict(saved)
    if known:
        if changes := known.changes(plan):
            raise UserError(
                f"{workdir} holds another search ({'; '.join(changes)}): give another --workdir"
            )
    else:
        study.set_user_attr("plan", plan_to_dict(plan))
    search = Search(workdir)
    search.set_budget(num_trials)
    return search


@contextmanager
def _reading_journal(workdir: Path) -> Iterator[None]:
    """Turns errors about a damaged journal into one that names it."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # Optuna raises errors of many types
        file = workdir / SEARCH_FILE
        reason = shortened(f"{type(error).__name__}: {error}")
        raise UserError(f"{file} is damaged ({reason}): {_REMEDY}") from error


def _drop_unfinished_line(file: Path) -> None:
    """Cuts off the last line if a killed process left it unfinished: Optuna would append to it."""
    if not file.is_file():
        return
    if file.stat().st_size > _MAX_BYTES:
        raise UserError(f"{file} has more than {_MAX_BYTES:,} bytes: {_REMEDY}")
    content = file.read_bytes()
    start = content.rfind(b"\n", 0, -1) + 1
    try:
        if content[start:].endswith(b"\n"):
            json.loads(content[start:])
            return
    except (ValueError, RecursionError):
        pass
    if content:  # unless another process is running the search, and may be writing this line
        with contextlib.suppress(BusyError), locked(file.parent, doing="running a sweep"):
            os.truncate(file, start)


def _storage(workdir: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(workdir / SEARCH_FILE)))


def _load_study(workdir: Path) -> optuna.Study:
    file = workdir / SEARCH_FILE
    if file.is_file():  # otherwise the storage would create it
        # A KeyError: killed before the study was made.
        with _reading_journal(workdir), contextlib.suppress(KeyError):
            study = optuna.load_study(study_name=_STUDY, storage=_storage(workdir))
            if "plan" in study.user_attrs:
                return study
    raise UserError(f"{workdir} holds no search: start one with --config")


def _trials(study: optuna.Study, plan: Plan) -> list[FrozenTrial]:
    """Returns the trials that are work units, in their order.

    It leaves out trials that repeat the values of an earlier one, trials whose values are not valid
    together, and trials that have only some of their values because the search was killed.
    """
    found: dict[str, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.params.keys() == plan.space.keys():
            overrides = _overrides(trial, plan.space)
            if _goes_together(plan, overrides):
                found.setdefault(json.dumps(overrides), trial)
    return list(found.values())


def _goes_together(plan: Plan, overrides: Overrides) -> bool:
    try:
        config = override_values(plan.config, overrides)
        validate(config)
        check_model(config.model)
    except UserError:
        return False
    return True


def _overrides(trial: FrozenTrial, space: Space) -> Overrides:
    """Returns the values of a trial with four digits, which are easy to read, type and name."""
    return {name: _rounded(trial.params[name], values) for name, values in space.items()}


def _rounded(value: Any, values: Values) -> Any:
    if not isinstance(values, Uniform | LogUniform):
        return value
    return min(max(float(f"{value:.4g}"), values.low), values.high)


def is_pruned(study: optuna.Study, number: int, *, evaluation: int, loss: float) -> bool:
    """Reports an evaluation of a trial; returns whether the trial is pruned there.

    Args:
      study: study with its pruner.
      number: index of the trial in the study, from 0.
      evaluation: index of the evaluation in the run, from 1; the resource that the pruner counts.
      loss: validation loss, nats/char.
    """
    frozen = study.get_trials(deepcopy=False)[number]
    if evaluation in frozen.intermediate_values:  # decided before it was interrupted
        return False
    trial = Trial(study, frozen._trial_id)
    trial.report(loss, evaluation)
    return trial.should_prune()


def _rows(unit: WorkUnit) -> list[dict[str, Any]]:
    return read_json_lines(unit.workdir / "metrics.jsonl")


@dataclass(frozen=True)
class _ReportLoss:
    """A hook that calls `report(step, nats/char)` for every validation loss."""

    every_steps: int
    report: Callable[[int, float], None]

    def __call__(self, step: int, state: Any, metrics: dict[str, Any]) -> None:
        if "validation/loss" in metrics:
            self.report(step, metrics["validation/loss"])


def run_trial(unit: WorkUnit) -> None:
    """Trains one trial in this process and records how it ended.

    Raises:
      Interrupted: a signal arrived; the trial was saved.
    """
    study = _load_study(unit.workdir.parent.parent)
    plan = plan_from_dict(study.user_attrs["plan"])
    study.pruner = PRUNERS[plan.pruner]()
    trial = _trials(study, plan)[unit.index]

    def report(step: int, loss: float) -> None:
        rows = [row for row in _rows(unit) if row["step"] <= step]
        evaluation = sum("validation/loss" in row for row in rows)
        is_last = fraction_trained(unit, rows) == 1
        if is_pruned(study, trial.number, evaluation=evaluation, loss=loss) and not is_last:
            raise optuna.TrialPruned(f"after evaluation {evaluation}, step {step:,}")

    unit.write_status("running")
    try:
        for step, loss in unit.read_result().curve:  # may have been left out by an interruption
            report(step, loss)
        train(
            unit.config,
            unit.workdir,
            hooks=[_ReportLoss(unit.config.train.evaluate_every_steps, report)],
        )
        unit.write_status("done")
    except optuna.TrialPruned as pruned:
        show(f"{unit.name} pruned: {pruned}", flush=True)
        unit.write_status("pruned", message=str(pruned))
    except Interrupted:
        unit.write_status("waiting")
        raise
    except Exception as error:
        write_failure(unit, error)
