"""Differences between two runs: of their numbers, and of settings that --resume must find equal."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from seqloss_cli.core.columns import COLUMNS
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.options import Option, option_fields
from seqloss_cli.core.policies import (
    BatchPolicy,
    ModelChoice,
    PairPolicy,
    Reading,
    SpeedPolicy,
    TokenPolicy,
    WindowChoice,
)
from seqloss_cli.core.records import SCHEMA_VERSION
from seqloss_cli.core.run_record import RunInfo

POLICIES = ("command", "bos", "eos", "special_tokens", "boundary", "pairs", "gold", "teacher")
"""What the tokens of a text are, and which of them count: other numbers for the same model."""
MODEL = ("model", "revision", "weights_sha256")
TOKENIZER = ("tokenizer_sha256",)
TOKENS = ("bos_token_id", "eos_token_id")
"""Policies, too, between runs with one tokenizer."""
NUMERICS = ("context", "stride", "dtype", "quantization", "adapter")
"""The same tokens, seen with more or less before them, more or less exactly, or by a model that was
adapted."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A key of two run records with another value in each."""

    key: str
    first: Any
    second: Any

    def __str__(self) -> str:
        if isinstance(self.first, Mapping) and isinstance(self.second, Mapping):
            a, b = self.first, self.second
            keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
            parts = (f"{key} {_shown(a.get(key))} and {_shown(b.get(key))}" for key in keys)
            return f"{self.key}: {', '.join(parts)}"
        return f"{self.key} {_shown(self.first)} and {_shown(self.second)}"


def run_differences(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    keys: Sequence[str] = (*MODEL, *TOKENIZER, *POLICIES, *NUMERICS),
) -> list[Difference]:
    """Return differences that change numbers: of names only where the weights differ, too."""
    # A checkpoint may have been moved, or fetched under another name.
    same_weights = first.get("weights_sha256") == second.get("weights_sha256") is not None
    skipped = ("model", "revision") if same_weights else ()
    same_tokenizer = first.get("tokenizer_sha256") == second.get("tokenizer_sha256")
    more = TOKENS if same_tokenizer and "bos" in keys else ()
    return [
        Difference(key, first.get(key), second.get(key))
        for key in (*keys, *more)
        if first.get(key) != second.get(key) and key not in skipped
    ]


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value).lower() if value is True else str(value)
    return text if len(text) <= 40 else text[:12] + "…"


_MAY_DIFFER = ("type", "started_at")
_RECORDS = {
    "": (ModelChoice, TokenPolicy, WindowChoice, PairPolicy, BatchPolicy, SpeedPolicy),
    "pairs.": (PairPolicy,),
    "reading.": (Reading,),
}
"""Settings that a run record holds, by the part of it."""
# Keys that are named as their flags, and that no record of options declares.
_SAME_NAME = (
    *("reading.prompt_field", "reading.response_field", "reading.separator", "reading.chat"),
    *("reading.regions", "rows.words", "rows.word_correction", "rows.context_lengths"),
    *(f"rows.{column.option}" for column in COLUMNS),
    *("rows.pmi", "rows.summary"),
)
_OPTIONS = {
    prefix + (field.declaration.key or field.name): (field.declaration.flag, field.is_negative)
    for prefix, records in _RECORDS.items()
    for record in records
    for field in option_fields(record)
    if isinstance(field.declaration, Option)
}
_FLAGS = {key: flag for key, (flag, is_negative) in _OPTIONS.items() if not is_negative} | {
    key: "--" + key.split(".")[-1].replace("_", "-") for key in _SAME_NAME
}
_NEGATIVE = {key: flag for key, (flag, is_negative) in _OPTIONS.items() if is_negative} | {
    "rows.text": "--no-text",
    "rows.tokens": "--no-tokens",
}
_OTHER_ADVICE = {
    "reading.inputs": "name the same FILES",
    "reading.regions_sha256": "--regions FILE with the same content",
    "pairs.chat_template_sha256": "--chat-template FILE with the same template",
    "schema_version": "the seqloss that began it",
    "weights_sha256": "the same weights",
    "quantization": "--quantize as it was given then",
}
_ABSENT = object()


def require_same_run(path: Path, recorded: Mapping[str, Any], run: RunInfo) -> None:
    """Raise UsageError with every difference between a results file's run line and this run.

    Each is named with the flag that mends it.
    """
    # Through JSON, as what is there has been: tuples are lists in it.
    own = orjson.loads(orjson.dumps({"schema_version": SCHEMA_VERSION, **asdict(run)}))
    there, here = dict(_flat(recorded)), dict(_flat(own))
    differences = [
        _difference(key, there.get(key, _ABSENT), here.get(key, _ABSENT))
        for key in {**there, **here}
        if there.get(key, _ABSENT) != here.get(key, _ABSENT)
    ]
    if differences:
        raise UsageError(
            f"--resume: {path} was begun in another way: {'; '.join(differences)}. Give what was "
            "given then, or --force to start anew"
        )


def _flat(run: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield keys with their values, those of parts as `part.key`."""
    for key, value in run.items():
        if key in _MAY_DIFFER:
            continue
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield key, value


def _difference(key: str, there: Any, here: Any) -> str:
    advice = _advice(key, there)
    return f"{key} is {_repr(there)} there and {_repr(here)} here" + (advice and f" ({advice})")


def _advice(key: str, there: Any) -> str:
    """Return what to give on the command line to have the value that is there."""
    if key in _OTHER_ADVICE:
        return _OTHER_ADVICE[key]
    # Options that came later are named only where they are given.
    if there is _ABSENT:
        return _switched(_FLAGS[key], False) if key in _FLAGS else ""
    if key.startswith("versions."):
        return "the same version"
    if key in _NEGATIVE:
        return _switched(_NEGATIVE[key], not there)
    flag = _FLAGS.get(key)
    if flag is None:
        return ""
    # `--compile auto` was decided by the machine: what it came to is named.
    if key == "compiled":
        return f"{flag} {'on' if there else 'off'}"
    # Nothing was given then, or a flag that takes no value.
    if there is None or isinstance(there, bool):
        return _switched(flag, bool(there))
    return f"{flag} {shlex.quote(str(there))}"


def _switched(flag: str, on: bool) -> str:
    return f"give {flag}" if on else f"leave {flag} out"


def _repr(value: Any) -> str:
    text = "missing" if value is _ABSENT else repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
