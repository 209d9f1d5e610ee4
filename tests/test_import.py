import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import slow
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from charrnn_jax.data.vocabulary import UNK_ID
from charrnn_jax.errors import UserError
from charrnn_jax.evaluation.metrics import cross_entropy
from charrnn_jax.generation.sampler import generate
from charrnn_jax.main import main
from charrnn_jax.models.char_rnn import CharRNN, initialize_params
from charrnn_jax.models.char_rnn import forward as unjitted_forward
from charrnn_jax.models.conversion import from_keras, from_pytorch
from charrnn_jax.training.loop import train
from charrnn_jax.workdir.import_run import import_run
from charrnn_jax.workdir.run import load_run

E, H = 12, 24
CHARACTERS = list("zebra \nQuick,fox漢é")  # in no order, without [UNK]
forward = jax.jit(unjitted_forward, static_argnames="model")


def write_vocabulary(folder: Path, symbols: object) -> Path:
    file = folder / "vocabulary.json"
    file.write_text(json.dumps(symbols))
    return file


def random_ids(num_ids: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).integers(0, num_ids, shape)


def logits_of(settings: dict, params, tokens: np.ndarray) -> np.ndarray:
    model = CharRNN(len(params["embedding"]["embedding"]), **settings)
    template = jax.eval_shape(partial(initialize_params, model), jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, template)
    return forward(params, model.initialize_carry(len(tokens)), tokens, model=model)[1]


