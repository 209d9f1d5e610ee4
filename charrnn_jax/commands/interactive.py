"""`charrnn sample --interactive`: write a text in turns with the model, go back, and branch."""

import argparse
import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from charrnn_jax.commands.arguments import path, positive
from charrnn_jax.commands.choices import CHOICES
from charrnn_jax.errors import UserError, file_error
from charrnn_jax.files import replacing
from charrnn_jax.generation.continuation import Continuation
from charrnn_jax.generation.sampler import Sampler
from charrnn_jax.generation.writer import encode_stop
from charrnn_jax.messages import show

HELP = """\
What you type is added to the text, and the model continues it. Type \\n for a line break, and //
for a slash at the start of a line.
  (empty line)        let the model continue
  Ctrl-C              stop the model
  /again              write another text from the same point
  /back [K]           go back to the text before this one, or to text K
  /tree               show all texts, each below the text that it continues: typed + written
  /show               show the whole text
  /new [TEXT]         start a new text
  /save FILE          save the text
  /save --state FILE  save it with the state of the model, for /open
  /open FILE          open a text that was saved with the state
  /set                show the settings; to change one: /set temperature 0.7
  /quit               leave, as does Ctrl-D"""


class Node(NamedTuple):
    """A text of a session.

    Attributes:
      parent: index of the text that it continues; -1: none.
      typed: what the user added to that text.
      before: the text before the model continued it.
      after: the text after the model continued it.
    """

    parent: int
    typed: str
    before: Continuation
    after: Continuation


