"""Whether two working trees of seqloss write the same: `python tools/same_output.py OLD NEW`.

A fixed list of commands runs under each tree with the built-in model, in a process and a folder of
their own, and then the functions of the Python API, whose figures are compared to the last bit.
Times, versions and folders are left out. Prints what differs, and exits with 1 if anything does.
`tests/test_net.py` does the like without a model, against files; this needs no file, but two trees.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ALL = "--ranks --entropy --top-k 2 --words --context-lengths --keep-meta"
CHAT = "samples/chats.jsonl --chat-template samples/chat.jinja"
STEP = "samples/checkpoints/step-600"
REGIONS = "samples/sentences.jsonl --regions samples/regions.jsonl"
COMMANDS = f"""
--help
score samples/text.txt samples/texts.jsonl missing.txt {ALL}
score samples/text.txt samples/texts.jsonl {ALL} --context 48 --stride 16 --eos -o a.jsonl
score README.md --lines --json --entropy --batch-tokens 256 --limit 60
score README.md --summary --unit bits
score samples/texts.jsonl -m {STEP} --dtype float64 --json
score samples/texts.jsonl -m {STEP} --dtype bfloat16 --json
score samples/texts.jsonl -m {STEP} --context 48 --stride 16 --eos --keep-meta -o b.jsonl
score samples/texts.jsonl -m {STEP} {ALL} -o c.parquet
score samples/texts.jsonl --format openai --top-k 3
score samples/text.txt --words --word-correction --jsonl
score samples/texts.jsonl --level token --ranks --entropy --format csv
score samples/texts.jsonl --level word --words --format tsv
score {REGIONS} --level region -o regions.csv
score {REGIONS} --words --word-correction --jsonl --bos never
score samples/text.txt --view heat
FORCE_COLOR=1 score samples/text.txt samples/texts.jsonl --view heat
FORCE_COLOR=1 score samples/sentences.jsonl --view heat --theme light --show-whitespace
score samples/texts.jsonl --report score.html --ranks --top-k 3
cond samples/pairs.jsonl {ALL} --pmi --boundary compare --json --context 16 --truncate left
cond samples/pairs.jsonl --no-share-prefix --no-marginal -o pairs.jsonl
cond samples/pairs.jsonl --pmi --words -o pairs.parquet
cond {CHAT} --report chats.html
cond {CHAT} --json --score last --no-end-of-turn
FORCE_COLOR=1 cond samples/pairs.jsonl --view heat
mask {CHAT} --like trl --json
mask {CHAT} --loss --json
FORCE_COLOR=1 mask {CHAT} --loss --view heat
rank samples/choices.jsonl --pmi --tokens -o ranked.jsonl --output-ranked best.jsonl
rank samples/choices.jsonl --separator ' ' --by char
rank samples/minimal-pairs.jsonl --no-prompt --choices-field good,bad --answer 0 --json
diverge samples/texts.jsonl samples/text.txt -m {STEP} --teacher demo -o gap.jsonl
diverge samples/texts.jsonl -m {STEP} --teacher demo --save-teacher saved.jsonl --teacher-top-k 8
diverge samples/texts.jsonl -m {STEP} --teacher saved.jsonl --json
diverge samples/texts.jsonl --label-smoothing 0.1 --json
summarize a.jsonl --by kind
summarize a.jsonl --json --bootstrap 200
compare a.jsonl b.jsonl
compare a.jsonl b.jsonl --json
FORCE_COLOR=1 compare a.jsonl b.jsonl --view heat --worst 2
compare -m demo -m {STEP} --data samples/texts.jsonl --report compared.html
objective samples/checkpoints/step-100 {STEP} demo --data README.md --lines --limit 40
objective samples/checkpoints/step-100 {STEP} demo --data samples/texts.jsonl -o objective.json
plot a.jsonl -o histogram.svg
plot a.jsonl b.jsonl -o scatter.svg
plot a.jsonl b.jsonl --kind position -o position.png
plot a.jsonl --kind calibration -o calibration.pdf
plot a.jsonl --by kind -o groups.svg
plot objective.json -o curve.svg
report a.jsonl -o one.html --by kind
report a.jsonl b.jsonl -o two.html
report pairs.jsonl -o pairs.html
report ranked.jsonl -o ranked.html
report gap.jsonl -o gap.html
""".strip().splitlines()
VOLATILE = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d\+00:00| UTC)"), "WHEN"),
    (re.compile(r'("versions": ?)\{[^}]*\}'), r"\1{}"),
)
FIGURES = ("losses", "scored", "context_lengths", "ranks", "entropies", "top_ids", "top_log_probs")
GAPS = {
    "kl": "kls",
    "teacher_entropy": "gold_entropies",
    "student_loss": "student_losses",
    "teacher_loss": "gold_losses",
    "delta_p": "delta_p",
}
"""Arrays of a divergence by the names of sums, and their names in earlier versions."""


def record(tree: Path) -> Iterator[tuple[str, str]]:
    """Each output by its name, of the package that this process imports."""
    from typer.testing import CliRunner

    import seqloss_cli
    from seqloss_cli.cli.main import app

    assert Path(seqloss_cli.__file__).is_relative_to(tree), seqloss_cli.__file__
    seen = {path.name for path in Path().iterdir()}
    for command in COMMANDS:
        words = shlex.split(command)
        coloured = words[0] == "FORCE_COLOR=1"
        env = {"COLUMNS": "100", "TERM": "xterm-256color", "FORCE_COLOR": "1" if coloured else None}
        done = CliRunner().invoke(app, words[coloured:], env=env)
        yield f"{command}: exit code", f"{done.exit_code} {done.exception!r}"
        yield f"{command}: stdout", normal(done.stdout, tree)
        if not coloured:  # else there may be a progress bar
            yield f"{command}: stderr", normal(done.stderr, tree)
        for path in sorted(Path().iterdir()):
            if path.name not in seen:
                yield f"{command}: {path}", normal(content_of(path), tree)
                seen.add(path.name)
    yield from of_api(seqloss_cli)


def of_api(package: Any) -> Iterator[tuple[str, str]]:
    """Figures of the Python functions, floats in hexadecimal."""
    lines = Path("README.md").read_text().splitlines()[:30]
    texts = [*filter(None, lines), "🐕 日x", " "]
    pairs = [("The list is", " sorted in place."), ("", "Nothing before."), ("The re", "turn")]
    rows = [("The list is", [" sorted.", " on the moon."]), ("A", ["b", "b", "cd"])]
    wants: dict[str, Any] = {"ranks": True, "entropy": True, "top_k": 3}
    for n, outcome in enumerate(package.score(texts, context=32, stride=8, **wants)):
        yield f"api score {n}", bits(outcome, FIGURES)
    for outcome in package.cond(pairs, pmi=True, **wants):
        for name, score in (
            ("", outcome),
            (" alone", getattr(outcome, "response_only", None) or getattr(outcome, "alone", None)),
        ):
            yield f"api cond: {outcome.sample.pair}{name}", bits(score, FIGURES) if score else ""
    for ranking in package.rank(rows, pmi=True):
        name = f"api rank: {ranking.choices.prompt}"
        yield name, f"{ranking.orders} {ranking.tied}"
        for n, choice in enumerate(ranking.scored):
            scores = [choice.score_by(score) for score in choice.score_names]
            yield f"{name} {n}", str([None if x is None else x.hex() for x in scores])
    for n, found in enumerate(package.diverge(texts, "demo", STEP)):
        yield f"api diverge {n}", bits(SimpleNamespace(**arrays_of(found)), (*GAPS, "same_top1"))


def arrays_of(diverged: Any) -> dict[str, Any]:
    """The arrays of a sequence's divergences, by the names of sums."""
    found = diverged.divergences
    if hasattr(found, "arrays"):
        arrays = dict(found.arrays)
    else:
        arrays = {name: getattr(found, earlier) for name, earlier in GAPS.items()}
    return {**arrays, "same_top1": found.same_top1}


