"""`Continuation`: a text with the model's state behind it, to go on from, or to branch."""

import json
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from charrnn_jax.errors import UserError
from charrnn_jax.files import replacing
from charrnn_jax.generation.prompts import encode_prompt, pad, row_keys
from charrnn_jax.generation.rules import Rules, start_memory
from charrnn_jax.generation.sampler import CHUNK, Sampler, SampleState, fetch
from charrnn_jax.generation.writer import Sample, Writer


@dataclass(frozen=True)
class Continuation:
    """One text so far. What is done with it gives another; this one stays what it is.

        story = Continuation.start(sampler, "Once")
        endings = [story.branch(seed).write(200) for seed in range(3)]

    Writing 40 characters and then 60 gives the text that writing 100 gives. (With a pattern it does
    not: each writing begins it anew.)

    Attributes:
      sampler: which goes on.
      tokens: ids of the whole text, prompt included.
      state: of the sampler behind them, one row, without a memory of rules.
      last: what was written last; None: nothing yet.
    """

    sampler: Sampler
    tokens: np.ndarray
    state: SampleState
    last: Sample | None = None

    @classmethod
    def start(
        cls, sampler: Sampler, prompt: str = "", *, seed: int = 0, unk: str = "error"
    ) -> "Continuation":
        """Reads a prompt; arguments and errors: see `Sampler.generate`."""
        tokens = encode_prompt(prompt, sampler.vocabulary, unk=unk)
        return cls(sampler, tokens, sampler.prime([tokens], seed=seed, rules=()))

    @property
    def text(self) -> str:
        """All of it, prompt included."""
        return self.sampler.vocabulary.decode(self.tokens)

    def write(
        self,
        num_chars: int,
        *,
        stop: Sequence[str] = (),
        on_text: Callable[[str], bool | None] = lambda piece: None,
        rules: Rules | None = None,
        **choice: Any,
    ) -> "Continuation":
        """Writes up to so many characters more.

        Args:
          num_chars: at least 1.
          stop: strings before which the writing ends.
          on_text: called with every piece of text; what it returns, if False, ends the writing.
          rules: your own, instead of a choice.
          **choice: of `make_rules`: temperature, top_k, top_p, ...

        Raises:
          UserError: see `Sampler.generate`.
        """
        if num_chars < 1:
            raise UserError(f"num_chars is {num_chars}; it must be at least 1")
        rules = self.sampler.choose_rules(rules, **choice)
        writer = Writer(
            self.sampler.vocabulary, num_chars=num_chars, stop=stop, behind=self.tokens[-4:]
        )
        state, num_drawn = self._with_memory(rules), 0
        # The states before the last chunks: what is held back may go beyond one.
        longest = max(map(len, writer.stop), default=0)
        starts: deque[tuple[int, SampleState]] = deque(maxlen=2 + longest // CHUNK)
        while not writer.finish:
            starts.append((num_drawn, jax.tree.map(jnp.copy, state)))  # what is drawn is donated
            num_steps = min(CHUNK, num_chars - num_drawn)
            state, drawn = self.sampler.draw_chunk(state, num_steps, rules=rules)
            new_tokens, log_probabilities = fetch(drawn, num_steps)
            num_drawn += num_steps
            piece = writer.add(new_tokens[:, 0], log_probabilities[:, 0])
            if on_text(piece) is False and not writer.finish:
                writer.interrupt()
        if num_drawn > len(writer.tokens):  # beyond the end: the last of it again, just so far
            num_kept = len(writer.tokens)
            first, state = next(start for start in reversed(starts) if start[0] <= num_kept)
            state, _ = self.sampler.draw_chunk(state, num_kept - first, rules=rules)
        tokens = np.concatenate([self.tokens, np.array(writer.tokens, self.tokens.dtype)])
        last = writer.sample(prompt=self.text)
        return replace(self, tokens=tokens, state=replace(state, memory=()), last=last)

    def read(self, text: str, *, unk: str = "error") -> "Continuation":
        """Adds a text of yours, as if the model had written it.

        Raises:
          UserError: it has characters that the model does not know.
        """
        new = self.sampler.vocabulary.encode(text, unk=unk)
        if not new.size:
            return self
        tokens = np.concatenate([self.tokens, new])
        return replace(self, tokens=tokens, state=self.sampler.read(self.state, new))

    def branch(self, seed: int) -> "Continuation":
        """Returns the same text, which another seed will go on with."""
        key = row_keys(seed, [self.tokens], num_rows=1)
        return replace(self, state=replace(self.state, key=self._put(key)))

    def save(self, file: str | Path) -> None:
        """Writes the text and the state into a file, for `load`."""
        leaves = jax.device_get(jax.tree.leaves(_with_plain_key(self.state)))
        named = {f"state_{i}": leaf for i, leaf in enumerate(leaves)}
        identity = _identity(self.sampler)
        with replacing(Path(file)) as partial, partial.open("wb") as opened:
            np.savez(opened, identity=identity, tokens=self.tokens, **named)

    @classmethod
    def load(cls, file: str | Path, *, sampler: Sampler) -> "Continuation":
        """Reads what `save` wrote.

        Args:
          file: of it.
          sampler: of the same kind of model and vocabulary; its weights may be others.

        Raises:
          UserError: there is no such file, or it is of another kind of model.
        """
        template = _with_plain_key(sampler.prime([np.array([1])], seed=0, rules=()))
        expected = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(template)]
        try:
            # Opened here: of a broken file, np.load would leave its own open.
            with open(file, "rb") as opened, np.load(opened) as saved:
                identity, tokens = str(saved["identity"]), saved["tokens"]
                leaves = [saved[f"state_{i}"] for i in range(len(expected))]
        except OSError as error:
            reason = error.strerror or "no archive of NumPy's"
            raise UserError(f"{file} holds no saved text: {reason}") from error
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{file} holds no saved text: give another file") from error
        if identity != _identity(sampler):
            raise UserError(f"{file} is of another model: open it with the run that wrote it")
        ids = np.arange(sampler.vocabulary.size)
        is_text = tokens.ndim == 1 and tokens.size and np.isin(tokens, ids).all()
        if not is_text or [(leaf.shape, leaf.dtype) for leaf in leaves] != expected:
            raise UserError(f"{file} is damaged: give another file")
        leaves = jax.device_put(leaves, template.token.sharding)
        state = jax.tree.unflatten(jax.tree.structure(template), leaves)
        state = replace(state, key=jax.random.wrap_key_data(state.key))
        return cls(sampler, tokens.astype(sampler.vocabulary.dtype), state)

    def _put(self, arrays: Any) -> Any:
        """Where the state is: elsewhere, or uncommitted, they would make XLA compile anew."""
        return jax.device_put(arrays, self.state.token.sharding)

    def _with_memory(self, rules: Rules) -> SampleState:
        """A copy of the state, with what the rules remember of the text."""
        padded, lengths = self._put(pad([self.tokens]))
        memory = start_memory(rules, padded, lengths)
        return replace(jax.tree.map(jnp.copy, self.state), memory=memory)


def _with_plain_key(state: SampleState) -> SampleState:
    return replace(state, key=jax.random.key_data(state.key))


def _identity(sampler: Sampler) -> str:
    """What must be the same for a state to make sense."""
    model = sampler.model
    sizes = {"cell": model.cell, "layers": model.num_layers, "hidden_size": model.hidden_size}
    return json.dumps({**sizes, **sampler.vocabulary.to_dict()})
