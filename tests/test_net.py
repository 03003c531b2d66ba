"""What the program writes, byte for byte, while no model is asked: losses come from a stub.

Every case runs commands in a folder of its own and keeps all they print and write: one file each in
`tests/golden/net/`. What changes from run to run or machine to machine (times, versions, threads,
folders) is replaced, and long decimals are cut to 12 digits, as exp and log of two machines differ
in the last. `python tests/test_net.py` writes the golden files anew.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.program import ROOT
from helpers.stub import ALL, CHAT, furnish, run

# -- what is run --------------------------------------------------------------------------------

GOLDEN = ROOT / "tests" / "golden" / "net"
DOCUMENTS = "samples/sentences.jsonl samples/texts.jsonl"
"""Of fewer than 5 documents nothing has an interval."""
PREPARED = (
    f"score {DOCUMENTS} --keep-meta --ranks --top-k 2 --words -o a.jsonl",
    f"score {DOCUMENTS} --keep-meta --ranks -m samples/checkpoints/step-600 -o b.jsonl",
    f"score {DOCUMENTS} --keep-meta -m samples/checkpoints/step-100 -o c.parquet",
    "score samples/texts.jsonl samples/text.txt --keep-meta -o texts.jsonl",
    "cond samples/pairs.jsonl --pmi --words --entropy -o pairs.jsonl",
    "cond samples/chats.jsonl --chat-template samples/chat.jinja -o chats.jsonl",
    "rank samples/choices.jsonl --pmi --tokens -o ranked.jsonl",
    f"diverge {DOCUMENTS} -m samples/checkpoints/step-600 --teacher demo -o gap.jsonl",
    "mask samples/pairs.jsonl --jsonl -o labels.jsonl",
    "objective samples/checkpoints/step-100 samples/checkpoints/step-600 demo "
    "--data samples/sentences.jsonl --data samples/texts.jsonl -o objective.json",
)
"""Results that later cases start from; what the commands say is a case, too."""

BOUNDARY = "--pmi --boundary compare --context 16 --truncate left --eos"
REGIONS = "score samples/sentences.jsonl --regions samples/regions.jsonl"
DIVERGE = f"diverge {DOCUMENTS} --limit 5 -m samples/checkpoints/step-600 --teacher demo"
CHECK = "check samples/rollouts.jsonl --limit 5 --field rollout_log_probs"
AGAINST = f"{CHECK} --against samples/rollouts.jsonl --against-field old_log_probs"
ONE = AGAINST.replace("--limit 5", "--limit 1")
DATA = "--data samples/sentences.jsonl --data samples/texts.jsonl"
STEPS = "samples/checkpoints/step-100 samples/checkpoints/step-600 demo"
COLOUR = "FORCE_COLOR=1"
CSV_LEVELS = {
    "sequence": "--keep-meta",
    "token": "--ranks --entropy --context-lengths --keep-meta",
    "word": "--words",
}
CASES: dict[str, tuple[str, ...]] = {
    # score
    "score-json": (f"score corpus.jsonl --json {ALL}",),
    "score-jsonl": (f"score corpus.jsonl --jsonl {ALL}",),
    "score-jsonl-lean": ("score corpus.jsonl lines.txt --jsonl --no-text --no-tokens",),
    "score-json-summary": ("score corpus.jsonl --json --summary",),
    "score-to-files": ("score corpus.jsonl -o out.json", "score corpus.jsonl --jsonl -o out.rows"),
    "score-openai": ("score corpus.jsonl --format openai --top-k 2",),
    "score-windows": (
        "score samples/text.txt --jsonl --eos --context 48 --stride 16 --context-lengths",
    ),
    "score-no-bos": ("score corpus.jsonl --jsonl --bos never --special-tokens text --limit 4",),
    "score-regions": (f"{REGIONS} --jsonl", f"{REGIONS} --words --word-correction --jsonl"),
    "score-word-correction": (
        "score corpus.jsonl samples/text.txt --words --word-correction --jsonl --context 32",
    ),
    "score-broken": (
        "score broken.jsonl --jsonl",
        "score broken.jsonl",
        "score broken.jsonl --strict --json",
    ),
    **{
        f"score-{kind}-{level}": (f"score corpus.jsonl --format {kind} --level {level} {flags}",)
        for kind in ("csv", "tsv")
        for level, flags in CSV_LEVELS.items()
    },
    "score-csv-region": (f"{REGIONS} -o out.csv --level region",),
    "score-tsv-region": (f"{REGIONS} -o out.tsv --level region --words --word-correction",),
    "score-parquet": (f"score corpus.jsonl -o out.parquet {ALL}",),
    "score-parquet-lean": ("score corpus.jsonl -o out.parquet --no-text --no-tokens",),
    "score-parquet-regions": (f"{REGIONS} -o out.parquet",),
    "score-table-80": (f"score corpus.jsonl {ALL}", "score corpus.jsonl"),
    "score-table-200": (f"COLUMNS=200 score corpus.jsonl {ALL}", "COLUMNS=200 score corpus.jsonl"),
    "score-table-bits": (
        "score lines.txt --lines --unit bits --words --word-correction",
        f"{REGIONS} --unit bits",
        "score samples/text.txt --summary",
    ),
    "score-table-many": (
        "score samples/text.txt samples/sentences.jsonl samples/texts.jsonl",
        "score samples/text.txt --all-tokens -o out.txt --format table",
    ),
    "score-stdin": (
        "score - --lines --jsonl < lines.txt",
        "score --jsonl-input --jsonl < corpus.jsonl",
        "score --text 'One text.' --jsonl",
    ),
    "score-configured": (
        "score --text 'One text.' --json --config options.yaml",
        "SEQLOSS_TOP_K=2 SEQLOSS_UNIT=bits score --text 'One text.' --config options.yaml",
    ),
    "score-heat": (
        "score samples/text.txt samples/texts.jsonl --view heat",
        "COLUMNS=40 score samples/text.txt --view heat --show-whitespace --all-tokens",
    ),
    "score-heat-colour": (
        f"{COLOUR} score samples/text.txt --view heat",
        f"{COLOUR} score samples/sentences.jsonl --view heat --theme light --unit bits",
    ),
    "score-varentropy": (
        "score corpus.jsonl --varentropy --entropy --jsonl",
        "score corpus.jsonl --varentropy --unit bits",
        "score corpus.jsonl --varentropy --level token --format csv",
        "score corpus.jsonl --varentropy -o out.parquet",
    ),
    # cond
    "cond-json": (f"cond mixed.jsonl --json {ALL} {CHAT}",),
    "cond-jsonl": (f"cond mixed.jsonl --jsonl {ALL} {CHAT} {BOUNDARY}",),
    "cond-jsonl-lean": (
        "cond samples/pairs.jsonl --jsonl --no-text --no-tokens --no-marginal",
        "cond samples/pairs.jsonl --jsonl --no-tokens --boundary separate --no-share-prefix",
    ),
    "cond-json-summary": (f"cond mixed.jsonl --json --summary {CHAT} --pmi",),
    "cond-turns": (
        f"cond samples/chats.jsonl --jsonl {CHAT} --score last --no-end-of-turn",
        f"cond samples/chats.jsonl --jsonl {CHAT} --score all --no-tokens",
        f"cond samples/pairs.jsonl --limit 2 --chat --jsonl {CHAT}",
    ),
    "cond-openai": (f"cond mixed.jsonl --format openai --top-k 2 {CHAT}",),
    **{
        f"cond-csv-{level}": (f"cond mixed.jsonl --format csv --level {level} {flags} {CHAT}",)
        for level, flags in CSV_LEVELS.items()
    },
    "cond-tsv-sequence": (f"cond mixed.jsonl -o out.tsv {BOUNDARY} {CHAT}",),
    "cond-csv-region": (
        "cond mixed.jsonl --limit 2 --regions pair-regions.jsonl --level region -o out.csv",
    ),
    "cond-tsv-parts": (
        f"cond mixed.jsonl --format tsv --level token {CSV_LEVELS['token']} {CHAT}",
        f"cond mixed.jsonl --format tsv --level word {CSV_LEVELS['word']} {CHAT}",
        "cond mixed.jsonl --limit 2 --regions pair-regions.jsonl --level region --format tsv",
    ),
    "cond-parquet": (f"cond mixed.jsonl -o out.parquet {ALL} {BOUNDARY} {CHAT}",),
    "cond-table-80": (f"cond mixed.jsonl {ALL} {CHAT} {BOUNDARY}",),
    "cond-table-200": (f"COLUMNS=200 cond mixed.jsonl {ALL} {CHAT} {BOUNDARY}",),
    "cond-table-bits": ("cond samples/pairs.jsonl --unit bits --pmi",),
    "cond-heat": (f"cond mixed.jsonl {CHAT} --view heat",),
    "cond-heat-colour": (f"{COLOUR} cond mixed.jsonl {CHAT} --view heat",),
    "cond-one": ("cond --prompt 'A' --response @lines.txt --separator ' ' --jsonl",),
    # mask
    "mask-json": (f"mask mixed.jsonl --json {CHAT}",),
    "mask-jsonl": (f"mask mixed.jsonl --jsonl {CHAT} --no-text",),
    "mask-json-loss": (f"mask mixed.jsonl --json {CHAT} --loss",),
    "mask-like": (
        f"mask samples/chats.jsonl --jsonl {CHAT} --like trl",
        f"mask samples/chats.jsonl --jsonl {CHAT} --like trl-assistant-only --max-length 40 --loss",
        f"mask samples/chats.jsonl {CHAT} --like trl",
    ),
    "mask-check": ("mask samples/pairs.jsonl --eos --check labels.jsonl",),
    "mask-csv": (
        f"mask mixed.jsonl {CHAT} --format csv",
        f"mask mixed.jsonl {CHAT} --format csv --level token --loss",
    ),
    "mask-tsv": (
        f"mask samples/chats.jsonl {CHAT} --like trl --loss -o out.tsv",
        f"mask mixed.jsonl {CHAT} --format tsv --level token",
    ),
    "mask-parquet": (f"mask mixed.jsonl {CHAT} --loss -o out.parquet",),
    "mask-table": (f"mask mixed.jsonl {CHAT}", f"mask mixed.jsonl {CHAT} --loss"),
    "mask-to-file": ("mask samples/pairs.jsonl --boundary separate --bos never -o out.json",),
    "mask-table-200": (f"COLUMNS=200 mask mixed.jsonl {CHAT} --loss",),
    "mask-heat": (
        f"mask mixed.jsonl {CHAT} --view heat",
        f"mask mixed.jsonl {CHAT} --view heat --loss",
    ),
    "mask-heat-colour": (f"{COLOUR} mask mixed.jsonl {CHAT} --view heat --loss",),
    # rank
    "rank-json": ("rank questions.jsonl --json --keep-meta",),
    "rank-jsonl-tokens": ("rank questions.jsonl --jsonl --tokens --pmi",),
    "rank-csv": (
        "rank questions.jsonl --format csv --pmi --keep-meta",
        "rank questions.jsonl --format csv --level token --tokens",
    ),
    "rank-tsv": (
        "rank questions.jsonl -o out.tsv",
        "rank questions.jsonl --format tsv --level token --tokens",
    ),
    "rank-parquet": ("rank questions.jsonl --tokens --pmi -o out.parquet",),
    "rank-table-80": ("rank questions.jsonl --separator ' '",),
    "rank-table-200": ("COLUMNS=200 rank questions.jsonl --separator ' ' --pmi --by pmi",),
    "rank-summary": (
        "rank samples/choices.jsonl --summary --unit bits",
        "rank samples/choices.jsonl --json --summary --pmi",
    ),
    "rank-ranked": (
        "rank questions.jsonl --keep-meta --output-ranked best.jsonl --by char --summary",
        "rank questions.jsonl --no-text -o out.jsonl --output-ranked pmi.jsonl --pmi "
        "--by mutual_information",
    ),
    "rank-minimal-pairs": (
        "rank samples/minimal-pairs.jsonl --no-prompt --choices-field good,bad --answer 0",
    ),
    "rank-one": (
        "rank --prompt 'A list is' --response ' sorted.' --response ' wet.' --answer 1 --jsonl",
        f"rank --prompt 'A list?' --response Yes. --response No. --chat {CHAT} --jsonl",
    ),
    # diverge
    "diverge-json": (f"{DIVERGE} --json",),
    "diverge-jsonl": (f"{DIVERGE} --jsonl", f"{DIVERGE} --jsonl --no-text --no-tokens"),
    "diverge-csv": (f"{DIVERGE} --format csv", f"{DIVERGE} --format csv --level token"),
    "diverge-tsv": (
        "diverge corpus.jsonl --label-smoothing 0.125 -o out.tsv",
        f"{DIVERGE} --format tsv --level token",
    ),
    "diverge-parquet": (f"{DIVERGE} -o out.parquet",),
    "diverge-table-80": (f"{DIVERGE}", f"{DIVERGE} --unit bits --summary"),
    "diverge-table-200": (f"COLUMNS=200 {DIVERGE}",),
    "diverge-smoothing": (
        "diverge corpus.jsonl --label-smoothing 0.125 --jsonl",
        "diverge corpus.jsonl --label-smoothing 0.125",
        "diverge samples/texts.jsonl --label-smoothing 0 --json --summary",
    ),
    "diverge-saved": (
        f"{DIVERGE} --save-teacher teacher.jsonl --teacher-top-k 3",
        "diverge samples/sentences.jsonl --limit 3 -m samples/checkpoints/step-600 "
        "--teacher teacher.jsonl --jsonl",
        "diverge samples/sentences.jsonl --limit 2 -m samples/checkpoints/step-600 "
        "--teacher teacher.jsonl",
    ),
    "diverge-broken": ("diverge broken.jsonl --teacher demo --jsonl",),
    # check
    "check": (
        f"{CHECK} --summary", f"COLUMNS=200 {CHECK}", f"{CHECK} --fail-above 0.5 --unit bits",
    ),
    "check-heat": (f"{CHECK} --view heat", f"{COLOUR} {ONE} --view heat"),
    "check-against": (AGAINST, f"{AGAINST} --fail-above 0.5 --summary"),
    "check-json": (f"{CHECK} --json", f"{AGAINST} --jsonl --no-tokens", f"{CHECK} -o out.parquet"),
    "check-csv": (f"{CHECK} --format csv", f"{AGAINST} --format tsv --level token"),
    # results
    "prepared": PREPARED,
    "summarize-80": ("summarize a.jsonl", "summarize texts.jsonl --by kind --worst 3"),
    "summarize-200": ("COLUMNS=200 summarize texts.jsonl --by kind --unit bits",),
    "summarize-json": (
        "summarize texts.jsonl --by kind --json",
        "summarize c.parquet --json --confidence 0.9 --worst 2",
        "summarize pairs.jsonl --json --bootstrap 200 --seed 3",
    ),
    "summarize-files": (
        "summarize a.jsonl b.jsonl --allow-different --cluster source",
        "summarize a.jsonl b.jsonl",
        "summarize a.jsonl -o out.txt",
        "summarize a.jsonl -o out.json",
    ),
    "compare-80": ("compare a.jsonl b.jsonl",),
    "compare-200": ("COLUMNS=200 compare a.jsonl b.jsonl c.parquet --unit bits --worst 2",),
    "compare-json": (
        "compare a.jsonl b.jsonl --json --bootstrap 200",
        "compare a.jsonl texts.jsonl --json",
    ),
    "compare-heat": ("compare a.jsonl b.jsonl --view heat --worst 2 --bootstrap 200",),
    "compare-heat-colour": (
        f"{COLOUR} compare a.jsonl b.jsonl --view heat --worst 2 --bootstrap 200",
    ),
    "compare-models": (
        "compare -m demo -m samples/checkpoints/step-600 --data corpus.jsonl --bootstrap 200",
    ),
    "objective": (
        f"objective {STEPS} {DATA}",
        f"COLUMNS=200 objective {STEPS} {DATA} --unit bits",
    ),
    "objective-json": (f"objective {STEPS} {DATA} --json",),
    # plots, as the numbers and as they are drawn
    "plot-curve": ("plot a.jsonl b.jsonl c.parquet --kind curve -o plot.svg --json",),
    "plot-curve-objective": ("plot objective.json -o plot.svg --json",),
    "plot-histogram": ("plot a.jsonl -o plot.svg --json",),
    "plot-position": ("plot a.jsonl b.jsonl --kind position -o plot.svg --json",),
    "plot-calibration": ("plot a.jsonl --kind calibration --bins 5 -o plot.svg --json",),
    "plot-scatter": ("plot a.jsonl b.jsonl --level token -o plot.svg --json",),
    "plot-groups": ("plot texts.jsonl --by kind -o plot.svg --json --unit bits",),
    # pages
    "page-score": ("report a.jsonl -o page.html --by id",),
    "page-score-report": ("score corpus.jsonl --report page.html --summary",),
    "page-cond": ("report pairs.jsonl -o page.html", "report chats.jsonl -o chats.html"),
    "page-compare": ("report a.jsonl b.jsonl -o page.html --worst 5",),
    "page-compare-report": ("compare a.jsonl c.parquet --report page.html --bootstrap 200",),
    "page-rank": ("report ranked.jsonl -o page.html",),
    "page-rank-report": ("rank questions.jsonl --pmi --report page.html -o out.jsonl",),
    "page-diverge": ("report gap.jsonl -o page.html --title 'A <title>'",),
    "page-diverge-report": (f"{DIVERGE} --report page.html --summary",),
    # refusals
    "refused": (
        "score",
        "score --limit 0 --unit bytes",
        "score --nothing",
        "score missing.txt",
        "score --text a --json --jsonl",
        "score --text a --format csv --top-k 2",
        "score --text a --top-k 5000",
        "score --text a --level word",
        "score --text a --context 1000",
        "score --text a --word-correction",
        "score corpus.jsonl -o corpus.jsonl",
        "score --text a -m ./nowhere",
        "cond --prompt a",
        "cond samples/chats.jsonl --jsonl",
        "mask samples/pairs.jsonl --format openai",
        "rank --prompt a --response b",
        "rank samples/choices.jsonl --by pmi",
        "diverge --text a",
        "diverge --text a --teacher lines.txt",
        "diverge --text a --label-smoothing 2",
        "summarize lines.txt",
        "summarize gap.jsonl",
        "summarize a.jsonl --by colour",
        "compare a.jsonl",
        "plot a.jsonl",
        "plot a.jsonl -o plot.svg --kind scatter",
        "report a.jsonl b.jsonl c.parquet -o page.html",
    ),
    # help
    "help": ("COLUMNS=100 --help", "--version"),
    **{
        f"help-{name}": (f"COLUMNS=100 {name} --help",)
        for name in ("score", "cond", "rank", "diverge", "mask", "check", "summarize", "compare",
                     "objective", "plot", "report", "merge", "select", "schema")
    },
}  # fmt: skip


# -- how it is run ------------------------------------------------------------------------------


def recorded(lines: tuple[str, ...], folder: Path) -> str:
    """What the commands print, and the files that are there when they are done."""
    there = {path.name for path in folder.iterdir()}
    parts = []
    for line in lines:
        done = run(line, folder)
        parts.append(f"$ {line}\n")
        for stream in ("stdout", "stderr"):
            text = getattr(done, f"{stream}_bytes").decode()
            if COLOUR not in line:  # help may be coloured by what the terminal of the tests is
                text = re.sub(r"\x1b\[[\d;]*m", "", text)
            if text:
                parts.append(f"[{stream}]\n{text}\n")
        parts.append(f"[exit] {done.exit_code}\n\n")
    for path in sorted(folder.iterdir()):
        if path.name not in there:
            parts.append(f"[file {path.name}]\n{content_of(path)}\n")
    return normal("".join(parts), folder)


def content_of(path: Path) -> str:
    if path.suffix == ".parquet":
        return parquet_text(path)
    text = path.read_bytes().decode()
    return without_assets(text) if path.suffix == ".html" else text


def parquet_text(path: Path) -> str:
    """Schema, metadata and rows as JSON."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    kept = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()
            if key != b"ARROW:schema"}  # fmt: skip
    whole = {
        "schema": [f"{field.name}: {field.type}" for field in file.schema_arrow],
        "metadata": {name: json.loads(value) for name, value in kept.items()},
        "rows": file.read().to_pylist(),
    }
    return json.dumps(whole, indent=1, ensure_ascii=False)


