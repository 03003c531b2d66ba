"""A question that a page shows: its prompt, and its choices as coloured texts with their scores."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from seqloss_cli.display.html.charts import Cell
from seqloss_cli.display.html.page import Question, Scored, ShownChoice, flags_text
from seqloss_cli.display.html.panes import (
    Names,
    Pane,
    direction_of,
    escape_text,
    loss_or_mark,
    span_markup,
    token_pane,
)
from seqloss_cli.display.html.shown import shown
from seqloss_cli.display.scales import LOSS_EDGES, step_of
from seqloss_cli.results.schema.rankings import RankedChoice, RankedRow

SAID = {
    "sum": "sum",
    "token": "per token",
    "byte": "per byte",
    "char": "per char",
    "pmi": "PMI",
    "mutual_information": "mutual",
}
BYTES_A_TOKEN = 4
"""Of a prompt, whose tokens are not known: for the limits of a page."""


@dataclass(frozen=True, slots=True)
class ShownRow:
    order: int
    row: RankedRow
    size: int
    """Tokens that the page would show, its prompt's guessed from its bytes."""
    n_left_out: int = 0
    """The same of a question whose texts are left out."""


def shown_row(row: RankedRow, order: int) -> ShownRow:
    n_tokens = sum(_n_tokens(choice) for choice in row.choices)
    return ShownRow(
        order, row, n_tokens + len(_prompt(row).encode("utf-8", "replace")) // BYTES_A_TOKEN
    )


def _n_tokens(choice: RankedChoice) -> int:
    return choice.figures.n_tokens if choice.row.tokens is None else len(choice.row.tokens.losses)


def _prompt(row: RankedRow) -> str:
    prompt = row.fields.get("prompt")
    return prompt if isinstance(prompt, str) else ""


def without_texts(item: ShownRow, most: int) -> ShownRow:
    """The same, but for texts where they are longer than that."""
    if item.size <= most:
        return item
    choices = tuple(
        replace(each, response=None, row=replace(each.row, fields={"id": each.row.id}, tokens=None))
        for each in item.row.choices
    )
    fields = {name: value for name, value in item.row.fields.items() if name != "prompt"}
    row = replace(item.row, fields=fields, choices=choices)
    return ShownRow(item.order, row, 0, item.n_left_out or item.size)


def question_of(item: ShownRow, by: str, names: Names) -> Question:
    prompt = item.row.fields.get("prompt")
    return Question(
        None if not isinstance(prompt, str) else Markup(escape_text(prompt)),
        "ltr" if not isinstance(prompt, str) else direction_of(prompt.encode("utf-8", "replace")),
        [_shown_choice(item.row, n, by, names) for n in range(len(item.row.choices))],
    )


def verdict_of(row: RankedRow, by: str) -> str:
    """In a word or two; empty where no answer is known."""
    if row.answers is None:
        return ""
    if by not in row.orders:
        return "no order"
    return "right" if row.orders[by][0] in row.answers else "wrong"


def about_question(item: ShownRow, by: str) -> list[str]:
    """Its verdict as a sentence, and what a reader must know of its text."""
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
    return f"{verdict_of(row, by).capitalize()}: {best}; {right} {verb} right."


def _shown_choice(row: RankedRow, n: int, by: str, names: Names) -> ShownChoice:
    choice, figures = row.choices[n], row.choices[n].figures
    scores = [
        Scored(SAID[name], Cell(figures.score_by(name)), is_loss=True)
        for name in figures.score_names
    ]
    scores += [
        Scored("probability", Cell(choice.probability)),
        Scored("tokens", f"{figures.n_tokens:,}"),
    ]
    if choice.flags:
        scores.append(Scored("flags", flags_text(choice.flags)))
    return ShownChoice(n, _marks(row, n, by), _pane(choice, n, names), scores, choice.probability)


def _marks(row: RankedRow, n: int, by: str) -> list[tuple[str, str]]:
    """Classes and words of what the choice is."""
    found = []
    if row.answers is not None and n in row.answers:
        found.append(("gold", "right answer"))
    preferring = [name for name, order in row.orders.items() if order[0] == n]
    if preferring:
        is_main = by in preferring
        is_wrong = row.answers is not None and n not in row.answers
        kind = ("mistaken" if is_wrong else "preferred") if is_main else "other"
        found.append((kind, "preferred by " + ", ".join(SAID[name] for name in preferring)))
    return found


def _pane(choice: RankedChoice, n: int, names: Names) -> Pane:
    found = shown(choice.row, n)
    if not found.why_plain:
        return token_pane(found, "", names, "", ())
    score = choice.figures.score_by("token")
    loss = None if score is None else 0.0 - score
    step = "u" if loss is None else f"s{step_of(loss, LOSS_EDGES)}"
    text = choice.response or ""
    markup = span_markup(text, step, "", "", f"choice {n}")
    data: dict[str, Any] = {
        "l": [loss_or_mark(loss)],
        "t": [names.place(f"choice {n}")],
        "w": choice.figures.n_tokens,
    }
    if "\0" in text:
        data["x"] = {0: text}
    return Pane("", "tokens", markup, data, "", direction_of(text.encode("utf-8", "replace")))


def margin_of(row: RankedRow, by: str) -> float | None:
    """Best score of a right choice less that of a wrong one; None where either is not known."""
    scores = row.scores(by)
    if scores is None or row.answers is None:
        return None
    right = [score for n, score in enumerate(scores) if n in row.answers]
    wrong = [score for n, score in enumerate(scores) if n not in row.answers]
    return _less(max(right), max(wrong)) if wrong else None


def lead_of(row: RankedRow, by: str) -> float | None:
    """Best score less the second."""
    scores = row.scores(by)
    if scores is None or len(scores) < 2:
        return None
    first, second = row.orders[by][:2]
    return _less(scores[first], scores[second])


def chance_of_right(row: RankedRow) -> float | None:
    """Of its right choices together."""
    if row.answers is None:
        return None
    chances = [row.choices[n].probability for n in sorted(set(row.answers))]
    known = [chance for chance in chances if chance is not None]
    return min(1.0, math.fsum(known)) if len(known) == len(chances) else None


def _less(a: float, b: float) -> float | None:
    return None if math.isnan(a - b) else a - b
