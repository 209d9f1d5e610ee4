"""The recurrence by hand against `nn.scan`, and against a loop that rounds as bfloat16 does."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import possible, slow
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

import charrnn_jax.models.fused
from charrnn_jax.evaluation.metrics import cross_entropy
from charrnn_jax.models.cells import CELLS, Operations, Weights
from charrnn_jax.models.char_rnn import CharRNN, forward, initialize_params, summary
from charrnn_jax.models.fused import run_fused, run_fused_on_tokens
from charrnn_jax.models.products import can_train_in_bfloat16, product, times_transposed

V, E, H = 11, 6, 8


def equal_to(relative: float, ours, theirs) -> None:
    """Every array is within `relative` of the other, measured in its own norm."""

    def check(a: jax.Array, b: jax.Array) -> None:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= relative * np.linalg.norm(b) + 1e-9

    jax.tree.map(check, ours, theirs)


def random_like(tree, seed: int, scale: float = 0.3):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), jnp.float32), tree)


def loss(params, carry, tokens, *, model: CharRNN):
    """A scalar that depends on every logit and on the last carry; also returns these."""
    carry, logits = forward(params, carry, tokens[:, :-1], model=model)
    ends = sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(carry))
    return cross_entropy(logits, tokens[:, 1:]).sum() + ends, (carry, logits)


@lru_cache
def value_and_gradients(model: CharRNN):
    return jax.jit(jax.value_and_grad(partial(loss, model=model), argnums=(0, 1), has_aux=True))


def make(cell: str, num_layers: int, *, seed: int = 0, **attributes):
    """The models of both implementations, and parameters for them."""
    scan, fused = (
        CharRNN(V, E, H, num_layers, cell, implementation=implementation, **attributes)
        for implementation in ("scan", "fused")
    )
    shapes = jax.eval_shape(lambda: initialize_params(scan, jax.random.key(0)))
    return scan, fused, random_like(shapes, seed)


@pytest.mark.parametrize(
    ("cell", "num_layers"),
    [
        ("gru", 2),
        ("lstm", 1),
        slow("rnn", 1),
        *(slow(cell, 2) for cell in ("layer_norm_gru", "layer_norm_lstm")),
        *(slow(cell, 2) for cell in ("mogrifier_lstm", "slstm")),
    ],
)
@given(
    shape=st.sampled_from([(1, 1), (3, 2), (2, 100)]),  # batch size and length
    carry_scale=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=10, deadline=None)
def test_fused_equals_scan_in_values_and_gradients(
    cell: str, num_layers: int, shape: tuple[int, int], carry_scale: float, seed: int
) -> None:
    scan, fused, params = make(cell, num_layers, seed=seed)
    carry = random_like(scan.initialize_carry(shape[0]), seed + 1, carry_scale)
    carry = tuple(possible(cell, layer_carry) for layer_carry in carry)
    tokens = np.random.default_rng(seed).integers(0, V, (shape[0], shape[1] + 1))
    # The scalar itself is a sum that may cancel to next to nothing; what it is made of may not.
    (_, expected), expected_gradients = value_and_gradients(scan)(params, carry, tokens)
    (_, values), gradients = value_and_gradients(fused)(params, carry, tokens)
    # Rarely, gradients of the layer_norm_lstm after 100 steps are sensitive: parameters that differ
    # in their last bit move those of scan itself by 1e-4. Usually, scan and fused differ by 1e-6.
    relative = 1e-4 if cell == "layer_norm_lstm" else 1e-5
    equal_to(relative, (values, gradients), (expected, expected_gradients))


@pytest.mark.parametrize(("cell", "gates"), [("gru", 3), ("lstm", 4)])
def test_a_kernel_transposed_for_its_size_changes_nothing(
    cell: str, gates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, fused, params = make(cell, 2)
    carry = random_like(scan.initialize_carry(3), 1)
    tokens = np.random.default_rng(0).integers(0, V, (3, 8))
    kernels = []  # of the products with a transposed kernel

    def recorded(x: jax.Array, kernel: jax.Array) -> jax.Array:
        kernels.append(kernel.shape)
        return times_transposed(x, kernel)

    monkeypatch.setattr(charrnn_jax.models.fused, "times_transposed", recorded)
    monkeypatch.setattr(charrnn_jax.models.fused, "_LARGE_BYTES", 0)
    _, gradients = jax.jit(jax.value_and_grad(partial(loss, model=fused), (0, 1), has_aux=True))(
        params, carry, tokens
    )
    equal_to(1e-5, gradients, value_and_gradients(scan)(params, carry, tokens)[1])
    assert set(kernels) == {(gates * H, H), (H, gates * H)}  # forward, backward


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 40])
def test_product_with_a_transposed_kernel_equals_the_sum_of_rounded_products(
    rows: int, dtype: str
) -> None:
    x, kernel = random_like((jnp.zeros((rows, 24)), jnp.zeros((10, 24))), 0)
    kernel = kernel.astype(dtype)
    result = jax.jit(times_transposed)(x, kernel)
    rounded = np.asarray(x.astype(dtype), np.float64)
    equal_to(1e-6, result, rounded @ np.asarray(kernel, np.float64).T)
    assert result.dtype == jnp.float32


@pytest.mark.parametrize("vocabulary_size", [5, 300])
def test_rows_of_a_projected_table_equal_projected_rows(vocabulary_size: int) -> None:
    """A table is projected as a whole if it is small; its gradient is summed in two ways."""
    params = random_like(make("gru", 1)[2]["layers_0"]["cell"], 0)
    table = random_like(jnp.zeros((vocabulary_size, E)), 1)
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, vocabulary_size, (20, 16)))

    gru = CELLS["gru"].fused

    def with_table(table, tokens):
        carry = jnp.zeros((tokens.shape[0], H))
        return jnp.sin(run_fused_on_tokens(params, carry, tokens, table=table, fused=gru)[1]).sum()

    def with_rows(table, tokens):
        carry = jnp.zeros((tokens.shape[0], H))
        return jnp.sin(run_fused(params, carry, table[tokens], fused=gru)[1]).sum()

    both = jax.jit(lambda *a: [jax.value_and_grad(f)(*a) for f in (with_table, with_rows)])
    equal_to(1e-5, *both(table, tokens))
    equal_to(1e-5, *both(table, tokens[:1, :2]))  # fewer tokens than rows


@pytest.mark.skipif(not can_train_in_bfloat16(), reason="this jaxlib cannot on this processor")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_product_and_its_gradient_round_every_operand_and_nothing_else(dtype: str) -> None:
    """Against sums in float64 of operands that NumPy rounds."""
    rng = np.random.default_rng(0)
    x, kernel, d_y = (
        rng.normal(size=shape).astype("f") for shape in ((3, 5, 24), (24, 10), (3, 5, 10))
    )

    def rounded(array: np.ndarray) -> np.ndarray:
        return array.astype(jnp.dtype(dtype)).astype(np.float64)

    @jax.jit
    def both(x, kernel, d_y):
        y, pull_back = jax.vjp(partial(product, dtype=dtype), x, kernel)
        return y, pull_back(d_y)

    y, (d_x, d_kernel) = both(x, kernel, d_y)
    equal_to(1e-6, y, rounded(x) @ rounded(kernel))
    equal_to(1e-6, d_x, rounded(d_y) @ rounded(kernel).T)
    equal_to(1e-6, d_kernel, np.einsum("abk,abn->kn", rounded(x), rounded(d_y)))
    assert {leaf.dtype for leaf in (y, d_x, d_kernel)} == {jnp.dtype("float32")}

    @jax.jit
    def of_transpose(x, kernel, d_y):
        return jax.vjp(lambda x, kernel: product(x, kernel.T, dtype=dtype), x, kernel)[1](d_y)

    equal_to(1e-6, of_transpose(x, kernel.T, d_y), (d_x, d_kernel.T))


@jax.custom_vjp
def rounded_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _rounded(x) @ _rounded(kernel)


def _rounded(x: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16).astype(jnp.float32)


rounded_product.defvjp(
    lambda x, kernel: (rounded_product(x, kernel), (x, kernel)),
    lambda saved, d: (
        _rounded(d) @ _rounded(saved[1]).T,
        _rounded(saved[0]).T @ _rounded(d),
    ),
)


@pytest.mark.skipif(not can_train_in_bfloat16(), reason="this jaxlib cannot on this processor")
@pytest.mark.parametrize(
    ("cell", "batch_size"),
    [
        ("gru", 16),
        *(slow(*case) for case in (("lstm", 4), ("gru", 4), ("lstm", 16), ("rnn", 4), ("rnn", 16))),
    ],
)
def test_bfloat16_rounds_the_operands_of_products_and_nothing_else(
    cell: str, batch_size: int
) -> None:
    """Against a Python loop over time whose products round both ways."""
    params = random_like(make(cell, 1)[2]["layers_0"]["cell"], 3)
    inputs = random_like(jnp.zeros((batch_size, 7, E)), 4)
    gates = CELLS[cell].gates.names
    carry = random_like(CELLS[cell].initialize_carry(batch_size, H), 5)

    def by_hand(params, carry, inputs):
        def dense(name, x):
            y = rounded_product(x, params[name]["kernel"])
            return y + params[name]["bias"][None] if "bias" in params[name] else y

        outputs = []
        for t in range(inputs.shape[1]):
            x, h = inputs[:, t], carry[1] if cell == "lstm" else carry
            a = {g: dense("i" + g, x) for g in gates}
            q = {g: dense("h" + g, h) for g in gates}
            if cell == "gru":
                r, z = jax.nn.sigmoid(a["r"] + q["r"]), jax.nn.sigmoid(a["z"] + q["z"])
                n = jnp.tanh(a["n"] + r * q["n"])
                h = carry = (1 - z) * n + z * h
            elif cell == "lstm":
                i, f, o = (jax.nn.sigmoid(a[g] + q[g]) for g in "ifo")
                c = f * carry[0] + i * jnp.tanh(a["g"] + q["g"])
                h = o * jnp.tanh(c)
                carry = c, h
            else:
                h = carry = jnp.tanh(a[""] + q[""])
            outputs.append(h)
        return carry, jnp.stack(outputs, 1)

    def scalar(function):
        def f(*args):
            result = function(*args)
            return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(result)), result

        return jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))

    fused = partial(run_fused, fused=CELLS[cell].fused, dtype="bfloat16")
    (value, result), gradients = scalar(fused)(params, carry, inputs)
    (expected_value, expected), expected_gradients = scalar(by_hand)(params, carry, inputs)
    equal_to(1e-4, (value, result), (expected_value, expected))
    # Biases sum what is rounded already, here what is not yet; all else is rounded alike.
    biases, others = (
        [
            [
                leaf
                for path, leaf in jax.tree.leaves_with_path(tree)
                if ("bias" in str(path)) == is_bias
            ]
            for tree in (gradients, expected_gradients)
        ]
        for is_bias in (True, False)
    )
    equal_to(1e-5, *others)
    equal_to(2e-3, *biases)
    exact = run_fused(params, carry, inputs, fused=CELLS[cell].fused)
    assert not np.allclose(exact[1], result[1], rtol=1e-4, atol=1e-4)
    assert {leaf.dtype for leaf in jax.tree.leaves((result, gradients))} == {jnp.dtype("float32")}


@pytest.mark.skipif(not can_train_in_bfloat16(), reason="this jaxlib cannot on this processor")
@pytest.mark.parametrize("cell", ["slstm", slow("mogrifier_lstm")])
def test_bfloat16_of_a_cell_is_its_step_with_rounded_products(cell: str) -> None:
    """Against a Python loop over the step of the cell, with products that round both ways."""
    fused = CELLS[cell].fused
    params = random_like(make(cell, 1)[2]["layers_0"]["cell"], 3)
    inputs = random_like(jnp.zeros((4, 7, E)), 4)
    carry = possible(cell, random_like(CELLS[cell].initialize_carry(4, H), 5))

    def by_hand(params, carry, inputs):
        def operations(of: Weights) -> Operations:
            def times(name: str, x: jax.Array) -> jax.Array:
                kernel = of.kernels[name]
                if kernel.ndim == 2:
                    return rounded_product(x, kernel)
                heads = [rounded_product(x[:, j], kernel[j]) for j in range(len(kernel))]
                return jnp.stack(heads, axis=1)

            return Operations(times, {name: vector[None] for name, vector in of.vectors.items()})

        weights, outputs = fused.gather(params), []
        for t in range(inputs.shape[1]):
            a = fused.read(operations(weights.inputs), inputs[:, t])
            carry, y = fused.step(operations(weights.recurrent), carry, a)
            outputs.append(y)
        return carry, jnp.stack(outputs, 1)

    def with_gradients(function):
        def total(*args):
            result = function(*args)
            return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(result)), result

        return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(params, carry, inputs)

    gradients, result = with_gradients(partial(run_fused, fused=fused, dtype="bfloat16"))
    expected_gradients, expected = with_gradients(by_hand)
    equal_to(1e-5, result, expected)
    equal_to(2e-3, gradients, expected_gradients)  # input biases sum what is rounded, here not
    exact = run_fused(params, carry, inputs, fused=fused)
    assert not np.allclose(exact[1], result[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "cell", ["gru", *(slow(c) for c in ("lstm", "rnn", "mogrifier_lstm", "slstm"))]
)
def test_gradient_of_a_gradient_equals_scans(cell: str) -> None:
    scan, fused, params = make(cell, 1)
    carry = random_like(scan.initialize_carry(2), 1)
    carry = tuple(possible(cell, layer_carry) for layer_carry in carry)
    tokens = np.random.default_rng(0).integers(0, V, (2, 5))

    def sharpness(params, model):
        gradient = jax.grad(lambda p: loss(p, carry, tokens, model=model)[0])(params)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))

    second = jax.jit(jax.grad(sharpness), static_argnums=1)
    equal_to(1e-4, second(params, fused), second(params, scan))
    with pytest.raises(NotImplementedError, match="float32, not bfloat16"):
        second(params, fused.clone(dtype="bfloat16"))


def test_forward_mode_is_refused_and_left_to_the_scan() -> None:
    scan, fused, params = make("gru", 1)
    carry, tokens = scan.initialize_carry(1), np.zeros((1, 3), np.int32)

    def directional(model):
        f = lambda p: loss(p, carry, tokens, model=model)[0]  # noqa: E731
        return jax.jvp(f, (params,), (params,))[1]

    assert np.isfinite(jax.jit(lambda: directional(scan))())
    with pytest.raises(TypeError, match="forward-mode"):
        directional(fused)


@pytest.mark.parametrize("cell", CELLS)
def test_implementations_have_the_same_parameters(cell: str) -> None:
    scan, fused, _ = make(cell, 2)
    key = jax.random.key(0)
    jax.tree.map(
        np.testing.assert_array_equal, initialize_params(scan, key), initialize_params(fused, key)
    )


@pytest.mark.parametrize("implementation", ["scan", "fused"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_lower_for_every_platform_without_its_hardware(
    cell: str, implementation: str
) -> None:
    model = CharRNN(V, E, H, 2, cell, implementation=implementation)
    params = jax.eval_shape(lambda: initialize_params(model, jax.random.key(0)))
    carry = jax.eval_shape(lambda: model.initialize_carry(2))
    tokens = jax.ShapeDtypeStruct((2, 6), jnp.int32)
    platforms = ("cpu", "cuda", "tpu")
    exported = export.export(value_and_gradients(model), platforms=platforms)(params, carry, tokens)
    assert exported.platforms == platforms


def test_locked_noise_drops_the_same_units_all_along_a_sequence() -> None:
    """Seen through a dense layer that shows its input, behind a cell whose output is constant."""
    tokens = jnp.zeros((3, 9), jnp.int32)
    for noise, columns in (("step", 9), ("locked", 1)):
        model = CharRNN(V, E, H, dropout=0.5, dropout_noise=noise)
        params = initialize_params(model, jax.random.key(0))
        params = jax.tree.map(jnp.zeros_like, params)
        cell = params["layers_0"]["cell"]
        cell["in"]["bias"] = jnp.ones(H)
        params["dense"]["kernel"] = jnp.eye(H, V)
        rngs = {"dropout": jax.random.key(1)}
        carry = jnp.full((3, H), jnp.tanh(1.0))
        _, logits = model.apply(
            {"params": params}, (carry,), tokens, deterministic=False, rngs=rngs
        )
        kept = np.asarray(logits[..., :H] != 0)
        assert 0.2 < kept.mean() < 0.8
        assert len({kept[:, t].tobytes() for t in range(9)}) == columns
    assert len({row.tobytes() for row in kept}) > 1  # every sequence has its own


def test_input_dropout_acts_only_in_training() -> None:
    _, _, params = make("gru", 1)
    plain, dropping = CharRNN(V, E, H), CharRNN(V, E, H, input_dropout=0.5)
    tokens, carry = np.arange(10).reshape(2, 5), plain.initialize_carry(2)
    expected = forward(params, carry, tokens, model=plain)[1]
    equal_to(1e-6, forward(params, carry, tokens, model=dropping)[1], expected)
    key = jax.random.key(0)
    dropped = forward(params, carry, tokens, model=dropping, dropout_key=key)[1]
    assert not np.allclose(dropped, expected)


def test_summary_says_how_the_recurrence_is_computed() -> None:
    assert "Recurrence: fused (auto), products of float32" in summary(CharRNN(V, E, H))
    scan = CharRNN(V, E, H, implementation="scan")
    assert "Recurrence: scan, products of float32" in summary(scan)
