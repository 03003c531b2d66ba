"""`seqloss rank`: which of several responses a model prefers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from seqloss_cli.cli import options as o
from seqloss_cli.cli import pairs as p
from seqloss_cli.cli.enums import Format
from seqloss_cli.cli.failures import REJECTED, command_errors, say
from seqloss_cli.cli.inputs import STDIN, input_names, text_of
from seqloss_cli.errors import UsageError

if TYPE_CHECKING:
    from seqloss_cli.cli.output import OutputChoice
    from seqloss_cli.judging import RankTotals
    from seqloss_cli.ranking import Ranking
    from seqloss_cli.reading import ReadOptions, ReadStats
    from seqloss_cli.records import Rejected, Sample
    from seqloss_cli.scorer import Scorer
    from seqloss_cli.writing import RankedRows, Writer

EXAMPLES = (
    'seqloss rank --prompt "A list is" --response " sorted." --response " wet."',
    "seqloss rank samples/choices.jsonl --separator ' ' --pmi",
    "seqloss rank samples/minimal-pairs.jsonl --no-prompt --choices-field good,bad",
)


class By(StrEnum):
    sum = "sum"
    token = "token"
    byte = "byte"
    char = "char"
    pmi = "pmi"
    mutual_information = "mutual_information"


RANK_INPUTS: o.Group = {
    "files": (
        Annotated[
            list[str] | None,
            typer.Argument(metavar="[FILES…|-]", help="JSONL rows; .gz, .zst."),
        ],
        None,
    ),
    "prompt": p.PAIR_INPUTS["prompt"],
    "response": (
        Annotated[
            list[str] | None,
            typer.Option(
                "--response",
                help="A response: a text, @FILE or - (stdin); twice or more.",
                rich_help_panel=o.INPUT,
                show_default=False,
            ),
        ],
        None,
    ),
    "prompt_field": p.PAIR_INPUTS["prompt_field"],
    "no_prompt": (
        Annotated[bool, o.flag(o.INPUT, "--no-prompt", "Rows have no prompt: minimal pairs.")],
        False,
    ),
    "choices_field": (
        Annotated[
            str,
            o.option(
                o.INPUT, "--choices-field", "Field with the list; or a,b: a response in each."
            ),
        ],
        "choices",
    ),
    "answer_field": (
        Annotated[
            str,
            o.option(o.INPUT, "--answer-field", "Field with the right one: its place, from 0."),
        ],
        "answer",
    ),
    "answer": (
        Annotated[
            int | None,
            o.option(o.INPUT, "--answer", "The right one, the same for all rows.", min=0),
        ],
        None,
    ),
    "separator": p.PAIR_INPUTS["separator"],
    **o.INPUT_OPTIONS,
}
_CHAT = {n: p.CHAT_OPTIONS[n] for n in ("chat", "chat_template", "no_end_of_turn")}


@o.with_options(
    RANK_INPUTS,
    _CHAT,
    o.MODEL_OPTIONS,
    o.POLICY_OPTIONS,
    p.SEAM_OPTIONS,
    {
        "pmi": (
            Annotated[bool, o.flag(o.POLICY, "--pmi", "Score responses without the prompt, too.")],
            False,
        ),
        "no_share_prefix": p.NO_SHARE_PREFIX,
    },
    o.SPEED_OPTIONS,
    {
        "by": (
            Annotated[By, o.option(o.SHOW, "--by", "Score that orders tables and n-best lists.")],
            By.sum,
        ),
    },
    {name: o.SHOW_OPTIONS[name] for name in ("unit", "all_tokens", "summary")},
    {
        "output_ranked": (
            Annotated[
                Path | None,
                o.option(o.OUTPUT, "--output-ranked", "JSONL of the rows, best choice first."),
            ],
            None,
        ),
    },
    {n: o.OUTPUT_OPTIONS[n] for n in ("json", "jsonl", "format", "output", "force", "no_text")},
    o.OTHER_OPTIONS,
)
def rank(ctx: typer.Context) -> None:
    """Rank responses to a prompt by their log-probability, and judge the best.

    Rows have a prompt, a list of choices and, where it is known, an answer. Accuracies are those
    of lm-evaluation-harness; the first of equal scores wins. Lengths exclude the separator.
    """
    with command_errors(ctx):
        from seqloss_cli.cli.choices import choose_output

        choice = choose_output(ctx)
        _refuse(ctx, choice)
        with _ranked_rows(ctx) as ranked:
            _rank(ctx, choice, ranked)


def _rank(ctx: typer.Context, choice: OutputChoice, ranked: RankedRows | None) -> None:
    from dataclasses import replace

    from seqloss_cli.cli.choices import load_scorer
    from seqloss_cli.cli.output import Work, say_what_did_not_fit, say_what_was_written, write_all
    from seqloss_cli.cli.progress import ProgressBar
    from seqloss_cli.judging import RankTotals, rank_totals
    from seqloss_cli.ranking import rank as rankings
    from seqloss_cli.reading import ReadStats, described
    from seqloss_cli.writing import open_sink

    values, names, stats = ctx.params, _names(ctx), ReadStats()
    items = _items(ctx, names, stats)
    scorer = load_scorer(ctx, p.choose_pairs(ctx, marginal=False))
    bar = ProgressBar(names)
    found = rankings(items, lambda pairs: scorer.score(pairs, None, bar.on_progress), values["pmi"])
    read = described(names or ["<choices>"], _reading(ctx))
    rows = {"text": choice.text, "summary": choice.summary, "pmi": values["pmi"]}
    run = replace(scorer.run_info("rank"), reading=read, rows=rows)
    with open_sink(choice.path, choice.force, warn=say) as sink:
        writer = _writer(sink, choice, scorer, str(values["by"]))
        results = found if ranked is None else _also_ranked(found, ranked)
        work = Work(results, rank_totals, RankTotals(), run, writer)
        written = write_all(work, stats, bar, choice)
    say_what_was_written(written, stats, choice)
    say_what_did_not_fit(scorer)
    if written.n_rejected:
        raise typer.Exit(REJECTED)


def _refuse(ctx: typer.Context, choice: OutputChoice) -> None:
    """Raises UsageError for what this command cannot do, before anything is loaded."""
    values = ctx.params
    if choice.format not in (Format.table, Format.json, Format.jsonl):
        raise UsageError(f"rank does not write {choice.format.value}, but --json and --jsonl")
    if values["boundary"] == "compare":
        raise UsageError("--boundary compare is for cond; rank goes by joint or separate")
    if values["by"] in (By.pmi, By.mutual_information) and not values["pmi"]:
        raise UsageError(f"--by {values['by']} needs the responses alone: --pmi")
    if values["pmi"] and values["chat"]:
        raise UsageError("--pmi is for plain prompts: without --chat")
    if values["no_prompt"] and (values["prompt"] is not None or values["chat"]):
        raise UsageError("--no-prompt excludes --prompt and --chat")
    if values["answer"] is not None and values["prompt"] is not None:
        n = len(values["response"] or [])
        if values["answer"] >= n:
            raise UsageError(f"--answer {values['answer']}: there are {n} responses, from 0 on")
    ranked = values["output_ranked"]
    if ranked is not None:
        from seqloss_cli.writing import refuse_to_overwrite

        if choice.path is not None and ranked.absolute() == choice.path.absolute():
            raise UsageError("--output-ranked and -o name the same file")
        refuse_to_overwrite(ranked, choice.force)


def _names(ctx: typer.Context) -> list[str]:
    """The names of input files; none when the choices stand on the command line."""
    values = ctx.params
    responses, prompt = values["response"] or [], values["prompt"]
    if prompt is None and not responses:
        return input_names(values["files"], "give --prompt and --response twice or more")
    if prompt is None or len(responses) < 2:
        raise UsageError(
            "--prompt goes with two or more --response; an empty prompt is --prompt ''"
        )
    if values["files"]:
        raise UsageError("--prompt and --response exclude FILES")
    if [prompt, *responses].count(STDIN) > 1:
        raise UsageError("'-' (stdin) can be read once only")
    return []


def _items(ctx: typer.Context, names: list[str], stats: ReadStats) -> Iterable[Sample | Rejected]:
    """Samples of the files, or the one row of the command line."""
    from seqloss_cli.reading import choices_sample, read_inputs
    from seqloss_cli.records import Choices

    values = ctx.params
    if names:
        return read_inputs(names, _reading(ctx), stats)
    responses = tuple(text_of("--response", each) for each in values["response"])
    answers = None if values["answer"] is None else (values["answer"],)
    prompt = text_of("--prompt", values["prompt"])
    choices = Choices(prompt, responses, values["separator"], answers, values["chat"])
    return [choices_sample(choices, max_bytes=values["max_bytes"])]


def _reading(ctx: typer.Context) -> ReadOptions:
    """How rows are read."""
    from seqloss_cli.cli.choices import choose_reading
    from seqloss_cli.reading import ChoiceFields

    values = ctx.params
    fields = ChoiceFields(
        prompt=None if values["no_prompt"] else values["prompt_field"],
        choices=tuple(values["choices_field"].split(",")),
        answer=values["answer_field"],
        fixed_answer=values["answer"],
        separator=values["separator"],
        chat=values["chat"],
    )
    return choose_reading(ctx, pairs=fields)


@contextmanager
def _ranked_rows(ctx: typer.Context) -> Iterator[RankedRows | None]:
    """Where re-ordered rows go, if they are asked for."""
    from seqloss_cli.writing import RankedRows, open_sink

    path: Path | None = ctx.params["output_ranked"]
    if path is None:
        yield None
        return
    with open_sink(path, ctx.params["force"], warn=say) as sink:
        rows = RankedRows(sink, str(ctx.params["by"]))
        yield rows
        if rows.n_unordered:
            say(f"warning: {rows.n_unordered} rows of {path} have no order by {rows.by}")


def _also_ranked(
    rankings: Iterator[Ranking | Rejected], rows: RankedRows
) -> Iterator[Ranking | Rejected]:
    """The same, each written to the other file as it comes."""
    from seqloss_cli.ranking import Ranking

    for ranking in rankings:
        if isinstance(ranking, Ranking):
            rows.write(ranking)
        yield ranking


def _writer(
    sink: BinaryIO, choice: OutputChoice, scorer: Scorer, by: str
) -> Writer[Ranking, RankTotals]:
    from seqloss_cli.cli.writers import JSON_WRITERS, console, table_options
    from seqloss_cli.rendering import RankTableWriter
    from seqloss_cli.writing import ranking_rows

    if choice.format is Format.table:
        options = table_options(scorer.tokenization, choice)
        return RankTableWriter(console(choice.path, sink), options, by)
    writer: Writer[Ranking, RankTotals] = JSON_WRITERS[choice.format](
        sink, ranking_rows(choice.text, choice.summary)
    )
    return writer
