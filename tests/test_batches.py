import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charrnn_jax.data.batches import Chunks, Lanes, make_batches, permute, prefetch
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError

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


@pytest.mark.parametrize("batching", ["chunks", "lanes"])
@pytest.mark.parametrize("num_chars", [3, 20, 60, 111])
def test_too_short_text_says_what_would_fit(batching: str, num_chars: int) -> None:
    sizes = {"batch_size": 16, "sequence_length": 10}
    with pytest.raises(UserError, match="too few for one batch of 16 x 10") as error:
        make_batches(np.arange(num_chars), batching=batching, seed=0, **sizes)
    for word in str(error.value).split():
        if word.startswith("--config.data."):
            field, value = word.removeprefix("--config.data.").split("=")
            sizes[field] = int(value)
    make_batches(np.arange(num_chars), batching=batching, seed=0, **sizes)


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
