"""The page of a results file of `rank`: which choices are preferred, and which are right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath

import numpy as np

from seqloss_cli.core.records import Floats
from seqloss_cli.display.html import ranking_charts as charts
from seqloss_cli.display.html.charts import Cell, Chart
from seqloss_cli.display.html.one_model import subtitle_of
from seqloss_cli.display.html.page import (
    Column,
    Figure,
    Metric,
    Page,
    PageOptions,
    ShownSequence,
    Table,
    Words,
    about_selection,
    flags_text,
    notes_of,
    run_table,
)
from seqloss_cli.display.html.panes import Names
from seqloss_cli.display.html.questioned import GatheredRankings
from seqloss_cli.display.html.questions import (
    SAID,
    ShownRow,
    about_question,
    chance_of_right,
    lead_of,
    margin_of,
    question_of,
    verdict_of,
)
from seqloss_cli.metrics.accuracy import RankTotals, accuracies
from seqloss_cli.metrics.intervals import Estimate, ratio_estimate
from seqloss_cli.metrics.ranking import ACCURACIES, MEANINGS, SCORES
from seqloss_cli.results.files import ResultsOf
from seqloss_cli.results.schema.rankings import RankedRow

_BY = {name: f"by {said.removeprefix('per ')}" for name, said in SAID.items()}
_WORDS = Words(
    charts="Right and wrong",
    sequences="Questions",
    sequence="question",
    texts="Prompts and choices",
    about=(
        "Scores are in nats: sum is ln Pr(y|x), the others are made from it as the table of "
        "scores says; probability is the softmax of the sums over a question's choices. The first "
        "of equal choices is the preferred one. Margin: score of the right choice less that of the "
        "best wrong one; lead: of the best choice less the second; below by sum, by token and so "
        "on stands the choice that each prefers. Intervals of accuracies are Wilson's, 95 %, over "
        "questions."
    ),
)


def page_of_rankings(
    file: ResultsOf[RankedRow],
    found: GatheredRankings,
    options: PageOptions,
    n_unusable: int = 0,
) -> Page:
    names, chosen, totals = Names(), found.chosen, found.totals
    scores = [name for name in SCORES if name in totals.n_ordered]
    sequences = [_sequence(n, item, found, scores, names) for n, item in enumerate(chosen.items)]
    panes = [pane for sequence in sequences for pane in sequence.panes]
    loss = "loss" if found.has_tokens else "mean loss per token"
    return Page(
        title=options.title or f"Preferences of {PurePath(file.name).name}",
        subtitle=subtitle_of(file),
        is_comparison=False,
        notes=[*notes_of(file, n_unusable), *_notes(found)],
        verdict="",
        figures=figures_of(found),
        tables=[_table(totals, scores)],
        charts=_charts(found),
        places=[],
        places_header=[],
        columns=_columns(found, scores),
        sequences=sequences,
        chosen=about_selection(
            chosen, options.limits, options.seed, _worst_first(totals), "questions"
        ),
        provenance=[("", run_table(file.run))],
        data={"names": names.all(), "panes": [pane.data for pane in panes]},
        metrics=[Metric("loss", loss)],
        has_masked=any("k" in pane.data for pane in panes),
        words=_WORDS,
    )


def _worst_first(totals: RankTotals) -> str:
    if totals.n_with_answer:
        return "lead of a wrong choice over the right one"
    return "closeness of the two best choices"


def _notes(found: GatheredRankings) -> list[str]:
    totals, notes = found.totals, list[str]()
    if not found.has_tokens and totals.n_rows:
        notes.append(
            "The results hold no token losses (--tokens, or --report of rank itself, writes them): "
            "each choice is coloured as a whole, by its mean loss per token."
        )
    if n := totals.n_rows - totals.n_with_answer:
        notes.append(
            f"Questions neither right nor wrong, since their answers are not known: {n:,}."
        )
    if n := totals.n_rows - totals.n_ordered.get(found.by, 0):
        notes.append(f"Questions without an order by {found.by}, not known of all choices: {n:,}.")
    return notes


# -- figures -------------------------------------------------------------------------------------


def figures_of(found: GatheredRankings) -> list[Figure]:
    totals, judged = found.totals, accuracies(found.totals)
    main = next((name for name in judged if ACCURACIES[name] == found.by), None)
    figures = []
    if main is not None:
        figures.append(Figure(f"{main}: right by {found.by}", _cell(judged[main]), "Wilson"))
    if totals.chance is not None:
        figures.append(Figure("by guessing", Cell(totals.chance)))
    mean = _mean_chance(np.abs(found.chances))
    if mean.value is not None:
        figures.append(Figure("mean probability of the right one", _cell(mean), mean.method))
    figures += [
        Figure("questions", f"{totals.n_rows:,}", f"{totals.n_with_answer:,} with an answer"),
        Figure("choices", f"{totals.n_choices:,}"),
        Figure(f"ties by {found.by}", f"{totals.n_tied.get(found.by, 0):,}"),
    ]
    return figures


def _mean_chance(chances: Floats) -> Estimate:
    """Its interval does not leave what probabilities can be."""
    found = ratio_estimate(chances, np.ones(len(chances)))
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def _cell(estimate: Estimate) -> Cell:
    return Cell(estimate.value, 4, estimate.low, estimate.high)


def _table(totals: RankTotals, scores: list[str]) -> Table:
    """Of each score what it is, and how often it was right."""
    judged, named = accuracies(totals), {score: name for name, score in ACCURACIES.items()}
    rows: list[list[Cell | str]] = []
    for score in scores:
        name = named[score]
        n, right = totals.n_compared.get(name, 0), totals.n_correct.get(name, 0)
        rows.append([
            SAID[score], name if n else "–", _cell(judged[name]) if n else Cell(None),
            f"{right:,} of {n:,}" if n else "–", f"{totals.n_tied.get(score, 0):,}",
            f"{totals.n_ordered[score]:,}", MEANINGS[score],
        ])  # fmt: skip
    header = [
        Column("score", is_text=True), Column("accuracy", is_text=True), Column("share right"),
        Column("right"), Column("ties"), Column("with an order"),
        Column("what it is", is_text=True),
    ]  # fmt: skip
    about = []
    if totals.boundaries:
        meet = ", ".join(f"{name} {n:,}" for name, n in totals.boundaries.items())
        about.append(f"How choices meet their prompts: {meet}.")
    if totals.flags:
        about.append(f"Flags: {flags_text(totals.flags)}.")
    return Table("By score", header, rows, " ".join(about))


def _charts(found: GatheredRankings) -> list[Chart]:
    totals, named = found.totals, accuracies(found.totals)
    by_score = {SAID[ACCURACIES[name]]: each for name, each in named.items()}
    if totals.n_with_answer:
        made = [
            charts.margins(found.margins, ~np.signbit(found.margins)),
            charts.probabilities(np.abs(found.chances), ~np.signbit(found.chances)),
            charts.accuracies_by_score(by_score, totals.chance),
        ]
    else:
        made = [charts.leads(found.leads), charts.probabilities(found.best_chances, None)]
    return [chart for chart in made if chart is not None]


# -- questions -----------------------------------------------------------------------------------


def _columns(found: GatheredRankings, scores: list[str]) -> list[Column]:
    """Which choice each score prefers, and how sure the model is."""
    judged = []
    if found.totals.n_with_answer:
        judged = [Column("answer"), Column("right?", is_text=True), Column("margin", is_loss=True),
                  Column("p(right)")]  # fmt: skip
    flags = [Column("flags", is_text=True)] if found.totals.flags else []
    return [*judged, Column("lead", is_loss=True), *(Column(_BY[n]) for n in scores), *flags]


def _sequence(
    number: int, item: ShownRow, found: GatheredRankings, scores: list[str], names: Names
) -> ShownSequence:
    row, by = item.row, found.by
    cells: list[Cell | str] = []
    if found.totals.n_with_answer:
        answers = "–" if row.answers is None else ", ".join(map(str, row.answers))
        chance = Cell(chance_of_right(row))
        cells = [answers, verdict_of(row, by) or "–", Cell(margin_of(row, by)), chance]
    cells.append(Cell(lead_of(row, by)))
    cells += [str(row.orders[name][0]) if name in row.orders else "–" for name in scores]
    if found.totals.flags:
        cells.append(flags_text(row.fields.get("flags") or {}))
    question = question_of(item, by, names)
    panes = [choice.pane for choice in question.choices]
    where, id = _where(row), str(row.fields["id"])
    return ShownSequence(
        number, id, "" if where == id else where, cells, panes, about_question(item, by), question
    )


def _where(row: RankedRow) -> str:
    source, line = str(row.fields.get("source") or ""), row.fields.get("line")
    return source if line is None else f"{source}:{line}"
