"""Signs of life on a terminal: what is loaded or read, and how far a run is.

They stand on one line at the bottom, which goes while something else is written. Pipes and files
get a plain line a minute of a run.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from seqloss_cli.core.escaping import escape, shown_path

if TYPE_CHECKING:
    from seqloss_cli.core.records import Rejected, Sample

_TICK = 0.1  # seconds between two states of the line
_UNICODE, _ASCII = ("━", "─", "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", " · ", "…"), ("#", "-", "|/-\\", ", ", "...")
"""Signs for the done part of a bar and for the rest, states of a wheel, what stands between parts,
and what stands for a part that is left out."""
_BAR_WIDTHS = 10, 30
_BASIS = 3.0  # seconds of progress that a time left is foretold of
_WINDOW = 15.0  # seconds that a rate is of
_PLAIN_SECONDS = 60.0  # between two lines where nothing can be drawn


class StatusLine:
    """The last line of the terminal of stderr, drawn anew ten times a second.

    By a thread of its own: imports, products and reading take seconds in which nothing else runs.
    """

    def __init__(self) -> None:
        # Reentrant: what is written while it is hidden may be a message, which hides it, too.
        self._lock = threading.RLock()
        self._describe: Callable[[int], str] | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._said: float | None = None

    def show(self, describe: Callable[[int], str]) -> None:
        """Show what `describe` makes of the terminal's width, until `clear`."""
        if not draws():
            return
        with self._lock:
            self._describe = describe
            self._draw()
        if self._thread is None:
            self._over.clear()
            self._thread = threading.Thread(target=self._tick, name="seqloss-status", daemon=True)
            self._thread.start()

    def clear(self) -> None:
        """Take the line away."""
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None
        with self._lock:
            self._erase()
            self._describe = None

    def begin_plain(self) -> None:
        """Say the first plain line a while from now, if nothing can be drawn."""
        self._said = None if draws() else time.monotonic()

    def end_plain(self) -> None:
        """Say none from now on."""
        self._said = None

    def say_plain(self, describe: Callable[[], str]) -> None:
        """Write what `describe` makes as a line of its own, if nothing can be drawn, and the last
        one is a minute old."""
        if self._said is not None and (now := time.monotonic()) - self._said >= _PLAIN_SECONDS:
            self._said = now
            self._write(f"seqloss: {describe()}\n")

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the line away while something is written to the terminal."""
        with self._lock:
            self._erase()
            try:
                yield
            finally:
                self._draw()

    def _tick(self) -> None:
        while not self._over.wait(_TICK):
            with self._lock:
                self._draw()

    def _draw(self) -> None:
        if self._describe is None:
            return
        width = _width() - 1
        # Not wrapped where wide characters need more cells than were counted. The cursor goes back:
        # what others write, such as ^C, begins where the line is drawn.
        self._write(f"\r\x1b[2K\x1b[?7l{self._describe(width)[:width]}\x1b[?7h\r")

    def _erase(self) -> None:
        if self._describe is not None:
            self._write("\r\x1b[2K")

    def _write(self, text: str) -> None:
        # A terminal that went away is no error of the run, and one that is stopped (^S) holds
        # nothing up.
        with suppress(OSError, ValueError):
            if _takes_more():
                sys.stderr.write(text)
                sys.stderr.flush()


STATUS = StatusLine()
"""The one line of this process."""


def draws() -> bool:
    """Tell whether stderr is a terminal that can draw a line anew."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    return is_terminal and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def _takes_more() -> bool:
    try:
        return bool(select.select([], [sys.stderr.fileno()], [], 0)[1])
    except (OSError, ValueError):  # no file, as in tests, or a system that cannot tell
        return True


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def is_typed(names: Sequence[str]) -> bool:
    """Tell whether an input is typed on the terminal, where nothing may be drawn meanwhile."""
    return "-" in names and sys.stdin is not None and sys.stdin.isatty()


def _signs() -> tuple[str, str, str, str, str]:
    try:
        "".join(_UNICODE).encode(sys.stderr.encoding or "ascii")
    except UnicodeError:
        return _ASCII
    return _UNICODE


class Wait:
    """Something that takes a while, with the seconds that it takes: `loading NAME… 3 s`."""

    def __init__(self, doing: str, name: str) -> None:
        self._doing, self.name, self._began = doing, escape(name), time.monotonic()
        self.n_done = 0
        """Rows that were read so far."""

    @property
    def seconds(self) -> float:
        """Return how long it has taken so far."""
        return time.monotonic() - self._began

    def line(self, width: int) -> str:
        """Return the line of the terminal, at most `width` wide: of a long name the end."""
        *_, wheel, between, dots = _signs()
        sign = wheel[int(self.seconds / _TICK) % len(wheel)]
        after = f"{between}{self.n_done:,} rows" if self.n_done else ""
        before, after = f"{sign} {self._doing} ", f"{after}{between}{self.seconds:.0f} s"
        room = max(0, width - len(before) - len(after))
        name = self.name
        if len(name) > room:
            name = (dots + name[len(name) - room + len(dots) :])[:room]
        return before + name + after


