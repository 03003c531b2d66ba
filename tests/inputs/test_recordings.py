"""Rows of recorded log-probabilities, in every shape that engines and trainers write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqloss_cli.core.errors import RowError
from seqloss_cli.core.records import Rejected, Sample
from seqloss_cli.inputs.reading import ReadOptions, ReadStats, read_inputs
from seqloss_cli.inputs.recordings import recording_content
from seqloss_cli.inputs.rows import RecordingFields, parse_object
from seqloss_cli.inputs.side_files import RecordingFile

NAN = None


def read(row: dict[str, Any], field: str | None = None) -> dict[str, Any]:
    """Ids, values and mask of a row, as lists."""
    found, _ = recording_content(row, RecordingFields(field))
    recording = found["recording"]
    sampled = recording.sampled
    return {
        "ids": found["input_ids"].tolist(),
        "values": [None if np.isnan(v) else v for v in recording.log_probs.tolist()],
        "sampled": None if sampled is None else sampled.astype(int).tolist(),
        "n_prompt": recording.n_prompt,
        "flags": found.get("flags", {}),
    }


def refused(row: dict[str, Any], field: str | None = None) -> RowError:
    with pytest.raises(RowError) as caught:
        recording_content(row, RecordingFields(field))
    return caught.value


FLAT = {"input_ids": [5, 6, 7], "logprobs": [None, -1, -2.5]}
SPLIT = {"prompt_ids": [1, 5], "response_ids": [6, 7]}
EXPECTED = {
    "ids": [1, 5, 6, 7], "values": [None, None, -1.0, -2.0], "sampled": [0, 0, 1, 1],
    "n_prompt": 2, "flags": {},
}  # fmt: skip


def test_flat_lists() -> None:
    plain = {"ids": [5, 6, 7], "values": [None, -1.0, -2.5], "sampled": None, "n_prompt": None}
    assert read(FLAT) == {**plain, "flags": {}}
    assert read(FLAT | {"logprobs": [-1, -2.5]}) == {**plain, "flags": {}}
    masked = read(FLAT | {"loss_mask": [0, 1, 1]})
    assert masked == {**plain, "sampled": [0, 1, 1], "flags": {}}


@pytest.mark.parametrize(
    "names",
    [("prompt_ids", "response_ids"), ("prompt_token_ids", "token_ids"), ("prompts", "responses"),
     ("prompt_ids", "completion_ids"), ("input_ids", "output_ids")],
)  # fmt: skip
def test_prompt_and_response(names: tuple[str, str]) -> None:
    ids = {names[0]: [1, 5], names[1]: [6, 7]}
    assert read({**ids, "logprobs": [-1, -2]}) == EXPECTED
    assert read({**ids, "logprobs": [None, None, -1, -2]}) == EXPECTED
    assert read({**ids, "logprobs": [None, -1, -2]}) == EXPECTED
    assert read({**ids, "rollout_log_probs": [-1, -2]}) == EXPECTED
    own = {names[0]: [1, 5], names[1]: [6, 7], "input_ids": [1, 5, 6, 7]}
    if names[0] != "input_ids":
        assert read({**own, "old_log_probs": [-1, -2]}) == EXPECTED


def test_lengths_that_fit_nothing() -> None:
    error = refused({**SPLIT, "prompt_ids": [1, 4, 5], "logprobs": [-1.0]})
    assert error.reason == "wrong_length"
    assert "1 values for 5 ids, 2 of them of the response" in error.message
    assert "EOS, missing?" in error.message
    assert refused(FLAT | {"logprobs": [-1.0] * 4}).reason == "wrong_length"
    assert refused(FLAT | {"logprobs": [-1.0]}).reason == "wrong_length"


@given(n=st.integers(1, 9), p=st.integers(1, 9), n_values=st.integers(1, 20))
def test_any_length(n: int, p: int, n_values: int) -> None:
    row = {"prompt_ids": [1] * p, "response_ids": [2] * n, "logprobs": [-1.0] * n_values}
    if n_values in (n, p + n, p + n - 1):
        values = read(row)["values"]
        assert values == [None] * (p + n - n_values) + [-1.0] * n_values
    else:
        assert refused(row).reason == "wrong_length"


def entry(value: float, text: str = "x") -> dict[str, Any]:
    return {"logprob": value, "rank": 1, "decoded_token": text}


def test_vllm_dicts() -> None:
    """Of the text's ids, whatever other ids stand beside them."""
    prompt = [None, {"5": entry(-3.0), "9": entry(-0.1)}]
    both = {"prompt_token_ids": [1, 5], "prompt_logprobs": prompt, "outputs": [
        {"token_ids": [6, 7], "logprobs": [{"6": entry(-1.0)}, {"8": -0.5, "7": -2.0}],
         "cumulative_logprob": -3.0}
    ]}  # fmt: skip
    assert read(both) == {**EXPECTED, "values": [None, -3.0, -1.0, -2.0]}
    alone = {"prompt_logprobs": [{"1": entry(-2.0)}, {"5": entry(-3.0)}, {"6": -1.0}]}
    assert read(alone)["ids"] == [1, 5, 6]
    assert read(alone)["values"] == [-2.0, -3.0, -1.0]
    # Of the first token nothing is known, and the others depend on it.
    first = refused({"prompt_logprobs": [None, {"5": entry(-3.0)}, {"6": -1.0}]})
    assert first.reason == "missing_field"
    assert "no id of token 0" in first.message
    only_prompt = {"prompt_token_ids": [1, 5], "prompt_logprobs": prompt}
    assert read(only_prompt)["values"] == [None, -3.0]
    assert refused({"prompt_logprobs": prompt}).reason == "missing_field"
    assert refused(only_prompt | {"prompt_token_ids": [1, 4]}).reason == "other_ids"


