"""Results files: rows both ways, formats, and files that are finished or can be resumed.

Nothing heavy is imported here: the command line reads the names of formats when it starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqloss_cli.core.columns import TokenColumn


@dataclass(frozen=True, slots=True, kw_only=True)
class RowContents:
    """The content of rows that options ask for."""

    command: str = "score"
    path: Path | None = None
    """None for stdout."""
    level: str = ""
    """Part of a row that a line of CSV is of, by its name in `formats.LEVELS`."""
    text: bool = True
    tokens: bool = True
    """The per-token arrays."""
    summary: bool = False
    """No sequences at all: totals and rejected rows only."""
    words: bool = False
    word_correction: bool = False
    regions: bool = False
    context_lengths: bool = False
    pmi: bool = False
    draft_length: int = 0
    """Tokens of a draft whose acceptance is told; 0 for none."""
    columns: tuple[TokenColumn, ...] = ()
    """The quantities of each token that were asked for beside its loss."""
