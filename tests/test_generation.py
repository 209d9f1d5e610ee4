from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import VOCABULARY, E, H, forward, make, slow

from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.generation.choice import make_rules
from charrnn_jax.generation.rules import Rules, start_memory
from charrnn_jax.generation.sampler import (
    CHUNK,
    Sampler,
    SampleState,
    generate,
    prime,
    sample_chunk,
    sample_step,
)
from charrnn_jax.generation.writer import Sample
from charrnn_jax.models.cells import CELLS
from charrnn_jax.models.char_rnn import CharRNN, initialize_params
from charrnn_jax.models.stepping import prepare, step


def settings(cell: str = "gru", **changes):
    model, params, _, _ = make(cell, num_layers=2)
    return params, {"model": model, "vocabulary": VOCABULARY, "num_chars": 40, **changes}


def texts(samples: list[Sample]) -> list[str]:
    """Without the losses, which are equal to rounding."""
    return [sample.text for sample in samples]


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_greedy_generation_equals_a_loop_over_the_model(cell: str) -> None:
    params, kwargs = settings(cell, temperature=0.0)
    (sample,) = generate(params, ["bad"], **kwargs)
    model, carry = kwargs["model"], kwargs["model"].initialize_carry(1)
    written = []
    token, *unread = VOCABULARY.encode("bad").tolist()
    while len(written) < 40:
        carry, logits = forward(params, carry, jnp.array([[token]]), model=model)
        if unread:
            token = unread.pop(0)
        else:
            token = 1 + int(jnp.argmax(logits[0, 0, 1:]))  # anything but [UNK]
            written.append(token)
    assert sample.text == VOCABULARY.decode(written)
    assert sample.prompt == "bad"


@pytest.mark.parametrize(
    ("cell", "temperature"), [("gru", 0.0), ("lstm", 1.0), slow("gru", 1.0), slow("lstm", 0.0)]
)
def test_prompts_of_different_lengths_together_equal_each_alone(
    cell: str, temperature: float
) -> None:
    params, kwargs = settings(cell, temperature=temperature, seed=3)
    prompts = ["a", "bad cab".replace(" ", ""), "", "high" * 9, "a", "bed"]
    together = generate(params, prompts, **kwargs)
    for index, prompt in enumerate(prompts):
        if index != 4:  # the second "a" is another sample of the same prompt
            assert texts(generate(params, [prompt], **kwargs)) == [together[index].text]
    assert (together[4].text == together[0].text) == (temperature == 0.0)
    both = texts(generate(params, ["a", "a"], **kwargs))
    assert both == [together[0].text, together[4].text]


def test_prime_carry_equals_the_model_on_each_prompt() -> None:
    params, kwargs = settings("lstm")
    model = kwargs["model"]
    prompts = np.array([[3, 0, 0, 0], [4, 5, 6, 0], [1, 2, 3, 4]], np.int32)
    lengths = np.array([1, 3, 4], np.int32)
    key = jax.random.split(jax.random.key(0), 3)
    weights = prepare(params, model=model, transposed=False)
    state = prime(weights, prompts, lengths=lengths, key=key, model=model, rules=())
    assert state.token.tolist() == [3, 6, 4]
    for row, length in enumerate(lengths):
        read = jnp.asarray(prompts[row : row + 1, : length - 1])
        carry = model.initialize_carry(1)
        if length > 1:
            carry, _ = forward(params, carry, read, model=model)
        jax.tree.map(
            lambda ours, alone, row=row: np.testing.assert_allclose(
                ours[row], alone[0], rtol=1e-5, atol=1e-6
            ),
            state.carry,
            carry,
        )


