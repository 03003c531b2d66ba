"""Build the site of docs/ for a version, beside those that were built before.

    python tools/docs_versions.py FOLDER [VERSION]

FOLDER gets `VERSION/`, `versions.json`, of which the pages make their list, and an `index.html`
that leads to the version that was built last.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INDEX = '<!doctype html>\n<meta http-equiv="refresh" content="0; url={0}/index.html">\n'


def main() -> None:
    """Build, and add to the list of versions."""
    folder = Path(sys.argv[1])
    version = sys.argv[2] if len(sys.argv) > 2 else metadata.version("seqloss")
    program = Path(sys.executable).with_name("zensical")
    # Pages that open from disk find no list of versions, and would complain.
    versioned = ROOT / "mkdocs-versioned.yml"
    text = (ROOT / "mkdocs.yml").read_text()
    versioned.write_text(text.replace("\nextra:\n", "\nextra:\n  version: {provider: mike}\n"))
    try:
        words = [program, "build", "--clean", "--strict", "--config-file", versioned]
        subprocess.run(words, cwd=ROOT, check=True)
    finally:
        versioned.unlink()
    target = folder / version
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "site", target)
    listed = folder / "versions.json"
    found = json.loads(listed.read_text()) if listed.exists() else []
    others = [each for each in found if each["version"] != version]
    own = {"version": version, "title": version, "aliases": ["latest"]}
    listed.write_text(json.dumps([own, *({**each, "aliases": []} for each in others)], indent=2))
    (folder / "index.html").write_text(INDEX.format(version))


if __name__ == "__main__":
    main()