def without_assets(page: str) -> str:
    """A page with its style sheet and its script as their hashes."""

    def hashed(found: re.Match[str]) -> str:
        return f"{found[1]}sha256 {hashlib.sha256(found[2].encode()).hexdigest()}{found[3]}"

    return re.sub(r"(<style>|<script>)(.*?)(</style>|</script>)", hashed, page, flags=re.DOTALL)


VOLATILE: tuple[tuple[re.Pattern[str], Any], ...] = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d\+00:00| UTC)"), "WHEN"),
    (re.compile(r'("threads": ?)\d+'), r"\1N"),
    (re.compile(r'("versions": ?)\{[^}]*\}'), r"\1{}"),
    (re.compile(r"seqloss \d+\.\d+\.\d+"), "seqloss VERSION"),
    (re.compile(r", in (\d+\.\d s|\d+:\d\d:\d\d): "), ", in TIME: "),
)
LONG = re.compile(r"(?<![\w.])\d+\.\d{9,}(e-?\d+)?")


def normal(text: str, folder: Path) -> str:
    """Without what differs from run to run and machine to machine."""
    text = text.replace(str(folder), "FOLDER")
    for pattern, replacement in VOLATILE:
        text = pattern.sub(replacement, text)
    return LONG.sub(lambda found: f"{float(found[0]):.12g}", text)