def test_unk_is_never_sampled() -> None:
    """Even by a model that is sure of it, at any temperature."""
    model = CharRNN(11, E, H)
    params = initialize_params(model, jax.random.key(0))
    params["dense"]["bias"] = params["dense"]["bias"].at[UNK_ID].set(1e6)
    for temperature in (0.0, 1.0, 100.0):
        samples = generate(
            params,
            ["a"] * 8,
            model=model,
            vocabulary=VOCABULARY,
            num_chars=200,
            temperature=temperature,
        )
        assert {len(sample.text) for sample in samples} == {200}  # [UNK] would end a text


def test_same_seed_same_text_and_another_seed_another() -> None:
    params, kwargs = settings()
    assert generate(params, ["a"], seed=1, **kwargs) == generate(params, ["a"], seed=1, **kwargs)
    assert generate(params, ["a"], seed=1, **kwargs) != generate(params, ["a"], seed=2, **kwargs)


def test_sample_step_compiles_once_whatever_the_temperature() -> None:
    params, kwargs = settings()
    before = sample_step._cache_size()
    for temperature in (0.5, 0.7, 1.0):
        rules = make_rules(VOCABULARY, temperature=temperature)
        _, drawn = sample_step(
            prepare(params, model=kwargs["model"], transposed=False),
            first_state(kwargs["model"], rules, batch_size=2),
            model=kwargs["model"],
            rules=rules,
        )
        assert drawn.tokens.shape == (2,)
    assert sample_step._cache_size() == before + 1


def test_texts_of_any_length_share_one_program() -> None:
    params, kwargs = settings("rnn", seed=5)
    sampler = Sampler(params, model=kwargs["model"], vocabulary=VOCABULARY)
    before = sample_chunk._cache_size()
    lengths = (1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK)
    texts = [sampler.generate(["bad"] * 4, num_chars=n, seed=5)[3].text for n in lengths]
    assert sample_chunk._cache_size() == before + 1
    assert [len(text) for text in texts] == list(lengths)
    assert all(texts[-1].startswith(text) for text in texts)


def first_state(model: CharRNN, rules: Rules, *, batch_size: int) -> SampleState:
    key = jax.random.split(jax.random.key(0), batch_size)
    token = jnp.arange(1, batch_size + 1)
    memory = start_memory(rules, token[:, None], jnp.ones_like(token))
    carry = model.initialize_carry(batch_size)
    return SampleState(carry, token, key, jnp.zeros_like(token), memory)


def test_a_chunk_equals_single_steps() -> None:
    params, kwargs = settings("lstm")
    model = kwargs["model"]
    weights = prepare(params, model=model, transposed=False)
    rules = make_rules(VOCABULARY, temperature=0.9, no_repeat=4, top_p=0.9)
    first = partial(first_state, model, rules, batch_size=2)
    state, steps = first(), []
    for _ in range(CHUNK):
        state, drawn = sample_step(weights, state, model=model, rules=rules)
        steps.append(drawn)
    end, chunk = sample_chunk(weights, first(), model=model, rules=rules)
    assert np.array_equal(chunk.tokens, [drawn.tokens for drawn in steps])
    assert np.array_equal(end.position, state.position)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(chunk.log_probabilities, [drawn.log_probabilities for drawn in steps])
    jax.tree.map(close, (end.carry, end.memory), (state.carry, state.memory))
    part, begun = sample_chunk(weights, first(), num_steps=7, model=model, rules=rules)
    assert np.array_equal(begun.tokens[:7], chunk.tokens[:7])
    assert part.position.tolist() == [7, 7]


@pytest.mark.parametrize(
    ("cell", "batch_size", "transposed", "dtype"),
    [
        *product(["gru"], [1, 3, 20], [False, True], ["float32", "bfloat16"]),
        *(slow(cell, 3, True, "float32") for cell in CELLS if cell != "gru"),
    ],
)
def test_prepared_step_equals_the_model(
    cell: str, batch_size: int, transposed: bool, dtype: str
) -> None:
    """Both layouts of the weights and every form of a product, against a text of length 1."""
    model, params, carry, tokens = make(cell, num_layers=2)
    model = model.clone(dtype=dtype)
    carry, tokens = jax.tree.map(
        lambda x: jnp.resize(x, (batch_size, *x.shape[1:])), (carry, tokens[:, 0])
    )
    weights = prepare(params, model=model, transposed=transposed)
    assert weights.transposed == transposed
    new_carry, logits = jax.jit(partial(step, model=model))(weights, carry, tokens)
    expected_carry, expected = forward(params, carry, tokens[:, None], model=model)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, (new_carry, logits), (expected_carry, expected[:, 0]))


