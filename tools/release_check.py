"""Check all that a release needs, and print what is missing (`make release-check`).

Each check prints a line. Exit code 1 where one failed; what is missing on this machine, or of the
project, is named and fails nothing, but for a release (`--tag vX.Y.Z`).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = (
    *("README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "SECURITY.md", "CONTRIBUTING.md"),
    *("AGENTS.md", "Containerfile", "seqloss_cli/py.typed"),
    *(".github/workflows/ci.yml", ".github/workflows/release.yml"),
)
Found = Iterator[tuple[str, str]]
"""`problem` or `missing`, and what of it."""


def files(tag: str | None) -> Found:
    for name in FILES:
        if not (ROOT / name).is_file():
            yield "problem", f"{name} is not there"
    if not PROJECT.get("urls"):
        yield "missing", "pyproject.toml has no [project.urls]: the project has no public address"


def version(tag: str | None) -> Found:
    """One place, and what follows from it."""
    number = PROJECT["version"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    if str(cited["version"]) != number:
        yield "problem", f"CITATION.cff is of {cited['version']}, pyproject.toml of {number}"
    changes = (ROOT / "CHANGELOG.md").read_text()
    if not re.search(rf"^## \[{re.escape(number)}\]", changes, flags=re.M):
        yield "missing", f"CHANGELOG.md has no heading [{number}]: all stands under Unreleased"
    if tag is not None and tag != f"v{number}":
        yield "problem", f"the tag {tag} is not v{number}"
    again = [
        path.relative_to(ROOT)
        for path in (ROOT / "seqloss_cli").rglob("*.py")
        if re.search(rf"[\"']{re.escape(number)}[\"']", path.read_text())
    ]
    for path in again:
        yield "problem", f"{path} says the version again"


def run(*words: object, missing: str = "") -> Found:
    """Run a command; its output is shown where it fails, or what it says is missing."""
    done = subprocess.run([*map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        yield "problem", f"{' '.join(map(str, words))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    for line in done.stderr.splitlines():
        if line.startswith("missing: "):
            yield "missing", line.removeprefix("missing: ")


def program(name: str, why: str, *words: object) -> Found:
    """Run a program of this environment, or of PATH."""
    path = BIN / name if (BIN / name).exists() else shutil.which(name)
    if path is None:
        yield "missing", f"{name} is not installed: {why} is not checked"
        return
    yield from run(path, *words)


def dist(tag: str | None) -> Found:
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    yield from run(sys.executable, "-m", "build", "--installer=pip", "--outdir", "dist", ".")
    made = sorted((ROOT / "dist").glob("*"))
    if len(made) != 2:
        yield "problem", f"dist/ holds {[path.name for path in made]}"
        return
    yield from run(sys.executable, "-m", "twine", "check", "--strict", *made)


def workflows(tag: str | None) -> Found:
    found = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    yield from program("actionlint", "what workflows say", *found)
    yield from targets_of(found)


def targets_of(found: Iterable[Path]) -> Found:
    """Workflows call make targets that are there."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for path in found:
        for target in re.findall(r"run: make ([\w-]+)", path.read_text()):
            if target not in targets:
                yield "problem", f"{path.name}: there is no `make {target}`"


def container(tag: str | None) -> Found:
    yield from program("hadolint", "the container file", ROOT / "Containerfile")


def tool(name: str) -> Callable[[str | None], Found]:
    return lambda tag: run(sys.executable, ROOT / "tools" / f"{name}.py")


CHECKS: dict[str, Callable[[str | None], Found]] = {
    "files": files,
    "version": version,
    "licences": tool("licences"),
    "man pages": tool("man_page"),
    "completion": tool("try_completion"),
    "workflows": workflows,
    "container": container,
    "dist": dist,
    "fresh environments": tool("try_wheel"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tag", help="of the release: then nothing of the project may be missing")
    parser.add_argument("--skip", action="append", default=[], choices=list(CHECKS))
    options = parser.parse_args()
    tag = options.tag or None
    problems, missing = [], []
    for name, check in CHECKS.items():
        if name in options.skip:
            missing.append(f"{name}: skipped")
            continue
        found = list(check(tag))
        own = [text for kind, text in found if kind == "problem"]
        problems += [f"{name}: {text}" for text in own]
        missing += [f"{name}: {text}" for kind, text in found if kind == "missing"]
        print(f"{name}: {'FAILED' if own else 'ok'}", flush=True)
    for text in missing:
        print(f"missing: {text}")
    for text in problems:
        print(f"problem: {text}")
    of_project = [text for text in missing if text.startswith(("files:", "version:"))]
    return 1 if problems or (tag is not None and of_project) else 0


if __name__ == "__main__":
    sys.exit(main())
