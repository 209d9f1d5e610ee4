"""`profile`: a short training session of a config, and where its time and memory went.

The session is `train` itself, in a folder of its own. It has the config's model, text and devices,
and four parts: set-up and the first step, which compile; steps as usual, for the speed; the same
number of steps with the host waiting for the device, to tell phases apart; and one evaluation, one
sample and one checkpoint. Sequences have their full length from the first step on.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from charrnn_jax.data.batches import Batch
from charrnn_jax.errors import UserError
from charrnn_jax.memory import peak_memory
from charrnn_jax.models.products import dot
from charrnn_jax.registry import HOOKS
from charrnn_jax.training.dispatch import count_step_flops
from charrnn_jax.training.loop import choose_train_step, train
from charrnn_jax.training.measured import measure
from charrnn_jax.training.phases import (
    COMPILATION,
    EVALUATION,
    INPUT,
    PHASES,
    SAMPLING,
    SAVING,
    SETUP,
    STEP,
    TRACED,
    USUAL,
    Clock,
    timed,
)
from charrnn_jax.training.trackers import TRACKERS
from charrnn_jax.training.train_step import TrainState
from charrnn_jax.workdir.json_lines import read_json_lines

_PRODUCT_SIZE = {"cpu": 2048}  # rows of the square matrices whose product is measured
_ACCELERATOR_PRODUCT_SIZE = 8192


@dataclass(frozen=True)
class Phase:
    """Time of one phase of the session.

    Attributes:
      seconds: its seconds in all.
      times: how often it happened; of steps, their number; 0: it is not counted.
    """

    seconds: float
    times: int


@dataclass(frozen=True)
class Profile:
    """What a session measured.

    Attributes:
      phases: time of each phase, in the order of `PHASES`. Together they are the whole session.
      wall_seconds: seconds of the whole session, by a clock of its own.
      num_steps: N, number of steps whose phases were told apart.
      chars_per_step: characters that a step predicts.
      step_flops: floating-point operations of a step, by the formula of `count_step_flops`.
      xla_flops: the same by XLA, which counts the body of a loop once, and also what is
        elementwise; None: XLA does not say.
      product_rate: measured rate of large matrix products on the devices of the run, in the type of
        the model, in operations/s.
      product_size: rows of the square matrices of that product.
      num_devices: number of devices that shared a batch.
      device: kind of the devices.
      peak_bytes: the most memory that was used at any time, of an accelerator, or of the
        process if there is none; None: not known.
      run_steps: number of steps of a whole run of the config; 0: its time is limited instead.
      run_seconds: phase -> its seconds in a whole run, estimated from this session; may be empty.
    """

    phases: dict[str, Phase]
    wall_seconds: float
    num_steps: int
    chars_per_step: int
    step_flops: int
    xla_flops: float | None
    product_rate: float
    product_size: int
    num_devices: int
    device: str
    peak_bytes: int | None
    run_steps: int
    run_seconds: dict[str, float]

    @property
    def total_seconds(self) -> float:
        """Seconds of all phases together."""
        return sum(phase.seconds for phase in self.phases.values())

    @property
    def usual_chars_per_second(self) -> float:
        """Speed of training, in characters/s."""
        return self._speed(USUAL)

    @property
    def waiting_chars_per_second(self) -> float:
        """Speed of the steps whose phases were told apart, in characters/s."""
        return self._speed(INPUT, STEP)

    @property
    def step_flops_per_second(self) -> float:
        """Operations of a step, by formula, for each second in which the device computes it."""
        return self.step_flops * self.num_steps / self.phases[STEP].seconds

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain data for JSON."""
        return asdict(self) | {
            "usual_chars_per_second": self.usual_chars_per_second,
            "waiting_chars_per_second": self.waiting_chars_per_second,
            "step_flops_per_second": self.step_flops_per_second,
        }

    def _speed(self, *names: str) -> float:
        seconds = sum(self.phases[name].seconds for name in names)
        return self.phases[names[0]].times * self.chars_per_step / seconds


class _Finished(Exception):
    """The session is over."""


