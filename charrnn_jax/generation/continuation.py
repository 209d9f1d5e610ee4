"""`Continuation`: a text with the state of the sampler after it, to continue or to branch."""

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from charrnn_jax.errors import UserError
from charrnn_jax.files import replacing
from charrnn_jax.generation.choice import Choice, check_keywords
from charrnn_jax.generation.prompts import encode_prompt, pad, row_keys
from charrnn_jax.generation.rules import Rules, start_memory
from charrnn_jax.generation.sampler import CHUNK, Sampler, SampleState, fetch
from charrnn_jax.generation.writer import Sample, Writer
from charrnn_jax.reading import read_npz


@dataclass(frozen=True)
class Continuation:
    """A text written so far. Methods return a new continuation and leave this one unchanged.

        story = Continuation.start(sampler, "Once")
        endings = [story.branch(seed).write(200) for seed in range(3)]

    Writing 40 characters and then 60 gives the same text as writing 100, except with a pattern,
    which starts anew in each call of `write`.

    Attributes:
      sampler: sampler that continues the text.
      tokens: [num_chars] ids of the whole text, including the prompt.
      state: state of the sampler after the text, with one row and without the memory of rules.
      last: what the last `write` wrote; None: nothing has been written.
    """

    sampler: Sampler
    tokens: np.ndarray
    state: SampleState
    last: Sample | None = None

    @classmethod
    def start(
        cls, sampler: Sampler, prompt: str = "", *, seed: int = 0, unk: str = "error"
    ) -> "Continuation":
        """Starts a text from a prompt; for arguments and errors, see `Sampler.generate`."""
        tokens = encode_prompt(prompt, sampler.vocabulary, unk=unk)
        return cls(sampler, tokens, sampler.prime([tokens], seed=seed, rules=()))

    @property
    def text(self) -> str:
        """The whole text, including the prompt."""
        return self.sampler.vocabulary.decode(self.tokens)

    def write(
        self,
        num_chars: int,
        *,
        stop: Sequence[str] = (),
        on_text: Callable[[str], bool | None] = lambda piece: None,
        rules: Rules | None = None,
        **choice: Unpack[Choice],
    ) -> "Continuation":
        """Continues the text.

        Args:
          num_chars: largest number of characters to write, at least 1 (for a vocabulary of bytes:
            bytes).
          stop: strings before which the text ends.
          on_text: called with each new piece of the text; if it returns False, the text ends.
          rules: your own rules, instead of `choice`.
          **choice: settings of `make_rules`: temperature, top_k, top_p, ...

        Raises:
          UserError, TypeError: see `Sampler.generate`.
        """
        check_keywords(choice, known=Choice, function="write")
        if num_chars < 1:
            raise UserError(f"num_chars is {num_chars}; it must be at least 1")
        rules = self.sampler.choose_rules(rules, **choice)
        writer = Writer(
            self.sampler.vocabulary, num_chars=num_chars, stop=stop, context=self.tokens[-4:]
        )
        state, num_drawn = self._with_memory(rules), 0
        # The states before the last few chunks: text that is held back may span several.
        longest = max(map(len, writer.stop), default=0)
        starts: deque[tuple[int, SampleState]] = deque(maxlen=2 + longest // CHUNK)
        while not writer.finish:
            starts.append((num_drawn, jax.tree.map(jnp.copy, state)))  # drawing donates the state
            num_steps = min(CHUNK, num_chars - num_drawn)
            state, drawn = self.sampler.draw_chunk(state, num_steps, rules=rules)
            new_tokens, log_probabilities = fetch(drawn, num_steps)
            num_drawn += num_steps
            piece = writer.add(new_tokens[:, 0], log_probabilities[:, 0])
            if on_text(piece) is False and not writer.finish:
                writer.interrupt()
        if num_drawn > len(writer.tokens):  # drawn beyond the end: draw again, up to the end
            num_kept = len(writer.tokens)
            first, state = next(start for start in reversed(starts) if start[0] <= num_kept)
            state, _ = self.sampler.draw_chunk(state, num_kept - first, rules=rules)
        tokens = np.concatenate([self.tokens, np.array(writer.tokens, self.tokens.dtype)])
        last = writer.sample(prompt=self.text)
        return replace(self, tokens=tokens, state=replace(state, memory=()), last=last)

    def read(self, text: str, *, unk: str = "error") -> "Continuation":
        """Adds your own text, as if the model had written it.

        Args:
          text: the text to add.
          unk: what to do with unknown characters: "error", or "skip" (drop them).

        Raises:
          UserError: the text has characters that the model does not know.
        """
        new = self.sampler.vocabulary.encode(text, unk=unk)
        if not new.size:
            return self
        tokens = np.concatenate([self.tokens, new])
        return replace(self, tokens=tokens, state=self.sampler.read(self.state, new))

    def branch(self, seed: int) -> "Continuation":
        """Returns the same text with another seed for what is written next."""
        key = row_keys(seed, [self.tokens], num_rows=1)
        return replace(self, state=replace(self.state, key=self._put(key)))

    def save(self, file: str | Path) -> None:
        """Writes the text and the state to a file, for `load`."""
        leaves = jax.device_get(jax.tree.leaves(_with_plain_key(self.state)))
        named = {f"state_{i}": leaf for i, leaf in enumerate(leaves)}
        identity = _identity(self.sampler)
        with replacing(Path(file)) as partial, partial.open("wb") as opened:
            np.savez(opened, identity=identity, tokens=self.tokens, **named)

    @classmethod
    def load(cls, file: str | Path, *, sampler: Sampler) -> "Continuation":
        """Reads a text that `save` has written.

        Args:
          file: path of the file.
          sampler: sampler with the same cell, sizes and vocabulary; its weights may differ.

        Raises:
          UserError: there is no such file, it is damaged, or it belongs to another kind of model.
        """
        template = _with_plain_key(sampler.prime([np.array([1])], seed=0, rules=()))
        expected = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(template)]
        try:
            saved = read_npz(file)
            identity, tokens = str(saved["identity"]), saved["tokens"]
            leaves = [saved[f"state_{i}"] for i in range(len(expected))]
        except KeyError as error:
            raise UserError(f"{file} is not a saved text: give another file") from error
        except UserError as error:
            raise UserError(f"cannot read a saved text: {error}; give another file") from error
        if identity != _identity(sampler):
            raise UserError(
                f"{file} was saved with another model: open it with the run that wrote it"
            )
        ids = np.arange(sampler.vocabulary.size)
        is_row = tokens.ndim == 1 and tokens.size and tokens.dtype.kind in "iu"
        is_text = is_row and np.isin(tokens, ids).all()
        if not is_text or [(leaf.shape, leaf.dtype) for leaf in leaves] != expected:
            raise UserError(f"{file} is damaged: give another file")
        leaves = jax.device_put(leaves, template.token.sharding)
        state = jax.tree.unflatten(jax.tree.structure(template), leaves)
        state = replace(state, key=jax.random.wrap_key_data(state.key))
        return cls(sampler, tokens.astype(sampler.vocabulary.dtype), state)

    def _put(self, arrays: Any) -> Any:
        """Puts arrays where the state is; XLA would recompile for arrays that are anywhere else."""
        return jax.device_put(arrays, self.state.token.sharding)

    def _with_memory(self, rules: Rules) -> SampleState:
        """Returns a copy of the state, with the memory that the rules have after the text."""
        padded, lengths = self._put(pad([self.tokens]))
        memory = start_memory(rules, padded, lengths)
        return replace(jax.tree.map(jnp.copy, self.state), memory=memory)


def _with_plain_key(state: SampleState) -> SampleState:
    return replace(state, key=jax.random.key_data(state.key))


def _identity(sampler: Sampler) -> str:
    """Returns what two samplers must have in common to share a state, as JSON."""
    model = sampler.model
    sizes = {"cell": model.cell, "layers": model.num_layers, "hidden_size": model.hidden_size}
    return json.dumps({**sizes, **sampler.vocabulary.to_dict()})
