"""Mistakes of every kind, and the one sentence that each is answered with, before any work."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.program import ROOT, in_process
from helpers.results import row, write, write_divergences

Run = Callable[..., Any]
TALK = ("Value error", "Input should", "Invalid value", "Traceback", "byte string", "char 0")
"""Words of the libraries below."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one of each kind of file, where the program then runs."""
    rows = {
        "texts": {"text": "A text."}, "pairs": {"prompt": "A", "response": " b"},
        "qa": {"question": "A", "completion": " b"}, "upper": {"Text": "A"},
        "choices": {"prompt": "A", "choices": [" b", " c"]},
        "preferences": {"prompt": "A", "chosen": " b", "rejected": " c"},
        "chats": {"messages": [{"role": "user", "content": "A"},
                               {"role": "assistant", "content": "b"}]},
    }  # fmt: skip
    for name, each in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(2 * (json.dumps(each) + "\n"))
    write(tmp_path / "results.jsonl", [row("a", [None, 1.0])])
    write_divergences(tmp_path / "gap.jsonl", [])
    (tmp_path / "note.txt").write_text("A note.\n")
    (tmp_path / "table.parquet").write_bytes(b"PAR1....")
    (tmp_path / "packed.txt").write_bytes(gzip.compress(b"text"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "run" / "step-100").mkdir(parents=True)
    (tmp_path / "run" / "step-100" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(line: str, **env: str) -> str:
    """The message of a mistake: one line, exit code 2, and none of the libraries' words."""
    words = ["" if word == "''" else word for word in line.split()]
    done = in_process(*words, **env)
    assert done.exit_code == 2, done.stderr
    assert done.stdout == ""
    (message,) = [text for text in done.stderr.splitlines() if "error: " in text]
    assert not any(talk in done.stderr for talk in TALK)
    return str(message)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("scroe note.txt", "there is no command 'scroe'; did you mean score?"),
        ("note.txt", "there is no command 'note.txt': it is a file; score note.txt"),
        ("score note.txt --modle demo", "there is no option --modle; did you mean --model?"),
        ("score note.txt --chat", "there is no option --chat: it is one of cond, rank, mask"),
        ("score note.txt --context x", "--context takes a whole number of at least 1, not 'x'"),
        ("score note.txt --top-k -1", "--top-k takes a whole number of at least 0, not '-1'"),
        ("score note.txt --bos ofen", "--bos takes one of auto, always, never, not 'ofen'"),
        ("score note.txt --unit bit", "not 'bit'; did you mean bits?"),
        ("score note.txt --context", "--context needs a value"),
        ("score note.txt --eos=yes", "--eos is a switch, and takes no value"),
        ("score note.txt --device cdua", "--device cdua: choose auto, cpu"),
        ("summarize results.jsonl --confidence 2", "takes a number from 0.5 to 0.9999, not '2'"),
        ("summarize", "RESULTS is missing"),
    ],
)  # fmt: skip
def test_options_and_commands(place: Path, line: str, expected: str) -> None:
    assert expected in said(line)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("score nowhere.txt", "nowhere.txt: no such file"),
        ("score text.jsonl", "text.jsonl: no such file; did you mean texts.jsonl?"),
        ("score note.txt nowhere.txt", "nowhere.txt: no such file"),
        ("score '' note.txt", "'' is an empty name, and no file"),
        ("score folder", "folder is a directory without a file to read"),
        ("score run/step-100", "or is it the model, --model run/step-100?"),
        ("score table.parquet", "table.parquet: cannot be read as Parquet"),
        ("score packed.txt", "call it FILE.gz"),
        ("score pairs.jsonl", "has no field 'text' (its fields: 'prompt', 'response'); see "
         "--text-field; prompts with responses are for `seqloss cond` (all of its first 2 rows"),
        ("score choices.jsonl", "are for `seqloss rank`"),
        ("score preferences.jsonl", "`seqloss rank --choices-field chosen,rejected`"),
        ("score chats.jsonl", "chats are for `seqloss cond`"),
        ("score upper.jsonl", "did you mean --text-field Text?"),
        ("score results.jsonl", "these are results of `seqloss score`, for `seqloss summarize`"),
        ("score note.txt --jsonl-input", "is not JSON: unexpected character"),
        ("cond note.txt", "texts are for `seqloss score`"),
        ("cond texts.jsonl", "texts are for `seqloss score`"),
        ("cond choices.jsonl", "prompts with choices are for `seqloss rank`"),
        ("cond qa.jsonl", "did you mean --prompt-field question?"),
        ("cond qa.jsonl --prompt-field question", "did you mean --response-field completion?"),
        ("cond chats.jsonl", "chats need a chat template, and the tokenizer of demo has none"),
        ("cond --prompt a --response b --chat", "--chat-template FILE names one"),
        ("cond pairs.jsonl --chat-template nowhere", "--chat-template nowhere: No such file"),
        ("mask chats.jsonl", "chats need a chat template"),
        ("mask nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("rank pairs.jsonl", "are for `seqloss cond`"),
        ("rank choices.jsonl --chat", "chats need a chat template"),
        ("diverge nowhere.txt --teacher demo", "nowhere.txt: no such file"),
        ("objective demo --data nowhere.txt", "nowhere.txt: no such file"),
        ("compare -m demo -m run/step-100 --data pairs.jsonl", "has no field 'text'"),
    ],
)  # fmt: skip
def test_inputs(place: Path, line: str, expected: str) -> None:
    assert expected in said(line)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("score note.txt -m a/b/c", "--model a/b/c: no such directory"),
        ("score note.txt -m run/step-101", "did you mean run/step-100?"),
        ("score note.txt -m run", "no checkpoint: name one of those in it, such as run/step-100"),
        ("score note.txt -m note.txt", "--model note.txt is a file"),
        ("score note.txt -m ./a.gguf", "--model ./a.gguf: no such file"),
        ("score note.txt --tokenizer a/b/c", "--tokenizer a/b/c: no such directory"),
        ("score note.txt --tokenizer ''", "--tokenizer '': an empty name"),
        ("score note.txt --adapter folder", "--adapter folder: no adapter_config.json in it"),
        ("diverge note.txt --teacher ./a", "--teacher ./a: no such directory"),
        ("diverge note.txt --teacher demo --teacher-adapter ./a", "--teacher-adapter ./a: no such"),
        ("objective demo ./a --data note.txt", "./a: no such directory"),
        ("compare -m demo -m ./a --data note.txt", "--model ./a: no such directory"),
        ("mask pairs.jsonl -m ./a", "--model ./a: no such directory"),
        ("mask pairs.jsonl --tokenizer ./a", "--tokenizer ./a: no such directory"),
        ("score note.txt -m a--b//c", "no such directory"),
        ("score note.txt -m -demo", "--model -demo: no such directory"),
        ("compare run/step-100 demo note.txt", "`seqloss compare --model run/step-100 --model demo "
         "--data note.txt`"),
    ],
)  # fmt: skip
def test_models(place: Path, line: str, expected: str) -> None:
    assert expected in said(line)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("summarize nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("summarize result.jsonl", "did you mean results.jsonl?"),
        ("summarize ''", "'' is an empty name, and no file"),
        ("summarize folder", "folder: is a directory"),
        ("summarize texts.jsonl", "holds no results of seqloss: it does not begin with a run; "
         "`seqloss score FILE -o results.jsonl` writes results"),
        ("summarize note.txt", "holds no results of seqloss"),
        ("summarize gap.jsonl", "holds what 'diverge' wrote, not results of score or cond; "
         "`seqloss report` reads it"),
        ("compare results.jsonl nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("plot nowhere.jsonl -o a.svg", "nowhere.jsonl: no such file"),
        ("plot texts.jsonl -o a.svg", "holds no results of seqloss"),
        ("report nowhere.jsonl -o a.html", "nowhere.jsonl: no such file"),
        ("score note.txt -o ./folder --json", "-o folder is a directory"),
        ("score note.txt -o '' --json", "-o . is a directory, or an empty name"),
        ("score note.txt --report no/a.html", "--report no/a.html: there is no directory no"),
        ("rank choices.jsonl --output-ranked no/a", "--output-ranked no/a: there is no directory"),
    ],
)  # fmt: skip
def test_results(place: Path, line: str, expected: str) -> None:
    assert expected in said(line)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("context: many", "--config a.yaml: context takes a whole number of at least 1, not"),
        ("bos: ofen", "bos takes one of auto, always, never, not 'ofen'"),
        ("eos: maybe", "eos takes true or false, not 'maybe'"),
        ("contxt: 5", "unknown key 'contxt'; did you mean context?"),
        ("a: [1", "is not YAML: expected ',' or ']'"),
        ("- a", "must be a mapping"),
    ],
)  # fmt: skip
def test_settings_files(place: Path, content: str, expected: str) -> None:
    (place / "a.yaml").write_text(content)
    assert expected in said("score note.txt --config a.yaml")
    (place / "seqloss.yaml").write_text(content)
    assert "error: seqloss.yaml: " in said("score note.txt")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("SEQLOSS_MODLE", "x", "the variable SEQLOSS_MODLE (='x') is none of seqloss; did you mean "
         "SEQLOSS_MODEL?"),
        ("SEQLOSS_CONTEXT", "many", "--context (of the variable SEQLOSS_CONTEXT) takes a whole "),
        ("SEQLOSS_BOS", "ofen", "--bos (of the variable SEQLOSS_BOS) takes one of auto"),
        ("SEQLOSS_EOS", "maybe", "--eos (of the variable SEQLOSS_EOS) takes true or false"),
        ("SEQLOSS_CONFIG", "nowhere", "nowhere: No such file"),
    ],
)  # fmt: skip
def test_variables(place: Path, name: str, value: str, expected: str) -> None:
    assert expected in said("score note.txt", **{name: value})


