"""Do work ahead of time on another thread, a bounded amount of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

from seqloss_cli.core.errors import RunError

T = TypeVar("T")
Made = TypeVar("Made")
_TICK = 0.2  # seconds between looks at whether the other side is still there
_MOMENT = 0.5


def prefetch(items: Iterable[T], make: Callable[[T], Made], most: int = 1) -> Iterator[Made]:
    """Yield `make(item)` of each item, made on another thread while the last one is used: `most`
    may wait. The items are taken on that thread, too.

    An error there is raised here, in its place. Raises RunError when the thread is gone without a
    word. The thread ends when this generator does.
    """
    worker = PrefetchThread(items, make, most)
    worker.start()
    try:
        yield from worker.results()
    finally:
        worker.stop()


class PrefetchThread(threading.Thread, Generic[T, Made]):
    """A thread that makes things of items, `most` of them ahead of who takes them."""

    def __init__(self, items: Iterable[T], make: Callable[[T], Made], most: int) -> None:
        super().__init__(name="seqloss-prefetch", daemon=True)
        self.items, self.make = items, make
        self._ready: Queue[list[Made]] = Queue(most)
        self._stopped = threading.Event()
        self._making = threading.Lock()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Make something of each item; an error is kept for who takes them."""
        try:
            for item in self.items:
                with self._making:
                    if self._stopped.is_set():
                        return
                    box = [self.make(item)]
                self.hand_over(box)
        except BaseException as error:
            # Ctrl-C, too: it is raised again by the thread that waits for the items.
            self._error = error
        self.hand_over([])

    def results(self) -> Iterator[Made]:
        """Yield what was made; raise the error of the thread in its place."""
        while box := self._get():
            yield box[0]
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Wait for the item that is being made, and a moment for the end of the thread."""
        # A thread that is cut off in tokenizers' code as the process ends may crash it. A read
        # (a terminal, a pipe) may take forever: that one is left.
        self._stopped.set()
        with self._making:
            pass
        self.join(_MOMENT)

    def hand_over(self, box: list[Made]) -> None:
        """Wait for room, then put a box of one thing that was made; an empty one is the end."""
        while not self._stopped.is_set():
            with suppress(Full):
                self._ready.put(box, timeout=_TICK)
                return

    def _get(self) -> list[Made]:
        while True:
            try:
                return self._ready.get(timeout=_TICK)
            except Empty:
                # A thread that was killed puts no end: without this the other side waits for ever.
                if not self.is_alive() and self._ready.empty():
                    raise RunError("the thread that reads and tokenizes died") from self._error
