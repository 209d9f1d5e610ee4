"""charrnn_jax: character-level language models with recurrent networks, in JAX and Flax.

The names that a notebook or a script needs. Each is imported when it is first used, so importing
the package does no work.

Config and data
  default_config       every field of a config, with its default
  load_dataset         a `config.data` section -> corpus, vocabulary and splits
  load_corpus          a known corpus, a file, a folder or a glob -> text
  Vocabulary           characters or bytes <-> token ids
  UNK_ID               id of characters that are not in the vocabulary
  make_batches         tokens -> batches: shuffled chunks, or contiguous lanes
  Batch                inputs and targets of one step

Models
  CharRNN              embedding -> recurrent layers -> dense
  make_model           a `config.model` section -> CharRNN
  initialize_params    draws the parameters of a model
  forward              (params, carry, tokens) -> (carry, logits)
  activations          outputs of every recurrent unit after every token
  summary              table of layers and parameter counts
  Cell                 what the package knows of a recurrent cell
  Fused, CellWeights, Weights, Operations
                       its fused form, and what this gets and gives
  linear_recurrence    h = a * h + b over time, for its parallel form

Training
  train                trains a config in a workdir, or resumes the run there
  train_replicas       trains runs that differ in seed or rates as one program
  TrainState           everything that training continues from
  create_train_state   the state before the first step
  train_step           (state, batch) -> (state, metrics)
  Regulariser          what a regulariser may change in a train step
  Activations          what it sees of the forward pass
  make_optimizer       a `config.optimizer` section -> Optax optimizer
  cross_entropy        loss of every prediction, in nats
  CrossEntropy         a sum of losses and its count

Evaluation
  evaluate             loss of a text under a protocol
  char_losses          loss of every character of a text
  standard_error       standard error of a mean loss, over blocks of characters
  paired_difference    difference of two models on one text, with its interval
  Cold                 protocol: windows, each from a zero carry
  Carried              protocol: one pass that keeps the carry
  Dynamic              protocol: the same, while the weights learn from what was scored
  tune                 chooses the numbers of `Dynamic` on training text
  Protocol             what a protocol has to have
  KneserNey            an n-gram model of a text, to compare with
  judge                generated text beside real text, with a verdict

Generation
  generate             continues prompts
  Sampler              continues prompts, again and again, or piece by piece
  Continuation         a text with its state: write, read, branch, save
  make_rules           temperature, top_k, pattern, ... -> sampling rules
  Rule                 what a sampling rule has to have
  prime                reads prompts -> state for `sample_step`
  sample_step          draws one token for each text
  prepare              weights, laid out for one step at a time
  clamp_units          the same, with hidden units held at a value

Runs on disk
  load_run             opens a run: params, model, vocabulary, config
  neurons              which hidden units follow what, and what they do
  write_neurons_page   writes them as one web page
  compare              whether runs differ on the same text, and where
  read_json_lines      reads metrics.jsonl or samples.jsonl
  load_sweep           the runs of a sweep
  import_run           makes a run of weights from PyTorch or Keras
  export               writes a model as a folder that needs only jax
  export_page          writes a model as one web page

Your own code, by a name for the config
  register_cell, register_loss, register_optimizer, register_train_step, register_hook,
  register_regulariser, register_rule, register_protocol
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from charrnn_jax.config import default_config as default_config
    from charrnn_jax.data.batches import Batch as Batch
    from charrnn_jax.data.batches import make_batches as make_batches
    from charrnn_jax.data.corpora import load_corpus as load_corpus
    from charrnn_jax.data.dataset import load_dataset as load_dataset
    from charrnn_jax.data.vocabulary import UNK_ID as UNK_ID
    from charrnn_jax.data.vocabulary import Vocabulary as Vocabulary
    from charrnn_jax.evaluation.comparison import paired_difference as paired_difference
    from charrnn_jax.evaluation.comparison import standard_error as standard_error
    from charrnn_jax.evaluation.dynamic import Dynamic as Dynamic
    from charrnn_jax.evaluation.metrics import CrossEntropy as CrossEntropy
    from charrnn_jax.evaluation.metrics import cross_entropy as cross_entropy
    from charrnn_jax.evaluation.ngram import KneserNey as KneserNey
    from charrnn_jax.evaluation.protocol import Protocol as Protocol
    from charrnn_jax.evaluation.protocols import Carried as Carried
    from charrnn_jax.evaluation.protocols import Cold as Cold
    from charrnn_jax.evaluation.protocols import char_losses as char_losses
    from charrnn_jax.evaluation.protocols import evaluate as evaluate
    from charrnn_jax.evaluation.samples import judge as judge
    from charrnn_jax.evaluation.tuning import tune as tune
    from charrnn_jax.export.folder import export as export
    from charrnn_jax.export.page import export_page as export_page
    from charrnn_jax.generation.choice import make_rules as make_rules
    from charrnn_jax.generation.continuation import Continuation as Continuation
    from charrnn_jax.generation.rules import Rule as Rule
    from charrnn_jax.generation.sampler import Sampler as Sampler
    from charrnn_jax.generation.sampler import generate as generate
    from charrnn_jax.generation.sampler import prime as prime
    from charrnn_jax.generation.sampler import sample_step as sample_step
    from charrnn_jax.models.cells.cell import Cell as Cell
    from charrnn_jax.models.cells.cell import CellWeights as CellWeights
    from charrnn_jax.models.cells.cell import Fused as Fused
    from charrnn_jax.models.cells.cell import Operations as Operations
    from charrnn_jax.models.cells.cell import Weights as Weights
    from charrnn_jax.models.char_rnn import CharRNN as CharRNN
    from charrnn_jax.models.char_rnn import activations as activations
    from charrnn_jax.models.char_rnn import forward as forward
    from charrnn_jax.models.char_rnn import initialize_params as initialize_params
    from charrnn_jax.models.char_rnn import make_model as make_model
    from charrnn_jax.models.char_rnn import summary as summary
    from charrnn_jax.models.clamping import clamp_units as clamp_units
    from charrnn_jax.models.linear import linear_recurrence as linear_recurrence
    from charrnn_jax.models.regularisers.regulariser import Activations as Activations
    from charrnn_jax.models.regularisers.regulariser import Regulariser as Regulariser
    from charrnn_jax.models.stepping import prepare as prepare
    from charrnn_jax.registry import register_cell as register_cell
    from charrnn_jax.registry import register_hook as register_hook
    from charrnn_jax.registry import register_loss as register_loss
    from charrnn_jax.registry import register_optimizer as register_optimizer
    from charrnn_jax.registry import register_protocol as register_protocol
    from charrnn_jax.registry import register_regulariser as register_regulariser
    from charrnn_jax.registry import register_rule as register_rule
    from charrnn_jax.registry import register_train_step as register_train_step
    from charrnn_jax.reports.neurons.page import write_neurons_page as write_neurons_page
    from charrnn_jax.sweeps.units import load_sweep as load_sweep
    from charrnn_jax.training.loop import train as train
    from charrnn_jax.training.optimizer import make_optimizer as make_optimizer
    from charrnn_jax.training.replicas import train_replicas as train_replicas
    from charrnn_jax.training.train_step import TrainState as TrainState
    from charrnn_jax.training.train_step import create_train_state as create_train_state
    from charrnn_jax.training.train_step import train_step as train_step
    from charrnn_jax.workdir.compare import compare as compare
    from charrnn_jax.workdir.import_run import import_run as import_run
    from charrnn_jax.workdir.json_lines import read_json_lines as read_json_lines
    from charrnn_jax.workdir.neurons import neurons as neurons
    from charrnn_jax.workdir.run import load_run as load_run

_NAMES = {
    "config": ["default_config"],
    "data.batches": ["Batch", "make_batches"],
    "data.corpora": ["load_corpus"],
    "data.dataset": ["load_dataset"],
    "data.vocabulary": ["UNK_ID", "Vocabulary"],
    "evaluation.comparison": ["paired_difference", "standard_error"],
    "evaluation.metrics": ["CrossEntropy", "cross_entropy"],
    "evaluation.dynamic": ["Dynamic"],
    "evaluation.protocol": ["Protocol"],
    "evaluation.protocols": ["Carried", "char_losses", "Cold", "evaluate"],
    "evaluation.tuning": ["tune"],
    "evaluation.ngram": ["KneserNey"],
    "evaluation.samples": ["judge"],
    "export.folder": ["export"],
    "export.page": ["export_page"],
    "generation.choice": ["make_rules"],
    "generation.continuation": ["Continuation"],
    "generation.rules": ["Rule"],
    "generation.sampler": ["generate", "prime", "sample_step", "Sampler"],
    "models.cells.cell": ["Cell", "CellWeights", "Fused", "Operations", "Weights"],
    "models.char_rnn": [
        "activations",
        "CharRNN",
        "forward",
        "initialize_params",
        "make_model",
        "summary",
    ],
    "models.clamping": ["clamp_units"],
    "models.linear": ["linear_recurrence"],
    "models.regularisers.regulariser": ["Activations", "Regulariser"],
    "models.stepping": ["prepare"],
    "registry": [
        "register_cell",
        "register_hook",
        "register_loss",
        "register_optimizer",
        "register_protocol",
        "register_regulariser",
        "register_rule",
        "register_train_step",
    ],
    "reports.neurons.page": ["write_neurons_page"],
    "sweeps.units": ["load_sweep"],
    "training.loop": ["train"],
    "training.optimizer": ["make_optimizer"],
    "training.replicas": ["train_replicas"],
    "training.train_step": ["create_train_state", "train_step", "TrainState"],
    "workdir.compare": ["compare"],
    "workdir.import_run": ["import_run"],
    "workdir.json_lines": ["read_json_lines"],
    "workdir.neurons": ["neurons"],
    "workdir.run": ["load_run"],
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
