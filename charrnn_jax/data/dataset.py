"""`config.data` -> `Dataset`: the text, its vocabulary and its splits, ready for batches."""

from dataclasses import dataclass, replace
from pathlib import Path

from ml_collections import ConfigDict

from charrnn_jax.data.automata import PREFIX
from charrnn_jax.data.corpora import (
    BUILT_IN,
    KNOWN_CORPORA,
    Corpus,
    check_recorded_path,
    load_corpus,
)
from charrnn_jax.data.tokens import Splits, tokenize
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError
from charrnn_jax.reading import Count


@dataclass(frozen=True)
class CorpusIdentity:
    """Identity of the text that a model was trained on, as a run records it.

    Attributes:
      name: name of a known corpus, or the path of another text.
      sha256: SHA-256 of the text, in hex; of the weights file if the text is not known.
      num_chars: number of characters (or bytes) that were used; 0: not known.
      instead_of: name of the corpus that was wanted but not available; "": none.
    """

    name: str
    sha256: str
    num_chars: Count
    instead_of: str = ""

    def describe(self) -> str:
        """Returns the identity in one line."""
        length = f"{self.num_chars:,} long, " if self.num_chars else ""
        line = f"{self.name}, {length}sha256 {self.sha256[:12]}"
        if self.instead_of:
            line += f" (INSTEAD OF {self.instead_of!r}, which was not available)"
        return line

    @property
    def title(self) -> str:
        """What a person would call the text, such as "Shakespeare's plays"; never a path."""
        known = KNOWN_CORPORA.get(self.name)
        if known and known.title:
            return known.title
        if self.name.startswith(PREFIX):
            return f"the synthetic text {self.name.removeprefix(PREFIX)}"
        others = {BUILT_IN: "Python's standard library", "-": "a text"}
        name = others.get(self.name) or Path(self.name).name
        return name[:-4].replace("_", " ") if name.endswith(".txt") else name

    def without_folders(self) -> "CorpusIdentity":
        """Returns a copy for publication, in which a path is reduced to its last part."""
        return replace(self, name=Path(self.name).name)


@dataclass(frozen=True)
class Dataset:
    """The text that a model is trained and evaluated on.

    Attributes:
      corpus: files of the text.
      vocabulary: vocabulary of the model.
      splits: token ids of the training, validation and test splits.
    """

    corpus: Corpus
    vocabulary: Vocabulary
    splits: Splits

    def identity(self) -> CorpusIdentity:
        """Returns the identity of the text that is really used."""
        corpus, num_chars = self.corpus, len(self.splits.tokens)
        return CorpusIdentity(corpus.name, corpus.sha256, num_chars, corpus.instead_of)

    def headline(self) -> str:
        """Returns the name and length of the text, after a warning if it is a substitute."""
        substitute = self.corpus.instead_of and (
            f"WARNING: the corpus {self.corpus.instead_of!r} is neither cached nor reachable: "
            f"using {self.corpus.name!r} INSTEAD\n"
        )
        return f"{substitute}Corpus: {self.identity().describe()}"

    def describe(self) -> str:
        """Returns an overview: name, length, unique characters, splits, first 250 characters."""
        kind = self.vocabulary.kind
        unique = "" if kind == "bytes" else f"{self.vocabulary.size - 1} unique characters\n"
        sizes = ", ".join(f"{name} {len(self.splits[name]):,}" for name in self.splits.ends)
        return (
            f"{self.headline()}\n"
            f"Length of text: {len(self.splits.tokens):,} {kind} ({sizes})\n"
            f"{unique}First 250 characters:\n"
            f"{'-' * 80}\n{self.corpus.head(250, kind=kind)}\n{'-' * 80}"
        )


def load_dataset(
    config: ConfigDict,
    *,
    vocabulary: Vocabulary | None = None,
    recorded: CorpusIdentity | None = None,
    path_is_recorded: bool = False,
) -> Dataset:
    """Loads the text that a config names, its vocabulary and its splits.

    Args:
      config: the `config.data` section.
      vocabulary: vocabulary of an existing model; None: it is built from the text.
      recorded: identity of the text of an existing run, which must be the same text; None: any.
      path_is_recorded: whether `config.path` was read from a run, which a stranger may have made;
        then only files and folders are opened.

    Raises:
      UserError: the text is missing, cannot be read, or is not the recorded one.
    """
    substitute = recorded.name if recorded and recorded.instead_of else ""
    if path_is_recorded and config.path:
        check_recorded_path(config.path)
    corpus = load_corpus(
        substitute or config.corpus,
        path=config.path,
        offline_corpus=config.offline_corpus,
        max_chars=config.max_chars,
    )
    if recorded and corpus.sha256 != recorded.sha256:
        raise UserError(
            f"the run was trained on {recorded.describe()}, but {corpus.name!r} is now "
            f"another text (sha256 {corpus.sha256[:12]}): restore the old text, or use another "
            "--workdir"
        )
    if recorded:
        corpus = replace(corpus, instead_of=recorded.instead_of)
    vocabulary = vocabulary or Vocabulary.build(
        corpus.blocks(config.vocabulary), kind=config.vocabulary
    )
    splits = Splits.make(
        tokenize(corpus, vocabulary),
        validation_fraction=config.validation_fraction,
        test_fraction=config.test_fraction,
    )
    return Dataset(corpus, vocabulary, splits)