def test_vllm_logprobs_objects() -> None:
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [-1, -2], "text_offset": [4, 5]}
    row = {"choices": [{"prompt_token_ids": [1, 5], "token_ids": [6, 7], "logprobs": logprobs}]}
    assert read(row) == EXPECTED
    named = logprobs | {"tokens": ["token_id:6", "token_id:7"]}
    assert read({"prompt_ids": [1, 5], "logprobs": named}) == EXPECTED
    assert refused({"choices": [{}, {}], "id": "x"}).reason == "several_answers"


def test_sglang_triples() -> None:
    out = [[-1.0, 6, None], [-2.0, 7, " b"]]
    meta = {"input_token_logprobs": [[None, 1, None], [-3.0, 5, "a"]], "output_token_logprobs": out}
    assert read({"meta_info": meta}) == {**EXPECTED, "values": [None, -3.0, -1.0, -2.0]}
    assert read({"input_ids": [1, 5], "meta_info": {"output_token_logprobs": out}}) == EXPECTED
    assert refused({"output_token_logprobs": [[-1.0, "a"]]}).reason == "wrong_type"


def openai(*entries: tuple[str, float]) -> dict[str, Any]:
    content = [{"token": t, "logprob": v, "bytes": [*t.encode()]} for t, v in entries]
    return {"choices": [{"logprobs": {"content": content}, "message": {"role": "assistant"}}]}


def test_openai_content_with_bytes() -> None:
    fields, _ = recording_content(
        {**openai(("é", -1.0), ("b", -2.0)), "prompt": "Say"}, RecordingFields()
    )
    recording = fields["recording"]
    assert recording.pieces == ("é".encode(), b"b")
    assert recording.log_probs.tolist() == [-1, -2]
    assert fields["text"] == "Say"
    assert "input_ids" not in fields
    whole = {**openai(("a", -1.0), ("b", -2.0)), "prompt_ids": [1, 5], "response_ids": [6, 7]}
    assert read(whole) == EXPECTED
    chat, _ = recording_content(
        {**openai(("b", -2.0)), "messages": [{"role": "user", "content": "x"}]}, RecordingFields()
    )
    assert chat["chat"].n_prompt == 1


def test_an_echoed_prompt_is_not_sampled() -> None:
    logprobs = {"tokens": ["Say", " it"], "token_logprobs": [None, -1], "text_offset": [0, 3]}
    fields, _ = recording_content({"prompt": "Say", "logprobs": logprobs}, RecordingFields())
    assert fields["recording"].sampled.tolist() == [False, True]
    assert "text" not in fields


PADDED = {
    "prompts": [0, 0, 1, 5], "responses": [6, 7, 0, 0], "input_ids": [0, 0, 1, 5, 6, 7, 0, 0],
    "attention_mask": [0, 0, 1, 1, 1, 1, 0, 0], "response_mask": [1, 1, 0, 0],
    "rollout_log_probs": [-1, -2, 0, 0], "old_log_probs": [-1.5, -2.5, 0, 0],
}  # fmt: skip


