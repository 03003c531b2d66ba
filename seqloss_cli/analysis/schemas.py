"""JSON Schema of everything that commands write for machines, made of the declarations of keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from seqloss_cli.analysis import json_summaries as j
from seqloss_cli.analysis.confidence import CalibrationPlot
from seqloss_cli.analysis.membership import RocPlot
from seqloss_cli.analysis.objective import CurvePlot
from seqloss_cli.analysis.plot_data import (
    GroupsPlot,
    HistogramPlot,
    PositionPlot,
    ScatterPlot,
)
from seqloss_cli.analysis.select import BUCKET
from seqloss_cli.core.errors import UsageError
from seqloss_cli.core.records import SCHEMA_VERSION
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.metrics.membership import SCORES
from seqloss_cli.results import schema as s
from seqloss_cli.results.formats import LEVELS
from seqloss_cli.results.schema import (
    checks,
    diverged_models,
    divergences,
    masks,
    rankings,
    score_keys,
)
from seqloss_cli.results.schema import sequences as q
from seqloss_cli.results.schema.json_schema import DIALECT, Schema, Shapes, element

_PLOTS = (
    CurvePlot,
    HistogramPlot,
    PositionPlot,
    CalibrationPlot,
    GroupsPlot,
    ScatterPlot,
    RocPlot,
)
_VERSION = s.nested("schema_version", int, of=int, about="Grows when a key changes its meaning.")

_DISTRIBUTED = s.nested(
    "distributed", dict, of=dict[str, Any], optional=True,
    about="With --distribute: who scored the shards, their number, and what they are of.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RowsOf:
    """The keys of what a command writes of each input and of all."""

    keys: tuple[s.Key, ...]
    totals: tuple[s.Key, ...]
    levels: Mapping[str, tuple[s.Key, ...]]
    known: Mapping[str, bool]
    """Conditions of keys that are sure to hold, or not to."""
    of_run: tuple[s.Key, ...] = field(default=())
    """Further keys of the run's record."""
    totals_of_models: tuple[s.Key, ...] = ()
    """Keys of the totals where several models are compared."""
    read_back: bool = False
    """Rows and run are those that another version may have written: no key of theirs is sure."""


def _scores(pairs: bool) -> RowsOf:
    others = {} if pairs else {"pmi": False, "compared": False}
    known = {"pairs": pairs, "losses": True, **others}
    keys = score_keys.SCORE_KEYS, score_keys.TOTALS_KEYS, score_keys.SCORE_LEVELS
    return RowsOf(*keys, known, (_DISTRIBUTED,))


def _selected() -> RowsOf:
    """Return the keys of rows that were kept: of both commands, and those of the selection."""
    bucket = s.whole(
        BUCKET,
        int,
        of=int | None,
        optional=True,
        about="With --buckets: its bucket, 1 of the least values; null where it has none.",
    )
    selection = s.nested(
        "selection", dict, of=dict[str, Any], about="The options that rows were chosen by."
    )
    keys = (*score_keys.SCORE_KEYS, bucket)
    return RowsOf(keys, score_keys.TOTALS_KEYS, {}, {"losses": True}, (selection,), read_back=True)