@contextmanager
def waiting(doing: str, name: str) -> Iterator[Wait]:
    """Show what is being done until the block ends, or until something else is shown."""
    wait = Wait(doing, name)
    STATUS.show(wait.line)
    try:
        yield wait
    finally:
        STATUS.clear()


@contextmanager
def first_sign(values: Mapping[str, Any]) -> Iterator[None]:
    """Show what a command, with these values of its parameters, will load or read.

    At once: what finds that out in full takes half a second to import.
    """
    results, models = values.get("results"), values.get("models") or values.get("checkpoints")
    name = (results or models or [values.get("model") or "demo"])[0]
    words = [values.get(key) for key in ("files", "data", "results", "prompt", "response")]
    given = [each for word in words for each in ([word] if isinstance(word, str) else word or [])]
    if not is_typed(given):
        STATUS.show(Wait("reading" if results else "loading", name).line)
    STATUS.begin_plain()
    try:
        yield
    finally:
        STATUS.clear()
        STATUS.end_plain()


class _Mark(NamedTuple):
    seconds: float
    n_tokens: int
    done: float
    """Share of all inputs, as far as it is known."""


class Pace:
    """The speed of a run, by the last seconds in which something was done.

    Nothing changes between two steps: a rate of all time since would decay there.
    """

    def __init__(self, n_tokens: int = 0, done: float = 0.0) -> None:
        self._marks = deque([_Mark(time.monotonic(), n_tokens, done)])
        self._has_begun = False

    def add(self, n_tokens: int, done: float) -> None:
        """Take how many tokens, and what share of all inputs, are done by now."""
        marks, mark = self._marks, _Mark(time.monotonic(), n_tokens, done)
        # Steps may be short, and many: one for each state of the line is enough.
        if len(marks) > 2 and int(marks[-1].seconds / _TICK) == int(mark.seconds / _TICK):
            marks.pop()
        marks.append(mark)
        # The first step takes what is done once (kernels are chosen, buffers made).
        if not self._has_begun and mark.seconds - marks[1].seconds >= _BASIS:
            marks.popleft()
            self._has_begun = True
        while len(marks) > 2 and mark.seconds - marks[1].seconds >= _WINDOW:
            marks.popleft()

    @property
    def rate(self) -> float | None:
        """Return tokens per second; None before any were done."""
        first, last = self._marks[0], self._marks[-1]
        gained = last.n_tokens - first.n_tokens
        return gained / max(last.seconds - first.seconds, 1e-9) if gained else None

    @property
    def left(self) -> float | None:
        """Return the seconds left; None before there is anything to go by."""
        first, last = self._marks[0], self._marks[-1]
        gained = last.done - first.done
        if not self._has_begun or gained <= 0:
            return None
        whole = (last.seconds - first.seconds) * (1 - last.done) / gained
        return max(0.0, whole - (time.monotonic() - last.seconds))


