"""Comparisons and objectives for a terminal: sentences, tables, and texts coloured by B - A."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console, RenderableType
from rich.text import Text

from seqloss_cli.analysis.compare import (
    Comparison,
    Comparisons,
    DocumentDifference,
    DocumentRows,
    TokenDifference,
)
from seqloss_cli.analysis.joining import LossesOnBytes, align, bytes_of_text
from seqloss_cli.analysis.objective import Objective, training_step
from seqloss_cli.analysis.plot_data import without_directories
from seqloss_cli.core.byte_spans import TokenBytes, spelled_bytes
from seqloss_cli.core.escaping import escape
from seqloss_cli.display.scales import count_of
from seqloss_cli.display.terminal import formatting as fmt
from seqloss_cli.display.terminal.formatting import Column, FiguresTable, HeatOptions, Unit
from seqloss_cli.display.terminal.heat import Drawing, DrawnLines, counted_losses
from seqloss_cli.display.terminal.palette import DIFFERENCES, UNICODE
from seqloss_cli.display.terminal.token_text import TokenText
from seqloss_cli.metrics.intervals import LOG_SCALE, Estimate, interval_notes
from seqloss_cli.results.schema.scores import ResultRow

_WITHOUT_TOKENS = "not coloured: a file was written without tokens (leave out --no-tokens)"
_WITHOUT_BYTES = (
    "not coloured: tokens do not spell the bytes that they cover, as where a text is cut"
)
_OTHER_BYTES = "not coloured: the tokens of the two files spell other bytes"


def comparison_sentence(pair: Comparison, names: Sequence[str], unit: Unit) -> str:
    """Return which model's loss is lower, by how much and how sure that is, in one sentence.

    `B's loss is lower than A's by 0.0310 ± 0.0080 nats per token; lower on 612 of 1000 documents;
    p = 0.0001`
    """
    a, b = escape(names[pair.first]), escape(names[pair.second])
    if (difference := unit.of(pair.difference.value)) is None:
        return f"{b} and {a}: nothing to compare"
    reach = pair.difference.half_width
    digits = fmt.digits_of(pair.difference, unit)
    sure = "" if reach is None else f" ± {unit.text(reach, digits)}"
    size = f"{fmt.number(abs(difference), digits)}{sure} {unit} per {pair.unit}"
    way, n = ("lower", pair.n_lower) if difference < 0 else ("higher", pair.n_higher)
    share = f"{way} on {n:,} of {count_of(pair.n_documents, 'document')}"
    p = f"p = {_p(pair.p_adjusted)}" if pair.n_documents > 1 else "one document: no test"
    sentence = f"{b}'s loss is {way} than {a}'s by {size}; {share}; {p}"
    if difference == 0:
        sentence = f"{b}'s loss is that of {a}; {p}"
    return sentence if pair.is_significant else f"no difference shown: {sentence}"


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else f"{value:.1g}"


def comparison_view(
    found: Comparisons, names: Sequence[str], confidence: float, unit: Unit
) -> Iterator[RenderableType]:
    """Yield the models' letters, a sentence for each pair, then its figures, documents and
    tokens."""
    yield fmt.key_of(names)
    letters = [fmt.letter(n) for n in range(len(names))]
    for pair in found.pairs:
        sentence = comparison_sentence(pair, letters, unit)
        yield Text(sentence, style="bold" if pair.is_significant else "")
    for pair in found.pairs:
        yield _figures(pair, unit, len(found.pairs), confidence)
        yield from _where(pair, unit)


def _letters(pair: Comparison) -> tuple[str, str]:
    return fmt.letter(pair.first), fmt.letter(pair.second)


def _figures(pair: Comparison, unit: Unit, n: int, confidence: float) -> RenderableType:
    a, b = _letters(pair)
    columns = (Column("figure", least=16), Column("value"), Column("interval", spare=1))
    table = FiguresTable(f"{b} against {a}", columns)
    means = (*pair.means, pair.difference)
    for name, mean in zip((a, b, f"{b} − {a}"), means, strict=True):
        text = fmt.value_of(mean, unit)
        if mean is pair.difference:
            text = fmt.signed(unit.of(mean.value), fmt.digits_of(mean, unit))
        table.add_row(f"loss of {name}, {unit} per {pair.unit}", text, unit.interval(mean))
    table.add_row("  by bootstrap", "", unit.interval(pair.bootstrap))
    if pair.n_documents > 1:
        table.add_row("p of sign flips", _p(pair.test.p), "exact" if pair.test.exact else "")
        if n > 1:
            table.add_row(f"  adjusted for {n} comparisons (Holm)", _p(pair.p_adjusted), "")
    counts = f"{pair.n_lower:,}, {pair.n_tied:,}, {pair.n_higher:,}"
    table.add_row(f"documents: {b} lower, tied, higher", counts, "")
    table.add_row("correlation of documents", fmt.number(pair.correlation), "")
    scale = [LOG_SCALE] if any(LOG_SCALE in mean.method for mean in pair.means) else []
    lines = [*_method(pair.difference, confidence), *(f"losses {s}" for s in scale), *pair.notes]
    table.notes = [f"below 0 {b}'s loss is lower", *lines]
    return table


def _method(estimate: Estimate, confidence: float) -> list[str]:
    """Return the confidence of an interval and its method, or why there is none."""
    share = [] if estimate.low is None else [f"{100 * confidence:g}% intervals"]
    return [*share, estimate.method] if estimate.method else share


def _where(pair: Comparison, unit: Unit) -> Iterator[RenderableType]:
    a, b = _letters(pair)
    losses = [Column(a, spare=2), Column(b, spare=1), Column(f"{b} − {a}")]
    if pair.n_documents > 1 and pair.documents:
        title = f"documents that differ most, {unit} per {pair.unit}"
        table = FiguresTable(title, [Column("sequence", least=12), *losses])
        for entry in pair.documents:
            table.add_row(Text(escape(entry.id)), *_both(entry, unit))
        yield table
    if pair.tokens:
        title = f"tokens that differ most, {unit}"
        parts = fmt.parts_of_characters(pair.tokens)
        columns = [Column("token in its text", least=16), *parts.columns]
        columns += [Column("sequence", least=12), Column("pos", spare=3), *losses]
        table = FiguresTable(title, columns)
        for found in pair.tokens:
            cells = (*parts.cells(found), escape(found.id), str(found.position))
            table.add_row(fmt.in_its_text(found), *cells, *_both(found, unit))
        yield table


def _both(found: DocumentDifference | TokenDifference, unit: Unit) -> tuple[str, str, str]:
    difference = fmt.signed(unit.of(found.difference))
    return unit.text(found.first), unit.text(found.second), difference


def objective_answers(found: Objective, names: Sequence[str], unit: Unit) -> Iterator[str]:
    """Yield the best checkpoint, and how it compares with the one that comes nearest."""
    if found.best is None:
        return
    least = unit.figure(found.totals[found.best].total_loss)
    lead = "" if found.lead is None else f"; {comparison_sentence(found.lead, names, unit)}"
    yield f"the least total loss, {least}, is that of {escape(names[found.best])}{lead}"


def objective_view(
    found: Objective, names: Sequence[str], confidence: float, unit: Unit
) -> Iterator[RenderableType]:
    """Yield a line for each checkpoint, the curve over training steps, and the best one's lead."""
    steps = [training_step(name) for name in names]
    columns = [Column("checkpoint", least=12), Column("step", spare=3)]
    columns += [Column("total loss", spare=1), Column("per token")]
    columns += [Column("interval", spare=2), Column("above least")]
    table = FiguresTable(f"total loss over the data set, {unit}", columns)
    labels = without_directories(names)
    least = None if found.best is None else found.totals[found.best].total_loss
    checkpoints = zip(labels, steps, found.totals, found.means, strict=True)
    digits = unit.decimals(sums.total_loss for sums in found.totals)
    for n, (name, step, sums, mean) in enumerate(checkpoints):
        total = sums.total_loss
        above = None if total is None or least is None else total - least
        table.add_row(
            Text(escape(name), style="bold green" if n == found.best else ""),
            "-" if step is None else str(step),
            unit.text(total, digits),
            fmt.value_of(mean, unit),
            unit.interval(mean),
            Text("← least" if n == found.best else unit.text(above, digits)),
        )
    # Of one checkpoint a loss may be infinite.
    mean = next((mean for mean in found.means if mean.low is not None), found.means[0])
    notes = interval_notes(mean, found.totals[0].n_sequences)
    table.notes = [*_method(mean, confidence), *notes]
    if labels != list(names):
        table.notes.append("checkpoints by the ends of their paths")
    yield table
    known = zip(steps, found.totals, strict=True)
    curve = sorted((s, t.mean_loss) for s, t in known if s is not None and t.mean_loss is not None)
    if len(curve) > 1:
        means = [mean for _, mean in curve]
        ends = f"{unit.text(means[0])} to {unit.text(means[-1])} {unit} per token"
        if way := fmt.way(means[-1] - means[0]):
            ends += f": {way} at the end"
        yield Text(f"steps {curve[0][0]} to {curve[-1][0]}  {_sparkline(means)}  {ends}")
    if found.lead is not None:
        yield Text(comparison_sentence(found.lead, labels, unit))


