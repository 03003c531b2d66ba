"""JSON and JSONL, written and read back; and the completions objects of OpenAI's servers.

Each writer streams: nothing but rejected rows waits for the end.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from seqloss_cli.core.byte_spans import TokenBytes
from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import SCHEMA_VERSION, Rejected, Rejections, SequenceScore
from seqloss_cli.core.run_record import RunInfo
from seqloss_cli.inputs.streams import BOM, bounded_lines, open_input
from seqloss_cli.metrics.totals import Totals
from seqloss_cli.results import schema as s
from seqloss_cli.results.schema.score_keys import top_log_probs

# Rankings bring chats and their templates along: 20 ms for every command that reads results.
if TYPE_CHECKING:
    from seqloss_cli.metrics.ranking import Ranking

_SPOOLED_IN_MEMORY = 1 << 20
_RUN_LINE = b'{"type":"run"'
_LONGEST_LINE = 1 << 30
_TOO_LONG = RowError("too_long", f"is longer than {_LONGEST_LINE} bytes")


class JsonlWriter(s.RowWriter):
    """A line `run`, a line for each input as soon as it is ready, a line `totals`."""

    def begin(self, run: RunInfo) -> None:
        """Write the line of the run."""
        row = s.run_row(run)
        # The file of a page has the rows that --summary leaves out of what is printed.
        if row.get("rows") and "summary" in row["rows"]:
            row["rows"] = {**row["rows"], "summary": self.rows.options.summary}
        self.write_row("run", row)

    def write_row(self, kind: str, row: s.Row) -> None:
        """Write a line; it is flushed, so that a run that is killed leaves it."""
        self.sink.write(s.json_bytes({"type": kind, **row}) + b"\n")
        self.sink.flush()

    def write_totals(self, row: s.Row) -> None:
        """Write the last line."""
        # Not flushed: the sink does it before the file gets its name.
        self.sink.write(s.json_bytes({"type": "totals", **row}) + b"\n")


class JsonWriter(s.RowWriter):
    """`{"schema_version", "run", "sequences", "rejected", "totals"}`, sequences as they come."""

    def __init__(self, sink: BinaryIO, rows: s.Rows[Any, Any, Any]) -> None:
        super().__init__(sink, rows)
        # Rejected rows stand after all sequences, and wait there: a corpus of them may be large.
        self._rejected = tempfile.SpooledTemporaryFile(_SPOOLED_IN_MEMORY)  # noqa: SIM115
        self._separators = {"sequence": b"", "rejected": b""}

    def begin(self, run: RunInfo) -> None:
        """Write the run, and begin the sequences."""
        version, record = SCHEMA_VERSION, s.json_bytes(run.as_json())
        self.sink.write(b'{"schema_version":%d,"run":%s,\n"sequences":[' % (version, record))

    def write_row(self, kind: str, row: s.Row) -> None:
        """Write a row of its array."""
        array = self.sink if kind == "sequence" else self._rejected
        array.write(self._separators[kind] + s.json_bytes(row))
        self._separators[kind] = b",\n"

    def write_rejected(self) -> None:
        """Write all rows that were rejected."""
        self._rejected.seek(0)
        shutil.copyfileobj(self._rejected, self.sink)
        self._rejected.close()

    def write_totals(self, row: s.Row) -> None:
        """End the sequences, and write what comes after them."""
        self.sink.write(b'],\n"rejected":[')
        self.write_rejected()
        self.sink.write(b'],\n"totals":' + s.json_bytes(row) + b"}\n")


class OpenAIWriter(JsonWriter):
    """The legacy completions object of OpenAI's servers: a choice for each sequence.

    Log-probabilities in nats; `text_offset` in characters; `top_logprobs` is null unless --top-k
    asked for it. `seqloss` holds the run, rejected inputs and totals.
    """

    def begin(self, run: RunInfo) -> None:
        """Write the model's name, and begin the choices."""
        self._run, self._index = s.json_bytes(run.as_json()), count()
        model = s.json_bytes(run.model)
        self.sink.write(b'{"object":"text_completion","model":%s,\n"choices":[' % model)

    def make_row(self, result: SequenceScore, sums: Totals) -> s.Row:
        """Return the choice of a score."""
        options, sequence, top = self.rows.options, result.sequence, None
        token_bytes = TokenBytes.of(sequence)
        if result.top_ids is not None:
            # As the servers' own: two ids of one text share a key, and the less probable one stays.
            top = [
                None if row is None else {entry["token"]: entry["log_prob"] for entry in row}
                for row in top_log_probs(result, options.name_token)
            ]
        return {
            "index": next(self._index),
            "id": sequence.sample.id,
            "text": sequence.text if options.text else None,
            "finish_reason": "length",
            "logprobs": {
                "tokens": options.token_texts(sequence),
                # Not `-losses`: a certain token would have -0.0.
                "token_logprobs": s.numbers_or_null(0.0 - result.losses, result.scored),
                "top_logprobs": top,
                "text_offset": token_bytes and token_bytes.chars_of_tokens().tolist(),
            },
        }

    def write_totals(self, row: s.Row) -> None:
        """End the choices, and write what no completions object has."""
        self.sink.write(b'],\n"seqloss":{"run":' + self._run + b',"rejected":[')
        self.write_rejected()
        self.sink.write(b'],"totals":' + s.json_bytes(row) + b"}}\n")


