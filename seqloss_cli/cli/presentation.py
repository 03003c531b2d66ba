"""Settings of results: their file and format, the contents of rows, the look of tables."""

# No `from __future__ import annotations`: as in `policies.py`.

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from seqloss_cli.core.options import OUTPUT, SHOW, option, record
from seqloss_cli.results.formats import FORMATS, LEVELS

if TYPE_CHECKING:  # the names follow from the formats, which a type checker cannot read
    FormatName = str
    LevelName = str
else:
    FormatName = Literal[("table", *FORMATS)]
    LevelName = Literal[tuple(dict.fromkeys(name for each in LEVELS.values() for name in each))]
View = Literal["table", "heat"]
ThemeChoice = Literal["auto", "light", "dark"]
UnitName = Literal["nats", "bits"]


@record
class ShowSettings:
    """Tables and coloured texts in the terminal."""

    words: bool = option(False, "--words", SHOW, "Losses of words, too.")
    word_correction: bool = option(
        False,
        "--word-correction",
        SHOW,
        "With --words: corrected losses, too, which count a word's own end.",
    )
    unit: UnitName = option("nats", "--unit", SHOW, "Unit of losses in tables; JSON stays in nats.")
    all_tokens: bool = option(
        False, "--all-tokens", SHOW, "Tables without folding, for any number of sequences."
    )
    summary: bool = option(False, "--summary", SHOW, "Totals only.")
    view: View = option(
        "table", "--view", SHOW, "heat: the texts, each token's background by its loss."
    )
    theme: ThemeChoice = option(
        "auto", "--theme", SHOW, "Of the terminal, for heat; auto: COLORFGBG, else dark."
    )
    show_whitespace: bool = option(
        False, "--show-whitespace", SHOW, "Blanks, tabs and line ends made visible in heat."
    )


@record
class OutputSettings:
    """The file and format of results, and the contents of their rows."""

    json: bool = option(False, "--json", OUTPUT, "One JSON document.")
    jsonl: bool = option(False, "--jsonl", OUTPUT, "A JSON line for each input as it is ready.")
    format: FormatName | None = option(
        None, "--format", OUTPUT, "openai: the completions logprobs object."
    )
    level: LevelName = option(
        "sequence",
        "--level",
        OUTPUT,
        "What a line of CSV or TSV is: sequence, token, word or region.",
        metavar="LEVEL",
    )
    output: Path | None = option(
        None,
        "--output",
        OUTPUT,
        "Write to FILE (.json, .jsonl, .parquet, .csv, .tsv); FILE.partial until it is whole.",
        short="-o",
    )
    force: bool = option(False, "--force", OUTPUT, "Write over FILE or its FILE.partial.")
    text: bool = option(True, "--no-text", OUTPUT, "Leave the texts out of JSON.")
    tokens: bool = option(True, "--no-tokens", OUTPUT, "Leave the per-token arrays out of JSON.")
    context_lengths: bool = option(
        False, "--context-lengths", OUTPUT, "How many tokens each target could see, in JSON."
    )
    resume: bool = option(False, "--resume", OUTPUT, "Go on with the JSONL in FILE.partial.")
    report: Path | None = option(
        None, "--report", OUTPUT, "Also write a web page of the results to FILE (.html)."
    )
