"""Each rule against the slow, obvious way to say what it does."""

import re
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from helpers import VOCABULARY, E, H, make, sampler
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.generation.choice import make_rules
from charrnn_jax.generation.pattern import compile_pattern
from charrnn_jax.generation.rules import (
    Allow,
    Greedy,
    MinP,
    NoRepeat,
    Rule,
    Temperature,
    TopK,
    TopP,
    apply_rules,
    choose,
    start_memory,
    update_memory,
)
from charrnn_jax.generation.sampler import Sampler, generate, sample_chunk
from charrnn_jax.models.char_rnn import CharRNN, initialize_params
from charrnn_jax.registry import register_rule

EVERY_RULE = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.6},
    "min_p": {"min_p": 0.3},
    "no_repeat": {"no_repeat": 3},
    "allow": {"allow": "abcd"},
    "forbid": {"forbid": "abcd"},
    "pattern": {"pattern": "([a-d]{2,5}\n)+"},
    "all": {
        "temperature": 0.9,
        "top_k": 6,
        "top_p": 0.9,
        "min_p": 0.05,
        "no_repeat": 4,
        "forbid": "i",
        "pattern": "([a-g]+\n)*",
    },
}
run_rule = jax.jit(lambda rule, logits, memory=(): rule(logits, memory))
apply_together = jax.jit(apply_rules)
start_no_repeat, update_no_repeat = jax.jit(NoRepeat.start), jax.jit(NoRepeat.update)
# Whole and half numbers, so that many are equal; and some that cannot be drawn.
some_logits = arrays(
    np.float32,
    (3, 8),
    elements=st.sampled_from([-np.inf, -30.0, -2.5, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 3.0, 40.0]),
).filter(lambda logits: (logits.max(-1) > -np.inf).all())


def test_no_compiled_program_can_be_that_of_another_rule() -> None:
    """JAX takes two dataclasses of one field for the same structure; hashes alone part them."""

    @struct.dataclass
    class Own(TopK):
        pass

    rules = [TopK(1.0), TopP(1.0), MinP(1.0), Temperature(1.0), Own(1.0), Greedy(), Rule()]
    structures = [jax.tree.structure(rule) for rule in rules]
    assert all(a != b for a, b in combinations(structures, 2))
    assert structures == [jax.tree.structure(jax.tree.map(jnp.array, rule)) for rule in rules]
    assert jax.tree.structure(TopP(0.5).replace(p=0.1)) == structures[1]


@given(some_logits, st.integers(1, 10))
def test_top_k_keeps_the_k_most_likely_and_ties_with_the_last(logits: np.ndarray, k: int) -> None:
    kth = np.sort(logits, axis=-1)[:, ::-1][:, min(k, 8) - 1 : min(k, 8)]
    expected = np.where(logits >= kth, logits, -np.inf)
    np.testing.assert_array_equal(run_rule(TopK(k), logits), expected)


def test_logits_that_differ_in_the_last_bit_are_told_apart() -> None:
    one = np.float32(1.0)
    logits = np.array([[one, np.nextafter(one, np.float32(2.0)), 0.5, 0.5]], np.float32)
    kept = np.isfinite(run_rule(TopK(1), np.repeat(logits, 3, axis=0)))
    assert kept.tolist() == [[False, True, False, False]] * 3


def test_an_own_rule_is_applied_before_the_temperature(own_registries: None) -> None:
    register_rule("mine", lambda vocabulary: TopK(1))
    rules = make_rules(VOCABULARY, temperature=0.5, own=["mine"])
    assert [type(rule) for rule in rules] == [Allow, TopK, Temperature]


@given(some_logits, st.floats(0.01, 1.0))
def test_top_p_keeps_the_fewest_most_likely_that_reach_p(logits: np.ndarray, p: float) -> None:
    probabilities = np.asarray(jax.nn.softmax(logits))
    kept = np.isfinite(run_rule(TopP(p), logits))
    for row, keeps in zip(probabilities, kept, strict=True):
        reached = [t for t in set(row.tolist()) if row[row >= t].sum() >= p - 1e-6]
        enough = [t for t in set(row.tolist()) if row[row >= t].sum() >= p + 1e-6]
        bounds = max(reached, default=0.0), max(enough, default=0.0)  # equal, but for rounding
        assert any(np.array_equal(keeps, (row >= t) & (row > 0)) for t in bounds)


@given(some_logits, st.floats(0.01, 1.0))
def test_min_p_keeps_what_is_likely_next_to_the_likeliest(logits: np.ndarray, p: float) -> None:
    ratios = np.exp(logits - logits.max(-1, keepdims=True))
    kept = np.isfinite(run_rule(MinP(p), logits))
    assert kept[ratios >= p * 1.001].all()
    assert not kept[ratios < p * 0.999].any()


