"""List the licences of all that is installed, and of what seqloss was made of (`make licences`).

Fails on a licence that nobody has found compatible with Apache-2.0, and on one that is not known.
Names come from pip-licenses; which packages are asked for, from the metadata of the environment.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
COMPATIBLE = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CNRI-Python", "HPND", "ISC"),
    *("MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib"),
    "LLVM-exception",
    # Their own files stay under it; nothing of theirs is in our wheel.
    "MPL-2.0",
    # A part of numpy's: it allows what it is linked with.
    *("GPL-3.0-with-GCC-exception", "CC0-1.0", "BSL-1.0"),
}
"""SPDX names of licences that a program under Apache-2.0 may depend on."""
MEANT = {
    "apache software license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache": "Apache-2.0",
    "apache-2": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "bsd": "BSD-3-Clause",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
    "the unlicense (unlicense)": "Unlicense",
}
"""Other names of these, in small letters."""
READ = {"torchao": "BSD-3-Clause"}
"""Packages whose metadata do not tell, and what their licence files say."""
PROPRIETARY = re.compile(r"^(nvidia|cuda)-")
"""Brought by a build of torch for GPUs: their makers' own terms; nothing of theirs is in our
wheel."""
OWN = (
    ("seqloss", "", "Apache-2.0", "LICENSE"),
    ("the demo model and samples/checkpoints", "", "Apache-2.0", "seqloss_cli/demo/README.md"),
    ("the text that they were trained on", "CPython 3.11", "PSF-2.0",
     "documentation of Python, which tools/demo_corpus.py reads; it is not in the wheel"),
)  # fmt: skip
"""Name, version, licence and place of what is ours, or was made into it."""


def closure(name: str, extras: frozenset[str]) -> tuple[set[str], set[str]]:
    """The names of all packages that one needs: the installed ones, and the others."""
    found: set[str] = set()
    absent: set[str] = set()
    waiting = [(name, extras)]
    done: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        each = waiting.pop()
        if each in done:
            continue
        done.add(each)
        try:
            needed = requires(each[0]) or []
        except PackageNotFoundError:  # of another system, or of an extra that is not installed
            absent.add(canonicalize_name(each[0]))
            continue
        found.add(canonicalize_name(each[0]))
        for text in needed:
            requirement = Requirement(text)
            marks = [{"extra": extra} for extra in ("", *each[1])]
            if requirement.marker is None or any(map(requirement.marker.evaluate, marks)):
                waiting.append((requirement.name, frozenset(requirement.extras)))
    return found, absent


def problems_of(name: str, licence: str) -> list[str]:
    """What is wrong with the licence of a package; `licence` is an SPDX expression or a name."""
    if PROPRIETARY.match(name):
        return []
    # `;` stands between classifiers of which each holds, or between names of one licence.
    parts = re.split(r"\s*(?:;|\s(?:AND|OR|WITH)\s|[()])\s*", spdx(licence))
    unknown = [part for part in map(spdx, filter(None, parts)) if part not in COMPATIBLE]
    return [f"{name}: {part!r} is not known to be compatible with Apache-2.0" for part in unknown]


def spdx(name: str) -> str:
    return MEANT.get(name.strip().lower(), name.strip())


def installed(names: set[str]) -> list[tuple[str, str, str]]:
    """Name, version and licence of each package, as pip-licenses tells them."""
    done = subprocess.run(
        [sys.executable, "-m", "piplicenses", "--from=mixed", "--format=json", "--with-system",
         "--python", sys.executable, "--packages", *sorted(names)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = json.loads(done.stdout)
    return [
        (row["Name"], row["Version"], READ.get(row["Name"].lower(), row["License"])) for row in rows
    ]


def extras() -> frozenset[str]:
    """The names of the project's extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return frozenset(project["optional-dependencies"])


def main() -> int:
    names, absent = closure("seqloss", extras())
    names -= {"seqloss"}
    found = installed(names)
    problems = [each for name, _, licence in found for each in problems_of(name.lower(), licence)]
    missing = names - {canonicalize_name(name) for name, _, _ in found}
    problems += [f"{name}: pip-licenses does not list it" for name in sorted(missing)]
    wide = max(len(name) for name, *_ in (*OWN, *found))
    for name, version, licence, place in OWN:
        print(f"{name:{wide}}  {version:12}  {licence}  ({place})")
    for name, version, licence in found:
        print(f"{name:{wide}}  {version:12}  {' '.join(licence.split())}")
    if absent:
        told = ", ".join(sorted(absent))
        print(f"missing: not installed here, and so not read: {told}", file=sys.stderr)
    for each in problems:
        print(f"problem: {each}", file=sys.stderr)
    print(f"{len(found)} packages, {len(problems)} problems", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