# -- golden files -------------------------------------------------------------------------------

_LARGE = 16_000


def golden_of(name: str) -> str:
    path = GOLDEN / f"{name}.txt"
    return path.read_bytes().decode() if path.exists() else _unpacked(GOLDEN / f"{name}.txt.gz")


def _unpacked(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def write_golden(name: str, text: str) -> None:
    """Anew, packed where it is large; the same text gives the same bytes."""
    small, packed = GOLDEN / f"{name}.txt", GOLDEN / f"{name}.txt.gz"
    for path in (small, packed):
        path.unlink(missing_ok=True)
    if len(text) < _LARGE:
        small.write_bytes(text.encode())
    else:
        packed.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def difference(name: str, found: str, expected: str) -> str:
    """A short unified diff; long lines are broken at commas and brackets."""
    a, b = ([piece[:160] for piece in re.split(r"(?<=[,>}])|\n", text)]
            for text in (expected, found))  # fmt: skip
    lines = list(difflib.unified_diff(a, b, f"golden/net/{name}", "now", n=2, lineterm=""))
    more = [f"… {len(lines) - 40} more lines"] if len(lines) > 40 else []
    return "\n".join([*lines[:40], *more])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(folder)
    return folder


def prepare(folder: Path) -> None:
    furnish(folder)
    for line in PREPARED:
        assert run(line, folder).exit_code == 0, line


def made(name: str, folder: Path, prepared: Path) -> str:
    furnish(folder, None if name == "prepared" else prepared)
    return recorded(CASES[name], folder)


@pytest.mark.parametrize("name", CASES)
def test_output_is_as_it_was(name: str, tmp_path: Path, prepared: Path) -> None:
    found, expected = made(name, tmp_path, prepared), golden_of(name)
    if found != expected:
        pytest.fail(difference(name, found, expected), pytrace=False)


def test_no_golden_file_is_left_over() -> None:
    assert {path.name.partition(".txt")[0] for path in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.parametrize("n_kept", [1, 3, 6])
@pytest.mark.parametrize(
    "command", ["score corpus.jsonl samples/sentences.jsonl", f"cond mixed.jsonl {CHAT} --pmi"],
    ids=["score", "cond"],
)  # fmt: skip
def test_resumed_output_is_that_of_a_whole_run(command: str, n_kept: int, tmp_path: Path) -> None:
    furnish(tmp_path)
    command += f" {ALL} -o"
    assert run(f"{command} whole.jsonl", tmp_path).exit_code == 3
    whole = (tmp_path / "whole.jsonl").read_bytes()
    part = b"".join(whole.splitlines(keepends=True)[:n_kept]) + b'{"type":"seq'
    (tmp_path / "again.jsonl.partial").write_bytes(part)
    done = run(f"{command} again.jsonl --resume", tmp_path)
    assert done.exit_code == 3, done.stderr
    assert f"{n_kept - 1} row" in done.stderr or n_kept == 1
    assert (tmp_path / "again.jsonl").read_bytes() == whole


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    names = sys.argv[1:] or list(CASES)
    GOLDEN.mkdir(exist_ok=True)
    with TemporaryDirectory() as place:
        ready = Path(place) / "prepared"
        ready.mkdir()
        prepare(ready)
        for each in names:
            workplace = Path(place) / "cases" / each
            workplace.mkdir(parents=True)
            write_golden(each, made(each, workplace, ready))
