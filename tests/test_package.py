"""What is installed and released: the wheel, the version, licences, man pages, workflows."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest

import licences
import man_page
import release_check
from helpers.program import ROOT, in_process

COMMANDS = in_process("--help").stdout.partition("Commands\n")[2].partition("\n\n")[0]


def tree() -> set[str]:
    """The files of the package: those that git knows, where there is git."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "seqloss_cli"]
        listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    found = (path for path in (ROOT / "seqloss_cli").rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in found if path.suffix != ".pyc"}


def test_the_wheel_holds_our_files_and_nothing_else(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    (made,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(made) as wheel:
        names = set(wheel.namelist())
        (licence,) = (name for name in names if name.endswith("/licenses/LICENSE"))
        assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
    about = {name.partition(".dist-info/")[2] for name in names if ".dist-info/" in name}
    assert about == {"METADATA", "WHEEL", "entry_points.txt", "licenses/LICENSE", "RECORD"}
    assert {name for name in names if ".dist-info/" not in name} == tree()
    assert "seqloss_cli/py.typed" in names
    assert Path(made).name.endswith("-py3-none-any.whl")


def test_what_a_release_needs_is_there_and_of_one_version() -> None:
    checks = (release_check.files(None), release_check.version(None))
    found = [each for check in checks for each in check]
    assert [text for kind, text in found if kind == "problem"] == []
    assert list(release_check.version("v0.0.0"))[-1] == (
        "problem", f"the tag v0.0.0 is not v{release_check.PROJECT['version']}",
    )  # fmt: skip


def test_workflows_call_targets_that_are_there(tmp_path: Path) -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert list(release_check.targets_of(workflows)) == []
    (tmp_path / "a.yml").write_text("      - run: make nothing\n")
    assert len(list(release_check.targets_of([tmp_path / "a.yml"]))) == 1


def test_pythons_of_classifiers_workflows_and_trials_are_the_same() -> None:
    classifiers = "\n".join(release_check.PROJECT["classifiers"])
    tried = re.findall(r"Python :: (3\.\d+)$", classifiers, flags=re.M)
    matrix = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    known = re.findall(r'"(3\.\d+)"', matrix.partition("python: [")[2].partition("]")[0])
    assert known[: len(tried)] == tried
    assert release_check.PROJECT["requires-python"] == f">={tried[0]}"


# -- licences -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("licence", "n_problems"),
    [
        ("MIT", 0),
        ("BSD License; MIT License", 0),
        ("Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSL-1.0", 0),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", 0),
        ("GPL-3.0-only", 1),
        ("MIT AND AGPL-3.0-or-later", 1),
        ("UNKNOWN", 1),
    ],
)
def test_licences_that_are_not_known_to_be_compatible_are_found(
    licence: str, n_problems: int
) -> None:
    assert len(licences.problems_of("a", licence)) == n_problems


def test_licences_are_asked_of_every_dependency_and_of_its_own() -> None:
    found, _ = licences.closure("seqloss", frozenset({"plot"}))
    assert {"seqloss", "torch", "httpx2", "httpcore2", "sympy", "matplotlib", "cycler"} <= found
    assert "pytest" not in found
    assert {licence for _, _, licence, _ in licences.OWN} == {"Apache-2.0", "PSF-2.0"}
    assert "PSF licence" in (ROOT / "seqloss_cli" / "demo" / "README.md").read_text()


def test_extras_of_the_list_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert licences.extras() == frozenset(project["optional-dependencies"])


# -- man pages ------------------------------------------------------------------------------------


def test_there_is_a_man_page_of_each_command_with_every_option() -> None:
    pages = man_page.pages()
    names = re.findall(r"^  (\w+)", COMMANDS, flags=re.M)
    assert set(pages) == {"seqloss.1", *(f"seqloss-{name}.1" for name in names)}
    for name in names:
        said = pages[f"seqloss-{name}.1"].replace("\\-", "-").replace("\\(aq", "'")
        options = set(re.findall(r"^ {2}(--[\w-]+)", in_process(name, "--help").stdout, flags=re.M))
        assert options
        assert {each for each in options if not re.search(rf"{each}\b", said)} == set()
    said = pages["seqloss.1"]
    assert all(f"\n{code}\n" in said for code in (0, 1, 2, 3, 70, 130))


def test_roff_takes_nothing_for_a_request() -> None:
    assert man_page.roff(".TH a-b\n'c\\") == "\\&.TH a\\-b\n\\(aqc\\e"