def test_variables_of_other_commands_and_empty_ones_are_none_to_mend(
    run_cli: Run, place: Path
) -> None:
    env = {"SEQLOSS_TEACHER": "demo", "SEQLOSS_MODLE": ""}
    done = run_cli("summarize", str(place / "results.jsonl"), "--json", **env)
    assert done.exit_code == 0


def test_what_is_wrong_shows_before_torch_is_imported(seqloss: Run, place: Path) -> None:
    # A module that ends the process where torch is imported.
    (place / "torch.py").write_text("raise SystemExit('torch was imported')")
    for words in (["score", "pairs.jsonl"], ["cond", "chats.jsonl"], ["score", "a", "-m", "./b"]):
        done = seqloss(*words, cwd=place, PYTHONPATH=f"{place}:{ROOT}")
        assert (done.returncode, b"torch" in done.stderr) == (2, False), done.stderr


def test_rows_that_come_through_a_pipe_are_not_read_beforehand(run_cli: Run, place: Path) -> None:
    """What was looked at could not be read again: the rows are rejected as they come."""
    done = run_cli("score", "--jsonl-input", stdin=b'{"prompt": "a"}\n')
    assert done.exit_code == 3
    assert "nothing was scored; inputs that were rejected: 1" in done.stderr
    assert done.stdout == "", "no panel of dashes"


def test_a_bad_row_among_good_ones_costs_only_itself(run_cli: Run, place: Path) -> None:
    path = place / "mixed.jsonl"
    path.write_text('{"txt": "a"}\n{"text": "A text."}\n')
    done = run_cli("score", str(path), "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["totals"]["n_sequences"] == 1


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(run_cli: Run, flag: str) -> None:
    assert run_cli(flag).stdout.startswith("seqloss ")