def bits(record: Any, names: tuple[str, ...]) -> str:
    """The arrays of a record, a line each."""
    arrays = ((name, getattr(record, name)) for name in names)
    values = {n: [] if a is None else a.ravel().tolist() for n, a in arrays}
    shown = {n: [v.hex() if isinstance(v, float) else v for v in vs] for n, vs in values.items()}
    return "\n".join(f"{name}: {each}" for name, each in shown.items())


def content_of(path: Path) -> str:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        file = pq.ParquetFile(path)
        kept = {k: v.decode() for k, v in file.metadata.metadata.items() if k != b"ARROW:schema"}
        return "\n".join([str(file.schema_arrow), *map(str, kept.values()),
                          *map(str, file.read().to_pylist())])  # fmt: skip
    if path.suffix in (".png", ".pdf"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return path.read_bytes().decode()


def normal(text: str, tree: Path) -> str:
    text = text.replace(str(Path.cwd()), "FOLDER").replace(str(tree), "TREE")
    for pattern, replacement in VOLATILE:
        text = pattern.sub(replacement, text)
    return text


def outputs_of(tree: Path) -> dict[str, str]:
    """What `record` yields in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="same-") as folder:
        workplace, result = Path(folder) / "here", Path(folder) / "outputs.json"
        shutil.copytree(ROOT / "samples", workplace / "samples")
        shutil.copy(ROOT / "README.md", workplace)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SEQLOSS")}
        fixed = {"PYTHONPATH": str(tree), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        fixed["HF_HUB_OFFLINE"] = "1"
        command = [sys.executable, __file__, "--record", str(tree), str(result)]
        done = subprocess.run(
            command, cwd=workplace, env=kept | fixed, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{tree}: {done.stderr}")
        outputs: dict[str, str] = json.loads(result.read_text())
        return outputs


def difference(old: str, new: str) -> str:
    """A short unified diff; long lines are broken at commas and brackets."""
    a, b = ([piece[:160] for piece in re.split(r"(?<=[,>}])|\n", text)] for text in (old, new))
    lines = list(difflib.unified_diff(a, b, "old", "new", n=1, lineterm=""))
    return "\n".join([*lines[:20], *(["…"] if len(lines) > 20 else [])])


def main() -> int:
    if sys.argv[1:2] == ["--record"]:
        Path(sys.argv[3]).write_text(json.dumps(dict(record(Path(sys.argv[2])))))
        return 0
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} OLD_TREE NEW_TREE")
    old, new = (outputs_of(Path(tree).resolve()) for tree in sys.argv[1:])
    different = [n for n in dict.fromkeys([*old, *new]) if old.get(n) != new.get(n)]
    for name in different:
        print(f"== {name}")
        print(difference(old.get(name, "(nothing)"), new.get(name, "(nothing)")))
    print(f"{len(old)} and {len(new)} outputs, {len(different)} differ")
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