def test_scan_and_fused_write_the_same_text_and_only_fused_rounds() -> None:
    params, kwargs = settings(temperature=0.0)
    scan = {**kwargs, "model": kwargs["model"].clone(implementation="scan")}
    assert texts(generate(params, ["bad"], **scan)) == texts(generate(params, ["bad"], **kwargs))
    with pytest.raises(ValueError, match="computes in float32"):
        Sampler(params, model=scan["model"], vocabulary=VOCABULARY, dtype="bfloat16")
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        Sampler(params, model=kwargs["model"], vocabulary=VOCABULARY, dtype="float16")
    rounded = Sampler(params, model=kwargs["model"], vocabulary=VOCABULARY, dtype="bfloat16")
    assert rounded._prepare(transposed=False).layers[0].recurrent.kernels["h"].dtype == jnp.bfloat16
    assert len(rounded.generate(["bad"], num_chars=10)[0].text) == 10


def test_many_samples_share_few_programs() -> None:
    """Any number of rows from 57 to 64 is one program, and each text what it is alone."""
    params, kwargs = settings("rnn")
    sampler = Sampler(params, model=kwargs["model"], vocabulary=VOCABULARY)
    (alone,) = sampler.generate(["bad"], num_chars=9)
    sampler.generate(["bad"] * 60, num_chars=9)
    before = sample_chunk._cache_size()
    for number in (57, 61, 64):
        samples = sampler.generate(["bad"] * number, num_chars=9)
        assert len(samples) == number
        assert samples[0].text == alone.text
    assert sample_chunk._cache_size() == before


def test_unknown_characters_of_a_prompt_are_named_or_skipped() -> None:
    params, kwargs = settings()
    with pytest.raises(UserError, match="'Z' at position 1"):
        generate(params, ["aZb"], **kwargs)
    skipped = generate(params, ["aZb"], unk="skip", **kwargs)
    assert skipped[0].text == generate(params, ["ab"], **kwargs)[0].text
    with pytest.raises(UserError, match="knows none of the characters of the prompt"):
        generate(params, ["ZZ"], unk="skip", **kwargs)


def test_empty_prompt_starts_a_line() -> None:
    params, kwargs = settings()
    assert generate(params, [""], **kwargs)[0].text == generate(params, ["\n"], **kwargs)[0].text
    spaces = {**kwargs, "vocabulary": Vocabulary("\n abcdefgh")}
    assert generate(params, [""], **spaces)[0].text == generate(params, ["\n"], **spaces)[0].text
    no_lines = {**kwargs, "vocabulary": Vocabulary("abcdefghij")}
    assert generate(params, [""], **no_lines)[0].text == generate(params, ["a"], **no_lines)[0].text


@pytest.mark.parametrize(
    ("prompts", "changes"),
    [
        ("abc", {}),
        (["abc"], {"temperature": float("nan")}),
        (["abc"], {"temperature": -1.0}),
        (["abc"], {"num_chars": 0}),
        (["abc"], {"unk": "ignore"}),
        (["abc"], {"num_char": 5}),
    ],
)
def test_wrong_arguments_are_refused(prompts, changes: dict) -> None:
    params, kwargs = settings()
    with pytest.raises(
        (ValueError, TypeError),
        match=r"prompts|temperature|num_chars|unk|^generate\(\) .* 'num_char'",
    ):
        generate(params, prompts, **{**kwargs, **changes})