@given(some_logits)
def test_greedy_keeps_the_first_of_the_most_likely_and_top_k_1_keeps_it(logits: np.ndarray) -> None:
    greedy = run_rule(Greedy(), logits)
    np.testing.assert_array_equal(np.argmax(greedy, -1), np.argmax(logits, -1))
    assert np.isfinite(greedy).sum(-1).tolist() == [1, 1, 1]
    assert np.isfinite(run_rule(TopK(1), logits))[np.isfinite(greedy)].all()


@given(
    some_logits,
    st.sampled_from([0.3, 1.0, 2.5]),
    st.integers(0, 6),
    st.sampled_from([0.4, 0.75, 1.0]),
    st.sampled_from([0.0, 0.1, 0.5]),
)
@example(np.array([[-30.0, 3.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.5]] * 3, "f"), 2.5, 0, 0.75, 0.0)
@example(np.array([[-30.0, 3.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.5]] * 3, "f"), 2.5, 0, 1.0, 0.1)
@example(np.array([[-30.0, 1.0, 0.5, 0.0, -0.1, -0.2, -0.3, 0.0]] * 3, "f"), 1.0, 3, 0.75, 0.0)
@example(np.array([[-30.0, 1.0, 0.5, 0.5, 0.0, 0.0, -0.5, -1.0]] * 3, "f"), 0.3, 5, 0.75, 0.1)
@example(np.array([[40.0, 1.0, 0.5, 0.5, 0.0, 0.0, -0.5, -1.0]] * 3, "f"), 1.0, 0, 0.75, 0.1)
@settings(max_examples=40)
def test_rules_put_together_apply_in_the_order_in_which_they_make_sense(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """What is allowed, the temperature, top-k, top-p of what top-k left, min-p; against NumPy."""
    assume(np.isfinite(logits[:, 1:]).any(-1).all())
    vocabulary = Vocabulary("abcdefg")
    rules = make_rules(
        vocabulary, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, forbid="g"
    )
    result = np.asarray(apply_together(rules, logits, ((),) * len(rules)))
    for row, left in zip(logits.astype(np.float64), result, strict=True):
        row[[UNK_ID, 7]] = -np.inf
        assume(np.isfinite(row).any())
        row = row / temperature
        if top_k:
            row[row < np.sort(row)[-top_k]] = -np.inf
        probabilities = np.exp(row - row.max())
        probabilities /= probabilities.sum()
        heavier = [probabilities[probabilities > p].sum() for p in probabilities]
        assume(np.abs(np.array(heavier) - top_p).min() > 1e-5)  # else rounding decides
        if top_p < 1:
            row[np.array(heavier) >= top_p] = -np.inf
        if min_p:
            ratio = np.exp(row - row.max())
            assume(np.abs(ratio - min_p).min() > 1e-5)
            row[ratio < min_p] = -np.inf
        np.testing.assert_allclose(left, row, rtol=1e-6)


def test_top_k_1_writes_the_greedy_text() -> None:
    greedy = sampler().generate(["bad", "a"], num_chars=80, temperature=0.0)
    assert sampler().generate(["bad", "a"], num_chars=80, top_k=1) == greedy


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ((Temperature(0.5),), [0, 1, 2, 3]),
        ((Temperature(2.0),), [0, 1, 2, 3]),
        ((TopK(2),), [1, 2]),
        ((TopP(0.7),), [1, 2]),
        ((MinP(0.2),), [1, 2]),
        ((Allow(jnp.array([True, False, True, True, True])),), [0, 2, 3]),
        ((Temperature(3.0), TopK(3), TopP(0.99)), [0, 1, 2]),
    ],
)
def test_frequencies_follow_the_distribution_that_is_left(
    rules: tuple[Rule, ...], kept: list[int]
) -> None:
    """Chi-square over 20,000 draws; the threshold is exceeded by chance once in a million."""
    logits = np.array([0.0, 1.0, 2.0, -1.0, -np.inf], np.float32)
    temperature = next((r.temperature for r in rules if isinstance(r, Temperature)), 1.0)
    noise = jax.random.gumbel(jax.random.key(0), (20_000, 5))
    left = apply_rules(rules, jnp.tile(logits, (20_000, 1)), ((),) * len(rules))
    observed = np.bincount(choose(left, noise=noise), minlength=5)
    weights = np.exp(logits[kept] / temperature)
    expected = 20_000 * weights / weights.sum()
    assert observed.sum() == observed[kept].sum()
    assert ((observed[kept] - expected) ** 2 / expected).sum() < 30.7  # 3 degrees of freedom