ROWS: Mapping[str, RowsOf] = {
    "score": _scores(pairs=False),
    "cond": _scores(pairs=True),
    "rank": RowsOf(
        rankings.RANK_KEYS, rankings.RANK_TOTALS, rankings.RANK_LEVELS, {}, (_DISTRIBUTED,)
    ),
    "diverge": RowsOf(
        divergences.DIVERGENCE_KEYS,
        divergences.TOTALS_KEYS,
        divergences.LEVELS,
        {"pairs": False},
        totals_of_models=diverged_models.MODELS_TOTALS_KEYS,
    ),
    "mask": RowsOf(masks.MASK_KEYS, masks.MASK_TOTALS, masks.LEVELS, {"pairs": True}),
    "check": RowsOf(checks.CHECK_KEYS, checks.CHECK_TOTALS, checks.LEVELS, {"pairs": False}),
}
"""Commands that write rows."""
DOCUMENTS: Mapping[str, tuple[s.Key, ...]] = {
    "summarize": j.SUMMARY_KEYS,
    "compare": j.COMPARISON_KEYS,
    "objective": j.OBJECTIVE_KEYS,
}
"""Commands that write one document."""
_OPENAI_CHOICE = (
    s.whole("index", int, about="Its place among the choices, from 0."),
    q.SAMPLE[0],
    s.text("text", str, of=str | None, about="The text; null of rows of ids, and with --no-text."),
    s.text("finish_reason", str, of=s.OneOf(("length",)), about="As servers write it."),
    s.nested(
        "logprobs",
        dict,
        of=(
            s.texts("tokens", list, about="The text of each token."),
            s.reals("token_logprobs", list, about="Log-probability of each token, nats."),
            s.nested(
                "top_logprobs",
                list,
                of=list[dict[str, float | None] | None] | None,
                about="Alternatives to their log-probabilities, nats; null without --top-k.",
            ),
            s.wholes(
                "text_offset",
                list,
                of=list[int] | None,
                about="First character of each token; null of rows of ids.",
            ),
        ),
        about="Figures of its tokens.",
    ),
)
_RANKED = (
    s.text("id", str, about="The row's id."),
    s.nested("prompt", str, of=str | list[Any], about="The prompt, or the messages of a chat."),
    s.text("separator", str, about="Between prompt and choice."),
    s.texts("choices", list, about="Best first."),
    s.text("by", str, about="--by: the score that they are in the order of."),
    s.reals("scores", list, about="Their scores, nats; null where a row has no such order."),
    s.wholes("places", list, about="Their numbers in the input, from 0."),
    s.nested(
        "answer", int, of=int | list[int], optional=True,
        about="Numbers of right choices in this order, from 0; a single one is no list.",
    ),
)  # fmt: skip
"""Keys of a line of `rank --output-ranked`, beside those of the row."""
_MEMBERSHIP = (
    s.text("id", str, about="The document's id."),
    s.nested(
        "member", bool, of=bool | None, optional=True,
        about="With --label: true of a member; null without a label.",
    ),
    *(s.real(name, float, about=f"Score {name}, as docs/membership.md has it.") for name in SCORES),
)  # fmt: skip
"""Keys of a line of `summarize --scores`."""
MERGED = ("score", "cond", "rank", "diverge", "mask", "check")
_OF_ROWS = ("jsonl", "json", "parquet", "csv")
FORMATS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(ROWS, _OF_ROWS),
    **dict.fromkeys(("score", "cond"), (*_OF_ROWS, "openai")),
    "rank": (*_OF_ROWS, "ranked"),
    "merge": _OF_ROWS[:3],
    "select": ("jsonl",),
    **dict.fromkeys((*DOCUMENTS, "plot"), ("json",)),
    "summarize": ("json", "scores"),
}
"""Command to the formats that it writes, the default first; TSV has the columns of CSV. `ranked`
are lines of --output-ranked, `scores` of --scores."""


def schema_of(command: str, format: str | None = None, level: str | None = None) -> Schema:
    """Return the schema of what a command writes: of a document, or of one line or row.

    Other keys are allowed: later versions add some. Raises UsageError for a format or level that
    the command does not have.
    """
    formats = FORMATS[command]
    name = formats[0] if format is None else format
    if name not in formats:
        raise UsageError(f"{command} has no format {name}: {' or '.join(formats)}")
    if level is not None and (name != "csv" or level not in LEVELS[command]):
        levels = " or ".join(LEVELS.get(command, ())) if name == "csv" else "of CSV"
        raise UsageError(f"--level {level}: lines of {command} in {name} have levels {levels}")
    maker = _Maker(command)
    body = maker.body(name, level)
    what = {"json": "the document", "openai": "the document", "parquet": "a row"}.get(
        name, "a line"
    )
    level_told = f", a {level or LEVELS[command][0]} each" if name == "csv" else ""
    return {
        "$schema": DIALECT,
        "title": f"seqloss {command}, {name}{level_told}: {what}",
        "$comment": f"schema_version {SCHEMA_VERSION}",
        **body,
        **({"$defs": maker.shapes.definitions} if maker.shapes.definitions else {}),
    }


