"""What the architecture promises: import cost, and the README's file map."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "numpy", "orjson", "tokenizers", "yaml")


@pytest.mark.parametrize("module", ["seqloss_cli", "seqloss_cli.cli.main"])
def test_importing_the_command_line_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == ""


def test_the_file_map_of_the_readme_names_every_room_and_no_other():
    readme = (ROOT / "README.md").read_text()
    section = readme.split("## File map")[1].split("\n## ")[0]
    named = set(re.findall(r"`(seqloss_cli/[\w/]+(?:\.py|/))`", section))
    package = ROOT / "seqloss_cli"
    present = {f"seqloss_cli/{path.name}" for path in package.glob("*.py")}
    present |= {f"seqloss_cli/{path.name}/" for path in package.iterdir() if path.is_dir()} - {
        "seqloss_cli/__pycache__/"
    }
    assert named == present - {"seqloss_cli/__init__.py", "seqloss_cli/__main__.py"}