@pytest.mark.parametrize("name", EVERY_RULE)
def test_under_every_rule_prompts_together_give_what_each_gives_alone(name: str) -> None:
    ours = sampler()
    wanted = {"num_chars": 70, "seed": 5, **EVERY_RULE[name]}
    prompts = ["a", "bad", "hig" * 7, "bed", ""]
    together = ours.generate(prompts, **wanted)
    for prompt, sample in zip(prompts[:3], together, strict=False):
        (alone,) = ours.generate([prompt], **wanted)
        assert alone[:4] == sample[:4]
        assert alone.nats_per_char == pytest.approx(sample.nats_per_char, rel=1e-5, nan_ok=True)
        assert "[UNK]" not in sample.text


def test_other_numbers_run_the_same_program() -> None:
    ours = sampler()

    def write(k: int, p: float, n: int) -> None:
        ours.generate(["a"], num_chars=5, temperature=p, top_k=k, top_p=p, min_p=p / 9, no_repeat=n)

    write(3, 0.5, 4)
    before = sample_chunk._cache_size()
    write(5, 0.8, 7)
    assert sample_chunk._cache_size() == before


@given(st.lists(st.integers(1, 3), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 8))
def test_no_repeat_forbids_what_would_repeat_a_stretch(
    text: list[int], length: int, num_read: int
) -> None:
    """Whether the text was the prompt or was written; against a search through it."""
    rule, num_read = NoRepeat(length, window=64), min(num_read, len(text))
    prompt = jnp.array([text[:num_read] + [0] * (8 - num_read)])
    memory = start_no_repeat(rule, prompt, jnp.array([num_read]))
    for token in text[num_read:]:
        memory = update_no_repeat(rule, memory, jnp.array([token]))
    logits = run_rule(rule, jnp.zeros((1, 6)), memory)[0]
    stretches = {tuple(text[i : i + length]) for i in range(len(text) - length + 1)}
    end = text[len(text) - length + 1 :] if length > 1 else []
    for token in range(6):
        assert (logits[token] == -np.inf) == ((*end, token) in stretches)


def test_no_repeat_knows_the_same_of_a_text_that_was_written_and_of_one_that_was_read() -> None:
    """Also when the text is longer than the window."""
    rule, text = NoRepeat(3, window=8), [1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 2]
    memory = start_no_repeat(rule, jnp.array([text[:1]]), jnp.array([1]))
    for length in range(2, len(text) + 1):
        memory = update_no_repeat(rule, memory, jnp.array([text[length - 1]]))
        padded = jnp.array([text[:length] + [0] * (len(text) - length)])
        read = start_no_repeat(rule, padded, jnp.array([length]))
        jax.tree.map(np.testing.assert_array_equal, memory, read)


def test_no_repeat_breaks_a_loop_and_gives_way_where_nothing_else_is_left() -> None:
    wanted = {"num_chars": 300, "temperature": 0.0}
    (looping,) = sampler().generate(["bad"], **wanted)
    (free,) = sampler().generate(["bad"], no_repeat=6, **wanted)
    pieces = [("bad" + free.text)[i : i + 6] for i in range(298)]
    assert len(set(pieces)) == 298
    assert len({looping.text[i : i + 6] for i in range(295)}) < 295
    (narrow,) = sampler().generate(["bad"], no_repeat=1, allow="a", **wanted)
    assert narrow.text == "a" * 300


