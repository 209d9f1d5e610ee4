"""`check_run`: whether a run and its text are as they were. Changes nothing in the workdir."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from charrnn_jax.errors import UserError
from charrnn_jax.workdir.checkpoints import exists, find_damage, read_metadata, steps
from charrnn_jax.workdir.json_lines import ROW_FILES, find_row_damage
from charrnn_jax.workdir.judgement import JUDGEMENT_FILE, read_judgement
from charrnn_jax.workdir.run import Run, load_run
from charrnn_jax.workdir.tuned import TUNED_FILE, tuned_dynamic


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
      what: what was checked.
      note: what it holds, in a few words.
      problem: what is wrong with it; "": nothing.
    """

    what: str
    note: str = ""
    problem: str = ""


def check_run(workdir: Path, *, path: str = "") -> Iterator[Finding]:
    """Checks checkpoints, rows, losses and text of a run.

    Args:
      workdir: workdir of the run.
      path: path of the text, if it was moved; "": where it was.

    Yields:
      A finding for each part. The last one says what can be resumed.

    Raises:
      UserError: there is no checkpoint, or files cannot be read.
    """
    if not (saved := steps(workdir)):
        raise UserError(f"there is no checkpoint in {workdir}: give the --workdir of a run")
    intact: list[Run] = []
    for step in saved:
        finding, run = _check_checkpoint(workdir, step)
        if finding.problem and not exists(workdir, step):
            continue  # deleted meanwhile by a process that trains the run
        yield finding
        intact += [run] if run else []
    if not intact:
        yield Finding("resuming", problem="no checkpoint is intact: train in another --workdir")
        return
    latest = intact[-1]
    yield from _check_rows(workdir, latest.step)
    try:
        losses = latest.losses()
        yield Finding("losses", f"known for {', '.join(losses) or 'no split'}")
    except UserError as error:
        yield Finding("losses", problem=str(error))
    if (workdir / TUNED_FILE).exists():
        yield _check_tuned(latest)
    if (workdir / JUDGEMENT_FILE).exists():
        yield _check_judgement(latest)
    if not latest.imported:
        yield _check_text(latest, path)
    if latest.imported:
        yield Finding("resuming", "an imported model; another run can start from it")
    else:
        yield Finding("resuming", f"training resumes from step {latest.step:,}")


def _check_checkpoint(workdir: Path, step: int) -> tuple[Finding, Run | None]:
    what = f"checkpoint {step}"
    try:
        if problem := find_damage(workdir, step):
            return Finding(what, problem=problem), None
        run = load_run(workdir, checkpoint=step)
    except UserError as error:
        return Finding(what, problem=str(error)), None
    loss = (
        "" if run.loss is None else f", validation loss {run.loss:.4f} nats/{run.vocabulary.unit}"
    )
    return Finding(what, f"intact{loss}"), run


def _check_rows(workdir: Path, step: int) -> Iterator[Finding]:
    expected = read_metadata(workdir, step).rows
    for name in ROW_FILES:
        num_rows, problem = find_row_damage(
            workdir / name, until_step=step, expected=expected.get(name)
        )
        yield Finding(name, f"{num_rows:,} rows", problem)


def _check_tuned(run: Run) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tuned for another checkpoint, which is no damage
            numbers = tuned_dynamic(run).describe_numbers()
    except UserError as error:
        return Finding(TUNED_FILE, problem=str(error))
    return Finding(TUNED_FILE, numbers)


def _check_judgement(run: Run) -> Finding:
    try:
        judged = read_judgement(run)
    except UserError as error:
        return Finding(JUDGEMENT_FILE, problem=str(error))
    return Finding(JUDGEMENT_FILE, "intact" if judged else "of another step")


def _check_text(run: Run, path: str) -> Finding:
    try:
        dataset = run.load_dataset(path)  # compares its SHA-256; verifies or makes cached tokens
    except UserError as error:
        return Finding("text", problem=str(error))
    return Finding("text", dataset.identity().describe())