def test_a_dump_of_verl() -> None:
    expected = EXPECTED | {"flags": {"padding_dropped": 4}}
    assert read(PADDED, "rollout_log_probs") == expected
    trainer = read(PADDED, "old_log_probs")
    assert trainer["values"] == [None, None, -1.5, -2.5]
    error = refused(PADDED)
    assert error.reason == "several_fields"
    assert "rollout_log_probs are the sampler's, old_log_probs are the trainer's" in error.message
    assert refused(PADDED, "logprobs").reason == "missing_field"


def test_tools_between_the_turns_are_not_sampled() -> None:
    row = SPLIT | {"response_ids": [6, 7, 8], "response_mask": [1, 0, 1], "logprobs": [-1, -2, -3]}
    assert read(row)["sampled"] == [0, 0, 1, 0, 1]
    assert read(row)["ids"] == [1, 5, 6, 7, 8]


def test_a_dump_of_trl() -> None:
    row = {
        "prompt_ids": [0, 1, 5], "prompt_mask": [0, 1, 1], "completion_ids": [6, 7, 0, 0],
        "completion_mask": [1, 1, 0, 0], "sampling_per_token_logps": [-1, -2, -9, -9],
    }  # fmt: skip
    assert read(row) == EXPECTED | {"flags": {"padding_dropped": 3}}


def test_a_response_needs_its_prompt() -> None:
    """Its probabilities are given the prompt: it is no text of its own."""
    alone = {"response_ids": [6, 7], "logprobs": [-1, -2]}
    assert refused(alone).reason == "missing_field"
    assert "prompt_ids" in refused(alone).message
    inside = {"outputs": [{"token_ids": [6, 7], "logprobs": [{"6": -1.0}, {"7": -2.0}]}]}
    assert refused(inside).reason == "missing_field"
    none = read(alone | {"prompt_ids": []})
    assert (none["ids"], none["values"], none["n_prompt"]) == ([6, 7], [-1, -2], 0)
    for row in (alone, inside, {"token_ids": [6, 7], "logprobs": [-1, -2]}):
        fields, _ = recording_content({"prompt": "Say", **row}, RecordingFields())
        assert fields["text"] == "Say"
        assert fields["recording"].pieces == (6, 7)
        assert fields["recording"].log_probs.tolist() == [-1, -2]
        assert fields["recording"].sampled.tolist() == [True, True]
    padded = alone | {"response_ids": [6, 7, 0, 0], "logprobs": [-1, -2, 0, 0]}
    fields, _ = recording_content(
        padded | {"response_mask": [1, 1, 0, 0], "messages": [{"role": "user", "content": "x"}]},
        RecordingFields(),
    )
    assert fields["chat"].n_prompt == 1
    assert fields["recording"].pieces == (6, 7)
    assert fields["flags"] == {"padding_dropped": 2}
    assert refused({"prompt": "Say", **padded, "logprobs": [-1]}).reason == "wrong_length"
    assert refused(openai(("a", -1.0))).reason == "missing_field"


def test_an_echoed_text_is_whole_without_a_prompt() -> None:
    """Its first token has no value: it is the first of all."""
    logprobs = {"tokens": ["token_id:1", "token_id:5"], "token_logprobs": [None, -1]}
    row = read({"choices": [{"logprobs": logprobs}]})
    assert (row["ids"], row["values"], row["sampled"]) == ([1, 5], [None, -1], None)
    texts = {"choices": [{"logprobs": logprobs | {"tokens": ["a", "b"]}}]}
    fields, _ = recording_content(texts, RecordingFields())
    assert fields["recording"].sampled is None
    assert fields["recording"].pieces == (b"a", b"b")


def test_values_that_are_not_finite() -> None:
    """Of tables they come as words: JSON's null would say that there was none."""
    row = read(SPLIT | {"response_ids": [6, 7, 8], "logprobs": ["-inf", -1.0, "NaN"]})
    assert row["values"] == [None, None, None, -1, None]
    assert row["flags"] == {"recorded_not_finite": 2}
    answer = openai(("a", -1.0), ("b", -2.0))
    answer["choices"][0]["logprobs"]["content"][0]["logprob"] = "-Infinity"
    fields, _ = recording_content(answer | {"prompt_ids": [1]}, RecordingFields())
    assert np.isnan(fields["recording"].log_probs).tolist() == [True, False]
    assert fields["flags"] == {"recorded_not_finite": 1}
    assert refused(FLAT | {"logprobs": [None, 1e39, -1]}).reason == "wrong_type"
    assert read(FLAT | {"logprobs": [None, -3.4e38, -1]})["values"][1] == -3.4e38