def _sparkline(values: Sequence[float]) -> str:
    """Between the lowest and the highest of them."""
    low, high = min(values), max(values)
    # A flat curve has no range to divide by.
    levels, top = UNICODE.levels, len(UNICODE.levels) - 1
    return "".join(levels[round(top * (v - low) / ((high - low) or 1.0))] for v in values)


def difference_views(
    pairs: Sequence[tuple[Comparison, Sequence[DocumentRows]]],
    options: HeatOptions,
    unit: Unit,
    all_tokens: bool,
) -> Iterator[RenderableType]:
    """Yield a legend for each pair of models, and the texts of its documents."""
    for pair, documents in pairs:
        view = _PairView(*_letters(pair), pair.unit, options, unit, all_tokens)
        if documents:
            yield DrawnLines(view.legend)
        for document in documents:
            yield view.document(document)


@dataclass(frozen=True)
class _PairView:
    """Draws two models' difference; `a` and `b` are their letters."""

    a: str
    b: str
    per: str
    """The unit of text that losses are compared per: a token, or a byte across tokenizers."""
    options: HeatOptions
    unit: Unit
    all_tokens: bool

    def legend(self, console: Console) -> Iterator[Text]:
        drawing = Drawing(console, self.options, self.unit, DIFFERENCES)
        noun = "token" if self.per == "token" else "piece"
        yield from drawing.legend(f"loss of {self.b} less that of {self.a}", noun=noun)
        yield from drawing.prose(f"below 0: {self.b} is better; above 0: {self.a} is")
        if self.per != "token":
            yield from drawing.prose(
                "Their tokens differ: a piece is the least text at whose ends both have a token's "
                "end; its loss is the sum of its tokens, with those of no text beside it."
            )

    def document(self, document: DocumentRows) -> DrawnLines:
        # Drawn as it is printed: only then the width and the colours are known.
        return DrawnLines(lambda console: self._document(console, document))

    def _document(self, console: Console, document: DocumentRows) -> Iterator[Text]:
        drawing = Drawing(console, self.options, self.unit, DIFFERENCES)
        yield from drawing.prose(self._title(document), "bold")
        aligned = align_tokens(document) if self.per == "token" else align_pieces(document)
        if isinstance(aligned, NotColoured):
            yield from drawing.prose(aligned.reason)
            return
        if aligned.note:
            yield from drawing.prose(aligned.note)
        yield from drawing.text(aligned.text, self.all_tokens)
        yield Text()
        noun = aligned.text.noun
        yield from drawing.by_position(aligned.a, f"loss of {self.a}", noun)
        yield from drawing.by_position(aligned.b, f"loss of {self.b}", noun)
        yield from drawing.histogram(drawing.counts(aligned.text.values))

    def _title(self, document: DocumentRows) -> str:
        difference, totals = self.unit.of(document.difference.difference), document.a.totals
        n = totals.n_scored if self.per == "token" else totals.n_scored_bytes
        scored = count_of(n, f"scored {self.per}")
        size = f"{self.b} − {self.a}: {fmt.signed(difference)} {self.unit} per {self.per}"
        return f"{escape(document.difference.id)}  ({scored}, {size})"


