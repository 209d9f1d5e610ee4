import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn_jax.data.batches import (
    Batches,
    Chunks,
    Lanes,
    chars_per_row,
    make_batches,
    make_stages,
    permute,
    prefetch,
)
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.training.dispatch import calls

sizes = {
    "num_chars": st.integers(30, 200),
    "batch_size": st.integers(1, 4),
    "sequence_length": st.integers(1, 6),
}


def test_target_is_the_input_shifted_by_one() -> None:
    vocabulary = Vocabulary.build(["Hello"])
    batch = Chunks(vocabulary.encode("Hello"), batch_size=1, sequence_length=4, seed=0)[0]
    assert vocabulary.decode(batch.inputs) == "Hell"
    assert vocabulary.decode(batch.targets) == "ello"
    assert batch.inputs.dtype == np.int32


@given(**sizes)
def test_an_epoch_of_chunks_gives_every_chunk_at_most_once(
    num_chars: int, batch_size: int, sequence_length: int
) -> None:
    batches = Chunks(
        np.arange(num_chars), batch_size=batch_size, sequence_length=sequence_length, seed=1
    )
    steps = batches.steps_per_epoch
    assert steps == num_chars // (sequence_length + 1) // batch_size
    for epoch in range(2):
        seen = [batches[epoch * steps + i] for i in range(steps)]
        starts = np.concatenate([batch.inputs[:, 0] for batch in seen])
        assert len(set(starts.tolist())) == steps * batch_size
        assert (starts % (sequence_length + 1) == 0).all()
        for batch in seen:
            np.testing.assert_array_equal(batch.targets, batch.inputs + 1)
            np.testing.assert_array_equal(np.diff(batch.inputs), 1)


def test_every_epoch_and_every_seed_shuffles_anew() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = Chunks(np.arange(500), batch_size=5, sequence_length=4, seed=seed)
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        return np.concatenate([batches[step].inputs[:, 0] for step in steps]).tolist()

    assert order(0, 0) == order(0, 0)
    assert sorted(order(0, 0)) == sorted(order(0, 1)) == sorted(order(1, 0))
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@given(**sizes)
def test_lanes_read_the_text_without_gaps(
    num_chars: int, batch_size: int, sequence_length: int
) -> None:
    batches = Lanes(np.arange(num_chars), batch_size=batch_size, sequence_length=sequence_length)
    steps = batches.steps_per_epoch
    inputs = np.concatenate([batches[step].inputs for step in range(steps)], axis=1)
    targets = np.concatenate([batches[step].targets for step in range(steps)], axis=1)
    lane_length = (num_chars - 1) // batch_size
    starts = np.arange(batch_size)[:, None] * lane_length
    np.testing.assert_array_equal(inputs, starts + np.arange(steps * sequence_length)[None])
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(batches[steps].inputs, batches[0].inputs)


@pytest.mark.parametrize("batching", ["chunks", "lanes"])
def test_iteration_from_any_step_goes_on_as_if_it_had_never_stopped(batching: str) -> None:
    def make() -> object:
        return make_batches(
            np.arange(300), batching=batching, batch_size=3, sequence_length=7, seed=5
        )

    batches = make()
    whole = [batches[step] for step in range(40)]
    for start in (1, 11, 12, 13, 39):
        batches = make()
        for step in range(start, 40):
            np.testing.assert_array_equal(batches[step].inputs, whole[step].inputs)
            np.testing.assert_array_equal(batches[step].targets, whole[step].targets)


@pytest.mark.parametrize("offset", ["fixed", "random"])
@pytest.mark.parametrize("batching", ["chunks", "lanes"])
@pytest.mark.parametrize("num_chars", [3, 20, 60, 111])
def test_too_short_text_says_what_would_fit(batching: str, num_chars: int, offset: str) -> None:
    sizes = {"batch_size": 16, "sequence_length": 10}
    with pytest.raises(UserError, match="too few for one batch of 16 x 10") as error:
        make_batches(np.arange(num_chars), batching=batching, seed=0, offset=offset, **sizes)
    for word in str(error.value).split():
        if word.startswith("--config.data."):
            field, value = word.removeprefix("--config.data.").split("=")
            sizes[field] = int(value)
    make_batches(np.arange(num_chars), batching=batching, seed=0, offset=offset, **sizes)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 1000, 4096, 4097])