def test_a_last_token_that_is_not_trained_on_is_no_padding() -> None:
    row = SPLIT | {"logprobs": [-1, -2], "loss_mask": [1, 0]}
    assert read(row) == EXPECTED | {"sampled": [0, 0, 1, 0]}
    assert read(row | {"logprobs": [-1, 0]})["ids"] == [1, 5, 6]
    # Of a tool, as another mask says.
    tool = {"prompt_ids": [1], "response_ids": [6, 7, 7], "response_mask": [1, 0, 0]}
    tool |= {"attention_mask": [1, 1, 1, 1], "logprobs": [-1, -2, -3]}
    assert read(tool)["values"] == [None, -1, -2, -3]
    assert read(tool)["sampled"] == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"logprobs": [-1.0]}, "missing_field"),
        ({"input_ids": [1, 2], "text": "x"}, "missing_field"),
        (FLAT | {"logprobs": [None, True, -1]}, "wrong_type"),
        (FLAT | {"logprobs": [None, "-1", -1]}, "wrong_type"),
        (FLAT | {"logprobs": [None, None, None]}, "nothing_recorded"),
        (FLAT | {"logprobs": {"a": 1}}, "wrong_type"),
        (FLAT | {"input_ids": [1, 2.5, 3]}, "wrong_type"),
        (FLAT | {"loss_mask": [1, 1]}, "bad_mask"),
        (FLAT | {"loss_mask": [1, 1, 2]}, "bad_mask"),
        (FLAT | {"attention_mask": [0, 0, 0]}, "empty"),
        (SPLIT | {"input_ids": [1, 2, 3], "logprobs": [-1, -1]}, "ambiguous"),
    ],
)
def test_rows_that_are_no_recordings(row: dict[str, Any], reason: str) -> None:
    assert refused(row).reason == reason


def test_files_of_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"id": f"r{n}", **SPLIT, "logprobs": [-1.0 - n, -2.0]} for n in range(3)]
    jsonl, parquet = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "bad"}]))
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    options, stats = ReadOptions(pairs=RecordingFields()), ReadStats()
    one, other = (list(read_inputs([str(path)], options, stats)) for path in (jsonl, parquet))
    assert isinstance(one[3], Rejected)
    for a, b in zip(one[:3], other, strict=True):
        assert isinstance(a, Sample)
        assert isinstance(b, Sample)
        assert a.recording is not None
        assert b.recording is not None
        assert a.recording.log_probs.tolist()[2:] == b.recording.log_probs.tolist()[2:]
    # The other file by id, in any order.
    beside = RecordingFile("a", lambda: iter(other[::-1]))
    line, row = beside.find_row(one[0])  # type: ignore[misc]
    assert (line, row.id) == (1, "r0")
    assert isinstance(beside.find_row(one[3]), Rejected)


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"Infinity"])
def test_numbers_that_json_has_not(number: bytes) -> None:
    """Python's json writes them."""
    with pytest.raises(RowError, match="no such number: write null"):
        parse_object(b'{"logprobs": [-1.0, ' + number + b"]}")


def test_tables_of_maps_and_of_values_that_are_not_finite(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    maps = pa.list_(pa.map_(pa.int32(), pa.float64()))
    kinds = {"prompt_ids": pa.list_(pa.int32()), "response_ids": pa.list_(pa.int32())}
    values = [[(6, -1.0), (9, -2.0)], [(7, float("-inf"))]]
    table = pa.Table.from_pylist(
        [SPLIT | {"logprobs": values}], pa.schema({**kinds, "logprobs": maps})
    )
    pq.write_table(table, tmp_path / "a.parquet")
    options = ReadOptions(pairs=RecordingFields())
    (found,) = read_inputs([str(tmp_path / "a.parquet")], options, ReadStats())
    assert isinstance(found, Sample)
    assert found.recording is not None
    assert found.recording.log_probs[2] == -1
    assert np.isnan(found.recording.log_probs[3])
    assert found.flags == {"recorded_not_finite": 1}
