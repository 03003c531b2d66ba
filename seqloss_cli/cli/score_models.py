"""Score the same data with several models, one in memory at a time."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from seqloss_cli.cli.commands import OutputSettings
from seqloss_cli.cli.failures import say
from seqloss_cli.cli.inputs import read_options
from seqloss_cli.cli.options import Group, given, only, without
from seqloss_cli.core import policies as p
from seqloss_cli.core.options import INPUT, MODEL, argument, command_record, option


@command_record
class ModelArguments:
    """Several models that are scored, and the data."""

    PANEL = MODEL

    checkpoints: list[str] = argument("CHECKPOINT", "Directories or hub names.", required=True)
    models: list[str] | None = option(
        None, "To be scored with --data; name each.", flag="--model", short="-m"
    )
    data: list[str] | None = option(
        None, "Texts or JSONL to score; may be given again.", panel=INPUT
    )


SCORING_OPTIONS: Group = {
    **only(ModelArguments, "data"),
    **only(
        p.Reading,
        jsonl="Data is JSONL, whatever its name.",
        text_field="Field of a JSONL row with the text.",
    ),
    **without(p.ModelChoice, "name"),
    **only(p.TokenPolicy),
    **only(p.WindowChoice),
    **only(p.BatchPolicy, "tokens"),
    **only(p.SpeedPolicy),
}


@contextmanager
def score_models(context: typer.Context, models: Sequence[str]) -> Iterator[tuple[list[str], int]]:
    """Score the data with each model: yields their results files, which are gone at the end, and
    how many inputs were rejected."""
    names = given(context, ModelArguments).data or []
    with tempfile.TemporaryDirectory(prefix="seqloss-") as folder:
        paths, n_rejected, said = [], 0, set[str]()
        for number, model in enumerate(models):
            path = Path(folder) / f"{number}.jsonl"
            n_rejected += _score_to(context, model, names, path, said)
            paths.append(str(path))
            # Memory may not hold two models: this one goes before the next is loaded.
            gc.collect()
        yield paths, n_rejected


def _score_to(
    context: typer.Context, model: str, names: list[str], path: Path, said: set[str]
) -> int:
    """Score one model; returns how many inputs were rejected. A message that is in `said` is not
    repeated: most rejections are the same for every model."""
    from seqloss_cli.cli.progress import ProgressBar
    from seqloss_cli.cli.run import Inputs, write_all
    from seqloss_cli.cli.settings import load_scorer
    from seqloss_cli.core.backend import Requested
    from seqloss_cli.inputs.reading import ReadStats, read_inputs
    from seqloss_cli.results.formats.json import JsonlWriter
    from seqloss_cli.results.schema import RowOptions
    from seqloss_cli.results.schema.scores import score_rows
    from seqloss_cli.scoring.tasks import score_task

    def say_once(message: str) -> None:
        if message not in said:
            said.add(message)
            say(message)

    stats = ReadStats()
    say(f"scoring with {model}")
    scorer = load_scorer(context, model=model)
    inputs = Inputs(read_inputs(names, read_options(context), stats), stats, names, None)
    task, tokens = score_task(scorer, "score", Requested()), scorer.tokenization
    # Texts are kept only for a page: they can be larger than all else in the file.
    with_texts = given(context, OutputSettings).report is not None
    options = RowOptions(
        run=task.run,
        token_texts=tokens.token_texts,
        name_token=tokens.name_token,
        text=with_texts,
    )
    with path.open("wb") as sink:
        writer = JsonlWriter(sink, score_rows(options))
        written = write_all(task, inputs, task.run, writer, ProgressBar(names), tell=say_once)
    return written.n_rejected
