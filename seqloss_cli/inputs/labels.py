"""Labels that somebody's training pipeline wrote: rows of `input_ids` and `labels`."""

from __future__ import annotations

from typing import Any

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Rejected, Sample
from seqloss_cli.inputs.beside import RowsBeside
from seqloss_cli.inputs.rows import whole_numbers
from seqloss_cli.metrics.chain_rule import ChainRule
from seqloss_cli.tokenization.labels import Labels


class LabelFile(RowsBeside[Labels]):
    """Finds the labels of each input. Rows of results that are no sequence (the run, totals) are
    passed over."""

    def __init__(self, name: str, max_bytes: int) -> None:
        super().__init__(name, max_bytes, "labels", _labels)

    def find(self, item: Sample | Rejected) -> Labels | Rejected:
        """The labels of an input, or why there are none: asked once for each input, in order."""
        row = self.find_row(item)
        if isinstance(row, Rejected):
            return row
        assert isinstance(row.content, Labels)
        return row.content


def _labels(row: dict[str, Any]) -> Labels | None:
    """None for a row of results that is no sequence."""
    if row.get("type", "sequence") != "sequence":
        return None
    ChainRule.read(row)  # a row of results is refused if its figures cannot be
    name = "input_ids" if "input_ids" in row else "token_ids"
    for field in (name, "labels"):
        if field not in row:
            wanted = "input_ids" if field == name else field
            raise RowError("missing_field", f"has no field {wanted!r}")
    labels = Labels(whole_numbers(row[name], name), whole_numbers(row["labels"], "labels"))
    if len(labels.input_ids) != len(labels.labels):
        raise RowError(
            "bad_labels", f"has {len(labels.labels)} labels for {len(labels.input_ids)} {name}"
        )
    if not len(labels.labels):
        raise RowError("empty", "has no labels")
    return labels