class RankedRows:
    """Writes JSONL of the rows as they came, their choices best first: n-best lists re-ordered."""

    def __init__(self, sink: BinaryIO, by: str) -> None:
        self._sink, self.by = sink, by
        self.n_unordered = 0
        """Rows without such an order: they are left as they are, their scores null."""

    def begin(self, run: RunInfo) -> None:
        """Write nothing: there are rows only."""

    def reject(self, rejected: Rejected) -> None:
        """Write nothing: what is rejected has no order."""

    def end(self, sums: Any, rejected: Rejections, n_empty_lines: int) -> None:
        """Write nothing: there are rows only."""

    def sequence(self, ranking: Ranking, sums: Any) -> None:
        """Write a row with its choices in order."""
        known, choices = self.by in ranking.orders, ranking.choices
        self.n_unordered += not known
        order = ranking.orders[self.by] if known else tuple(range(len(ranking.scored)))
        scores = [ranking.scored[n].score_by(self.by) if known else None for n in order]
        row: s.Row = {
            # Own keys last: other fields of the list are kept, choices and answers are replaced.
            **(ranking.sample.meta or {}),
            "id": ranking.sample.id,
            "prompt": [*choices.messages] or choices.prompt,
            "separator": choices.separator,
            "choices": [choices.responses[n] for n in order],
            "by": self.by,
            "scores": [s.finite(score) for score in scores],
            "places": [*order],
        }
        # Of chats: what their template was given, or ranked again they would have other scores.
        given = choices.template.get("tools"), choices.template.get("template_kwargs")
        row |= {k: v for k, v in zip(("tools", "chat_template_kwargs"), given, strict=True) if v}
        if choices.answers is not None:
            places = [order.index(n) for n in choices.answers]
            # A single one is a number, as in lists that have one: it may be ranked again.
            row["answer"] = places[0] if len(places) == 1 else places
        self._sink.write(s.json_bytes(row) + b"\n")


class NoResultsError(RowError):
    """A whole JSON object where results were looked for, which another command may have written."""

    def __init__(self, message: str, document: Mapping[str, Any]) -> None:
        super().__init__("no_results", f"holds no results of seqloss: {message}")
        self.document = document


def read_json(
    name: str, on_line: Callable[[bytes | None], object] = lambda line: None
) -> Iterator[tuple[int, Any]]:
    """Yield line (of JSONL, else a count) and object, or the RowError that stands for it.

    `on_line` is told the bytes of each object before it comes; None of a document. A document of
    `--json` is told by its first line, and gives the records in the order of JSONL.
    """
    with open_input(name) as (stream, _):
        number = 0
        for number, raw in enumerate(bounded_lines(stream, _LONGEST_LINE), start=1):
            if number == 1 and raw is not None:
                raw = raw.removeprefix(BOM)
            if number == 1 and raw is not None and _is_document(raw):
                # What was read is put in front again: stdin cannot be wound back.
                on_line(None)
                yield from _of_document(raw + b"\n" + stream.read())
                return
            on_line(raw)
            record = _TOO_LONG if raw is None else s.parse_record(raw)
            yield number, record
            if isinstance(record, RowError) and raw and (at := raw.find(_RUN_LINE)) > 0:
                # Files that were joined: the next one's run, behind a last line without its end.
                yield number, s.parse_record(raw[at:])


def _is_document(first_line: bytes) -> bool:
    # A brace alone in its line is how jq prints it.
    return first_line.startswith(b'{"schema_version"') or first_line.strip() == b"{"


def _of_document(raw: bytes) -> Iterator[tuple[int, Any]]:
    """The records of `--json`, in the order of `--jsonl`."""
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        yield 1, RowError("torn_row", f"is no whole JSON document: {error}")
        return
    for name, kind in (("run", dict), ("sequences", list), ("rejected", list), ("totals", dict)):
        if not isinstance(document.get(name), kind):
            yield 1, NoResultsError(f"{name!r} is not there", document)
            return
    yield 1, {"type": "run", "schema_version": document.get("schema_version"), **document["run"]}
    rows = [("sequence", row) for row in document["sequences"]]
    rows += [("rejected", row) for row in document["rejected"]]
    rows.append(("totals", document["totals"]))
    for number, (type_, row) in enumerate(rows, start=2):
        is_object = isinstance(row, dict)
        yield number, {"type": type_, **row} if is_object else RowError("bad_row", "is no object")