PATTERNS = [
    r"[a-c]+\n",
    r"(ab|cd)*e",
    r"(a{2}|b{3})(\n|i)[d-h]*",
    r"[^a-f\n]{5,9}",
    r"(?s).{3}",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_written_matches_the_pattern(pattern: str) -> None:
    samples = sampler().generate(["a"] * 12, num_chars=150, pattern=pattern, temperature=1.5)
    assert any(sample.finish == "match" for sample in samples)
    for sample in samples:
        if sample.finish == "match":
            assert re.fullmatch(pattern, sample.text)
            assert sample.num_chars == len(sample.text)
        else:
            assert len(sample.text) == 150


def test_pattern_reads_bytes_and_any_script() -> None:
    vocabulary = Vocabulary(kind="bytes")
    model = CharRNN(vocabulary.size, E, H)
    ours = Sampler(initialize_params(model, jax.random.key(0)), model=model, vocabulary=vocabulary)
    (sample,) = ours.generate(["ä"], num_chars=40, pattern="(é|🙂|漢){4}")
    assert re.fullmatch("(é|🙂|漢){4}", sample.text)
    scripts = Vocabulary("".join(sorted("aé漢🙂\x00\u2028\ud800")))
    model = CharRNN(scripts.size, E, H)
    ours = Sampler(initialize_params(model, jax.random.key(0)), model=model, vocabulary=scripts)
    (sample,) = ours.generate(["a"], num_chars=40, pattern="[é漢🙂]{4}\u2028")
    assert re.fullmatch("[é漢🙂]{4}\u2028", sample.text)


def test_what_a_pattern_does_not_permit_stands_for_the_end() -> None:
    """In a state where the text may end; the end has the probability of all of it together."""
    allowed = np.arange(11) != UNK_ID
    rule = compile_pattern("ab*", VOCABULARY, allowed=allowed)
    a, b = VOCABULARY.encode("ab").tolist()
    logits = jnp.linspace(-1.0, 1.0, 11)[None].at[0, UNK_ID].set(-jnp.inf)
    memory = rule.start(jnp.array([[3]]), jnp.array([1]))
    first = jax.nn.softmax(rule(logits, memory))[0]
    assert np.flatnonzero(first).tolist() == [a]
    memory = rule.update(memory, jnp.array([a]))
    then = jax.nn.softmax(rule(logits, memory))[0]
    assert np.flatnonzero(then).tolist() == [UNK_ID, b]
    np.testing.assert_allclose(then[b], jax.nn.softmax(logits)[0, b], rtol=1e-5)
    behind = rule.update(memory, jnp.array([UNK_ID]))
    assert np.flatnonzero(np.isfinite(rule(logits, behind)[0])).tolist() == [UNK_ID]


def test_what_is_not_allowed_may_stand_for_the_end_of_a_pattern() -> None:
    samples = sampler().generate(["a"] * 9, num_chars=200, pattern="[a-c]+", allow="abc")
    assert {sample.finish for sample in samples} == {"match"}
    assert {len(sample.text) for sample in samples} - {1}


def test_a_pattern_never_leads_where_it_cannot_end() -> None:
    """After "b" comes "c" for ever, since "d" is forbidden."""
    samples = sampler().generate(["a"] * 20, num_chars=9, pattern="[ai]+|[ai]*bc*d", forbid="d")
    assert {char for sample in samples for char in sample.text} == {"a", "i"}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1e-40}, "temperature is 1e-40; it must be 0, or from 1e-6"),
        ({"temperature": 1e39}, r"temperature is 1e\+39"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 2**31}, "top_k is 2147483648"),
        ({"top_p": 1e-40}, "top_p is 1e-40"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be from 1e-6 to 1"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"no_repeat": -2}, "no_repeat is -2"),
        ({"no_repeat": 513}, "no_repeat is 513; it must be from 0 to 512"),
        ({"allow": "aZ"}, "allow has characters not in the vocabulary: 'Z' at position 1"),
        ({"forbid": "\nabcdefghi"}, "no character to write"),
        ({"pattern": "("}, r"pattern '\(' cannot be used"),
        ({"pattern": "Z+"}, r"pattern 'Z\+'"),
        ({"pattern": "(a)*(?=b)"}, "cannot be used"),
        ({"pattern": "(a{1000}){3}"}, "repeats too often"),
    ],
)
def test_wrong_choices_are_refused(choice: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_rules(VOCABULARY, **choice)


def test_your_own_rule_has_its_memory() -> None:
    """One that alternates between two characters, as an example of the protocol."""
    from flax import struct

    @struct.dataclass
    class Alternate(Rule):
        first: jax.Array
        second: jax.Array

        def __call__(self, logits, memory=()):
            wanted = jnp.where(memory % 2 == 0, self.first, self.second)[:, None]
            return jnp.where(jnp.arange(logits.shape[1])[None] == wanted, logits, -jnp.inf)

        def start(self, prompts, lengths):
            return jnp.zeros_like(lengths)

        def update(self, memory, tokens):
            return memory + 1

    a, b = map(jnp.asarray, VOCABULARY.encode("ab").astype(np.int32))
    model, params, _, _ = make("gru", num_layers=2)
    write = partial(generate, params, model=model, vocabulary=VOCABULARY, num_chars=7)
    assert write(["c"], rules=(Alternate(a, b),))[0].text == "abababa"
    with pytest.raises(TypeError, match="not both"):
        write(["c"], rules=(Alternate(a, b),), top_k=3)
    memory = start_memory((Alternate(a, b),), jnp.array([[1]]), jnp.array([1]))
    assert update_memory((Alternate(a, b),), memory, jnp.array([a]))[0].tolist() == [1]
