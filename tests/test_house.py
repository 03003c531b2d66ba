"""What the architecture promises: import cost, the file map, docstrings, comments, no circles."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module

import grimp
import pytest

from helpers.program import ROOT
from helpers.sources import (
    badly_begun,
    circle,
    code_lines,
    comment_lines,
    modules,
    undocumented,
    without_shape_or_unit,
)
from seqloss_cli.core.columns import cell_columns

HEAVY = ("torch", "transformers", "numpy", "orjson", "tokenizers", "yaml")


@pytest.mark.parametrize("module", ["seqloss_cli", "seqloss_cli.cli.main"])
def test_importing_the_command_line_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == ""


# -- docstrings and comments ----------------------------------------------------------------------


def test_everything_public_has_a_docstring() -> None:
    assert [line for path in modules() for line in undocumented(path)] == []


def test_docstrings_of_arrays_name_shapes_and_units() -> None:
    assert [line for path in modules() for line in without_shape_or_unit(path)] == []


def test_docstrings_begin_with_what_is_done_or_returned() -> None:
    assert [line for path in modules() for line in badly_begun(path)] == []


def test_comments_stand_where_traps_are() -> None:
    counts = [comment_lines(path) for path in modules()]
    assert 1000 * sum(n for n, _ in counts) >= 20 * sum(n for _, n in counts)


def test_a_quantity_in_cells_has_the_names_of_its_cells() -> None:
    for column in cell_columns():
        assert all((column.csv, column.header, column.page_key)), column.name


def test_there_are_few_modules() -> None:
    """145 held the rooms; vocabularies of GGUF and of SentencePiece have one each.

    Servers came after: a client of theirs in six, ours in six, a tokenizer without transformers.
    Then data where it lives: tables, data sets, other file systems, shards and their merging.
    Scores of membership have one for their formulas, and one for documents; the choice of rows has
    three: conditions, rows, the command. Servers of OpenAI's shape have three: the shape, the proof
    of equal tokens, the place of values. Checks of recordings have seven: rows that are read and
    written, differences, faults, fits of samplers, the task, the table, the command. Ray and tensor
    parallelism have theirs, and what answers of servers say twice.
    Numbers of documents that are kept on disk. Several models beside one teacher have two. Values
    of recordings, in all their shapes, have one; fits of faults have one. How a server is asked,
    and rows beside those of a run, came out of its backend.
    """
    assert len(modules()) <= 210


def test_there_are_few_lines_of_code() -> None:
    assert code_lines('"""Says."""\n\nX = """a\nb"""  # c\n"""Is."""\n# d\n') == 2
    # 18,500 held the rooms; readers of what other programs write in rows and tokenizers came after,
    # then what a person sees in the first minute, and what a new user found there; servers;
    # data where it lives, and shards.
    # Scores of membership, and the choice of rows. Servers that take texts only; checks of
    # recordings, and their page; more measures of two models.
    # Identities of servers; Ray, models over several GPUs, and what many rows keep on disk;
    # several models beside one teacher.
    # Types and meanings of keys, which `seqloss schema` prints: half a thousand; then of every
    # column of CSV and of documents, and three further formats.
    # What changes at a server since its probe, busy servers, and several behind one address.
    # Prompts of recordings that are texts, values that are not finite, two truncations at once.
    # Long rows and routers are held to themselves.
    # Cells that are too long, files that change, and shards that are missing where many are read.
    # What is kept of documents, and rows that wait for partners, on disk where there are many.
    # Shards of checks, whose diagnosis is made of rows that are read back.
    # What services of Google and of the hub say, and what helps.
    assert sum(code_lines(path.read_text()) for path in modules()) <= 34_900


# -- imports --------------------------------------------------------------------------------------


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("seqloss_cli")
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert circle(imports) == []
    assert circle({"a": {"b"}, "b": {"a"}}) != []


# -- tests ----------------------------------------------------------------------------------------


def test_the_list_of_long_tests_names_tests() -> None:
    lines = (ROOT / "tests" / "long.txt").read_text().splitlines()
    names = [line.split("::") for line in lines if not line.startswith("#")]
    assert len(names) > 20
    gone = [
        f"{path}::{name}" for path, name in names
        if not (ROOT / path).exists() or f"def {name}(" not in (ROOT / path).read_text()
    ]  # fmt: skip
    assert gone == [], "make long-tests writes the list anew"


def test_no_test_imports_from_another() -> None:
    imports = re.compile(r"^\s*(?:from|import) (?:test_|conftest)", re.M)
    tests = (ROOT / "tests").rglob("*.py")
    assert [path.name for path in tests if imports.search(path.read_text())] == []


def test_benchmarks_and_tools_import_what_the_package_has() -> None:
    """They run by hand, and mypy does not read them: a rename would break them unseen."""
    paths = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tools").glob("*.py")]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    imports = [
        (node.module, alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("seqloss_cli")
        for alias in node.names
    ]
    assert len(imports) > 20
    missing = [(m, name) for m, name in imports if not hasattr(import_module(str(m)), name)]
    assert missing == []
