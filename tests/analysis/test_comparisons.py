"""`seqloss compare` and `seqloss objective`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from helpers.results import open_results, row, write
from seqloss_cli.analysis.objective import training_step
from seqloss_cli.inputs import duplicates
from seqloss_cli.metrics import series

Run = Callable[..., Any]
STEPS = ["samples/checkpoints/step-100", "samples/checkpoints/step-600"]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "a.jsonl", tmp_path / "b.jsonl"


def made(n: int, shift: float, seed: int = 0) -> list[dict[str, Any]]:
    """Documents of 5 to 14 tokens; the same but for a shift that varies from token to token."""
    generator = np.random.default_rng(seed)
    rows = []
    for k in range(n):
        base = generator.exponential(2, 5 + k % 10) + 1
        noise = shift + 0.05 * generator.standard_normal(len(base))
        rows.append(row(f"d{k}", [None, *(base + noise * (shift != 0))]))
    return rows


def report(run_cli: Run, *arguments: str) -> dict[str, Any]:
    done = run_cli("compare", *arguments, "--json")
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_shift_is_found_with_its_interval(run_cli: Run, files: tuple[Path, Path]) -> None:
    a, b = files
    write(a, made(200, 0.0), model="A")
    write(b, made(200, -0.03), model="B", weights_sha256="x")
    (pair,) = report(run_cli, str(a), str(b))["comparisons"]
    d = pair["difference"]
    assert d["low"] < -0.03 < d["high"]
    assert pair["difference_shown"] is True
    assert pair["p"] == 1 / 10_000
    assert pair["n_b_lower"] + pair["n_tied"] + pair["n_b_higher"] == 200
    assert pair["correlation"] > 0.99
    assert pair["bootstrap"]["low"] == pytest.approx(d["low"], abs=0.2 * (d["high"] - d["low"]))
    shown = run_cli("compare", str(a), str(b)).stdout
    assert shown.startswith("A  A\nB  B\n")
    assert "B's loss is lower than A's by 0.03" in " ".join(shown.split())
    assert "of 200 documents; p = 0.0001" in " ".join(shown.split())
    other = run_cli("compare", str(b), str(a)).stdout
    assert "B's loss is higher than A's by 0.03" in " ".join(other.split())


def test_documents_of_one_length_give_the_paired_t_test(
    run_cli: Run, files: tuple[Path, Path]
) -> None:
    generator = np.random.default_rng(3)
    x, y = generator.exponential(2, (2, 40, 6)) + 1
    for path, losses in zip(files, (x, y), strict=True):
        write(path, [row(f"d{n}", [None, *each]) for n, each in enumerate(losses)])
    (pair,) = report(run_cli, *map(str, files))["comparisons"]
    theirs = stats.ttest_rel(y.mean(1), x.mean(1)).confidence_interval(0.95)
    assert (pair["difference"]["low"], pair["difference"]["high"]) == pytest.approx(
        (theirs.low, theirs.high)
    )
    assert pair["correlation"] == pytest.approx(stats.pearsonr(x.mean(1), y.mean(1)).statistic)


def test_the_same_twice_is_no_difference(run_cli: Run, files: tuple[Path, Path]) -> None:
    write(files[0], made(40, 0.0))
    write(files[1], made(40, 0.0))
    (pair,) = report(run_cli, *map(str, files))["comparisons"]
    assert (pair["difference"]["value"], pair["p"], pair["n_tied"]) == (0.0, 1.0, 40)
    assert pair["difference_shown"] is False
    assert "no difference shown" in run_cli("compare", *map(str, files)).stdout


def test_false_alarms_are_as_rare_as_they_should_be(tmp_path: Path) -> None:
    """Under no difference, p below 0.05 in about 5 of 100 comparisons."""
    from seqloss_cli.analysis.compare import CompareOptions, compare

    generator, alarms = np.random.default_rng(8), 0
    for n in range(200):
        paths = []
        for side in "ab":
            losses = generator.exponential(2, (20, 5)) + 1
            rows = [row(f"d{k}", [None, *each]) for k, each in enumerate(losses)]
            paths.append(write(tmp_path / f"{side}{n}.jsonl", rows))
        options = CompareOptions(bootstrap=2)
        found = compare([open_results(str(p)).rows for p in paths], True, options)  # type: ignore[misc]
        alarms += found.pairs[0].is_significant
    assert 1 <= alarms <= 0.05 * 200 + 2.5 * (200 * 0.05 * 0.95) ** 0.5


def test_rows_are_joined_on_their_text_whatever_their_order(
    run_cli: Run, files: tuple[Path, Path]
) -> None:
    rows = made(30, 0.0)
    write(files[0], [*rows, row("only a", [None, 1.0])])
    renamed = [each | {"id": f"other {n}"} for n, each in enumerate(rows)]
    write(files[1], [*renamed[::-1], row("only b", [None, 1.0])])
    found = report(run_cli, *map(str, files))
    assert (found["n_joined"], found["n_joined_by_order"]) == (30, 30)
    assert [entry["ids"] for entry in found["not_joined"]] == [["only a"], ["only b"]]
    assert found["comparisons"][0]["n_tied"] == 30
    done = run_cli("compare", *map(str, files))
    assert "1 rows have no partner: only a" in done.stderr


def test_ids_tell_rows_of_one_text_apart(run_cli: Run, files: tuple[Path, Path]) -> None:
    twins = [row("x", [None, 1.0], text="same"), row("y", [None, 5.0], text="same")]
    write(files[0], twins)
    write(files[1], twins[::-1])
    found = report(run_cli, *map(str, files))
    assert found["comparisons"][0]["n_tied"] == 2
    assert found["n_joined_by_order"] == 0


def test_policies_that_differ_are_refused_by_name(run_cli: Run, files: tuple[Path, Path]) -> None:
    write(files[0], made(5, 0.0))
    write(files[1], made(5, 0.0), eos=True, special_tokens="text")
    done = run_cli("compare", *map(str, files))
    assert done.exit_code == 2
    assert "eos False and true; special_tokens parse and text" in done.stderr
    assert run_cli("compare", *map(str, files), "--allow-different").exit_code == 0
    write(files[1], made(5, 0.0), context=128, dtype="bfloat16")
    done = run_cli("compare", *map(str, files))
    assert done.exit_code == 0
    assert "context 512 and 128" in done.stderr
    assert "dtype float32 and bfloat16" in done.stderr


def test_across_tokenizers_it_is_per_byte_of_the_same_bytes(
    run_cli: Run, files: tuple[Path, Path]
) -> None:
    write(files[0], [row("same", [None, 2.0, 2.0]), row("differs", [None, 1.0, 1.0])])
    fewer = row("same", [None, 3.0], n_bytes=4, n_scored_bytes=4, byte_offsets=[0, 0, 4])
    other = row("differs", [None, 1.0], n_bytes=4)
    write(files[1], [fewer, other], tokenizer_sha256="other")
    found = report(run_cli, *map(str, files))
    (pair,) = found["comparisons"]
    assert pair["unit"] == "nats per byte"
    assert pair["difference"]["value"] == pytest.approx(-1.0 / 4)
    assert pair["n_bytes"] == 4
    reason = {"reason": "other bytes are scored", "n": 1, "ids": ["differs"]}
    assert found["left_out"] == [reason]
    assert pair["tokens"] == []


def test_text_that_no_token_stands_for_is_in_no_comparison_per_byte(
    run_cli: Run, files: tuple[Path, Path]
) -> None:
    dropped = {"unspelled_bytes": 3, "flags": {"unspelled_text": True}}
    write(files[0], [row("spelled", [None, 2.0]), row("dropped", [None, 1.0])])
    write(
        files[1],
        [row("spelled", [None, 3.0]), row("dropped", [None, 9.0], **dropped)],
        tokenizer_sha256="other",
    )
    found = report(run_cli, *map(str, files))
    assert found["comparisons"][0]["difference"]["value"] == pytest.approx(1.0 / 2)
    reason = "text that no token of a model stands for"
    assert found["left_out"] == [{"reason": reason, "n": 1, "ids": ["dropped"]}]
    write(files[1], [row("dropped", [None, 9.0], **dropped)], tokenizer_sha256="other")
    done = run_cli("compare", *map(str, files))
    assert done.exit_code == 2
    assert "nothing to compare: 1 rows hold text that no token of a model stands for" in done.stderr
    # per token, with one tokenizer, nothing stands against it
    write(files[1], [row("dropped", [None, 9.0], **dropped)])
    assert report(run_cli, *map(str, files))["comparisons"][0]["n_documents"] == 1


def test_three_are_adjusted_for(run_cli: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    third = tmp_path / "c.jsonl"
    for path, shift in ((files[0], 0.0), (files[1], -0.02), (third, 0.02)):
        write(path, made(12, shift), model=path.stem)
    pairs = report(run_cli, *map(str, (*files, third)))["comparisons"]
    assert len(pairs) == 3
    ordered = sorted(pair["p"] for pair in pairs)
    assert min(pair["p_adjusted"] for pair in pairs) == pytest.approx(3 * ordered[0])
    assert "few documents (12)" in pairs[0]["notes"][0]
    assert "exact" not in pairs[0]["p_method"]
    assert "every choice of signs" in pairs[0]["p_method"]


def test_one_long_text_is_compared_in_blocks(run_cli: Run, files: tuple[Path, Path]) -> None:
    losses = np.random.default_rng(1).exponential(2, 1000)
    write(files[0], [row("long", [None, *losses])], model="A")
    write(files[1], [row("long", [None, *(losses + 0.5)])], model="B")
    (pair,) = report(run_cli, *map(str, files))["comparisons"]
    assert "block bootstrap" in pair["difference"]["method"]
    assert pair["difference"]["value"] == pytest.approx(0.5)
    assert pair["difference_shown"] is True
    shown = run_cli("compare", *map(str, files)).stdout
    assert "one document: no test" in " ".join(shown.split())


def test_where_they_differ_most(run_cli: Run, files: tuple[Path, Path]) -> None:
    rows = made(20, 0.0)
    write(files[0], rows)
    changed = json.loads(json.dumps(rows))
    changed[7]["token_losses"][3] += 9.0
    changed[7]["total_loss"] += 9.0
    write(files[1], changed)
    (pair,) = report(run_cli, *map(str, files))["comparisons"]
    assert pair["documents"][0]["id"] == "d7"
    token = pair["tokens"][0]
    assert (token["id"], token["position"], token["token"]) == ("d7", 3, "t3")
    assert token["difference"] == pytest.approx(9.0)


@pytest.mark.parametrize(
    "arguments",
    [(), ("one.jsonl",), ("--model", "a", "--model", "b")],
    ids=str,
)
def test_what_is_missing_is_said(run_cli: Run, arguments: tuple[str, ...]) -> None:
    done = run_cli("compare", *arguments)
    assert done.exit_code == 2
    assert "--data" in done.stderr


def test_models_are_scored_in_turn(run_cli: Run) -> None:
    arguments = ("--model", STEPS[0], "--model", "demo", "--data", "README.md", "--lines")
    (pair,) = report(run_cli, *arguments)["comparisons"]
    assert pair["a"]["model"] == STEPS[0]
    assert pair["difference"]["value"] < 0
    shown = run_cli("compare", *arguments, "--worst", "3")
    assert f"A  {STEPS[0]}\nB  demo\n" in shown.stdout
    assert "B's loss is lower than A's by" in " ".join(shown.stdout.split())


def test_the_objective_names_the_checkpoint_whose_total_is_least(run_cli: Run) -> None:
    names = [STEPS[1], "demo", STEPS[0]]
    done = run_cli("objective", *names, "--data", "README.md", "--lines", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert [point["model"] for point in found["checkpoints"]] == names
    assert [point["step"] for point in found["checkpoints"]] == [600, None, 100]
    totals = [point["total_loss"] for point in found["checkpoints"]]
    assert found["best"] == names[totals.index(min(totals))] != STEPS[0]
    for name, total in zip(names, totals, strict=True):
        scored = run_cli("score", "README.md", "--lines", "--model", name, "--json", "--no-tokens")
        assert json.loads(scored.stdout)["totals"]["total_loss"] == total
    assert {found["lead"][side]["model"] for side in "ab"} == {STEPS[1], "demo"}
    shown = run_cli("objective", *names, "--data", "README.md", "--lines").stdout
    assert "← least" in shown
    assert "steps 100 to 600  █▁" in shown


@pytest.mark.parametrize(
    ("name", "step"),
    [("run/checkpoint-1500", 1500), ("step_20", 20), ("iter=7/model", 7), ("demo", None),
     ("gpt2-124", None), ("step1/step2", 2)],
)  # fmt: skip
def test_steps_are_read_from_names(name: str, step: int | None) -> None:
    assert training_step(name) == step


def test_a_step_is_read_from_the_trainers_state(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text('{"global_step": 42}')
    assert training_step(str(tmp_path)) == 42


def test_one_checkpoint_is_its_own_best(run_cli: Run) -> None:
    done = run_cli("objective", "demo", "--data", "samples/text.txt", "--json")
    found = json.loads(done.stdout)
    assert (found["best"], found["lead"]) == ("demo", None)
    assert "demo" in run_cli("objective", "demo", "--data", "samples/text.txt").stdout


def test_nothing_in_common_is_said(run_cli: Run, files: tuple[Path, Path]) -> None:
    write(files[0], [row("a", [None, 1.0])])
    write(files[1], [])
    done = run_cli("compare", *map(str, files), "--json")
    assert done.exit_code == 3
    (pair,) = json.loads(done.stdout)["comparisons"]
    assert pair["a"]["total_loss"] is pair["difference"]["value"] is None
    assert pair["difference_shown"] is False
    said = " ".join(run_cli("compare", *map(str, files)).stdout.split())  # long names wrap
    assert "nothing to compare" in said
    write(files[1], [row("a", [None, float("inf")])])
    done = run_cli("compare", *map(str, files), "--json", "--worst", "0")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["left_out"][0]["reason"] == "an infinite loss"
    assert "first a" in done.stderr


@pytest.mark.parametrize("who", ["both", "first", "second", "half"])
def test_clusters_are_what_is_drawn(run_cli: Run, files: tuple[Path, Path], who: str) -> None:
    """Whichever file names them: rows of one input are in one cluster."""
    for path, shift in ((files[0], 0.0), (files[1], -0.1)):
        rows = made(40, shift)
        first = path == files[0]
        named = {"both": True, "first": first, "second": not first}
        said = [named.get(who, (n % 2 == 0) == first) for n in range(40)]
        meta = [{"meta": {"book": n // 10}} if said[n] else {} for n in range(40)]
        write(path, [each | meta[n] for n, each in enumerate(rows)])
    (pair,) = report(run_cli, *map(str, files), "--cluster", "book")["comparisons"]
    assert pair["difference"]["n"] == 4
    assert pair["p"] == 2 / 2**4
    assert "clusters" in pair["difference"]["method"]


def test_files_that_put_one_input_into_two_clusters_are_refused(
    run_cli: Run, files: tuple[Path, Path]
) -> None:
    for path, shift in ((files[0], 0), (files[1], 1)):
        rows = made(8, -0.1 * shift)
        write(path, [row | {"meta": {"book": n // 4 + shift}} for n, row in enumerate(rows)])
    done = run_cli("compare", *map(str, files), "--cluster", "book", "--json")
    assert done.exit_code == 2
    assert "different things of the book of row" in done.stderr
    assert "--cluster takes a field that they agree on" in done.stderr


def test_other_bos_tokens_of_one_tokenizer_are_refused(
    run_cli: Run, files: tuple[Path, Path]
) -> None:
    write(files[0], made(3, 0.0), bos_token_id=0)
    write(files[1], made(3, 0.0), bos_token_id=7)
    done = run_cli("compare", *map(str, files))
    assert done.exit_code == 2
    assert "bos_token_id 0 and 7" in done.stderr


def test_with_another_eos_policy_it_is_by_the_bytes(run_cli: Run, files: tuple[Path, Path]) -> None:
    write(files[0], [row(f"d{n}", [None, 1.0, 2.0 + n]) for n in range(4)])
    longer = [
        row(f"d{n}", [None, 1.0, 2.0 + n, 0.5], n_bytes=4, n_scored_bytes=4,
            byte_offsets=[0, 0, 2, 4, 4])
        for n in range(4)
    ]  # fmt: skip
    write(files[1], longer, eos=True)
    found = report(run_cli, *map(str, files), "--allow-different")
    (pair,) = found["comparisons"]
    assert (pair["unit"], pair["n_documents"]) == ("nats per byte", 4)
    assert pair["difference"]["value"] == pytest.approx(0.5 / 4)
    assert found["runs_differ"][str(files[1])][0]["key"] == "eos"


def test_confidence_is_that_of_every_interval(run_cli: Run, files: tuple[Path, Path]) -> None:
    for path, shift in ((files[0], 0.0), (files[1], -0.1)):
        write(path, made(30, shift))
    wide, narrow = (
        report(run_cli, *map(str, files), "--confidence", c)["comparisons"][0]
        for c in ("0.99", "0.8")
    )
    for part in (lambda p: p["difference"], lambda p: p["a"]["loss_per_unit"]):
        assert part(wide)["low"] < part(narrow)["low"] < part(narrow)["high"] < part(wide)["high"]


def test_other_ids_are_other_tokens(run_cli: Run, files: tuple[Path, Path]) -> None:
    write(files[0], [row("a", [None, 1.0]), row("b", [None, 1.0])])
    write(files[1], [row("a", [None, 1.0], token_ids=[0, 9]), row("b", [None, 1.0])])
    assert report(run_cli, *map(str, files))["left_out"][0]["ids"] == ["a"]


def test_an_infinite_loss_is_no_best(tmp_path: Path) -> None:
    from seqloss_cli.analysis.compare import CompareOptions
    from seqloss_cli.analysis.objective import find_objective

    good = write(tmp_path / "a.jsonl", [row("x", [None, 8.0]), row("y", [None, 8.0])])
    bad = write(tmp_path / "b.jsonl", [row("x", [None, 1.0]), row("y", [None, float("inf")])])
    paths = [str(good), str(bad)]
    found = find_objective(
        lambda: [open_results(path).rows for path in paths],
        True,
        CompareOptions(),  # type: ignore[misc]
    )
    assert found.best == 0
    assert [sums.total_loss for sums in found.totals] == [16.0, None]
    assert found.means[1].value is None
    assert found.lead is None


def test_options_of_scoring_are_not_for_results(run_cli: Run, files: tuple[Path, Path]) -> None:
    for path in files:
        write(path, made(3, 0.0))
    done = run_cli("compare", *map(str, files), "--context", "5")
    assert done.exit_code == 2
    assert "--context is for --model" in done.stderr


@pytest.mark.parametrize("options", [[], ["--cluster", "meta.g"]], ids=str)
def test_numbers_on_disk_are_those_of_memory(
    options: list[str], run_cli: Run, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, model in zip(files, "AB", strict=True):
        rows = made(40, 0.03 * (model == "B"))
        write(path, [each | {"meta": {"g": n % 9}} for n, each in enumerate(rows)], model=model)
    arguments = [*map(str, files), "--bootstrap", "100", *options]
    expected = report(run_cli, *arguments)
    monkeypatch.setattr(series, "CHUNK", 7)
    assert report(run_cli, *arguments) == expected


def test_rows_that_wait_on_disk_join_as_in_memory(
    run_cli: Run, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = made(60, 0.02)
    for each in rows[40:50]:  # one text of several ids, which differ between the files
        each |= {"text_sha256": "same", "id": f"{each['id']}-{each['id'][-1]}"}
    write(files[0], [*rows[::2], *rows[1::2], row("alone", [None, 2.0])], model="A")
    others = [each | {"id": each["id"].split("-")[0]} for each in [*rows[30:][::-1], *rows[:30:3]]]
    write(files[1], others, model="B")
    arguments = [*map(str, files), "--bootstrap", "100"]
    expected = report(run_cli, *arguments)
    # Rows of one text are taken in order, and eight of them are of other lengths.
    assert expected["comparisons"][0]["n_documents"] == 32
    assert expected["left_out"][0]["n"] == 8
    assert expected["not_joined"][0]["n"] == 21
    for most in (0, 900):
        monkeypatch.setattr(duplicates, "MOST_WAITING", most)
        assert report(run_cli, *arguments) == expected


def test_stdin_cannot_be_read_by_several(run_cli: Run) -> None:
    done = run_cli("objective", "demo", STEPS[0], "--data", "-")
    assert done.exit_code == 2
    assert "read once only" in done.stderr


def test_an_output_that_exists_is_refused_before_scoring(run_cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    path.write_text("{}")
    done = run_cli("objective", "demo", "--data", "samples/text.txt", "-o", str(path))
    assert done.exit_code == 2
    assert "scoring with" not in done.stderr


def test_many_rows_of_one_text_join_in_time(files: tuple[Path, Path]) -> None:
    from seqloss_cli.analysis.joining import JoinReport, join

    for path, side in zip(files, "ab", strict=True):
        write(path, [row(f"{side}{n}", [None, 1.0], text="same") for n in range(3000)])
    found = JoinReport()
    joined = list(join([open_results(str(path)).rows for path in files], found))  # type: ignore[misc]
    assert (len(joined), found.n_joined_by_order) == (3000, 3000)
    assert [rows[0].id[1:] == rows[1].id[1:] for rows in joined] == [True] * 3000
