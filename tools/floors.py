"""Run the tests that matter with the lowest versions of every range in pyproject.toml, or with the
newest that install: what a range promises is then what was seen.

An environment of its own is made in a folder and deleted after (`--keep` leaves it there): builds
of torch other than the pinned one bring several GB.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
TESTS = [f"tests/{room}" for room in ("backends", "metrics", "models", "results", "tokenization")]
TESTS += ["tests/cli/test_cli_score.py", "tests/cli/test_cond.py", "tests/scoring"]
TESTS += ["tests/test_service.py"]
"""Engine, products, numbers, formats and commands; not the displays, nor output byte for byte."""
RUNNERS = ("hypothesis", "jsonschema", "pytest", "pytest-xdist")


def requirements() -> Iterator[Requirement]:
    """What the package and its extras ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    for text in (*project["dependencies"], *(text for extra in extras for text in extra)):
        yield Requirement(text)


def lowest() -> list[str]:
    """The least version of each range, exactly."""
    found = {}
    for each in requirements():
        (bound,) = [s.version for s in each.specifier if s.operator == ">="]
        found[each.name] = f"{each.name}=={bound}"
    return list(found.values())


def newest(torch: str) -> list[str]:
    """No bounds but that of torch, whose build is pinned."""
    return [f"torch=={torch}" if each.name == "torch" else each.name for each in requirements()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=["lowest", "newest"])
    parser.add_argument("--torch", default="2.13.0", help="of `newest`")
    parser.add_argument("--with", dest="also", action="append", default=[], metavar="NAME==VERSION",
                        help="in place of the version that would be taken")  # fmt: skip
    parser.add_argument("--keep", type=Path, help="make the environment here, and leave it")
    parser.add_argument("tests", nargs="*", default=TESTS)
    options = parser.parse_intermixed_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="floors-"))
    python = str(folder / "bin" / "python")
    wanted = lowest() if options.which == "lowest" else newest(options.torch)
    replaced = {Requirement(each).name for each in options.also}
    wanted = [each for each in wanted if Requirement(each).name not in replaced] + options.also
    try:
        if not Path(python).exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--upgrade", "pip>=25.1"], check=True)
        subprocess.run([*pip, *wanted, *RUNNERS], check=True)
        subprocess.run([*pip, "--no-deps", "--editable", ROOT], check=True)
        names = {Requirement(each).name.lower() for each in wanted}
        listed = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True)
        print(*(x for x in listed.stdout.split() if x.split("==")[0].lower() in names), sep="\n")
        test = [python, "-m", "pytest", "-n", "2", "--dist", "worksteal", *options.tests]
        return subprocess.run(test, cwd=ROOT).returncode
    finally:
        if options.keep is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
