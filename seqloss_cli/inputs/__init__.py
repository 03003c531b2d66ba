"""From files, stdin and command-line text to samples, one at a time.

An input that is unreadable becomes a `Rejected` record with its file and line, and the others go
on. Memory is bounded by the longest single input (`max_bytes`).
"""

from seqloss_cli.inputs.choices import ChoiceFields
from seqloss_cli.inputs.reading import (
    COMPRESSED,
    ReadOptions,
    ReadStats,
    choices_sample,
    described,
    pair_sample,
    read_inputs,
    text_sample,
)
from seqloss_cli.inputs.rows import PairFields
from seqloss_cli.inputs.side_files import LabelFile, RegionFile
from seqloss_cli.inputs.streams import STDIN

__all__ = [
    "COMPRESSED",
    "STDIN",
    "ChoiceFields",
    "LabelFile",
    "PairFields",
    "ReadOptions",
    "ReadStats",
    "RegionFile",
    "choices_sample",
    "described",
    "pair_sample",
    "read_inputs",
    "text_sample",
]