def test_permute_is_a_bijection_that_depends_on_the_key(size: int) -> None:
    orders = [permute(np.arange(size), size=size, key=[0, epoch]) for epoch in range(2)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(size))
    pieces = [permute(piece, size=size, key=[0, 0]) for piece in np.array_split(np.arange(size), 3)]
    np.testing.assert_array_equal(np.concatenate(pieces), orders[0])
    if size >= 1000:
        assert (orders[0] == orders[1]).mean() < 0.01
        assert abs(np.corrcoef(orders[0], np.arange(size))[0, 1]) < 0.15
        assert abs(np.corrcoef(orders[0][1:], orders[0][:-1])[0, 1]) < 0.15
        assert abs(np.corrcoef(*orders)[0, 1]) < 0.15


def test_permute_reaches_the_largest_indices() -> None:
    size = 2**40 + 3
    places = np.concatenate([np.arange(10**5), size - 1 - np.arange(10**5)])
    order = permute(places, size=size, key=[7])
    assert len(np.unique(order)) == len(places)
    assert order.min() >= 0
    assert order.max() < size
    np.testing.assert_allclose(order.mean() / size, 0.5, atol=0.01)


def test_chunks_are_shuffled_in_the_order_that_earlier_runs_had() -> None:
    """A permutation of a copy, which took twice the memory."""
    batches = Chunks(np.arange(1000), batch_size=10, sequence_length=9, seed=3)
    for epoch in (0, 1, 0):
        order = [batches.starts(10 * epoch + step) // 10 for step in range(10)]
        chunks = np.arange(100, dtype=np.uint32)
        expected = np.random.default_rng([3, epoch]).permutation(chunks)
        np.testing.assert_array_equal(np.concatenate(order), expected)


def test_chunks_of_a_large_text_come_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charrnn_jax.data.batches._MOST_SHUFFLED", 50)
    batches = Chunks(np.arange(1000), batch_size=10, sequence_length=9, seed=3)
    epochs = [
        np.concatenate([batches.starts(10 * epoch + step) for step in range(10)])
        for epoch in range(3)
    ]
    for starts in epochs:
        np.testing.assert_array_equal(np.sort(starts), np.arange(0, 1000, 10))
    assert not np.array_equal(epochs[0], epochs[1])


def test_prefetch_keeps_the_order_and_runs_two_ahead() -> None:
    put: list[int] = []
    items = prefetch(range(5), lambda item: put.append(item) or item)
    assert next(items) == 0
    assert put == [0, 1]
    assert [next(items), next(items)] == [1, 2]
    assert put == [0, 1, 2, 3]
    assert list(items) == [3, 4]


# --- resets, offsets and growing sequences ------------------------------------------------------

OTHER_BATCHES: list[dict[str, Any]] = [
    {"batching": "chunks", "offset": "random"},
    {"batching": "lanes", "offset": "random", "carry_reset_rate": 0.3},
    {"batching": "lanes", "stages": make_stages(7, initial_length=2, warmup_steps=25)},
    {
        "batching": "lanes",
        "offset": "random",
        "stages": make_stages(7, initial_length=1, warmup_steps=60),
    },
]


@pytest.mark.parametrize("settings", OTHER_BATCHES)
def test_every_batch_is_a_function_of_the_step_alone(settings: dict[str, Any]) -> None:
    def make(seed: int = 5) -> Batches:
        return make_batches(
            np.arange(300), batch_size=3, sequence_length=7, **{"seed": seed, **settings}
        )

    batches = make()
    whole = [batches[step] for step in range(80)]
    for step in (79, 13, 26, 0, 61, 12):
        for one, other in zip(make()[step], whole[step], strict=True):
            np.testing.assert_array_equal(one, other)
    for batch in whole:
        np.testing.assert_array_equal(batch.targets, batch.inputs + 1)
        np.testing.assert_array_equal(np.diff(batch.inputs), 1)


@given(
    num_chars=st.integers(30, 200),
    batch_size=st.integers(1, 3),
    sequence_length=st.integers(1, 6),
    warmup_steps=st.integers(0, 40),
    offset=st.sampled_from(["fixed", "random"]),
)
def test_a_lane_goes_on_where_it_was_or_is_reset(
    num_chars: int, batch_size: int, sequence_length: int, warmup_steps: int, offset: str
) -> None:
    """Whatever the lengths are; and no whole sequence is left out before the lanes jump back."""
    batches = Lanes(
        np.arange(num_chars),
        batch_size=batch_size,
        sequence_length=sequence_length,
        offset=offset,
        stages=make_stages(sequence_length, warmup_steps=warmup_steps),
    )
    lane_length = (num_chars - (1 if offset == "fixed" else sequence_length)) // batch_size
    begin = read = 0
    for step in range(120):
        length, starts = batches.length(step), batches.starts(step)
        np.testing.assert_array_equal(np.diff(starts), lane_length)
        assert batches[step].inputs.shape == (batch_size, length)
        resets = batches.resets(step)
        assert resets.dtype == bool
        if resets.all():
            assert step == 0 or lane_length - read < length
            begin, read = starts[0], 0
            assert begin < (1 if offset == "fixed" else sequence_length)
        else:
            assert not resets.any()
        assert starts[0] == begin + read
        read += length
        assert read <= lane_length


@pytest.mark.parametrize("batching", ["chunks", "lanes"])
def test_random_offsets_move_every_pass_and_keep_the_steps_of_an_epoch(batching: str) -> None:
    settings: Any = {"batching": batching, "batch_size": 4, "sequence_length": 9}
    fixed, random = (
        make_batches(np.arange(4000), seed=3, offset=offset, **settings)
        for offset in ("fixed", "random")
    )
    assert random.steps_per_epoch in (fixed.steps_per_epoch, fixed.steps_per_epoch - 1)
    size = 10 if batching == "chunks" else 9
    offsets = []
    for epoch in range(200):
        steps = range(epoch * random.steps_per_epoch, (epoch + 1) * random.steps_per_epoch)
        starts = np.stack([random.starts(step) for step in (steps[0], steps[1], steps[-1])])
        lanes = starts[0] - starts[0, 0] if batching == "lanes" else 0
        (offset,) = np.unique((starts - lanes) % size)
        offsets.append(int(offset))
    assert set(offsets) == set(range(size))
    other = make_batches(np.arange(4000), seed=4, offset="random", **settings)
    assert any(
        (other.starts(e * other.steps_per_epoch) != random.starts(e * other.steps_per_epoch)).any()
        for e in range(3)
    )


def test_chunks_always_start_from_zero_and_lanes_as_often_as_asked() -> None:
    chunks = Chunks(np.arange(900), batch_size=4, sequence_length=9, seed=0)
    assert all(chunks.resets(step).all() for step in range(40))
    for rate in (0.0, 0.2):
        lanes = Lanes(
            np.arange(200_000), batch_size=4, sequence_length=9, carry_reset_rate=rate, seed=1
        )
        assert lanes.resets(0).all()
        resets = np.stack([lanes.resets(step) for step in range(1, 3000)])
        assert resets.mean() == pytest.approx(rate, abs=0.02)
        assert np.corrcoef(resets.T)[0, 1] < 0.1 if rate else not resets.any()


@given(
    sequence_length=st.integers(1, 300),
    initial_length=st.integers(1, 300),
    warmup_steps=st.integers(0, 500),
)
def test_lengths_double_below_the_line_that_the_warm_up_follows(
    sequence_length: int, initial_length: int, warmup_steps: int
) -> None:
    initial_length = min(initial_length, sequence_length)
    stages = make_stages(sequence_length, initial_length=initial_length, warmup_steps=warmup_steps)
    batches = Chunks(np.arange(302), batch_size=1, sequence_length=sequence_length, stages=stages)
    total = 0
    for step in range(warmup_steps + 2):
        line = sequence_length
        if step < warmup_steps:
            slope = Fraction(sequence_length - initial_length, warmup_steps)
            line = initial_length + slope * step
        expected = initial_length
        while 2 * expected <= line:
            expected *= 2
        expected = sequence_length if step >= warmup_steps else expected
        assert batches.length(step) == expected
        assert chars_per_row(stages, step) == total
        total += expected
    lengths = {batches.length(step) for step in range(warmup_steps + 1)}
    assert len(lengths) <= 1 + math.ceil(math.log2(sequence_length / initial_length))


@pytest.mark.parametrize("on_device", [True, False])
def test_calls_never_mix_lengths_and_leave_no_step_out(on_device: bool) -> None:
    stages = make_stages(16, initial_length=4, warmup_steps=10)
    batches = make_batches(
        np.arange(500), batching="lanes", batch_size=2, sequence_length=16, seed=0, stages=stages
    )
    done = 0
    for call in calls(
        batches, start=0, stop=30, num_steps=4, next_stop=lambda _: 99, on_device=on_device
    ):
        for index in range(call.num_steps):
            batch = batches[done + index]
            assert batch.inputs.shape[1] == call.sequence_length
            starts, resets = (
                call.where if on_device else (call.where.inputs[..., 0], call.where.resets)
            )
            np.testing.assert_array_equal(starts[index], batch.inputs[:, 0])
            np.testing.assert_array_equal(resets[index], batch.resets)
        done += call.num_steps
        assert call.stop == done
    assert done == 30
