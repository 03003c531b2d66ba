"""Make the page of a results file of `rank`: which choices are preferred, and which are right.

A question is its prompt, and its choices as coloured texts with their scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from markupsafe import Markup

from seqloss_cli.analysis import confidence
from seqloss_cli.analysis.extremes import Chosen, Selection
from seqloss_cli.display.html import charts, page, sequences
from seqloss_cli.display.html.page import Cell, Column
from seqloss_cli.display.html.sequences import PageQuestion
from seqloss_cli.display.html.spans import loss_or_mark, span_markup, token_pane
from seqloss_cli.display.scales import LOSS_EDGES, step_of
from seqloss_cli.metrics.accuracy import RankTotals, accuracies
from seqloss_cli.metrics.ranking import ACCURACIES, MEANINGS, SCORES
from seqloss_cli.results.files import ResultsOf
from seqloss_cli.results.schema.rankings import RankedChoice, RankedRow

_LABELS = {
    "sum": "sum",
    "token": "per token",
    "byte": "per byte",
    "char": "per char",
    "pmi": "PMI",
    "mutual_information": "mutual",
}
"""Names of scores."""
_BY = {name: f"by {label.removeprefix('per ')}" for name, label in _LABELS.items()}
_UNSURE = -1e200
"""Questions without an answer come after those with one, the closest first."""
_HEADINGS = page.Headings(
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


@dataclass(frozen=True, slots=True)
class RankingPageData:
    """All that the page needs once the rows were read."""

    by: str
    """The score that orders choices."""
    sums: confidence.RankingSums
    chosen: Chosen[PageQuestion]
    has_tokens: bool


def gather_rankings(
    rows: Iterable[RankedRow], run: Mapping[str, Any], options: page.PageOptions
) -> RankingPageData:
    """Read the rows once; what is kept of them is what the page shows."""
    by, has_tokens = confidence.main_score(run), False
    sums = confidence.RankingSums(by, options.seed)
    selection = Selection[PageQuestion](options.limits, options.seed)
    for order, row in enumerate(rows):
        sums.add(row)
        # one choice tells: a row holds the tokens of all of its choices, or of none
        has_tokens |= row.choices[0].row.tokens is not None
        # a question has no worst token that would count apart from it
        badness = _badness(row, by)
        selection.add(PageQuestion.of(row, order), badness, badness)
    return RankingPageData(by, sums, selection.chosen(), has_tokens)


def _badness(row: RankedRow, by: str) -> float:
    if row.answers is None:
        return _UNSURE * (1 + (confidence.lead_of(row, by) or 0.0))
    return -(confidence.margin_of(row, by) or 0.0)


def ranking_page(
    file: ResultsOf[RankedRow],
    found: RankingPageData,
    options: page.PageOptions,
    n_unusable: int = 0,
) -> page.Page:
    """Return the page; `n_unusable` rows of the file could not be read back."""
    names, totals = page.TokenNames(), found.sums.totals
    scores = [name for name in SCORES if name in totals.n_ordered]
    columns = _columns(found, scores)
    sections = []
    for n, item in enumerate(found.chosen.items):
        question, cells = _question(item.row, found.by, names), page.row_of(item.row, columns)
        panes, about = [choice.pane for choice in question.choices], _about(item, found.by)
        sections.append(page.Section(n, item.id, item.where, cells, panes, about, question))
    worst_first = "closeness of the two best choices"
    if totals.n_with_answer:
        worst_first = "lead of a wrong choice over the right one"
    return page.Page(
        title=options.title or f"Preferences of {PurePath(file.name).name}",
        subtitle=sequences.subtitle_of(file),
        notes=[*sequences.notes_of(file, n_unusable), *_notes(found)],
        figures=_figures(found),
        tables=[_table(totals, scores)],
        charts=_charts(found),
        columns=columns,
        sequences=sections,
        chosen=sequences.about_selection(found.chosen, options, worst_first, "questions"),
        provenance=[("", sequences.run_table(file.run))],
        names=names,
        metrics=[page.Metric("loss", "loss" if found.has_tokens else "mean loss per token")],
        headings=_HEADINGS,
    )


def _notes(found: RankingPageData) -> list[str]:
    totals, notes = found.sums.totals, list[str]()
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


def _figures(found: RankingPageData) -> list[page.Figure]:
    totals, judged = found.sums.totals, accuracies(found.sums.totals)
    # no accuracy where no answer is known
    main = next((name for name in judged if ACCURACIES[name] == found.by), None)
    figures = []
    if main is not None:
        figures.append(page.Figure(f"{main}: right by {found.by}", Cell.of(judged[main]), "Wilson"))
    if totals.chance is not None:
        figures.append(page.Figure("by guessing", Cell(totals.chance)))
    mean = found.sums.mean_probability()
    if mean.value is not None:
        figures.append(page.Figure("mean probability of the right one", Cell.of(mean), mean.method))
    return [
        *figures,
        page.Figure("questions", f"{totals.n_rows:,}", f"{totals.n_with_answer:,} with an answer"),
        page.Figure("choices", f"{totals.n_choices:,}"),
        page.Figure(f"ties by {found.by}", f"{totals.n_tied.get(found.by, 0):,}"),
    ]


def _table(totals: RankTotals, scores: list[str]) -> page.Table:
    """Return what each score is, and how often it was right."""
    judged, named = accuracies(totals), {score: name for name, score in ACCURACIES.items()}
    compared = {score: totals.n_compared.get(named[score], 0) for score in scores}
    right = {score: totals.n_correct.get(named[score], 0) for score in scores}
    columns = [
        Column("score", lambda s: _LABELS[s], is_text=True),
        Column("accuracy", lambda s: named[s] if compared[s] else "–", is_text=True),
        Column("share right", lambda s: Cell.of(judged[named[s]]) if compared[s] else Cell(None)),
        Column("right", lambda s: f"{right[s]:,} of {compared[s]:,}" if compared[s] else "–"),
        Column("ties", lambda s: f"{totals.n_tied.get(s, 0):,}"),
        Column("with an order", lambda s: f"{totals.n_ordered[s]:,}"),
        Column("what it is", lambda s: MEANINGS[s], is_text=True),
    ]
    about = []
    if totals.boundaries:
        meet = ", ".join(f"{name} {n:,}" for name, n in totals.boundaries.items())
        about.append(f"How choices meet their prompts: {meet}.")
    if totals.flags:
        about.append(f"Flags: {sequences.flags_text(totals.flags)}.")
    return page.Table("By score", columns, scores, " ".join(about))


def _charts(found: RankingPageData) -> list[page.Chart]:
    totals, values = found.sums.totals, found.sums.values
    if not totals.n_with_answer:
        probabilities = charts.probability_chart(values("best"), with_verdicts=False)
        return [*filter(None, (charts.lead_chart(values("lead")), probabilities))]
    by_score = {_LABELS[ACCURACIES[name]]: each for name, each in accuracies(totals).items()}
    made = (
        charts.margin_chart(values("margin")),
        charts.probability_chart(values("right"), with_verdicts=True),
        charts.accuracy_chart(by_score, totals.chance),
    )
    return [*filter(None, made)]


def _columns(found: RankingPageData, scores: list[str]) -> list[Column]:
    """Return the columns of questions: which choice each score prefers, how sure the model is."""
    by, totals = found.by, found.sums.totals
    columns = [Column("lead", lambda row: Cell(confidence.lead_of(row, by)), is_loss=True)]
    if totals.n_with_answer:
        columns = [
            Column("answer", lambda row: ", ".join(map(str, row.answers or ())) or "–"),
            Column("right?", lambda row: confidence.verdict_of(row, by) or "–", is_text=True),
            Column("margin", lambda row: Cell(confidence.margin_of(row, by)), is_loss=True),
            Column("p(right)", lambda row: Cell(confidence.probability_of_right(row))),
            *columns,
        ]
    columns += [Column(_BY[name], _first_by(name)) for name in scores]
    if totals.flags:
        columns.append(Column("flags", _flags, is_text=True))
    return columns


def _first_by(score: str) -> Callable[[RankedRow], str]:
    return lambda row: str(row.orders[score][0]) if score in row.orders else "–"


def _flags(row: RankedRow) -> str:
    return sequences.flags_text(row.fields.get("flags") or {})


def _about(item: PageQuestion, by: str) -> list[str]:
    """Return its verdict as a sentence, and what a reader must know of its text."""
    row = item.row
    said = [_verdict(row, by)]
    if item.n_left_out:
        said.append(
            f"Prompt and choices are left out: with about {item.n_left_out:,} tokens they are more "
            "than a page has room for."
        )
    elif "prompt" not in row.fields:
        said.append("Without texts: the results were written with --no-text.")
    return said


def _verdict(row: RankedRow, by: str) -> str:
    if by not in row.orders:
        return f"No order by {by}: it is not known of every choice."
    best = f"choice {row.orders[by][0]} is preferred by {by}"
    if row.answers is None:
        return f"No answer is known: {best}."
    verb = "is" if len(row.answers) == 1 else "are"
    right = " and ".join(map(str, row.answers))
    return f"{confidence.verdict_of(row, by).capitalize()}: {best}; {right} {verb} right."


def _question(row: RankedRow, by: str, names: page.TokenNames) -> page.QuestionPanel:
    prompt = row.fields.get("prompt")
    known = prompt if isinstance(prompt, str) else None
    markup = None if known is None else Markup(page.escape_text(known))
    choices = [_choice(row, n, by, names) for n in range(len(row.choices))]
    return page.QuestionPanel(markup, page.direction_of(known or ""), choices)


def _choice(row: RankedRow, n: int, by: str, names: page.TokenNames) -> page.Choice:
    choice, figures = row.choices[n], row.choices[n].figures
    scores = [
        page.Figure(_LABELS[name], Cell(figures.score_by(name)), is_loss=True)
        for name in figures.score_names
    ]
    scores.append(page.Figure("probability", Cell(choice.probability)))
    scores.append(page.Figure("tokens", f"{figures.n_tokens:,}"))
    if choice.flags:
        scores.append(page.Figure("flags", sequences.flags_text(choice.flags)))
    return page.Choice(n, _marks(row, n, by), _pane(choice, n, names), scores, choice.probability)


def _marks(row: RankedRow, n: int, by: str) -> list[tuple[str, str]]:
    """Return classes and words of what the choice is."""
    found = []
    if row.answers is not None and n in row.answers:
        found.append(("gold", "right answer"))
    preferring = [name for name, order in row.orders.items() if order[0] == n]
    if preferring:
        is_wrong = row.answers is not None and n not in row.answers
        kind = ("mistaken" if is_wrong else "preferred") if by in preferring else "other"
        found.append((kind, "preferred by " + ", ".join(_LABELS[name] for name in preferring)))
    return found


def _pane(choice: RankedChoice, n: int, names: page.TokenNames) -> page.Pane:
    """Return a choice by its tokens; without them as a whole, by its mean loss per token."""
    sequence = sequences.page_sequence(choice.row, n)
    if not sequence.why_plain:
        return token_pane(sequence, "", names)
    score = choice.figures.score_by("token")
    loss = None if score is None else 0.0 - score  # not -score, which can be -0.0
    step = "u" if loss is None else f"s{step_of(loss, LOSS_EDGES)}"
    text = choice.response or ""
    data: dict[str, Any] = {
        "l": [loss_or_mark(loss)],
        "t": [names.number(f"choice {n}")],
        "w": choice.figures.n_tokens,
    }
    if "\0" in text:
        data["x"] = {0: text}
    markup = span_markup(text, step, "", f"choice {n}")
    return page.Pane("", "tokens", markup, data, direction=page.direction_of(text))
