"""charrnn_jax: character-level language models with recurrent networks, in JAX and Flax.

The names that a notebook needs; each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from charrnn_jax.config import default_config as default_config
    from charrnn_jax.data.batches import Batch as Batch
    from charrnn_jax.data.corpora import load_corpus as load_corpus
    from charrnn_jax.data.dataset import load_dataset as load_dataset
    from charrnn_jax.data.vocabulary import Vocabulary as Vocabulary
    from charrnn_jax.evaluation.metrics import CrossEntropy as CrossEntropy
    from charrnn_jax.evaluation.metrics import cross_entropy as cross_entropy
    from charrnn_jax.evaluation.protocols import evaluate as evaluate
    from charrnn_jax.export.folder import export as export
    from charrnn_jax.export.page import export_page as export_page
    from charrnn_jax.generation.choice import make_rules as make_rules
    from charrnn_jax.generation.continuation import Continuation as Continuation
    from charrnn_jax.generation.sampler import Sampler as Sampler
    from charrnn_jax.generation.sampler import generate as generate
    from charrnn_jax.models.char_rnn import CharRNN as CharRNN
    from charrnn_jax.run import load_run as load_run
    from charrnn_jax.sweeps.units import load_sweep as load_sweep
    from charrnn_jax.training.loop import train as train
    from charrnn_jax.training.replicas import train_replicas as train_replicas
    from charrnn_jax.training.train_step import TrainState as TrainState

_MODULE_OF = {
    "default_config": "config",
    "Batch": "data.batches",
    "load_corpus": "data.corpora",
    "load_dataset": "data.dataset",
    "Vocabulary": "data.vocabulary",
    "CrossEntropy": "evaluation.metrics",
    "cross_entropy": "evaluation.metrics",
    "evaluate": "evaluation.protocols",
    "export": "export.folder",
    "export_page": "export.page",
    "Continuation": "generation.continuation",
    "make_rules": "generation.choice",
    "Sampler": "generation.sampler",
    "generate": "generation.sampler",
    "CharRNN": "models.char_rnn",
    "load_run": "run",
    "load_sweep": "sweeps.units",
    "train": "training.loop",
    "train_replicas": "training.replicas",
    "TrainState": "training.train_step",
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
