"""The report of a run: one web page, the same as Markdown, and its figures as files."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from charrnn_jax.config import default_config, diff
from charrnn_jax.evaluation.metrics import CrossEntropy
from charrnn_jax.evaluation.protocols import make_protocol
from charrnn_jax.evaluation.samples import FIGURES
from charrnn_jax.files import replacing
from charrnn_jax.messages import format_seconds
from charrnn_jax.models.char_rnn import layers_of
from charrnn_jax.reports.document import (
    Cell,
    Document,
    Quote,
    Section,
    Table,
    to_html,
    to_markdown,
)
from charrnn_jax.reports.drawing import drawing
from charrnn_jax.reports.run.copies import SHORTEST_COPY, Copies
from charrnn_jax.reports.run.figures import draw_figures, make_charts
from charrnn_jax.reports.run.history import History, Sampled, read_history
from charrnn_jax.workdir.judgement import read_judgement
from charrnn_jax.workdir.run import Run
from charrnn_jax.workdir.sessions import Session

MAX_SAMPLES = 6  # texts that are shown
_AND = "; "


def write_run_report(
    run: Run, folder: Path, *, copies: Copies, formats: Sequence[str] = ()
) -> None:
    """Writes report.html and report.md, and the figures as `report.<figure>.<format>`.

    Each file is replaced whole.

    Args:
      run: the run, opened at the checkpoint that the report is about.
      folder: folder to write to.
      copies: finds the spans of samples that stand in the training text.
      formats: formats of the figures, such as "png", "svg" or "pdf".

    Raises:
      UserError: `evaluation.json` or `judgement.json` is damaged, or the rows cannot be read.
    """
    history = read_history(run.workdir)
    lines = _other_models(run)
    document = Document(
        title=run.workdir.resolve().name,
        overview=_overview(run, history),
        sections=[
            _evaluation_section(run),
            _samples_section(history, copies),
            _quality_section(run),
            _layers_section(run),
            _config_section(run),
            _sessions_section(history.sessions),
        ],
        charts=make_charts(history, lines, unit=run.vocabulary.unit),
    )
    for name, text in (("html", to_html(document)), ("md", to_markdown(document))):
        with replacing(folder / f"report.{name}") as partial:
            partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    if not formats:
        return
    with drawing(fonttype="path"):
        for name, figure in draw_figures(history, lines, unit=run.vocabulary.unit).items():
            for form in formats:
                with replacing(folder / f"report.{name}.{form}") as partial:
                    figure.savefig(partial, format=form, dpi=200)


def _other_models(run: Run) -> dict[str, float]:
    """Returns the losses of models without a network under the protocol of validation."""
    label = make_protocol(run.config.evaluation).label
    evaluations = run.evaluations()
    if "validation" not in evaluations:
        return {}
    return {
        name.removesuffix(label).strip(): loss["nats_per_char"]
        for name, loss in evaluations["validation"].get("baselines", {}).items()
        if name.endswith(f" {label}")
    }


def _overview(run: Run, history: History) -> list[str]:
    model, config = run.model, run.config
    layers = f"{model.num_layers} layers of " if model.num_layers > 1 else ""
    paragraphs = [
        f"{layers}{model.cell}, {model.hidden_size:,} hidden units, trained on "
        f"{run.corpus.without_folders().describe()}."
    ]
    if run.imported:
        paragraphs[0] += " The model was imported: it was not trained here."
    if run.origin:
        paragraphs.append(f"It started from the weights of {run.origin.describe()}.")
    if history.last_step:
        paragraphs.append(
            f"{history.last_step:,} steps of {config.data.batch_size} x "
            f"{config.data.sequence_length} {run.vocabulary.kind}, {history.epoch:.3g} epochs, in "
            f"{format_seconds(history.seconds)}."
        )
    if run.loss is not None:
        loss = CrossEntropy(run.loss, 1)
        paragraphs.append(
            f"Checkpoint of step {run.step:,}: validation loss "
            f"{loss.describe(run.vocabulary.unit)}, perplexity {loss.describe_perplexity()}, "
            f"{make_protocol(config.evaluation).label}."
        )
    return paragraphs


def _layers_section(run: Run) -> Section:
    layers = layers_of(run.model)
    total = sum(num_params for _, _, num_params in layers)
    rows = [
        [Cell(name), Cell(shape), Cell(f"{num:,}", num), Cell(f"{num / total:.1%}", num / total)]
        for name, shape, num in layers
    ]
    text = f"{total:,} parameters; B sequences of T {run.vocabulary.kind}."
    table = Table(["Layer", "Output shape", "Parameters", "Share"], rows)
    return Section("Layers", [text], [table])


def _evaluation_section(run: Run) -> Section:
    rows = []
    for split, entry in run.evaluations().items():
        losses = {f"network, {name}": loss for name, loss in entry["losses"].items()}
        for name, loss in {**losses, **entry.get("baselines", {})}.items():
            nats, error = loss["nats_per_char"], loss.get("standard_error")
            whole = CrossEntropy(nats, 1)
            rows.append(
                [
                    Cell(split),
                    Cell(name),
                    Cell(f"{nats:.4f}", nats),
                    Cell("" if error is None else f"{error:.4f}", error),
                    Cell(f"{whole.bits_per_char:.4f}", nats),
                    Cell(whole.describe_perplexity(), nats),
                ]
            )
    if not rows:
        return Section("Evaluation", [_why_not_evaluated(run)])
    unit = run.vocabulary.unit
    columns = ["Split", "Model and protocol", f"Nats/{unit}", "Standard error", f"Bits/{unit}"]
    text = (
        "The whole split, each character once. Losses of different protocols must not be compared."
    )
    return Section("Evaluation", [text], [Table([*columns, "Perplexity"], rows)])


def _why_not_evaluated(run: Run) -> str:
    if run.imported:
        return "An imported model, whose own text is not known: there is no split to evaluate."
    if not run.config.data.validation_fraction:
        return "There is no validation split; charrnn evaluate --split=train evaluates the other."
    return "Not evaluated at this step: run charrnn evaluate, and then this command again."


def _samples_section(history: History, copies: Copies) -> Section:
    samples = _spread(history.samples)
    if not samples:
        return Section("Samples", ["The run has written no samples."])
    paragraphs = [
        "Text that the model wrote while it was trained, with the same prompt and seed. The "
        "prompt is part of it."
    ]
    texts = [sample.prompt + sample.text for sample in samples]
    if (marks := copies.marks(texts)) is None:
        paragraphs.append("The training text was not found, so copied spans are not marked.")
        marks = [[] for _ in samples]
    else:
        paragraphs.append(
            f"Marked: spans of at least {SHORTEST_COPY} characters that stand in the training "
            f"text; {sum(map(len, marks))} were found, and the notes say where."
        )
    quotes = [
        Quote(f"Step {sample.step:,}, temperature {sample.temperature:g}", text, found)
        for sample, text, found in zip(samples, texts, marks, strict=True)
    ]
    return Section("Samples", paragraphs, quotes=quotes)


def _quality_section(run: Run) -> Section:
    title = "Samples beside real text"
    if (judged := read_judgement(run)) is None:
        return Section(title, ["Not judged at this step: run charrnn judge, and then this again."])
    found, prompt = judged
    columns = {"real text": found.real, **found.groups}
    rows = [
        [
            Cell(display.label),
            *(
                Cell(texts.figures[name].describe(display, real=found.real.figures[name]).strip())
                for texts in columns.values()
            ),
        ]
        for name, display in FIGURES.items()
    ]
    verdicts = [
        f"{name}: {texts.verdict}{f' ({_AND.join(texts.reasons)})' if texts.reasons else ''}."
        for name, texts in found.groups.items()
    ]
    text = (
        f"{found.num_texts} texts of {found.num_chars:,} characters in each column"
        f"{f', which continue {prompt!r}' if prompt else ''}; +-: half the 95% interval. < and >: "
        "below or above that of real text. Copied: stands in the training text. Distinct: of the "
        f"first {found.num_words} words."
    )
    return Section(title, [text, *verdicts], [Table(["Figure", *columns], rows)])


def _sessions_section(sessions: Sequence[Session]) -> Section:
    if not sessions:
        return Section("Training", ["Not recorded, by an earlier version or by an import."])
    rows = [
        [
            Cell(f"{session.step:,}", session.step),
            Cell(session.started),
            Cell(_without_folders(session.command)),
            Cell(session.devices),
            Cell(session.machine),
            Cell(", ".join(f"{name} {number}" for name, number in session.versions.items())),
        ]
        for session in sessions
    ]
    text = "Each process that trained the run; absolute paths in commands are reduced to names."
    columns = ["From step", "Started", "Command", "Devices", "Machine", "Versions"]
    return Section("Training", [text], [Table(columns, rows)])


def _without_folders(command: Sequence[str]) -> str:
    """Returns a command for publication: absolute paths are reduced to their last parts."""
    return shlex.join(re.sub(r"^(--?[\w.]+=)?[~/].*/(?=.)", r"\1", word) for word in command)


def _spread(samples: Sequence[Sampled]) -> list[Sampled]:
    """Returns at most `MAX_SAMPLES` of the samples, the first and the last among them."""
    if len(samples) <= MAX_SAMPLES:
        return list(samples)
    last = len(samples) - 1
    return [samples[round(i * last / (MAX_SAMPLES - 1))] for i in range(MAX_SAMPLES)]


def _config_section(run: Run) -> Section:
    changes = diff(default_config(), run.config_without_folders())
    rows = [
        [Cell(name), Cell(repr(ours)), Cell(repr(theirs))]
        for name, (theirs, ours) in changes.items()
    ]
    text = "Fields that differ from the default; config.json in the run has all."
    return Section("Config", [text], [Table(["Field", "Value", "Default"], rows)])