class ProgressBar:
    """Told of tokens and of inputs as they are done, from the first to the last.

    With input files whose sizes are known, or a known number of inputs, there is a time left, else
    only counts and a rate.
    """

    def __init__(
        self,
        names: Sequence[str],
        n_expected: int | None = None,
        of: str = "",
        prints: bool = False,
        span: tuple[int, int] | None = None,
    ) -> None:
        """At most `n_expected` inputs come; `of` says which of several runs it is; where a run
        `prints`, results go to stdout as they come. `span` are the bytes of all files, end to end,
        that are read, where it is a part of them."""
        self._starts, self._n_bytes = _starts(names, span)
        self._n_expected, self._of = n_expected, of
        self._typed = is_typed(names)
        self._shares_terminal = prints and sys.stdout is not None and sys.stdout.isatty()
        self._n_tokens = self._n_inputs = self._n_rejected = 0
        self._bytes_done, self._share, self._block_end = 0, 0.0, 0
        self._n_counted = 0.0
        self._began, self._pace = time.monotonic(), Pace()

    def on_progress(
        self, n_tokens: int, share: float, last: Sample | Rejected, n_inputs: int
    ) -> None:
        """Tokens were scored: a `share` of a block of `n_inputs` that ends with `last` is done."""
        self._n_tokens += n_tokens
        self._share, self._block_end = share, self._position(last)
        # Those of the block are told of when all of it is done: till then they count by its share.
        self._n_counted = max(self._n_counted, self._n_inputs + share * n_inputs)
        self._went_on()

    def on_input(self, item: Sample | Rejected, rejected: bool = False) -> None:
        """An input is done."""
        self._bytes_done = self._position(item)
        self._n_inputs += 1
        self._n_rejected += rejected
        # Tokens tell, where there are any: an input is one of many that are done at once.
        if not self._n_tokens:
            self._went_on()

    def on_kept(self, item: Sample | Rejected, rejected: bool = False) -> None:
        """An input was done by an earlier run: its time tells nothing of the others."""
        self.on_input(item, rejected)
        self._pace = Pace(self._n_tokens, self.done or 0.0)

    @property
    def seconds(self) -> float:
        """Return for how long inputs were scored so far."""
        return time.monotonic() - self._began

    @property
    def n_done(self) -> float:
        """Return how many inputs are done, with the share of those that are being scored."""
        return max(self._n_counted, self._n_inputs)

    @property
    def done(self) -> float | None:
        """Return the share of all inputs that is done; None where it is not known."""
        found = []
        if self._n_bytes:
            ahead = max(0, self._block_end - self._bytes_done)
            found.append((self._bytes_done + self._share * ahead) / self._n_bytes)
        if self._n_expected is not None:
            found.append(self.n_done / self._n_expected)
        return min(1.0, max(found)) if found else None

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the bar away while results are printed, where they share its terminal."""
        if not self._shares_terminal:
            yield
            return
        with STATUS.hidden():
            yield

    def __enter__(self) -> ProgressBar:
        self._began, self._pace = time.monotonic(), Pace()
        if not self._typed:
            STATUS.show(self.line)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away: before totals, which stand in its place."""
        STATUS.clear()

    def line(self, width: int) -> str:
        """Return the line of the terminal, at most `width` wide: what is least telling goes."""
        full, empty, wheel, between, _ = _signs()
        done, (counts, left) = self.done, self._figures()
        if done is None:
            sign = wheel[int(self.seconds / _TICK) % len(wheel)]
            return f"{sign} {between.join([*filter(None, [self._of]), *counts, left])}"
        counts.append(left)
        before = f"{self._of} " if self._of else ""
        while True:
            text = f" {int(100 * done):3d} % {between.join(filter(None, counts))}"
            room = min(width - len(before) - len(text), _BAR_WIDTHS[1])
            if room >= _BAR_WIDTHS[0] or not counts:
                n_full = int(done * room)
                return f"{before}{full * n_full}{empty * (room - n_full)}{text}"
            # A number of inputs says least of how long it will take.
            before, counts = "", counts if before else counts[1:]

    def plain_line(self) -> str:
        """Return what the line says in words, without a bar."""
        counts, left = self._figures()
        share = [] if self.done is None else [f"{int(100 * self.done)} %"]
        return ", ".join(filter(None, [self._of, counts[0], *share, *counts[1:], left]))

    def _figures(self) -> tuple[list[str], str]:
        """Return what is done, and how fast; and the time left, or else that it took so far."""
        of = f" of {self._n_expected:,}" if self._n_expected not in (None, 1) else ""
        n_rejected = f", {self._n_rejected:,} rejected" if self._n_rejected else ""
        counts = [f"{int(self.n_done):,}{of} inputs{n_rejected}"]
        if self._n_expected == 1:
            counts = [f"{self._n_tokens:,} tokens"]
        if (rate := self._pace.rate) is not None:
            counts.append(f"{rate:,.0f} tokens/s")
        if self.done is None:
            return counts, _clock(self.seconds)
        left = self._pace.left
        return counts, "" if left is None else f"{_clock(left)} left"

    def _went_on(self) -> None:
        self._pace.add(self._n_tokens, self.done or 0.0)
        if not self._typed:
            STATUS.say_plain(self.plain_line)

    def _position(self, item: Sample | Rejected) -> int:
        return self._starts.get(item.source, 0) + item.end


def shown_seconds(seconds: float) -> str:
    """Return a time as a person reads it: seconds, and from a minute on a clock's."""
    return f"{seconds:.1f} s" if seconds < 60 else _clock(seconds)


def _clock(seconds: float) -> str:
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    return f"{hours}:{minutes % 60:02d}:{int(seconds) % 60:02d}"


def _starts(
    names: Sequence[str], span: tuple[int, int] | None
) -> tuple[dict[str, int], int | None]:
    """The place of each file when all are laid end to end, and their size; None if unknown. Of a
    part of them both count from where it begins."""
    first, end = span or (0, None)
    starts, total = {}, -first
    for name in names:
        # A name may be too long for the system: pathlib's own test would raise OSError.
        if not os.path.isfile(name):  # noqa: PTH113
            return {}, None
        starts[shown_path(name)] = total
        total += os.path.getsize(name)  # noqa: PTH202
    return starts, (total if end is None else end - first) or None
