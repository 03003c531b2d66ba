"""Install the wheel and the sdist in dist/ in empty environments, and score (`make try-wheel`).

For each Python that is there: a new environment, nothing but wheels of dependencies (no compiler),
`seqloss score` on the demo model from another folder. Environments are deleted after.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TEXT = "The quick brown fox jumps over the lazy dog."
LOSS = 114.6506
"""Of the text under the demo model, nats; rounding of other builds is below 0.01."""
EXPECTED = 0.01


def python_of(version: str) -> str | None:
    """A Python of a version: on PATH, or among those of pyenv, none of which need be active."""
    candidates = [shutil.which(f"python{version}")]
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates += map(str, sorted(root.glob(f"{version}.*/bin/python")))
    for each in filter(None, candidates):
        done = subprocess.run(
            [each, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.stdout.strip() == version:
            return each
    return None


def try_one(python: str, made: Path, options: argparse.Namespace) -> str:
    """What one environment showed. Raises CalledProcessError where something failed."""
    with tempfile.TemporaryDirectory(prefix="seqloss-wheel-") as folder:
        subprocess.run([python, "-m", "venv", f"{folder}/venv"], check=True)
        own = Path(folder) / "venv" / "bin"
        if options.link:
            # Packages that were installed before, torch above all: several gigabytes.
            (packages,) = (Path(folder) / "venv" / "lib").glob("python*/site-packages")
            for path in Path(options.link).iterdir():
                if not (packages / path.name).exists():
                    (packages / path.name).symlink_to(path)
        pip = [str(own / "python"), "-m", "pip", "install", "--quiet"]
        wheels_only = ["--only-binary=:all:"] if made.suffix == ".whl" else ["--prefer-binary"]
        subprocess.run([*pip, *wheels_only, *options.install, str(made)], check=True, cwd=folder)
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CC", "CXX")}
        words = [str(own / "seqloss"), "score", "--text", TEXT, "--json", "--summary"]
        done = subprocess.run(words, check=True, cwd=folder, env=clean, capture_output=True)
        found = json.loads(done.stdout)
        loss = found["totals"]["total_loss"]
        if not math.isclose(loss, LOSS, abs_tol=EXPECTED):
            raise SystemExit(f"{made.name}: a loss of {loss}, not {LOSS}")
        versions = ", ".join(f"{k} {v}" for k, v in found["run"]["versions"].items())
        return f"{made.name}: total_loss {loss:.4f} ({versions})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", metavar="X.Y", help="in place of all of them")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    parser.add_argument("--link", metavar="FOLDER", help="packages that are there already")
    parser.add_argument("--install", action="append", default=[], metavar="ARGUMENT",
                        help="a further argument of pip install")  # fmt: skip
    options = parser.parse_args()
    made = [*sorted(options.dist.glob("*.whl")), *sorted(options.dist.glob("*.tar.gz"))]
    if len(made) != 2:
        sys.exit(f"{options.dist}: a wheel and an sdist, and nothing else, are wanted (make dist)")
    missing = []
    for version in options.python or PYTHONS:
        python = python_of(version)
        if python is None:
            missing.append(version)
            continue
        for each in made:
            print(f"Python {version}, {try_one(python, each, options)}", flush=True)
    for version in missing:
        print(f"missing: Python {version} is not on this machine: not tried", file=sys.stderr)
    return 0 if options.python is None or not missing else 1


if __name__ == "__main__":
    sys.exit(main())
