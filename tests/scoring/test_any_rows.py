"""Rows of any JSON: each is scored or rejected, none ends a run, and what is written reads back, by
every command and in every format. Results of any JSON are read, or refused with a reason."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from helpers.builders import byte_tokenizer, llama, save_checkpoint
from helpers.fuzz import examples
from helpers.program import in_process
from seqloss_cli import ModelChoice, PairPolicy, Rejected, Scorer
from seqloss_cli.cli import settings as command_settings
from seqloss_cli.core.policies import BatchPolicy
from seqloss_cli.results.files import open_any
from seqloss_cli.results.schema.divergences import DIVERGENCE_KINDS
from seqloss_cli.results.schema.rankings import RANKING_KINDS
from seqloss_cli.results.schema.scores import loss_kinds

TEMPLATE = (
    "{% for d in documents or [] %}({{ d.text }}){% endfor %}{% for t in tools or [] %}"
    "{{ t | tojson }}{% endfor %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEXT = {"id": "good", "text": "a good row"}
PAIR = {"id": "good", "prompt": "a", "response": " b"}
GOOD: dict[str, dict[str, Any]] = {
    "score": TEXT,
    "cond": PAIR,
    "rank": {"id": "good", "prompt": "a", "choices": [" b", " c"], "answer": 1},
    "mask": PAIR,
    "diverge": TEXT,
}
MORE = {
    "score": ("--words", "--top-k", "1"),
    "cond": ("--ranks",),
    "rank": ("--tokens",),
    "mask": ("--loss",),
    "diverge": ("--label-smoothing", "0.1"),
}
KINDS = {"score": loss_kinds(), "cond": loss_kinds(), "rank": RANKING_KINDS}
KINDS["diverge"] = DIVERGENCE_KINDS
NAMES = [
    *("id", "text", "input_ids", "labels", "attention_mask", "loss_mask", "completion_mask"),
    *("prompt", "response", "messages", "role", "content", "type", "tools", "tool_calls"),
    *("function", "arguments", "weight", "name", "documents", "chat_template_kwargs", "choices"),
    *("answer", "label", "images", "reasoning_content", "item", "meta", "run", "position_ids"),
    *("weights", "token_ids", "train", "channel", "mask", "from", "value", "conversations"),
]
WORDS = ["user", "assistant", "system", "text", "image", "a", " b", "<eos>", "\0", "日", "{}", "1"]
texts = st.one_of(st.sampled_from(WORDS), st.text(st.characters(codec="utf-8"), max_size=6))
numbers = st.one_of(
    st.integers(-2, 300),
    st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 1e308, -0.0, 5e-324]),
    st.floats(allow_nan=False, allow_infinity=False),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(NAMES), texts), inner, max_size=4),
    ),
    max_leaves=12,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant"]), "content": st.one_of(texts, values)},
        optional={
            "tool_calls": values, "weight": values, "reasoning_content": values, "name": values,
        },
    ),
    max_size=4,
)  # fmt: skip
ids = st.lists(st.one_of(st.integers(0, 255), numbers, st.none()), max_size=6)
rows = st.one_of(
    st.dictionaries(st.one_of(st.sampled_from(NAMES), texts), values, max_size=6),
    st.fixed_dictionaries(
        {},
        optional={
            "id": values, "text": texts, "prompt": st.one_of(texts, messages), "messages": messages,
            "response": st.one_of(texts, messages), "tools": values, "documents": values,
            "choices": st.one_of(st.lists(st.one_of(texts, messages), max_size=3), values),
            "answer": values, "chat_template_kwargs": values, "meta": values,
        },
    ),
    st.fixed_dictionaries(
        {"input_ids": ids}, optional={name: st.one_of(ids, values) for name in NAMES[3:7]}
    ),
)  # fmt: skip
raw_rows = st.one_of(
    rows.map(
        lambda row: orjson.dumps(row, default=str) if _fits(row) else json.dumps(row).encode()
    ),
    rows.map(lambda row: json.dumps(row).encode()),
    values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"")),
    st.integers(1, 1100).map(
        lambda n: b'{"text":"a","prompt":"a","x":' + n * b"[" + n * b"]" + b"}"
    ),
)


def figures(row: dict[str, Any]) -> list[float]:
    """The losses of a row, or of its choices."""
    assert row["type"] == "sequence"
    sums = row.get("response", row) if isinstance(row.get("response"), dict) else row
    total = sums.get("total_loss", sums.get("cross_entropy"))
    return [choice["log_prob"] for choice in row.get("choices", ())] or [total]


def _fits(row: Any) -> bool:
    try:
        orjson.dumps(row)
    except TypeError:
        return False
    return True


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Scorer]:
    """Of texts, and of pairs and chats."""
    folder = tmp_path_factory.mktemp("model")
    choice = ModelChoice(str(save_checkpoint(folder, llama(), byte_tokenizer())), device="cpu")
    pairs = PairPolicy(chat_template=TEMPLATE, marginal=False)
    return {
        False: Scorer(choice, batches=BatchPolicy(64)),
        True: Scorer(choice, batches=BatchPolicy(64), pairs=pairs),
    }


FORMATS = ["json", "csv", "tsv", "parquet", "table"]


@pytest.mark.parametrize("command", GOOD)
@settings(
    max_examples=examples(5),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(lines=st.lists(raw_rows, min_size=1, max_size=16), format=st.sampled_from(FORMATS))
@example(
    lines=[b'{"text": "a", "prompt": "a", "x": ' + 300 * b"[" + 300 * b"]" + b"}"], format="parquet"
)
@example(lines=[b'{"id": 123456789012345678901234567890, "text": "a"}', b"[", b"]"], format="csv")
def test_no_row_ends_a_run(
    command: str,
    lines: list[bytes],
    format: str,
    scorers: dict[bool, Scorer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load: Callable[..., Scorer] = lambda _, pairs=None: scorers[pairs is not None]  # noqa: E731
    monkeypatch.setattr(command_settings, "load_scorer", load)
    good = json.dumps(GOOD[command]).encode()
    content = b"\n".join([good, *lines, good]) + b"\n"
    inputs, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    inputs.write_bytes(content)
    words = (command, inputs, *MORE[command], "--keep-meta", "--jsonl", "-o", output)
    done = in_process(*words, "--force")
    assert done.exit_code in (0, 3), done.stderr
    written = [orjson.loads(line) for line in output.read_bytes().splitlines()]
    found = written[1:-1]
    # Rows in the order of inputs, the good ones with the same numbers.
    expected = [
        n for n, line in enumerate(content.split(b"\n"), start=1) if line.removesuffix(b"\r")
    ]
    assert [row["line"] for row in found] == expected
    assert figures(found[-1]) == pytest.approx(figures(found[0]), abs=1e-5)
    for line, row in zip(expected, found, strict=True):
        if row["type"] == "sequence" and "meta" in row:
            source = orjson.loads(content.split(b"\n")[line - 1])
            assert row["meta"] == {k: v for k, v in source.items() if k in row["meta"]}
    n_rows = sum(row["type"] == "sequence" for row in found)
    n_lines = sum(len(row.get("choices", "1")) for row in found)
    if command in KINDS:
        read = list(open_any(str(output), KINDS[command]).rows)
        assert not [row for row in read if isinstance(row, Rejected)]
    other = tmp_path / f"other.{format}"
    target = ("--summary",) if format == "table" else ("--format", format, "-o", other, "--force")
    # Lines of CSV, and tables, have no place for arrays.
    more = MORE[command] if command in ("mask", "diverge") or format in ("json", "parquet") else ()
    again = in_process(command, inputs, *more, "--keep-meta", *target)
    assert again.exit_code == done.exit_code, again.stderr
    if format == "json":
        assert len(json.loads(other.read_text())["sequences"]) == n_rows
    elif format == "parquet" and command in KINDS:
        assert len(list(open_any(str(other), KINDS[command]).rows)) == n_rows
    elif format in ("csv", "tsv"):
        text = io.StringIO(other.read_bytes().decode(), newline="")
        rows = list(csv.reader(text, delimiter="," if format == "csv" else "\t"))
        assert len(rows) == 1 + n_lines
        assert {len(row) for row in rows} == {len(rows[0])}
    # What was written is gone on with: each row is that of the same input.
    whole = output.read_bytes()
    output.unlink()
    cut = len(written) // 2 + 1
    output.with_suffix(".jsonl.partial").write_bytes(b"".join(whole.splitlines(True)[:cut]))
    done = in_process(*words, "--resume")
    assert done.exit_code in (0, 3), done.stderr
    assert output.read_bytes().splitlines()[1:] == whole.splitlines()[1:]


# -- readers of results ---------------------------------------------------------------------------

READERS = {
    "score": (("summarize",), ("plot", "--kind", "histogram", "--json")),
    "cond": (("compare", "{file}", "--json"),),
    "rank": (("report", "-o", "{page}", "--force"),),
    "diverge": (("report", "-o", "{page}", "--force"),),
}


@pytest.fixture(scope="module")
def results(
    scorers: dict[bool, Scorer], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """The records that each command writes of two good rows."""
    folder, found = tmp_path_factory.mktemp("results"), {}
    load: Callable[..., Scorer] = lambda _, pairs=None: scorers[pairs is not None]  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_settings, "load_scorer", load)
        for command in READERS:
            path = folder / f"{command}.jsonl"
            path.write_text(2 * (json.dumps(GOOD[command]) + "\n"))
            done = in_process(command, path, *MORE[command], "--jsonl", "--keep-meta")
            found[command] = [json.loads(line) for line in done.stdout.splitlines()]
    return found


@pytest.mark.parametrize("command", READERS)
@settings(
    max_examples=examples(20),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(choices=st.lists(st.integers(0, 60), min_size=2, max_size=5, unique=True), value=values)
def test_no_result_ends_a_reader(
    command: str,
    choices: list[int],
    value: Any,
    results: dict[str, list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    """Any value in one place of a results file; a bug fails in `in_process`."""
    rows = json.loads(json.dumps(results[command]))
    place: Any = rows
    for choice in choices:
        keys = [*place] if isinstance(place, dict) else [*range(len(place))]
        key = keys[choice % len(keys)]
        inner = place[key]
        if choice == choices[-1] or not isinstance(inner, list | dict) or not inner:
            place[key] = value
            break
        place = inner
    path, page = tmp_path / "results.jsonl", tmp_path / "page.html"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, *words in READERS[command]:
        in_process(name, path, *(word.format(file=path, page=page) for word in words))
