"""Options that several commands share, each with its variable and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from seqloss_cli.cli.configuration import use_config
from seqloss_cli.cli.enums import Bos, Compile, Dtype, Format, Level, Quantize, SpecialTokens, Unit
from seqloss_cli.cli.grouping import Group as Group
from seqloss_cli.cli.grouping import with_options as with_options
from seqloss_cli.core.columns import COLUMNS, TokenColumn
from seqloss_cli.core.policies import DEFAULT_BATCH_TOKENS, DEFAULT_MAX_BYTES

INPUT, MODEL, POLICY, SPEED, SHOW, OUTPUT, OTHER = (
    "Input",
    "Model",
    "Policies",
    "Speed",
    "What to show",
    "Output",
    "Other",
)


def option(panel: str, name: str, text: str, **settings: object) -> object:
    """An option with its SEQLOSS_* variable."""
    variable = "SEQLOSS_" + name.removeprefix("--").replace("-", "_").upper()
    return typer.Option(
        name,
        *settings.pop("aliases", ()),  # type: ignore[misc]
        envvar=variable,
        show_envvar=False,
        help=text,
        rich_help_panel=panel,
        **settings,  # type: ignore[arg-type]
    )


def flag(panel: str, name: str, text: str) -> object:
    """An option without a value and, since it is named, without a `--no-` twin."""
    return option(panel, name, text)


KeepMeta = Annotated[
    bool, flag(INPUT, "--keep-meta", "Carry a row's other fields through as meta.")
]
Limit = Annotated[int | None, option(INPUT, "--limit", "Take the first N inputs.", min=1)]
MaxBytes = Annotated[
    int, option(INPUT, "--max-bytes", "Longest text or line that is taken.", min=1)
]

Regions = Annotated[
    str | None,
    option(
        INPUT,
        "--regions",
        "JSONL with regions of each text: spans of characters, or strings.",
        metavar="FILE",
    ),
]
Model = Annotated[
    str | None,
    option(
        MODEL,
        "--model",
        "Directory or .gguf file, hub name, or 'demo' (built in; the default).",
        aliases=("-m",),
        show_default=False,
    ),
]
Revision = Annotated[
    str | None, option(MODEL, "--revision", "Branch, tag or commit of a hub model.")
]
Tokenizer = Annotated[
    str | None, option(MODEL, "--tokenizer", "Another tokenizer: directory or hub name.")
]
Adapter = Annotated[
    str | None, option(MODEL, "--adapter", "LoRA put on the model: directory or hub name.")
]
QuantizeOption = Annotated[
    Quantize | None,
    option(MODEL, "--quantize", "Make the weights int8 when they are loaded.", show_default=False),
]
DtypeOption = Annotated[
    Dtype,
    option(MODEL, "--dtype", "auto: the checkpoint's own on a GPU, float32 on a CPU."),
]
Device = Annotated[str, option(MODEL, "--device", "auto, cpu, cuda, cuda:N or mps.")]
Threads = Annotated[
    int | None, option(MODEL, "--threads", "CPU threads; torch chooses by default.", min=1)
]
AllowPickle = Annotated[
    bool, flag(MODEL, "--allow-pickle", "Load pickled weights, which can run code.")
]
TrustRemoteCode = Annotated[
    bool, flag(MODEL, "--trust-remote-code", "Run code that the checkpoint brings.")
]
Offline = Annotated[bool, flag(MODEL, "--offline", "Use the hub's local cache only.")]

BosOption = Annotated[
    Bos,
    option(
        POLICY,
        "--bos",
        "auto: the tokenizer's BOS, else the model's, else the first token is unscored.",
    ),
]
BosToken = Annotated[str | None, option(POLICY, "--bos-token", "Token or id to use as BOS.")]
Eos = Annotated[bool, flag(POLICY, "--eos", "Append the end-of-sequence token and score it.")]
SpecialTokensOption = Annotated[
    SpecialTokens,
    option(POLICY, "--special-tokens", "Control tokens written in a text: what to make of them."),
]
ContextOption = Annotated[
    int | None,
    option(
        POLICY,
        "--context",
        "Most tokens fed at a time; the model's own length by default.",
        min=1,
    ),
]
Stride = Annotated[
    int | None,
    option(POLICY, "--stride", "Targets a later window scores; half the context.", min=1),
]
BatchTokens = Annotated[
    str,
    option(
        SPEED,
        "--batch-tokens",
        "Tokens in a batch; auto: by free memory and a short probe.",
        metavar="N|auto",
    ),
]
CompileOption = Annotated[
    Compile,
    option(SPEED, "--compile", "Compile the layers; auto: if the files are large enough to pay."),
]
Devices = Annotated[
    int, option(SPEED, "--devices", "GPUs that share the work, each with the model.", min=1)
]

Words = Annotated[bool, flag(SHOW, "--words", "Losses of words, too.")]
WordCorrection = Annotated[
    bool,
    flag(
        SHOW,
        "--word-correction",
        "With --words: corrected losses, too, which count a word's own end.",
    ),
]
UnitOption = Annotated[
    Unit, option(SHOW, "--unit", "Unit of losses in tables; JSON stays in nats.")
]
AllTokens = Annotated[
    bool, flag(SHOW, "--all-tokens", "Tables without folding, for any number of sequences.")
]
Summary = Annotated[bool, flag(SHOW, "--summary", "Totals only.")]

Json = Annotated[bool, flag(OUTPUT, "--json", "One JSON document.")]
Jsonl = Annotated[bool, flag(OUTPUT, "--jsonl", "A JSON line for each input as it is ready.")]
FormatOption = Annotated[
    Format | None,
    option(OUTPUT, "--format", "openai: the completions logprobs object.", show_default=False),
]
LevelOption = Annotated[
    Level,
    option(
        OUTPUT,
        "--level",
        "What a line of CSV or TSV is: sequence, token, word or region.",
        metavar="LEVEL",
    ),
]
Output = Annotated[
    Path | None,
    option(
        OUTPUT,
        "--output",
        "Write to FILE (.json, .jsonl, .parquet, .csv, .tsv); FILE.partial until it is whole.",
        aliases=("-o",),
    ),
]
Force = Annotated[bool, flag(OUTPUT, "--force", "Write over FILE or its FILE.partial.")]
Resume = Annotated[bool, flag(OUTPUT, "--resume", "Go on with the JSONL in FILE.partial.")]
NoText = Annotated[bool, flag(OUTPUT, "--no-text", "Leave the texts out of JSON.")]
NoTokens = Annotated[bool, flag(OUTPUT, "--no-tokens", "Leave the per-token arrays out of JSON.")]
ContextLengths = Annotated[
    bool, flag(OUTPUT, "--context-lengths", "How many tokens each target could see, in JSON.")
]

Report = Annotated[
    Path | None,
    option(OUTPUT, "--report", "Also write a web page of the results to FILE (.html)."),
]

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="SEQLOSS_CONFIG",
        show_envvar=False,
        is_eager=True,
        callback=use_config,
        help="YAML file of option values; ./seqloss.yaml by default.",
        rich_help_panel=OTHER,
        show_default=False,
    ),
]
Strict = Annotated[bool, flag(OTHER, "--strict", "Stop at the first rejected input.")]
Debug = Annotated[bool, flag(OTHER, "--debug", "Show tracebacks.")]


def _column_option(column: TokenColumn) -> tuple[Any, Any]:
    """Annotation and default of the option that asks for a column."""
    if column.kind == "alternatives":
        return Annotated[int, option(SHOW, column.flag, column.help, min=0)], 0
    return Annotated[bool, flag(SHOW, column.flag, column.help)], False


INPUT_OPTIONS: Group = {
    "keep_meta": (KeepMeta, False),
    "limit": (Limit, None),
    "max_bytes": (MaxBytes, DEFAULT_MAX_BYTES),
}
MODEL_OPTIONS: Group = {
    "model": (Model, None),
    "revision": (Revision, None),
    "tokenizer": (Tokenizer, None),
    "adapter": (Adapter, None),
    "quantize": (QuantizeOption, None),
    "dtype": (DtypeOption, Dtype.auto),
    "device": (Device, "auto"),
    "threads": (Threads, None),
    "allow_pickle": (AllowPickle, False),
    "trust_remote_code": (TrustRemoteCode, False),
    "offline": (Offline, False),
}
POLICY_OPTIONS: Group = {
    "bos": (BosOption, Bos.auto),
    "bos_token": (BosToken, None),
    "eos": (Eos, False),
    "special_tokens": (SpecialTokensOption, SpecialTokens.parse),
    "context": (ContextOption, None),
}
SPEED_OPTIONS: Group = {
    "batch_tokens": (BatchTokens, str(DEFAULT_BATCH_TOKENS)),
    "compile": (CompileOption, Compile.auto),
    "devices": (Devices, 1),
}
SHOW_OPTIONS: Group = {
    **{column.option: _column_option(column) for column in COLUMNS},
    "words": (Words, False),
    "word_correction": (WordCorrection, False),
    "unit": (UnitOption, Unit.nats),
    "all_tokens": (AllTokens, False),
    "summary": (Summary, False),
}
OUTPUT_OPTIONS: Group = {
    "json": (Json, False),
    "jsonl": (Jsonl, False),
    "format": (FormatOption, None),
    "level": (LevelOption, Level.sequence),
    "output": (Output, None),
    "force": (Force, False),
    "no_text": (NoText, False),
    "no_tokens": (NoTokens, False),
    "context_lengths": (ContextLengths, False),
}
REGIONS_OPTION: Group = {"regions": (Regions, None)}
PAGE_OPTION: Group = {"report": (Report, None)}
RESUME_OPTION: Group = {"resume": (Resume, False)}
OTHER_OPTIONS: Group = {
    "config": (Config, None),
    "strict": (Strict, False),
    "debug": (Debug, False),
}