class _Maker:
    """Makes the schema of one command."""

    def __init__(self, command: str) -> None:
        self.command = command
        self._rows = _selected() if command == "select" else ROWS.get(command)
        self.shapes = Shapes({} if self._rows is None else self._rows.known)
        self.merged = False

    def body(self, format: str, level: str | None) -> Schema:
        if self.command == "merge":
            return {"anyOf": [self._of(name, format) for name in MERGED]}
        if self.command == "plot":
            return {"oneOf": [*map(self._plot, _PLOTS)]}
        if format in ("ranked", "scores"):
            # The other keys of a ranked line are those of the input's own row.
            found = self.shapes.of_keys(_RANKED if format == "ranked" else _MEMBERSHIP)
            return found | ({"additionalProperties": True} if format == "ranked" else {})
        if self._rows is None:
            return self.shapes.of_keys((_VERSION, *DOCUMENTS[self.command]))
        make: Mapping[str, Callable[[RowsOf], Schema]] = {
            "jsonl": self._jsonl,
            "json": self._json,
            "parquet": self._parquet,
            "openai": self._openai,
            "csv": lambda rows: self._csv(rows, level or LEVELS[self.command][0]),
        }
        return make[format](self._rows)

    def _of(self, command: str, format: str) -> Schema:
        """Return another command's schema; its definitions join these."""
        maker = _Maker(command)
        # Columns of a merged Parquet file are all keys, whatever was asked for.
        maker.shapes, maker.merged = Shapes(), True
        maker.shapes.definitions = self.shapes.definitions
        return maker.body(format, None)

    # -- parts of results --------------------------------------------------------------------------

    def _run(self, rows: RowsOf, *first: s.Key) -> Schema:
        record = self.shapes.of_record(RunInfo)
        further = self.shapes.of_keys((*first, *rows.of_run))
        return {
            **record,
            "properties": {**further["properties"], **record["properties"]},
            "required": [*further["required"], *record["required"]],
        }

    def _totals(self, rows: RowsOf, *first: s.Key) -> Schema:
        found = self.shapes.of_keys((*first, *rows.totals))
        if not rows.totals_of_models:
            return found
        return {"anyOf": [found, self.shapes.of_keys((*first, *rows.totals_of_models))]}

    def _rejected(self, *first: s.Key) -> Schema:
        return self.shapes.of_keys((*first, *q.SAMPLE, *s.REJECTED))

    def _jsonl(self, rows: RowsOf) -> Schema:
        def named(kind: str) -> s.Key:
            return s.text("type", str, of=_constant(kind))

        run = self._run(rows, named("run"), _VERSION)
        sequence = self.shapes.of_keys((named("sequence"), *rows.keys))
        if rows.read_back:
            run, sequence = ({**each, "required": ["type"]} for each in (run, sequence))
        totals = self._totals(rows, named("totals"))
        return {"oneOf": [run, sequence, self._rejected(named("rejected")), totals]}

    def _json(self, rows: RowsOf) -> Schema:
        whole = {
            "schema_version": self.shapes.of_key(_VERSION),
            "run": self._run(rows),
            "sequences": {"type": "array", "items": self.shapes.of_keys(rows.keys)},
            "rejected": {"type": "array", "items": self._rejected()},
            "totals": self._totals(rows),
        }
        return {"type": "object", "properties": whole, "required": [*whole]}

    def _openai(self, rows: RowsOf) -> Schema:
        own = {
            "run": self._run(rows),
            "rejected": {"type": "array", "items": self._rejected()},
            "totals": self._totals(rows),
        }
        whole = {
            "object": {"enum": ["text_completion"]},
            "model": {"description": "Name of the model.", "type": "string"},
            "choices": {"type": "array", "items": self.shapes.of_keys(_OPENAI_CHOICE)},
            "seqloss": {"type": "object", "properties": own, "required": [*own]},
        }
        return {"type": "object", "properties": whole, "required": [*whole]}

    def _parquet(self, rows: RowsOf) -> Schema:
        columns: Schema = {
            "type": self.shapes.of(_constant("sequence", "rejected")),
        }
        sure = [key.name for key in rows.keys if self.shapes.is_sure(key)]
        for key in (*rows.keys, *s.REJECTED):
            if self.shapes.is_possible(key):
                columns[key.name] = _or_null(self._column(key))
        columns["null_keys"] = {
            "description": "Keys that the row has and that are null; others it does not have.",
            "type": "array",
            "items": {"type": "string"},
        }
        run, totals = ((f"{n}_{self.command}" if self.merged else n) for n in ("Run", "Totals"))
        self.shapes.definitions[run] = self._run(rows, _VERSION)
        self.shapes.definitions[totals] = self._totals(rows)
        told = (
            f"Metadata: seqloss.run is the JSON of #/$defs/{run}, seqloss.totals of "
            f"#/$defs/{totals}."
        )
        return {
            "description": told,
            "type": "object",
            "properties": columns,
            "required": ["type", *dict.fromkeys(sure), "reason", "message", "null_keys"],
        }

    def _column(self, key: s.Key) -> Schema:
        found = self.shapes.of_key(key)
        if key.kind is not s.Kind.nested:
            return found
        told: Schema = {
            name: found.pop(name) for name in ("description", "$comment") if name in found
        }
        as_text: Schema = {"type": "string", "contentMediaType": "application/json"}
        return {**told, **as_text, "contentSchema": found}

    def _csv(self, rows: RowsOf, level: str) -> Schema:
        if (parts := rows.levels.get(level)) is not None:
            keys = [*q.SAMPLE[::2], *parts, s.REJECTED[0]]
            cells = {
                key.name: (key, self._cell(key, "")) for key in keys if self.shapes.is_possible(key)
            }
        else:
            own = [*filter(self.shapes.is_possible, rows.keys)]
            cells = {
                key.name + suffix: (key, self._cell(key, suffix))
                for key in (*own, *s.REJECTED)
                for suffix in key.row_cells()
            }
        sure = [name for name, (key, _) in cells.items() if self.shapes.is_sure(key)]
        told = "Cells as numbers where they are numbers; null is an empty cell."
        return {
            "description": told,
            "type": "object",
            "properties": {name: found for name, (_, found) in cells.items()},
            "required": sure,
        }

    def _cell(self, key: s.Key, suffix: str) -> Schema:
        if key.kind is not s.Kind.nested:
            return self.shapes.of_key(key, element(key))
        inner = key.of if isinstance(key.of, tuple) else ()
        found = next((each for each in inner if f".{each.name}" == suffix), None)
        if found is None:
            return self.shapes.of_key(key, str | None)
        return self.shapes.of_key(found, element(found))

    def _plot(self, kind: Any) -> Schema:
        numbers = self.shapes.of_record(kind)
        first = self.shapes.of_keys(
            (
                _VERSION,
                s.text("kind", str, of=_constant(kind.kind), about="--kind."),
                s.nested("files", list, of=list[dict[str, Any]], about="The results files."),
                s.real("confidence", float, of=float, about="Of each interval."),
                s.whole("n_unusable", int, about="Rows that could not be read back."),
            )
        )
        return {
            **numbers,
            "properties": {**first["properties"], **numbers["properties"]},
            "required": [*first["required"], *numbers["required"]],
        }


def _constant(*values: str) -> Any:
    return s.OneOf(values)


def _or_null(schema: Schema) -> Schema:
    """Return the schema of a column, which is null of rows that lack its key."""
    kind = schema.get("type")
    if isinstance(kind, str):
        return {**schema, "type": [kind, "null"]}
    if isinstance(kind, list):
        return {**schema, "type": [*dict.fromkeys([*kind, "null"])]}
    if "enum" in schema:
        return {**schema, "enum": [*dict.fromkeys([*schema["enum"], None])]}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    return schema
