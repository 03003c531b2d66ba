"""Measure seqloss against its goals and its peers: `make bench`.

Writes report.md and report.json after each part. `--full` takes all 256 documents and a million
rows. Exits with 1 where a part could not be run, or two sides gave different numbers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from settings import DEFAULT, FULL, HERE, QUICK, SECTIONS, Settings
from workers import do, in_process

OF_DOCUMENTS = ("products", "textbook", "profile")
Part = tuple[str, str, dict[str, Any]]


def parts(settings: Settings, sections: Sequence[str]) -> Iterator[Part]:
    """What is to be run: how it is called in the report, the part, and its arguments."""
    of_documents = [section for section in sections if section in OF_DOCUMENTS]
    each = [(model, dtype) for model in settings.models for dtype in settings.dtypes]
    if of_documents:
        for model, dtype in each:
            arguments = {"model": model, "dtype": dtype, "sections": of_documents}
            yield f"{'/'.join(of_documents)} {model} {dtype}", "documents", arguments
    if "minicons" in sections:
        for model in settings.minicons_models:
            arguments = {"model": model, "dtype": "float32", "sections": ["minicons"]}
            yield f"minicons {model} float32", "documents", arguments
    if "lm-eval" in sections:
        for model, dtype in settings.harness:
            yield f"lm-eval {model} {dtype}", "lm-eval", {"model": model, "dtype": dtype}
    for section in ("shared", "memory", "around", "corpus"):
        if section in sections:
            yield section, section, {}


def run(settings: Settings, sections: Sequence[str], output: Path, add: bool = False) -> bool:
    """Whether every part could be run, and all sides gave the same numbers."""
    from machine import describe
    from report import Report

    kept = [section for section in SECTIONS if add and section not in sections]
    machine = describe(settings.threads)
    report, failed = Report(output, machine, settings.as_json(), kept), False
    _make_workload(settings)
    for name, part, arguments in parts(settings, sections):
        print(f"{name} …", end=" ", flush=True)
        started, error, found = time.monotonic(), None, {}
        try:
            found = in_process(part, settings, **arguments)
        except RuntimeError as failure:
            error, failed = str(failure), True
        failed |= not all(check["agrees"] for check in found.get("checks", []))
        seconds = time.monotonic() - started
        report.add(name, seconds, found, error)
        print(f"{seconds:.0f} s" + (f": {error}" if error else ""), flush=True)
    print(f"wrote {output}/report.md and report.json")
    return not failed


def _make_workload(settings: Settings) -> None:
    import workload

    workload.strata(settings.longest)
    for model in settings.models:
        workload.checkpoint(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few rounds of short documents")
    size.add_argument("--full", action="store_true", help="all documents, a million rows (hours)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="NAME")
    parser.add_argument("--add", action="store_true", help="keep the last report's other sections")
    parser.add_argument("--output", type=Path, default=HERE / "report", metavar="DIR")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        do(options.task, options.result)
        return
    settings = QUICK if options.quick else FULL if options.full else DEFAULT
    sys.exit(0 if run(settings, options.only, options.output, options.add) else 1)


if __name__ == "__main__":
    main()
