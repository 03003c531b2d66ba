"""Results that go to another file system: written here, and put there when they are whole."""

from __future__ import annotations

from pathlib import Path

from seqloss_cli.cli.failures import say
from seqloss_cli.core.errors import RunError, UsageError
from seqloss_cli.core.urls import shown_name, url_of
from seqloss_cli.results.sinks import local_path, partial_path


def prepare(output: Path | None, force: bool, resume: bool) -> None:
    """Look at what is there under the URL of an output, before anything is loaded.

    Raises UsageError for one that is taken, unless `force`, and where nothing can be put there;
    with `resume` it is fetched, so that it can be compared with the run.
    """
    url, local = None if output is None else url_of(output), local_path(output)
    if url is None or local is None:
        return
    from seqloss_cli.inputs import remote

    try:
        remote.require_writable(url)
        is_there = not force and remote.remote_size(url) is not None
        if not is_there:
            remote.try_to_write(url)
        elif not resume:
            raise UsageError(f"{shown_name(url)} exists; --force writes over it")
        elif not local.exists() and not partial_path(local).exists():
            remote.fetch_whole(url, local)
    except OSError as error:
        raise RunError(f"{shown_name(url)}: {error}") from error


def deliver(output: Path | None, unless_there: bool = False) -> None:
    """Put a finished file under the URL of the output, and remove it here; with `unless_there` only
    if none is there.

    Raises RunError where that fails: the file stays here then.
    """
    url, local = None if output is None else url_of(output), local_path(output)
    if url is None or local is None:
        return
    from seqloss_cli.inputs import remote

    try:
        is_there = unless_there and remote.remote_size(url) is not None
        if not is_there:
            remote.put_whole(local, url)
    except OSError as error:
        raise RunError(
            f"{shown_name(url)} cannot be written: {error}; the results are in {local}, and "
            "--resume puts them there"
        ) from error
    local.unlink()
    if unless_there and not is_there:
        say(f"put it at {shown_name(url)}")
