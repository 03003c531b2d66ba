"""Complete in real shells, as far as they are installed (`make try-completion`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SEQLOSS = Path(sys.executable).parent / "seqloss"
ASKS = {"seqloss sc": ("score", "schema"), "seqloss summarize --boot": ("--bootstrap",)}
"""What is typed before TAB, and what must be among the answers."""

BASH = """
source "$SCRIPT"
COMP_WORDS=($LINE); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); COMP_LINE=$LINE
COMP_POINT=${{#LINE}}
_seqloss_completion seqloss
printf '%s\\n' "${{COMPREPLY[@]}}"
""".replace("{{", "{").replace("}}", "}")
ZSH = """
zmodload zsh/zpty
zpty shell 'zsh -f -i'
zpty -w shell 'autoload -Uz compinit && compinit -u -D; unsetopt zle_bracketed_paste; '
zpty -w shell 'LISTMAX=1000; PS1=; source "$SCRIPT"; echo ready'
zpty -r -m shell out '*ready*ready*' > /dev/null
zpty -w -n shell "$LINE"$'\\t\\t'
for second in {1..60}; do
    sleep 1
    while zpty -r -t shell out; do print -rn -- "$out"; seen+=$out; done
    [[ $seen == *$WANTED* ]] && break
done
zpty -d shell
"""
FISH = 'source "$SCRIPT"; complete -C "$LINE"'


def ask(shell: str, program: str, line: str, wanted: str, script: Path) -> str:
    path = f"{SEQLOSS.parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "TERM": "xterm"}
    env |= {"SCRIPT": str(script), "LINE": line, "WANTED": wanted}
    quiet = ["--norc"] if shell == "bash" else ["-f"] if shell == "zsh" else ["--no-config"]
    done = subprocess.run(
        [shell, *quiet, "-c", program], env=env, capture_output=True, text=True, timeout=120,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def main() -> int:
    failed = 0
    for shell, program in (("bash", BASH), ("zsh", ZSH), ("fish", FISH)):
        if shutil.which(shell) is None:
            print(f"missing: {shell} is not installed: not tried", file=sys.stderr)
            continue
        # What --show-completion prints where this is the shell that runs it.
        env = {**os.environ, "_SEQLOSS_COMPLETE": f"source_{shell}"}
        shown = subprocess.run([SEQLOSS], capture_output=True, text=True, check=False, env=env)
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / f"seqloss.{shell}"
            script.write_text(shown.stdout)
            for line, wanted in ASKS.items():
                found = ask(shell, program, line, wanted[-1], script)
                lacks = [each for each in wanted if each not in found]
                print(f"{shell}: {line!r} {'lacks ' + ', '.join(lacks) if lacks else 'completes'}")
                if lacks:
                    print(found[-2000:], file=sys.stderr)
                failed += bool(lacks)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