@dataclass(frozen=True, slots=True)
class AlignedDifference:
    """A document of two models as N pieces that both have: tokens where both have the same ones,
    else the smallest pieces of text at whose ends both have a token's end."""

    text: TokenText
    """Its values are B - A, nats."""
    a: Sequence[float | None]
    """N losses that count, nats."""
    b: Sequence[float | None]
    note: str = ""
    """A remark on this document, for the reader."""


@dataclass(frozen=True, slots=True)
class NotColoured:
    """A document that has no coloured text."""

    reason: str


def align_tokens(document: DocumentRows) -> AlignedDifference | NotColoured:
    """Subtract losses token by token, where both models have the same tokens."""
    # Both have these tokens, so texts and offsets of either will do.
    texts, offsets = document.a.fields.get("tokens"), document.a.fields.get("byte_offsets")
    if document.a.tokens is None or document.b.tokens is None or texts is None:
        return NotColoured(_WITHOUT_TOKENS)
    a, b = counted_losses(document.a.tokens), counted_losses(document.b.tokens)
    both = zip(a, b, strict=True)
    values = [None if x is None or y is None else y - x for x, y in both]
    covered = None
    if offsets is not None:
        whole = _bytes_of(document.a)
        covered = spelled_bytes(texts, offsets) if whole is None else whole.pieces()
    return AlignedDifference(TokenText.of(texts, covered, values, weight=abs), a, b)