@dataclass
class Session:
    """All texts of a session, the current one, and the settings.

    Attributes:
      sampler: sampler that generates the texts.
      settings: arguments of `Continuation.write`.
      seed: seed of the next new text or branch.
      unk: what to do with characters that the model does not know: "error" or "skip".
      nodes: all texts, in the order in which they were made.
      now: index of the current text; -1: none.
    """

    sampler: Sampler
    settings: dict[str, Any]
    seed: int = 0
    unk: str = "error"
    nodes: list[Node] = field(default_factory=list)
    now: int = -1

    def run(self, prompts: list[str] | None) -> None:
        """Reads lines until there are no more. Ctrl-C interrupts an answer, not the session."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(ImportError):
            import readline  # `input` then has a history

            readline.parse_and_bind("set enable-bracketed-paste on")  # several lines are one text
        show(
            "Type the start of a text, and the model continues it. The first time takes longer, "
            "since programs are compiled. /help shows all commands."
        )
        if prompts:
            show(prompts[0], end="")
            self._do(lambda: self.add(prompts[0]))
        while True:
            try:
                line = input(f"[{self.now + 1}] > ").rstrip("\r")
            except KeyboardInterrupt:
                show("\nTo leave, type /quit or press Ctrl-D")
                continue
            except EOFError:
                show()
                return
            if line.strip() == "/quit":
                return
            self._do(lambda line=line: self.obey(line))

    def _do(self, action: Any) -> None:
        """Runs an action; errors are printed, and the session continues."""
        try:
            action()
        except UserError as error:
            show(f"! {error}")
        except OSError as error:
            show(f"! {file_error(error)}")
        except KeyboardInterrupt:  # while the model was reading or compiling, not writing
            show("\n! interrupted")

    def obey(self, line: str) -> None:
        """Carries out a line: a command, or text to add."""
        if not line.startswith("/") or line.startswith("//"):
            self.add(line.removeprefix("/").replace("\\n", "\n"))
            return
        name, _, rest = line[1:].partition(" ")
        commands = {
            "help": lambda: show(HELP),
            "again": self.again,
            "back": lambda: self.back(rest.strip()),
            "tree": lambda: _show_tree(self.nodes, now=self.now),
            "show": lambda: show(self._present().after.text),
            "new": lambda: self.new(rest.replace("\\n", "\n")),
            "save": lambda: self.save(rest),
            "open": lambda: self.open(_file(rest)),
            "set": lambda: self.set(rest),
        }
        if name not in commands:
            raise UserError(f"there is no /{name}; /help shows all commands")
        commands[name]()

    def add(self, text: str) -> None:
        """Adds what the user typed, and lets the model continue."""
        if self.now < 0:
            return self.new(text)
        after = self._present().after
        if not text and after.last:
            text = after.last.stop  # otherwise the model would stop there again
        self._write(after.read(text, unk=self.unk), parent=self.now, typed=text)

    def new(self, prompt: str) -> None:
        """Starts a new text."""
        start = Continuation.start(self.sampler, prompt, seed=self.seed, unk=self.unk)
        self.seed += 1
        self._write(start, parent=-1, typed=prompt)

    def again(self) -> None:
        """Writes another text from where the model continued the current one."""
        node = self._present()
        self._write(node.before.branch(self.seed), parent=node.parent, typed=node.typed)
        self.seed += 1

    def back(self, number: str) -> None:
        """Goes back to the text before the current one, or to a text by its number."""
        target = self._present().parent if not number else _whole(number) - 1
        if not 0 <= target < len(self.nodes):
            raise UserError("there is no text before it" if not number else f"no text {number}")
        self.now = target
        show(f"...{self.nodes[target].after.text[-200:]}")

    def save(self, rest: str) -> None:
        """Saves the current text, or with --state what `open` reads; replaces no file."""
        flag, _, name = rest.strip().partition(" ")
        with_state = flag == "--state"
        file = Path(_file(name if with_state else rest))
        text = self._present().after
        if file.exists():
            raise UserError(f"{file} exists: give another name")
        if with_state:
            text.save(file)
        else:
            with replacing(file) as partial:
                partial.write_text(text.text, encoding="utf-8", newline="\n")
        show(f"Saved to {file}")

    def open(self, file: str) -> None:
        """Opens a saved text."""
        loaded = Continuation.load(file, sampler=self.sampler)
        self._append(Node(-1, "", loaded, loaded))
        show(loaded.text)

    def set(self, rest: str) -> None:
        """Changes a setting, or prints all settings."""
        name, _, value = rest.strip().partition(" ")
        if not name:
            show("\n".join(f"  {name} {known!r}" for name, known in self.settings.items()))
            return
        value = value.replace("\\n", "\n")
        if name == "stop":
            stop = [value] if value else []
            encode_stop(stop, self.sampler.vocabulary)
            self.settings["stop"] = stop
        elif name == "num_chars":
            self.settings["num_chars"] = _whole(value)
        elif name == "own":
            own = value.split(",") if value else []
            self.sampler.choose_rules(own=own)
            self.settings["own"] = own
        elif name in CHOICES:
            try:
                changed = {**self.settings, name: CHOICES[name][0](value)}
            except argparse.ArgumentTypeError as error:
                raise UserError(str(error)) from error
            self.sampler.choose_rules(**{choice: changed[choice] for choice in CHOICES})
            self.settings = changed
        else:
            raise UserError(f"no setting {name!r}; the settings are {', '.join(self.settings)}")

    def _present(self) -> Node:
        if self.now < 0:
            raise UserError("there is no text yet: type the start of one")
        return self.nodes[self.now]

    def _write(self, before: Continuation, *, parent: int, typed: str) -> None:
        with _interruptible() as interrupted:

            def show_piece(piece: str) -> bool:
                show(piece, end="", flush=True)
                return not interrupted

            after = before.write(on_text=show_piece, **self.settings)
        show()
        self._append(Node(parent, typed, before, after))

    def _append(self, node: Node) -> None:
        self.nodes.append(node)
        self.now = len(self.nodes) - 1


@contextlib.contextmanager
def _interruptible() -> Iterator[list[bool]]:
    """Yields a list that stays empty until Ctrl-C is pressed, so the device finishes its work."""
    pressed: list[bool] = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _show_tree(nodes: list[Node], *, now: int, parent: int = -1, depth: int = 0) -> None:
    """Prints each text below the text that it continues; `now` is marked."""
    for i, node in enumerate(nodes):
        if node.parent == parent:
            text = node.after.last.text if node.after.last else node.after.text
            typed = f"{node.typed[-30:]!r} + " if node.typed else ""
            show(f"{'*' if i == now else ' '}{i + 1:3} {'  ' * depth}{typed}{text[:50]!r}")
            _show_tree(nodes, now=now, parent=i, depth=depth + 1)


def _file(rest: str) -> str:
    if not rest.strip():
        raise UserError("give the name of a file after the command")
    try:
        return str(path(rest.strip()))
    except argparse.ArgumentTypeError as error:
        raise UserError(str(error)) from error


def _whole(text: str) -> int:
    try:
        return positive(text)
    except argparse.ArgumentTypeError as error:
        raise UserError(str(error)) from error
