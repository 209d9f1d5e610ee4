"""Generates text with the model in this folder; needs only the packages jax and flatbuffers.

python generate.py --prompt "ROMEO:" --num_chars 100 --temperature 0.8 --seed 0
"""

import argparse
import json
import re
import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

FOLDER = Path(__file__).parent
# Control characters except \n and \t, and the marks that change the direction of text.
CONTROLS = "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"


def load_function(name: str) -> export.Exported:
    """Reads a program written by `jax.export`."""
    return export.deserialize(bytearray((FOLDER / name).read_bytes()))


def load_weights(name: str) -> dict[str, np.ndarray]:
    """Reads a safetensors file: 8 bytes with the header's size, the JSON header, the numbers."""
    data = (FOLDER / name).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = json.loads(data[8:start])
    tensors.pop("__metadata__", None)
    weights = {}
    for key, tensor in tensors.items():
        first, end = tensor["data_offsets"]
        numbers = np.frombuffer(data[start + first : start + end], "<f4")
        weights[key] = numbers.reshape(tensor["shape"])
    return weights


def generate(prompt: np.ndarray, *, num_chars: int, temperature: float, seed: int) -> np.ndarray:
    """Returns `num_chars` ids that continue the ids of a prompt."""
    program = load_function("step.stablehlo")
    prepare = jax.jit(load_function("prepare.stablehlo").call)
    weights = prepare(load_weights("weights.safetensors"))
    # A text's key depends on the seed, the prompt, and its index among equal prompts, here 0.
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(prompt.astype(np.uint32).tobytes()))
    key = jax.random.fold_in(key, 0)

    @jax.jit
    def step(weights, ids, carry, position):
        step_key = jax.random.fold_in(key, position)
        return program.call(weights, ids, carry, step_key[None], temperature)

    (_, _, carry, _, _), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    carry = jax.tree.map(lambda c: jnp.zeros((1, *c.shape[1:]), c.dtype), carry)
    for token in prompt[:-1]:
        _, carry = step(weights, jnp.array([token], jnp.int32), carry, 0)  # the drawn id is unused
    ids, drawn = jnp.array(prompt[-1:], jnp.int32), []
    for position in range(num_chars):
        ids, carry = step(weights, ids, carry, position)
        drawn.append(ids)
    return np.concatenate(jax.device_get(drawn))


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Generates text with the model in this folder.")
    parser.add_argument("--prompt", default="", help="text to continue; default: a line break")
    parser.add_argument("--num_chars", type=int, default=1000, metavar="N")
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="0: always the most likely character; 1: the model's distribution",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args()

    vocabulary = json.loads((FOLDER / "vocabulary.json").read_text())
    of_bytes = vocabulary["kind"] == "bytes"  # bytes are handled as the characters 0 to 255
    characters = "".join(map(chr, range(256))) if of_bytes else vocabulary["characters"]
    text = args.prompt or ("\n" if "\n" in characters else characters[0])
    if of_bytes:
        text = text.encode("utf-8", "surrogateescape").decode("latin-1")
    problem = ""
    if unknown := "".join(character for character in text if character not in characters):
        problem = f"--prompt has characters that the model does not know: {unknown!r}"
    elif args.num_chars < 1:
        problem = f"--num_chars is {args.num_chars}; it must be at least 1"
    elif args.temperature and not 1e-6 <= args.temperature <= 1e6:
        problem = f"--temperature is {args.temperature}; it must be 0, or from 1e-6 to 1e6"
    elif not 0 <= args.seed < 2**32:
        problem = f"--seed is {args.seed}; it must be from 0 to 4294967295"
    if problem:
        parser.exit(2, f"{parser.prog}: error: {problem}\n")

    # Characters have the ids 1, 2, ...; 0 is [UNK], which is never drawn.
    prompt = np.array([1 + characters.index(character) for character in text])
    ids = generate(prompt, num_chars=args.num_chars, temperature=args.temperature, seed=args.seed)
    written = "".join(characters[i - 1] for i in ids)
    if of_bytes:
        written = written.encode("latin-1").decode("utf-8", "replace")
    shown = f"{args.prompt}{written}\n"
    if sys.stdout.isatty():  # a terminal must not obey what the model writes
        shown = re.sub(CONTROLS, lambda control: ascii(control[0])[1:-1], shown)
    sys.stdout.buffer.write(shown.encode("utf-8", "backslashreplace"))


if __name__ == "__main__":
    main()