@dataclass
class _Session:
    """A hook that takes a session from part to part.

    Attributes:
      every_steps: N, number of steps of each part.
      clock: clock of the session.
      trace: folder for a trace of N steps; None: there is no such part.
      step: number of steps done.
      state: shapes of the state after the last step.
      num_devices: number of devices of the state.
    """

    every_steps: int
    clock: Clock
    trace: Path | None
    step: int = 0
    state: Any = None
    num_devices: int = 1
    _parts: list[str | None] = field(init=False)

    def __post_init__(self) -> None:
        self._parts = [USUAL, *([TRACED] if self.trace else []), None]
        self.clock.keep_together(self._parts[0])

    @property
    def num_steps(self) -> int:
        """Number of steps of all parts."""
        return self.every_steps * len(self._parts)

    def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
        self.step = step
        if step == self.num_steps:
            self.state = jax.eval_shape(lambda: state)
            self.num_devices = len(state.step.sharding.device_set)
            raise _Finished
        if step % self.every_steps:  # training ends too early
            return
        self.stop_tracing()
        self.clock.keep_together(self._parts[step // self.every_steps])
        if self.clock.together == TRACED and self.trace:
            jax.profiler.start_trace(self.trace)

    def stop_tracing(self) -> None:
        """Writes the trace, if one is being made."""
        if self.clock.together == TRACED:
            jax.profiler.stop_trace()


def profile(config: ConfigDict, *, num_steps: int = 20, trace: Path | None = None) -> Profile:
    """Trains a config for a few steps, and returns where the time and the memory went.

    Args:
      config: config of a run; nothing is written to its workdir.
      num_steps: N, number of steps of each part of the session, at least 2.
      trace: folder for a trace of N more steps by JAX's profiler; None: there is none.

    Raises:
      UserError: the config cannot be used, or its training ends before the session.
      TrainingError: training failed.
    """
    if num_steps < 2:
        raise UserError(f"--steps={num_steps} is too few: the first step compiles, so give 2")
    start = time.perf_counter()
    with timed() as clock, TemporaryDirectory(prefix="charrnn-profile-") as folder:
        session, workdir = _Session(num_steps, clock, trace), Path(folder) / "run"
        _train(config, session, workdir)
        epoch = read_json_lines(workdir / "metrics.jsonl")[-1]["epoch"]
        most_memory = peak_memory()
    wall_seconds = time.perf_counter() - start

    sizes = {
        "batch_size": config.data.batch_size,
        "sequence_length": config.data.sequence_length,
    }
    phases = _phases(clock, num_steps)
    run = _whole_run(config, phases, steps_per_epoch=round(session.num_steps / epoch))
    size = _PRODUCT_SIZE.get(jax.default_backend(), _ACCELERATOR_PRODUCT_SIZE)
    rate = measure_product_rate(config.model.dtype, size=size)
    return Profile(
        phases=phases,
        wall_seconds=wall_seconds,
        num_steps=num_steps,
        chars_per_step=config.data.batch_size * config.data.sequence_length,
        step_flops=count_step_flops(session.state.model, **sizes),
        xla_flops=count_xla_flops(choose_train_step(config)[0], session.state, **sizes),
        # The devices of a CPU are threads that share its cores, which one product already uses.
        product_rate=rate * (1 if jax.default_backend() == "cpu" else session.num_devices),
        product_size=size,
        num_devices=session.num_devices,
        device=jax.devices()[0].device_kind,
        peak_bytes=most_memory,
        run_steps=run[0],
        run_seconds=run[1],
    )


def _train(config: ConfigDict, session: _Session, workdir: Path) -> None:
    """Trains a config until the session is over."""
    try:
        train(_config_of_session(config, session.num_steps), workdir, hooks=[session])
    except _Finished:
        return
    finally:
        session.stop_tracing()
    raise UserError(
        f"training ends after {session.step:,} steps, and a profile takes "
        f"{session.num_steps:,}: give a smaller --steps, or train for longer"
    )


def _config_of_session(config: ConfigDict, num_steps: int) -> ConfigDict:
    """Returns a config that evaluates, samples and saves once, after so many steps.

    No tracker records the session.
    """
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        for what in ("evaluate", "sample", "checkpoint", "log"):
            changed.train[f"{what}_every_steps"] = num_steps
        changed.train.length_warmup_steps = 0
        hooks = HOOKS.names_in(config.train.hooks)
        changed.train.hooks = ",".join(name for name in hooks if name not in TRACKERS)
    return changed


def _phases(clock: Clock, num_steps: int) -> dict[str, Phase]:
    """Returns the phases of a session that has N steps a part."""
    # The first step compiles, and so belongs to the compilation.
    times = {USUAL: num_steps - 1, TRACED: num_steps, INPUT: num_steps, STEP: num_steps}
    times |= {name: clock.times[name] for name in (EVALUATION, SAMPLING, SAVING)}
    return {
        name: Phase(clock.seconds[name], times.get(name, 0))
        for name in PHASES
        if name != TRACED or clock.seconds[TRACED]
    }


def _whole_run(
    config: ConfigDict, phases: dict[str, Phase], *, steps_per_epoch: int
) -> tuple[int, dict[str, float]]:
    """Returns the number of steps of a whole run, and the seconds of its phases."""
    every = config.train
    if every.max_seconds:
        return 0, {}
    num_steps = every.num_steps or every.num_epochs * steps_per_epoch
    evaluate, sample, save = (
        getattr(every, f"{what}_every_steps") or steps_per_epoch
        for what in ("evaluate", "sample", "checkpoint")
    )
    saved = {*range(evaluate, num_steps, evaluate), *range(save, num_steps, save), num_steps}
    times = {
        USUAL: num_steps - 1,
        EVALUATION: ceil(num_steps / evaluate),
        SAMPLING: 1 + ceil(num_steps / sample),  # the untrained model, too
        SAVING: len(saved),
    }
    once = {name: phases[name].seconds for name in (SETUP, COMPILATION)}
    return num_steps, once | {
        name: count * phases[name].seconds / max(phases[name].times, 1)
        for name, count in times.items()
    }


def count_xla_flops(
    train_step: Callable[..., Any], state: TrainState, *, batch_size: int, sequence_length: int
) -> float | None:
    """Returns the operations of a train step by XLA's analysis; None: XLA does not say.

    XLA counts the body of a loop once, however often it runs, and everything elementwise.

    Args:
      train_step: the train step.
      state: shapes of its state.
      batch_size: B, in sequences.
      sequence_length: T, in characters.
    """
    ids: Any = jax.ShapeDtypeStruct((batch_size, sequence_length), np.int32)
    resets: Any = jax.ShapeDtypeStruct((batch_size,), np.bool_)
    lowered = jax.jit(train_step).lower(state, Batch(inputs=ids, targets=ids, resets=resets))
    analysis: Any = lowered.cost_analysis()
    return (analysis or {}).get("flops")


def measure_product_rate(dtype: str, *, size: int) -> float:
    """Returns the rate of a product of square matrices on one device, in operations/s.

    Args:
      dtype: type of the operands, "float32" or "bfloat16"; sums are float32.
      size: rows of the matrices.
    """
    operand = jax.random.normal(jax.random.key(0), (size, size)).astype(jnp.dtype(dtype))
    product = jax.jit(partial(dot, contracting=((1,), (0,))))
    seconds = measure({"product": (product, (operand, operand))})["product"]
    return 2 * size**3 / seconds