def assert_close(ours, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


# --- PyTorch ------------------------------------------------------------------------------------


def torch_model(cell: str, num_layers: int = 1):
    """char-rnn.pytorch's names; weights large enough that the text does not stand still.

    The recurrent ones stay as they are, or the network would be chaotic: what rounding differs in
    would grow until the texts differ.
    """
    torch = pytest.importorskip("torch")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Embedding(len(CHARACTERS), E)
            self.rnn = getattr(torch.nn, cell)(E, H, num_layers)
            self.decoder = torch.nn.Linear(H, len(CHARACTERS))

        def forward(self, ids, carry=None):
            """ids [T, B]"""
            outputs, carry = self.rnn(self.encoder(ids), carry)
            return self.decoder(outputs), carry

    torch.manual_seed(0)
    model = Model()
    for name, parameter in model.named_parameters():
        if "weight_hh" not in name:
            parameter.data *= 3
    return model


def torch_greedy(model, num_chars: int) -> list[str]:
    """What the model writes behind each of its characters."""
    import torch

    tokens, carry = [torch.arange(len(CHARACTERS))[None]], None
    for _ in range(num_chars):
        logits, carry = model(tokens[-1], carry)
        tokens.append(logits.argmax(-1))
    return ["".join(CHARACTERS[i] for i in row) for row in torch.cat(tokens[1:]).T]


@pytest.mark.parametrize(
    ("cell", "num_layers"),
    [("GRU", 2), ("LSTM", 1), ("RNN", 1), slow("GRU", 1), slow("LSTM", 2), slow("RNN", 2)],
)
def test_pytorch_model_gives_the_same_logits_loss_and_text(
    cell: str, num_layers: int, tmp_path: Path
) -> None:
    model = torch_model(cell, num_layers)
    import safetensors.torch
    import torch

    safetensors.torch.save_model(model, tmp_path / "model.safetensors")
    vocabulary = write_vocabulary(tmp_path, CHARACTERS)
    run = import_run(tmp_path / "model.safetensors", vocabulary, workdir=tmp_path / "run")

    ids = random_ids(len(CHARACTERS), (100, 3))
    with torch.no_grad():
        expected = model(torch.tensor(ids))[0]
        loss = torch.nn.functional.cross_entropy(
            expected[:-1].flatten(0, 1), torch.tensor(ids[1:]).flatten()
        )
        texts = torch_greedy(model, 200)
    ours = run.vocabulary.encode("".join(CHARACTERS)).astype(int)  # our id of each of theirs
    logits = np.asarray(
        forward(run.params, run.model.initialize_carry(3), ours[ids.T], model=run.model)[1]
    )
    assert_close(logits[..., ours], expected.numpy().swapaxes(0, 1))
    assert (logits[..., UNK_ID] == -1e4).all()
    losses = cross_entropy(logits[:, :-1], ours[ids.T[:, 1:]])
    np.testing.assert_allclose(losses.mean(), loss.item(), rtol=1e-5)
    samples = generate(
        run.params,
        CHARACTERS,
        model=run.model,
        vocabulary=run.vocabulary,
        num_chars=200,
        temperature=0.0,
    )
    assert [sample.text for sample in samples] == texts
    assert len(set("".join(texts))) > 5


def test_pytorch_names_types_shared_weights_and_missing_biases_do_not_matter() -> None:
    arrays = {name: tensor.numpy() for name, tensor in torch_model("GRU").state_dict().items()}
    settings, params = from_pytorch(arrays)
    assert settings == {"cell": "gru", "embedding_size": E, "hidden_size": H, "num_layers": 1}
    named = {f"module.lm_{name}": array for name, array in arrays.items()}
    jax.tree.map(np.testing.assert_array_equal, from_pytorch(named)[1], params)

    half = {name: array.astype(jnp.bfloat16) for name, array in arrays.items()}
    rounded = {name: array.astype(np.float32) for name, array in half.items()}
    jax.tree.map(np.testing.assert_array_equal, from_pytorch(half)[1], from_pytorch(rounded)[1])

    without = {name: array for name, array in arrays.items() if "bias" not in name}
    zero = {name: array * (name in without) for name, array in arrays.items()}
    jax.tree.map(np.testing.assert_array_equal, from_pytorch(without)[1], from_pytorch(zero)[1])

    square = np.ones((3 * H, H), np.float32)
    shared = {**arrays, "rnn.weight_ih_l0": square, "encoder.weight": arrays["decoder.weight"]}
    one_name = {name: array for name, array in shared.items() if name != "encoder.weight"}
    jax.tree.map(np.testing.assert_array_equal, from_pytorch(one_name)[1], from_pytorch(shared)[1])


@pytest.mark.parametrize("size", [len(CHARACTERS), len(CHARACTERS) + 5])
def test_one_hot_pytorch_model_gives_the_same_logits(size: int, tmp_path: Path) -> None:
    """Also where the vocabulary is as large as the hidden layer: nothing is a shared embedding."""
    torch = pytest.importorskip("torch")
    import safetensors.torch

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = torch.nn.GRU(len(CHARACTERS), size, batch_first=True)
            self.decoder = torch.nn.Linear(size, len(CHARACTERS))

        def forward(self, ids):
            inputs = torch.nn.functional.one_hot(ids, len(CHARACTERS)).float()
            return self.decoder(self.rnn(inputs)[0])

    torch.manual_seed(0)
    model = Model()
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    vocabulary = write_vocabulary(tmp_path, {char: i for i, char in enumerate(CHARACTERS)})
    run = import_run(tmp_path / "model.safetensors", vocabulary, workdir=tmp_path / "run")

    ids = random_ids(len(CHARACTERS), (3, 40))
    with torch.no_grad():
        expected = model(torch.tensor(ids)).numpy()
    ours = run.vocabulary.encode("".join(CHARACTERS)).astype(int)
    carry = run.model.initialize_carry(3)
    logits = np.asarray(forward(run.params, carry, ours[ids], model=run.model)[1])
    assert_close(logits[..., ours], expected)


def test_shared_embedding_as_large_as_the_hidden_layer_is_told_from_one_hot(
    tmp_path: Path,
) -> None:
    """`save_model` leaves one of its names out, and notes it in the file."""
    torch = pytest.importorskip("torch")
    import safetensors.torch

    size = len(CHARACTERS)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Embedding(size, size)
            self.rnn = torch.nn.GRU(size, size)
            self.decoder = torch.nn.Linear(size, size)
            self.decoder.weight = self.encoder.weight

    model = Model()
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    vocabulary = write_vocabulary(tmp_path, {str(i): char for i, char in enumerate(CHARACTERS)})
    run = import_run(tmp_path / "model.safetensors", vocabulary, workdir=tmp_path / "run")
    ours = run.vocabulary.encode("".join(CHARACTERS)).astype(int)
    table = np.asarray(run.params["embedding"]["embedding"])[ours]
    np.testing.assert_array_equal(table, model.encoder.weight.detach().numpy())


# --- Keras --------------------------------------------------------------------------------------


def keras_arrays(cell: str, num_layers: int = 1) -> dict[str, np.ndarray]:
    """What `numpy.savez(file, *model.get_weights())` holds of a model with random weights."""
    rng = np.random.default_rng(0)
    width = {"gru": 3 * H, "lstm": 4 * H, "rnn": H}[cell]
    shapes = [(len(CHARACTERS) + 1, E)]
    for layer in range(num_layers):
        shapes += [(H if layer else E, width), (H, width)]
        shapes += [(2, width) if cell == "gru" else (width,)]
    shapes += [(H, len(CHARACTERS) + 1), (len(CHARACTERS) + 1,)]
    return {
        f"arr_{i}": rng.normal(size=shape, scale=0.3).astype("f") for i, shape in enumerate(shapes)
    }


def keras_logits(cell: str, arrays: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """Keras's documented equations, in float64. ids: [B, T]."""

    def s(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    table, *recurrent, dense_kernel, dense_bias = (x.astype(np.float64) for x in arrays.values())
    x = table[ids]
    for W, U, b in zip(*(recurrent[i::3] for i in range(3)), strict=True):
        h = c = np.zeros((len(ids), len(U)))
        outputs = []
        for t in range(ids.shape[1]):
            if cell == "gru":  # reset_after=True
                xz, xr, xh = np.split(x[:, t] @ W + b[0], 3, axis=1)
                hz, hr, hh = np.split(h @ U + b[1], 3, axis=1)
                z = s(xz + hz)
                h = z * h + (1 - z) * np.tanh(xh + s(xr + hr) * hh)
            elif cell == "lstm":
                i, f, g, o = np.split(x[:, t] @ W + h @ U + b, 4, axis=1)
                c = s(f) * c + s(i) * np.tanh(g)
                h = s(o) * np.tanh(c)
            else:
                h = np.tanh(x[:, t] @ W + h @ U + b)
            outputs.append(h)
        x = np.stack(outputs, axis=1)
    return x @ dense_kernel + dense_bias


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_keras_weights_give_the_logits_of_keras_equations(cell: str, num_layers: int) -> None:
    arrays = keras_arrays(cell, num_layers)
    ids = random_ids(len(CHARACTERS) + 1, (3, 40))
    settings, params = from_keras(arrays)
    assert settings["cell"] == cell
    assert_close(logits_of(settings, params, ids), keras_logits(cell, arrays, ids))


KERAS_PROGRAM = f"""
import keras, numpy, sys
ids = numpy.load("ids.npy")
for cell in ("GRU", "LSTM", "SimpleRNN"):
    layer = getattr(keras.layers, cell)
    model = keras.Sequential([
        keras.layers.Embedding({len(CHARACTERS) + 1}, {E}),
        layer({H}, return_sequences=True),
        layer({H}, return_sequences=True),
        keras.layers.Dense({len(CHARACTERS) + 1}),
    ])
    model(ids)
    rng = numpy.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape, scale=0.3) for w in model.get_weights()])
    numpy.savez(cell + ".npz", *model.get_weights())
    numpy.save(cell + ".npy", model(ids))
"""


@pytest.mark.slow
def test_real_keras_gives_the_same_logits(tmp_path: Path) -> None:
    """In a process of its own: Keras chooses its backend when it is imported."""
    if not importlib.util.find_spec("keras"):
        pytest.skip("keras is not installed")
    ids = random_ids(len(CHARACTERS) + 1, (3, 40))
    np.save(tmp_path / "ids.npy", ids)
    subprocess.run(
        [sys.executable, "-c", KERAS_PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": "jax"},
        check=True,
        capture_output=True,
    )
    for cell in ("GRU", "LSTM", "SimpleRNN"):
        settings, params = from_keras(np.load(tmp_path / f"{cell}.npz"))
        assert_close(logits_of(settings, params, ids), np.load(tmp_path / f"{cell}.npy"))


# --- as a run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GRU of Keras with [UNK] first, as in the tutorial."""
    folder = tmp_path_factory.mktemp("imported")
    np.savez(folder / "model.npz", *keras_arrays("gru").values())
    vocabulary = write_vocabulary(folder, ["[UNK]", *CHARACTERS])
    assert (
        main(
            [
                "import",
                f"--weights={folder / 'model.npz'}",
                f"--vocabulary={vocabulary}",
                f"--workdir={folder / 'run'}",
            ]
        )
        == 0
    )
    return folder / "run"


def test_imported_run_is_sampled_and_scored_by_the_commands(
    imported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = np.array([[1 + CHARACTERS.index(char) for char in "Quick fox"]])
    logits = keras_logits("gru", keras_arrays("gru"), ids)[0]
    losses = np.log(np.exp(logits).sum(-1))[:-1] - logits[np.arange(8), ids[0, 1:]]
    assert main(["score", f"--workdir={imported}", "--text=Quick fox"]) == 0
    assert f"{losses.mean():.4f} nats/char" in capsys.readouterr().out
    assert main(["sample", f"--workdir={imported}", "--num_chars=30"]) == 0
    out, err = capsys.readouterr()
    assert len(out.strip("\n")) > 20
    assert "step 0, trained on an unknown text (imported from model.npz), sha256" in err


def test_imported_run_is_evaluated_on_a_given_text_alone(imported: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Quick fox, zebra\n" * 10)
    with pytest.raises(UserError, match="is not known: give one with --path=TEXT"):
        load_run(imported).load_dataset()
    assert len(load_run(imported).load_dataset(str(text)).splits["validation"]) == 17


def test_imported_run_is_fine_tuned_and_not_resumed(
    imported: Path, tiny_config: ConfigDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=rf"--config.train.init_from={imported}"):
        train(tiny_config, imported)
    tiny_config.train.init_from = str(imported)
    with pytest.raises(UserError, match="embedding_size is 8, not 12; hidden_size is 16, not 24"):
        train(tiny_config, tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()
    tiny_config.model.embedding_size, tiny_config.model.hidden_size = E, H
    tiny_config.train.num_steps = 2
    train(tiny_config, tmp_path / "tuned")
    assert f"Initialised from {imported}, step 0: 15 characters kept" in capsys.readouterr().out


# --- what is refused ----------------------------------------------------------------------------

GOOD = {
    "embedding.weight": np.ones((5, 3), "f"),
    "rnn.weight_ih_l0": np.ones((12, 3), "f"),
    "rnn.weight_hh_l0": np.ones((12, 4), "f"),
    "rnn.bias_ih_l0": np.ones(12, "f"),
    "rnn.bias_hh_l0": np.ones(12, "f"),
    "linear.weight": np.ones((5, 4), "f"),
    "linear.bias": np.ones(5, "f"),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rnn.weight_ih_l0_reverse": np.ones((12, 3), "f")}, "bidirectional"),
        ({"rnn.weight_hr_l0": np.ones((2, 4), "f")}, "projected"),
        ({"other.weight_ih_l0": np.ones((12, 4), "f")}, "2 recurrent modules"),
        ({"norm.weight": np.ones(4, "f"), "norm.bias": np.ones(4, "f")}, "norm.bias, norm.weight"),
        ({"extra.weight": np.ones((4, 4), "f")}, "extra.weight"),
        ({"conv.weight": np.ones((4, 4, 4), "f")}, r"unknown tensors \(conv.weight\)"),
        ({"linear.bias": np.ones(6, "f")}, r"linear layer's bias has the shape \[6\]"),
        ({"rnn.weight_hh_l0": np.ones((8, 4), "f")}, r"a GRU has 12 columns, an LSTM 16"),
        ({"rnn.weight_ih_l0": np.ones((12, 2), "f")}, r"input_kernel has the shape \[2, 12\]"),
        ({"linear.weight": np.full((5, 4), np.nan, "f")}, "linear.weight is empty, or has values"),
        ({"linear.weight": np.ones((5, 4), int)}, "linear.weight is empty, or has values"),
    ],
)
def test_other_pytorch_models_are_refused(changes: dict, message: str) -> None:
    from_pytorch(GOOD)
    with pytest.raises(UserError, match=message):
        from_pytorch({**GOOD, **changes})


@pytest.mark.parametrize("name", GOOD)
def test_incomplete_pytorch_models_are_refused_or_have_no_bias(name: str) -> None:
    arrays = {other: array for other, array in GOOD.items() if other != name}
    if "bias" in name:
        from_pytorch(arrays)
    else:
        with pytest.raises(UserError, match=r"can be imported|for 0 units"):
            from_pytorch(arrays)


@pytest.mark.parametrize(
    ("number", "array", "message"),
    [
        (3, np.ones(3 * H, "f"), "reset_after=False"),
        (3, np.ones((3, 3 * H), "f"), r"input_bias has the shape \[3, 72\]"),
        (2, np.ones((H, 2 * H), "f"), "an LSTM 96"),
        (6, np.ones(3, "f"), "there are 7 arrays"),
        (0, np.ones(5, "f"), "not a matrix"),
        (5, np.full(len(CHARACTERS) + 1, np.inf, "f"), "arr_5 is empty, or has values"),
    ],
)
def test_other_keras_models_are_refused(number: int, array: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_keras({**keras_arrays("gru"), f"arr_{number}": array})


def test_keras_arrays_without_their_order_are_refused(tmp_path: Path) -> None:
    save_file(keras_arrays("gru"), tmp_path / "model.safetensors")
    vocabulary = write_vocabulary(tmp_path, ["[UNK]", *CHARACTERS])
    with pytest.raises(UserError, match="there are 0 recurrent modules"):
        import_run(tmp_path / "model.safetensors", vocabulary, workdir=tmp_path / "run")


@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        (CHARACTERS, "lists 18 characters, but the model of .* has 19 ids"),
        (["<pad>", *CHARACTERS], "not single characters: '<pad>'; the token for unknown"),
        ([CHARACTERS[0], *CHARACTERS], "'z' more than once"),
        ({"a": 1}, "not a JSON list of strings, .* write it with json.dump"),
        ({"a": 0, "b": 0}, "one id from 0 to 1"),
        ({"0": "a", "2": "b"}, "one id from 0 to 1"),
        ({"a": 0, "b": "c"}, "one id from 0 to 1"),
        (3, "is damaged"),
    ],
)
def test_vocabularies_that_do_not_fit_are_refused(
    symbols: object, message: str, tmp_path: Path
) -> None:
    weights = tmp_path / "model.npz"
    np.savez(weights, *keras_arrays("rnn").values())
    with pytest.raises(UserError, match=message):
        import_run(weights, write_vocabulary(tmp_path, symbols), workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.pt", b"PK", r"safetensors\.torch\.save_model\(model"),
        ("model.keras", b"PK", r"numpy\.savez\(\"model\.npz\", \*model\.get_weights\(\)\)"),
        ("model.npz", b"not a zip", "cannot be read"),
        ("model.safetensors", b"\x10", "cannot be read"),
        ("absent.npz", None, "there is no file"),
    ],
)
def test_files_that_are_no_plain_arrays_are_refused(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        import_run(
            tmp_path / name, write_vocabulary(tmp_path, CHARACTERS), workdir=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_workdir_with_a_run_is_not_overwritten(imported: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in imported.rglob("*")}
    with pytest.raises(UserError, match="holds a run: give another --workdir"):
        import_run(
            imported.parent / "model.npz", imported.parent / "vocabulary.json", workdir=imported
        )
    assert {file: file.stat().st_mtime_ns for file in imported.rglob("*")} == before


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("rnn.weight_hh_l0", np.ones(()), "weight_hh_l0 is not a matrix"),
        ("rnn.weight_ih_l0", np.ones(()), "does not fit the other arrays"),
        ("encoder.weight", np.full((3, 2), 1e300), "not finite float32"),
    ],
)
def test_arrays_of_impossible_shapes_and_values_are_refused(
    name: str, array: np.ndarray, message: str
) -> None:
    shapes = {"encoder": (3, 2), "rnn": (12, 2), "decoder": (3, 4)}
    names = ("encoder.weight", "rnn.weight_ih_l0", "decoder.weight")
    arrays = {known: np.ones(shapes[known.split(".")[0]]) for known in names}
    arrays["rnn.weight_hh_l0"] = np.ones((12, 4))
    from_pytorch(arrays)
    with pytest.raises(UserError, match=message):
        from_pytorch({**arrays, name: array})
