"""`config.data` -> `Dataset`: the text, its vocabulary and its splits, ready for batches."""

from dataclasses import dataclass, replace
from typing import Any

from ml_collections import ConfigDict

from charrnn_jax.data.corpora import Corpus, load_corpus
from charrnn_jax.data.tokens import Splits, tokenize
from charrnn_jax.data.vocabulary import Vocabulary
from charrnn_jax.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """What a model is trained and evaluated on."""

    corpus: Corpus
    vocabulary: Vocabulary
    splits: Splits

    def identity(self) -> dict[str, Any]:
        """Returns what was really trained on, as plain data for JSON."""
        return {
            "name": self.corpus.name,
            "sha256": self.corpus.sha256,
            "num_chars": len(self.splits.tokens),
            "instead_of": self.corpus.instead_of,
        }

    def describe(self) -> str:
        """Returns a first look: name, length, unique characters, splits, first 250 characters."""
        kind = self.vocabulary.kind
        unique = "" if kind == "bytes" else f"{self.vocabulary.size - 1} unique characters\n"
        sizes = ", ".join(f"{name} {len(self.splits[name]):,}" for name in self.splits.ends)
        substitute = self.corpus.instead_of and (
            f"WARNING: the corpus {self.corpus.instead_of!r} is neither cached nor reachable: "
            f"this is {self.corpus.name!r} INSTEAD\n"
        )
        return (
            f"{substitute}Corpus: {describe_corpus(self.identity())}\n"
            f"Length of text: {len(self.splits.tokens):,} {kind} ({sizes})\n"
            f"{unique}First 250 characters:\n"
            f"{'-' * 80}\n{self.corpus.head(250, kind=kind)}\n{'-' * 80}"
        )


def describe_corpus(identity: dict[str, Any]) -> str:
    """Returns one line on what a run was trained on, as every command shows it."""
    long = f"{identity['num_chars']:,} long, " if identity["num_chars"] else ""
    line = f"{identity['name']}, {long}sha256 {identity['sha256'][:12]}"
    if identity["instead_of"]:
        line += f" (INSTEAD OF {identity['instead_of']!r}, which was not available)"
    return line


def load_dataset(
    config: ConfigDict,
    *,
    vocabulary: Vocabulary | None = None,
    recorded: dict[str, Any] | None = None,
) -> Dataset:
    """Loads the text of a `config.data` section.

    Args:
      config: the section.
      vocabulary: of a model that exists; None: built from the text.
      recorded: `Dataset.identity()` of a run that exists; the text must be that one.

    Raises:
      UserError: no text, a text that cannot be read, or another one than was recorded.
    """
    substitute = recorded["name"] if recorded and recorded["instead_of"] else ""
    corpus = load_corpus(
        substitute or config.corpus,
        path=config.path,
        offline_corpus=config.offline_corpus,
        max_chars=config.max_chars,
    )
    if recorded and corpus.sha256 != recorded["sha256"]:
        raise UserError(
            f"the run was trained on {describe_corpus(recorded)}, but {corpus.name!r} is now "
            f"another text (sha256 {corpus.sha256[:12]}): bring that text back, or use another "
            "--workdir"
        )
    if recorded:
        corpus = replace(corpus, instead_of=recorded["instead_of"])
    vocabulary = vocabulary or Vocabulary.build(
        corpus.blocks(config.vocabulary), kind=config.vocabulary
    )
    splits = Splits.make(
        tokenize(corpus, vocabulary),
        validation_fraction=config.validation_fraction,
        test_fraction=config.test_fraction,
    )
    return Dataset(corpus, vocabulary, splits)
