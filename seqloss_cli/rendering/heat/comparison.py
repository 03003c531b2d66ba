"""The documents on which two models differ most, each token coloured by how much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.text import Text

from seqloss_cli.comparisons import Comparison, DocumentRows
from seqloss_cli.escaping import escape
from seqloss_cli.rendering.heat.drawing import Drawing, Drawn
from seqloss_cli.rendering.heat.inked import inked
from seqloss_cli.rendering.heat.palette import DIFFERENCES
from seqloss_cli.rendering.options import HeatOptions
from seqloss_cli.rendering.theme import NATS_PER_BIT, many
from seqloss_cli.results import ResultRow

OTHER_TOKENS = (
    "Texts are not coloured: the tokenizers or policies differ, so that there is no difference "
    "token by token."
)
_WITHOUT_TOKENS = "not coloured: a file was written without tokens (leave out --no-tokens)"


def difference_views(
    pairs: Sequence[tuple[Comparison, Sequence[DocumentRows]]],
    names: Sequence[str],
    options: HeatOptions,
    bits: bool,
    all_tokens: bool,
) -> Iterator[RenderableType]:
    """A legend for each pair of models, and the texts of its documents."""
    for pair, documents in pairs:
        view = _PairView(names[pair.first], names[pair.second], options, bits, all_tokens)
        if documents:
            yield Drawn(view.legend)
        for document in documents:
            yield view.document(document)


class _PairView:
    def __init__(self, a: str, b: str, options: HeatOptions, bits: bool, all_tokens: bool) -> None:
        self._a, self._b = escape(a), escape(b)
        self._options, self._bits, self._all_tokens = options, bits, all_tokens

    def legend(self, console: Console) -> Iterator[Text]:
        drawing = Drawing(console, self._options, self._bits, DIFFERENCES)
        yield from drawing.legend(f"loss of {self._b} less that of {self._a}")
        yield from drawing.prose(f"below 0: {self._b} is better; above 0: {self._a} is")

    def document(self, document: DocumentRows) -> Drawn:
        return Drawn(lambda console: self._document(console, document))

    def _document(self, console: Console, document: DocumentRows) -> Iterator[Text]:
        drawing = Drawing(console, self._options, self._bits, DIFFERENCES)
        factor, unit = (1 / NATS_PER_BIT, "bits") if self._bits else (1.0, "nats")
        size = f"{document.difference.difference * factor:+.4f} {unit} per token"
        n = many(document.a.totals.n_scored, "scored token")
        title = Text(f"{escape(document.difference.id)}  ({n}, {size})", style="bold")
        yield from drawing.wrapped(title)
        a, b = losses_of(document.a), losses_of(document.b)
        texts = document.a.fields.get("tokens")
        if a is None or b is None or texts is None:
            yield from drawing.prose(_WITHOUT_TOKENS)
            return
        both = zip(a, b, strict=True)
        values = [None if x is None or y is None else y - x for x, y in both]
        edges = document.a.fields.get("byte_offsets")
        ink = inked(texts, None if edges is None else edges.tolist(), values, weight=abs)
        yield from drawing.text(ink, self._all_tokens)
        yield Text()
        losses = Drawing(console, self._options, self._bits)
        yield from losses.by_position(a, f"loss of {self._a}")
        yield from losses.by_position(b, f"loss of {self._b}")
        yield from drawing.histogram(drawing.counts(values))


def losses_of(row: ResultRow) -> list[float | None] | None:
    """Those that count; None where the row was written without its tokens."""
    if row.tokens is None:
        return None
    pairs = zip(row.tokens.losses.tolist(), row.tokens.counted.tolist(), strict=True)
    return [loss if counts else None for loss, counts in pairs]