def align_pieces(document: DocumentRows) -> AlignedDifference | NotColoured:
    """Subtract losses piece by piece, where the models have tokens of their own, of the same
    text."""
    a, b = _spell(document.a), _spell(document.b)
    if isinstance(a, NotColoured):
        return a
    if isinstance(b, NotColoured):
        return b
    spelled = a.token_bytes.text
    if spelled != b.token_bytes.text:
        return NotColoured(_OTHER_BYTES)
    aligned = align(a, b)
    pieces = [spelled[start:end] for _, _, start, end in aligned.spans]
    text = TokenText(pieces, frozenset(), aligned.differences, weight=abs, noun="piece")
    note = f"{aligned.n_merged:,} of its {len(pieces):,} pieces are several tokens of a model"
    return AlignedDifference(text, aligned.losses_a, aligned.losses_b, note)


def _spell(row: ResultRow) -> LossesOnBytes | NotColoured:
    """Return the losses on the row's text; without it, on the text that its tokens spell."""
    texts, offsets = row.fields.get("tokens"), row.fields.get("byte_offsets")
    if row.tokens is None or texts is None or offsets is None:
        return NotColoured(_WITHOUT_TOKENS)
    if (found := _bytes_of(row)) is None:
        found = TokenBytes.join(spelled_bytes(texts, offsets))
        # Where a prompt was cut, the first token covers what is gone, and its text is a name.
        if not np.array_equal(found.offsets, offsets):
            return NotColoured(_WITHOUT_BYTES)
    return LossesOnBytes(found, counted_losses(row.tokens))


def _bytes_of(row: ResultRow) -> TokenBytes | None:
    found = bytes_of_text(row)
    # a file may have been edited: offsets that do not fit would cut other text
    return found if found is not None and found.is_valid else None
