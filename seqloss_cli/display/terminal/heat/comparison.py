"""The documents on which two models differ most, each token coloured by how much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.text import Text

from seqloss_cli.analysis.compare import Comparison, DocumentRows
from seqloss_cli.core.escaping import escape
from seqloss_cli.display.terminal.heat.both import Plain, by_pieces, by_tokens
from seqloss_cli.display.terminal.heat.drawing import Drawing, Drawn
from seqloss_cli.display.terminal.heat.palette import DIFFERENCES
from seqloss_cli.display.terminal.options import HeatOptions
from seqloss_cli.display.terminal.theme import NATS_PER_BIT, many


def difference_views(
    pairs: Sequence[tuple[Comparison, Sequence[DocumentRows]]],
    names: Sequence[str],
    options: HeatOptions,
    bits: bool,
    all_tokens: bool,
) -> Iterator[RenderableType]:
    """A legend for each pair of models, and the texts of its documents."""
    for pair, documents in pairs:
        view = _PairView(pair, names, options, bits, all_tokens)
        if documents:
            yield Drawn(view.legend)
        for document in documents:
            yield view.document(document)


class _PairView:
    def __init__(
        self,
        pair: Comparison,
        names: Sequence[str],
        options: HeatOptions,
        bits: bool,
        all_tokens: bool,
    ) -> None:
        self._a, self._b = escape(names[pair.first]), escape(names[pair.second])
        self._options, self._bits, self._all_tokens = options, bits, all_tokens
        self._unit, self._same_tokens = pair.unit, pair.unit == "token"

    def legend(self, console: Console) -> Iterator[Text]:
        drawing = Drawing(console, self._options, self._bits, DIFFERENCES)
        noun = "token" if self._same_tokens else "piece"
        yield from drawing.legend(f"loss of {self._b} less that of {self._a}", noun=noun)
        yield from drawing.prose(f"below 0: {self._b} is better; above 0: {self._a} is")
        if not self._same_tokens:
            yield from drawing.prose(
                "Their tokens differ: a piece is the least text at whose ends both have a token's "
                "end; its loss is the sum of its tokens, with those of no text beside it."
            )

    def document(self, document: DocumentRows) -> Drawn:
        return Drawn(lambda console: self._document(console, document))

    def _document(self, console: Console, document: DocumentRows) -> Iterator[Text]:
        drawing = Drawing(console, self._options, self._bits, DIFFERENCES)
        yield from drawing.title(self._title(document))
        both = by_tokens(document) if self._same_tokens else by_pieces(document)
        if isinstance(both, Plain):
            yield from drawing.prose(both.why)
            return
        if both.about:
            yield from drawing.prose(both.about)
        yield from drawing.text(both.ink, self._all_tokens)
        yield Text()
        losses, noun = Drawing(console, self._options, self._bits), both.ink.noun
        yield from losses.by_position(both.a, f"loss of {self._a}", noun)
        yield from losses.by_position(both.b, f"loss of {self._b}", noun)
        yield from drawing.histogram(drawing.counts(both.ink.values))

    def _title(self, document: DocumentRows) -> str:
        factor, unit = (1 / NATS_PER_BIT, "bits") if self._bits else (1.0, "nats")
        size = f"{document.difference.difference * factor:+.4f} {unit} per {self._unit}"
        totals = document.a.totals
        n = totals.n_scored if self._same_tokens else totals.n_scored_bytes
        return f"{escape(document.difference.id)}  ({many(n, f'scored {self._unit}')}, {size})"
