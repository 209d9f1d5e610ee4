import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import E, H, forward, make

from charrnn_jax.data.vocabulary import UNK_ID, Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.generation.rules import choose
from charrnn_jax.generation.sampler import SampleState, generate, prime, sample_step
from charrnn_jax.models.char_rnn import CharRNN, initialize_params

VOCABULARY = Vocabulary("\nabcdefghi")  # 11 ids, as the model of `make`


def settings(cell: str = "gru", **changes):
    model, params, _, _ = make(cell, num_layers=2)
    return params, {"model": model, "vocabulary": VOCABULARY, "num_chars": 40, **changes}


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


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_prompts_of_different_lengths_together_equal_each_alone(
    cell: str, temperature: float
) -> None:
    params, kwargs = settings(cell, temperature=temperature, seed=3)
    prompts = ["a", "bad cab".replace(" ", ""), "", "high" * 9, "a", "bed"]
    together = generate(params, prompts, **kwargs)
    for index, prompt in enumerate(prompts):
        if index != 4:  # the second "a" is another sample of the same prompt
            assert generate(params, [prompt], **kwargs) == [together[index]]
    assert (together[4].text == together[0].text) == (temperature == 0.0)
    assert generate(params, ["a", "a"], **kwargs) == [together[0], together[4]]


def test_prime_carry_equals_the_model_on_each_prompt() -> None:
    params, kwargs = settings("lstm")
    model = kwargs["model"]
    prompts = np.array([[3, 0, 0, 0], [4, 5, 6, 0], [1, 2, 3, 4]], np.int32)
    lengths = np.array([1, 3, 4], np.int32)
    key = jax.random.split(jax.random.key(0), 3)
    state = prime(params, prompts, lengths=lengths, key=key, model=model)
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
        assert not any("[UNK]" in sample.text for sample in samples)


def test_same_seed_same_text_and_another_seed_another() -> None:
    params, kwargs = settings()
    assert generate(params, ["a"], seed=1, **kwargs) == generate(params, ["a"], seed=1, **kwargs)
    assert generate(params, ["a"], seed=1, **kwargs) != generate(params, ["a"], seed=2, **kwargs)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_tempered_distribution(temperature: float) -> None:
    """Chi-square over 20,000 draws; the threshold is exceeded by chance once in a million."""
    logits = jnp.array([0.0, 1.0, 2.0, -1.0, -jnp.inf])
    keys = jax.random.split(jax.random.key(0), 20_000)
    tokens = choose(keys, jnp.tile(logits, (20_000, 1)), temperature)
    observed = np.bincount(tokens, minlength=5)
    expected = 20_000 * np.asarray(jax.nn.softmax(logits / temperature))
    assert observed[4] == 0
    assert ((observed[:4] - expected[:4]) ** 2 / expected[:4]).sum() < 30.7  # 3 degrees of freedom


def test_sample_step_compiles_once_whatever_the_temperature() -> None:
    params, kwargs = settings()
    before = sample_step._cache_size()
    for temperature in (0.0, 0.7, 1.0):
        state = SampleState(
            kwargs["model"].initialize_carry(2),
            jnp.array([1, 2], jnp.int32),
            jax.random.split(jax.random.key(0), 2),
        )
        state, token = sample_step(params, state, model=kwargs["model"], temperature=temperature)
        assert token.shape == (2,)
    assert sample_step._cache_size() == before + 1


def test_unknown_characters_of_a_prompt_are_named_or_skipped() -> None:
    params, kwargs = settings()
    with pytest.raises(UserError, match="'Z' at position 1"):
        generate(params, ["aZb"], **kwargs)
    skipped = generate(params, ["aZb"], unk="skip", **kwargs)
    assert skipped[0].text == generate(params, ["ab"], **kwargs)[0].text
    with pytest.raises(UserError, match="no character that the model knows"):
        generate(params, ["ZZ"], unk="skip", **kwargs)


def test_empty_prompt_starts_a_line() -> None:
    params, kwargs = settings()
    assert generate(params, [""], **kwargs)[0].text == generate(params, ["\n"], **kwargs)[0].text
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
    ],
)
def test_wrong_arguments_are_refused(prompts, changes: dict) -> None:
    params, kwargs = settings()
    with pytest.raises((ValueError, TypeError), match=r"prompts|temperature|num_chars|unk"):
        generate(params, prompts, **{**kwargs, **changes})
