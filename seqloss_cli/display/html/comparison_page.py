"""Make the page of two results files: both models' losses side by side, and B - A."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import PurePath

import numpy as np

from seqloss_cli.analysis.compare import Comparison
from seqloss_cli.analysis.extremes import Chosen, Selection
from seqloss_cli.analysis.joining import AlignedLosses, JoinReport, align, join_usable, n_units
from seqloss_cli.analysis.summarize import Summarizer, Summary, SummaryOptions
from seqloss_cli.core.records import Floats
from seqloss_cli.display.html import page, sequences, spans
from seqloss_cli.display.html.charts import difference_chart
from seqloss_cli.display.html.page import Cell, Column
from seqloss_cli.display.html.text_pages import charts_of
from seqloss_cli.display.scales import DIFFERENCE_EDGES, decimals
from seqloss_cli.metrics.resampling import Reservoir
from seqloss_cli.results.files import ResultsFile
from seqloss_cli.results.schema.scores import ResultRow

SIDES = ["A", "B"]
_PANES = 3
_HEADINGS = page.Headings(
    places="Largest differences",
    about="Losses are −ln of the probability that the model gave each token, in nats.",
)
_PER = "absolute difference, on the whole or of a token"


@dataclass(frozen=True, slots=True)
class SequencePair:
    """One input under both models."""

    a: sequences.PageSequence
    b: sequences.PageSequence
    n_units: int
    """Scored tokens, or bytes where the tokenizers differ."""

    @property
    def size(self) -> int:
        """Return how many tokens its three panes would show."""
        return self.a.size + self.b.size + max(self.a.size, self.b.size)

    @property
    def has_text(self) -> bool:
        """Tell whether both files have the same text of it."""
        return not self.a.why_plain and not self.b.why_plain and self.a.text == self.b.text

    @property
    def same_tokens(self) -> bool:
        """Tell whether tokens of both cover the same bytes."""
        return np.array_equal(self.a.token_bytes.offsets, self.b.token_bytes.offsets)

    def aligned(self) -> AlignedLosses:
        """Return the losses of both on the stretches that their tokens share."""
        return align(self.a.counted_losses(), self.b.counted_losses())

    def per_unit(self) -> list[float]:
        """Return the losses of A and B, and B - A, in nats per token (or byte)."""
        a, b = self.a.totals.total_loss, self.b.totals.total_loss
        assert a is not None
        assert b is not None
        return [a / self.n_units, b / self.n_units, (b - a) / self.n_units]

    def cut(self, n_tokens: int) -> SequencePair:
        """Cut both at the same byte, so that the panes have at most about so many tokens."""
        if self.size <= n_tokens or not self.has_text:
            return self
        most = max(1, n_tokens // _PANES)
        offsets = [side.token_bytes.offsets for side in (self.a, self.b)]
        # both end where both have a token's end, else the panes would show other text
        reach = min(int(each[min(most, len(each) - 1)]) for each in offsets)
        uncut = offsets[0][self.a.token_bytes.breaks_no_char()]
        common = np.intersect1d(uncut, offsets[1])
        place = int(common[common <= reach].max(initial=offsets[0][0]))
        counts = [max(1, bisect_right(each.tolist(), place) - 1) for each in offsets]
        return SequencePair(self.a.cut(counts[0]), self.b.cut(counts[1]), self.n_units)


@dataclass(frozen=True, slots=True)
class ComparisonPageData:
    """All that the page needs once the rows were read."""

    summaries: list[Summary]
    """For each model, over the rows that are compared."""
    differences: Floats
    """B - A, shape n, nats, of the stretches that both share in all texts, or of a sample."""
    n_differences: int
    worst: list[page.Place]
    """The stretches of the largest differences, in all texts."""
    chosen: Chosen[SequencePair]


def gather_comparison(
    files: Sequence[Iterable[ResultRow]], same_tokenizer: bool, options: page.PageOptions
) -> ComparisonPageData:
    """Read both files once; rows are joined, and left out, as `compare` does."""
    # of the joined rows alone: else the two models' figures could not be held against each other
    asked = SummaryOptions(
        n_extremes=0, seed=options.seed, cluster=options.cluster, confidence=options.confidence
    )
    sums = [Summarizer(asked) for _ in files]
    differences, worst = Reservoir(seed=options.seed), spans.WorstPlaces(options.n_worst)
    selection = Selection[SequencePair](options.limits, options.seed)
    for order, rows in enumerate(join_usable(files, JoinReport(), same_tokenizer)):
        for row, summarizer in zip(rows, sums, strict=True):
            summarizer.add(row)
        a, b = (sequences.page_sequence(row, order) for row in rows)
        pair = SequencePair(a, b, n_units(rows[0], same_tokenizer))
        peak = 0.0
        if pair.has_text:
            aligned = pair.aligned()
            known = np.array([d for d in aligned.differences if d is not None])
            # a row whose difference is small on the whole may hold a large one
            peak = float(np.abs(known).max(initial=0.0))
            differences.add(known)
            worst.add_stretches(pair.a, aligned)
        selection.add(pair, abs(pair.per_unit()[2]), peak)
    return ComparisonPageData(
        [summarizer.summary() for summarizer in sums],
        differences.values(),
        differences.n_seen,
        worst.items(),
        selection.chosen(),
    )


def comparison_page(
    files: Sequence[ResultsFile],
    found: ComparisonPageData,
    compared: Comparison,
    left_out: Sequence[str],
    options: page.PageOptions,
    n_unusable: int = 0,
) -> page.Page:
    """Return the page; `left_out` says, in sentences, which rows are not compared."""
    names, columns = page.TokenNames(), _columns(compared.unit)
    sections, anchors = [], dict[tuple[int, int], str]()
    for n, pair in enumerate(found.chosen.items):
        aligned, prefix = pair.aligned() if pair.has_text else None, f"t{n}-2-"
        linked = _linked_spans(pair, aligned, found.worst)
        anchors |= {(pair.a.order, stretch): f"{prefix}{s}" for stretch, s in linked.items()}
        panes = list[page.Pane]()
        if aligned is not None:
            own = spans.difference_pane(pair.a.text, aligned, prefix, set(linked.values()))
            panes = [*_panes(pair, aligned, names), own]
        cells, about = page.row_of(pair, columns), _about(pair)
        sections.append(page.Section(n, pair.a.id, pair.a.where, cells, panes, about))
    panes = [pane for section in sections for pane in section.panes]
    sides = list(zip(files, SIDES, strict=True))
    titles = [
        f"{side}: {sequences.model_name(f.run)} ({PurePath(f.name).name})" for f, side in sides
    ]
    notes = [note for file, side in sides for note in sequences.notes_of(file, 0, side)]
    if n_unusable:
        notes.append(f"{n_unusable:,} rows of the files could not be used, and are in no figure.")
    return page.Page(
        title=options.title or "Two models on the same texts",
        subtitle=" · ".join(titles),
        is_comparison=True,
        notes=[*notes, *left_out, *compared.notes],
        verdict=_verdict(compared, options.confidence),
        figures=[],
        tables=[_totals(compared, found.summaries)],
        charts=_charts(found, compared.unit == "token", options),
        places=spans.linked(found.worst, anchors, "d", DIFFERENCE_EDGES),
        places_header=["A", "B", "B − A"],
        columns=columns,
        sequences=sections,
        chosen=sequences.about_selection(found.chosen, options, _PER),
        provenance=[(t, sequences.run_table(f.run)) for t, f in zip(titles, files, strict=True)],
        names=names,
        metrics=[*sequences.metrics_of(panes), page.Metric("difference", "difference, B − A")],
        headings=_HEADINGS,
        lacking=sequences.lacking_in(panes),
    )


def _verdict(compared: Comparison, confidence: float) -> str:
    value, unit = compared.difference.value, compared.unit
    if value is None:
        return "No row of the two files can be compared."
    low, high = compared.difference.low, compared.difference.high
    share = f"{100 * confidence:g} %"
    between, digits = "", decimals([value, low, high], 4)
    if low is not None and high is not None:
        between = f", {share} interval {page.number(low, digits)} to {page.number(high, digits)}"
    # a true minus in 1e-05, as in the other figures
    p = f"{compared.p_adjusted:.2g}".replace("-", "−")
    said = f"B − A is {page.signed(value, digits)} nats per {unit}{between}; p = {p}."
    if not compared.is_significant:
        way = "lower" if value < 0 else "higher" if value > 0 else "neither lower nor higher"
        return f"No difference beyond noise: B's loss is {way} than A's, {said}"
    return f"B is {'better' if value < 0 else 'worse'} than A: {said}"


def _charts(
    found: ComparisonPageData, by_token: bool, options: page.PageOptions
) -> list[page.Chart]:
    drawn_by = f"values of {options.cluster}" if options.cluster else "documents"
    charts = charts_of(found.summaries, SIDES, options.confidence, drawn_by)
    if not by_token:
        # positions of other tokens are other positions: they are not held against each other
        charts = [chart for chart in charts if chart.name != "positions"]
    own = difference_chart(found.differences, found.n_differences)
    return [own, *charts] if own else charts


def _totals(compared: Comparison, summaries: Sequence[Summary]) -> page.Table:
    unit, totals = compared.unit, compared.totals
    gap = None if None in totals else (totals[1] or 0.0) - (totals[0] or 0.0)
    means = (*compared.means, compared.difference)
    rows: list[page.TableRow] = [
        [f"loss per {unit}", *map(Cell.of, means)],
        ["total loss", *(Cell(total, 3) for total in (*totals, gap))],
    ]
    columns = [
        Column(name, itemgetter(n), is_text=not n, is_loss=n > 0, unit=not n)
        for n, name in enumerate(("nats", *SIDES, "B − A"))
    ]
    about = []
    for name, label in (("perplexity", "Perplexity"), ("bits_per_byte", "Bits per byte")):
        a, b = (getattr(summary.whole.totals, name) for summary in summaries)
        if a is not None and b is not None:
            about.append(f"{label}: A {page.number(a, 4)}, B {page.number(b, 4)}.")
    about.append(
        f"{compared.n_documents:,} sequences of {compared.n_units:,} {unit}s: B is lower on "
        f"{compared.n_lower:,}, higher on {compared.n_higher:,}, the same on {compared.n_tied:,}."
    )
    about.append(f"Interval of the difference: {compared.difference.method}.")
    return page.Table("", columns, rows, " ".join(about))


def _columns(unit: str) -> list[Column]:
    names = (*(f"{side}, per {unit}" for side in SIDES), "B − A")
    return [
        Column(f"scored {unit}s", lambda pair: f"{pair.n_units:,}"),
        *(Column(name, _loss_per_unit(n), is_loss=True) for n, name in enumerate(names)),
        Column(
            "total B − A", lambda pair: Cell(pair.per_unit()[2] * pair.n_units, 3), is_loss=True
        ),
    ]


def _loss_per_unit(n: int) -> Callable[[SequencePair], Cell]:
    return lambda pair: Cell(pair.per_unit()[n])


def _about(pair: SequencePair) -> list[str]:
    about_a, about_b = pair.a.about(), pair.b.about()
    if about_a != about_b:
        return [f"A: {said}" for said in about_a] + [f"B: {said}" for said in about_b]
    if about_a or pair.has_text:
        return about_a
    return ["No coloured text: the two files do not have the same text of it."]


def _panes(pair: SequencePair, aligned: AlignedLosses, names: page.TokenNames) -> list[page.Pane]:
    """Return both models' texts; with the stretch of each span, where these are not the spans."""
    panes = []
    for side, label in zip((pair.a, pair.b), SIDES, strict=True):
        pane = spans.token_pane(side, label, names)
        if not pair.same_tokens:
            pane.data["g"] = spans.stretches_of(side.token_bytes.char_spans(), aligned)
        panes.append(pane)
    return panes


def _linked_spans(
    pair: SequencePair, aligned: AlignedLosses | None, worst: Sequence[page.Place]
) -> dict[int, int]:
    """Return the number of the span of each listed stretch that the page shows.

    By its bytes: what is shown of two texts can be cut alike where the whole is not.
    """
    own = [each for each in worst if each.order == pair.a.order]
    if aligned is None or not own:
        return {}
    numbers = {span[2:]: n for n, span in enumerate(aligned.spans)}
    return {each.number: numbers[each.ends] for each in own if each.ends in numbers}
