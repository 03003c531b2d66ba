"""Commands that Markdown pages show with their output, and what they print."""

from __future__ import annotations

import json
import re
import shlex
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from helpers.program import in_process

BLOCK = re.compile(r"(?<=```console\n)(.*?)(?=```)", re.DOTALL)
LEFT_OUT = "…"
"""A line of a page that stands for any number of lines."""


@dataclass(frozen=True)
class Done:
    """How the last program of a line ended."""

    exit_code: int
    stdout: str
    stderr: str


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Each command of a page, and the lines that are shown of its output."""
    found: list[tuple[str, list[str]]] = []
    for block in BLOCK.findall(text):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            else:
                found[-1][1].append(line)
    return found


def shell(line: str, folder: Path, columns: int = 80) -> Done:
    """Run a line as bash would, with every program in this process: `seqloss`, `cat`, `head` and
    `jq`."""
    words = shlex.shlex(line, posix=True, punctuation_chars="|>&")
    words.whitespace_split = True
    done = Done(0, "", "")
    with chdir(folder):
        for pipeline in _split(list(words), "&&"):
            done = _pipeline(pipeline, columns)
            if done.exit_code:
                break
    return done


def _split(words: list[str], at: str) -> list[list[str]]:
    """The words between those that part them."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == at:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _pipeline(line: list[str], columns: int) -> Done:
    line, *target = _split(line, ">")
    data, said = None, ""
    for program in _split(line, "|"):
        name, *words = [each for word in program for each in _expanded(word)]
        if name == "seqloss":
            done = in_process(*words, stdin=data, COLUMNS=str(columns))
            data, said = done.stdout_bytes, said + done.stderr
            if done.exit_code:
                return Done(done.exit_code, done.stdout, said)
        elif name == "cat":
            data = b"".join(Path(word).read_bytes() for word in words)
        elif name == "head":
            data = b"".join((data or b"").splitlines(keepends=True)[: int(words[0].strip("-n"))])
        else:
            data = _jq(data or b"", words)
    if target:
        Path(target[0][0]).write_bytes(data or b"")
    return Done(0, "" if target else (data or b"").decode(), said)


def _expanded(word: str) -> list[str]:
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


def _jq(data: bytes, words: list[str]) -> bytes:
    """A path of keys, which is all that the pages ask of the real one."""
    *flags, path = words
    value = json.loads(data)
    for key in path.strip(".").split("."):
        value = value[key]
    if "-c" in flags or not isinstance(value, dict):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def holds(output: list[str], shown: list[str]) -> bool:
    """Whether the lines are those of the output, but for what is left out."""
    parts: list[list[str]] = [[]]
    for line in shown:
        if line == LEFT_OUT:
            parts.append([])
        else:
            parts[-1].append(line)
    start = 0
    for n, part in enumerate(parts):
        places = [k for k in range(start, len(output) + 1) if output[k : k + len(part)] == part]
        places = [k for k in places if n or k == 0]
        if n == len(parts) - 1:
            places = [k for k in places if k + len(part) == len(output)]
        if not places:
            return False
        start = places[0] + len(part)
    return True


def with_outputs(text: str, outputs: list[list[str]]) -> str:
    """The page with new outputs, one for each command; what is left out stays so."""
    left = iter(outputs)

    def block(match: re.Match[str]) -> str:
        lines = list[str]()
        for command, shown in commands(f"```console\n{match[1]}```"):
            output = next(left)
            lines += [f"$ {command}", *(_renewed(shown, output) if shown else [])]
        return "".join(f"{line}\n" for line in lines)

    return BLOCK.sub(block, text)


def _renewed(shown: list[str], output: list[str]) -> list[str]:
    """Lines that are shown, as the output has them now; all of it where nothing was left out."""
    if LEFT_OUT not in shown:
        return output
    found, at = list[str](), 0
    for line in shown:
        alike = [k for k in range(at, len(output)) if _shape(output[k]) == _shape(line)]
        if line != LEFT_OUT and alike:
            line, at = output[alike[0]], alike[0] + 1
        found.append(line)
    return found


def _shape(line: str) -> str:
    """A line without its figures and blanks."""
    return re.sub(r"[\d.,+\s-]+", "#", line)
