"""From files, stdin and command-line text to samples, one at a time.

An input that cannot be read becomes a `Rejected` record with its file and line, and the others go
on. Memory is bounded by the longest single input (`max_bytes`).
"""

from seqloss_cli.inputs.choices import ChoiceFields
from seqloss_cli.inputs.inputs import (
    COMPRESSED,
    ReadOptions,
    ReadStats,
    checked_pair,
    choices_sample,
    described,
    read_inputs,
    text_sample,
)
from seqloss_cli.inputs.labels import LabelFile
from seqloss_cli.inputs.regions import RegionFile
from seqloss_cli.inputs.rows import PairFields
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
    "checked_pair",
    "choices_sample",
    "described",
    "read_inputs",
    "text_sample",
]
