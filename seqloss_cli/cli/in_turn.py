"""Score the same data with several models, one in memory at a time."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli.failures import say
from seqloss_cli.cli.inputs import STDIN
from seqloss_cli.core.errors import UsageError

if TYPE_CHECKING:
    from seqloss_cli.scoring.scorer import Scorer


def _repeatable(panel: str, names: tuple[str, ...], text: str) -> Any:
    """An option to be given several times; no variable or file says such a thing by the way."""
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False)


MODELS: o.Group = {
    "models": (
        Annotated[
            list[str] | None,
            _repeatable(o.MODEL, ("--model", "-m"), "To be scored with --data; name each."),
        ],
        None,
    ),
}
TURN_OPTIONS: o.Group = {
    "data": (
        Annotated[
            list[str] | None,
            _repeatable(o.INPUT, ("--data",), "Texts or JSONL to score; may be given again."),
        ],
        None,
    ),
    "lines": (Annotated[bool, o.flag(o.INPUT, "--lines", "Each non-empty line is a text.")], False),
    "jsonl_input": (
        Annotated[bool, o.flag(o.INPUT, "--jsonl-input", "Data is JSONL, whatever its name.")],
        False,
    ),
    "text_field": (
        Annotated[str, o.option(o.INPUT, "--text-field", "Field of a JSONL row with the text.")],
        "text",
    ),
    **o.INPUT_OPTIONS,
    **{name: o.MODEL_OPTIONS[name] for name in o.MODEL_OPTIONS if name != "model"},
    **o.POLICY_OPTIONS,
    "stride": (o.Stride, None),
    **o.SPEED_OPTIONS,
}


def refuse_scoring_options(context: typer.Context) -> None:
    """Raises UsageError for options of scoring where results are there already."""
    for parameter in context.command.params:
        if parameter.name in TURN_OPTIONS:
            source = context.get_parameter_source(str(parameter.name))
            if source is not None and source.name == "COMMANDLINE":
                flag = parameter.opts[0]
                raise UsageError(f"{flag} is for --model A --model B; RESULTS are scored already")


@contextmanager
def scored_in_turn(
    context: typer.Context, models: Sequence[str]
) -> Iterator[tuple[list[str], int]]:
    """Results files of the models, gone at the end, and how many inputs were rejected.

    Raises UsageError without --data.
    """
    names = context.params["data"]
    if not names:
        raise UsageError("--data FILE says what is scored")
    if STDIN in names and len(models) > 1:
        raise UsageError("--data - can be read once only: put it in a file for several models")
    with tempfile.TemporaryDirectory(prefix="seqloss-") as folder:
        paths, n_rejected, said = [], 0, set[str]()
        for number, model in enumerate(models):
            path = Path(folder) / f"{number}.jsonl"
            n_rejected += _score_to(context, model, names, path, said)
            paths.append(str(path))
            gc.collect()  # the model, before the next one is loaded
        yield paths, n_rejected


def _score_to(
    context: typer.Context, model: str, names: list[str], path: Path, said: set[str]
) -> int:
    """How many inputs were rejected; what was said of them before is not said again."""
    from seqloss_cli.cli.choices import choose_reading, load_scorer
    from seqloss_cli.cli.progress import ProgressBar
    from seqloss_cli.inputs import ReadStats, read_inputs

    values, stats = context.params, ReadStats()
    say(f"scoring with {model}")
    scorer = load_scorer(context, model=model)
    reading = choose_reading(
        context,
        lines=values["lines"],
        jsonl=values["jsonl_input"],
        text_field=values["text_field"],
    )
    bar = ProgressBar(names)
    with bar:
        items = read_inputs(names, reading, stats)
        return _write(scorer, items, stats, path, bar, said, values.get("report") is not None)


def _write(
    scorer: Scorer, items: Any, stats: Any, path: Path, bar: Any, said: set[str], text: bool
) -> int:
    from seqloss_cli.core.backend import Requested
    from seqloss_cli.core.records import Rejected
    from seqloss_cli.metrics.totals import Totals, totals_of
    from seqloss_cli.results.formats.json import JsonlWriter
    from seqloss_cli.results.schema.scores import score_rows
    from seqloss_cli.results.writing.rows import RowOptions

    tokenization = scorer.tokenization
    options = RowOptions(tokenization.token_texts, tokenization.name_token, text=text)
    totals, n_rejected = Totals(), 0
    outcomes: Any = scorer.score(items, Requested(), bar.on_progress)
    with path.open("wb") as sink, closing(outcomes):
        writer = JsonlWriter(sink, score_rows(options))
        writer.begin(scorer.run_info("score"))
        for outcome in outcomes:
            if isinstance(outcome, Rejected):
                n_rejected += 1
                writer.reject(outcome)
                where = f"{outcome.source}:{outcome.line}" if outcome.line else outcome.source
                message = f"rejected {where}: {outcome.message} ({outcome.reason})"
                if message not in said:
                    said.add(message)
                    say(message)
                continue
            sums = totals_of(outcome)
            totals += sums
            writer.sequence(outcome, sums)
        writer.end(totals, n_rejected, stats.n_empty_lines)
    return n_rejected
