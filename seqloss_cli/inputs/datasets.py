"""Rows of data sets, by the package `datasets`: of the hub, streamed, or of a directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seqloss_cli.core.errors import RowError, UsageError, load_extra
from seqloss_cli.inputs.options import ReadOptions
from seqloss_cli.inputs.shards import Part
from seqloss_cli.inputs.tables import Batches, TableRow, rows_of_batches

_ROWS_AT_ONCE = 128
_SAVED = ("state.json", "dataset_dict.json")
"""Files of a directory that `save_to_disk` made."""


def dataset_rows(options: ReadOptions, part: Part) -> Iterator[TableRow]:
    """Yield the rows of the split that are the part's. Raises UsageError where there is none, and
    RowError where it breaks off."""
    rows = _opened(options)

    def batches() -> Batches:
        before = 0
        # As columns: pictures and sounds are not decoded.
        for batch in rows.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
            yield before, batch
            before += batch.num_rows

    try:
        yield from rows_of_batches(batches(), options, part, is_empty=True)
    except (RowError, UsageError, GeneratorExit):
        raise
    except Exception as error:  # of networks, files and code of many packages
        raise RowError("unreadable", f"cannot be read: {_words(error)}") from error


def _opened(options: ReadOptions) -> Any:
    """Return the split; of the hub it is not fetched but streamed."""
    datasets = load_extra("datasets", "--dataset", "datasets")
    name, split = str(options.dataset), options.split
    is_saved = any((Path(name) / each).is_file() for each in _SAVED)
    if Path(name).is_dir() and options.dataset_revision is not None:
        raise UsageError(f"--dataset-revision is for the hub, and {name} is a directory here")
    if is_saved and options.dataset_config is not None:
        raise UsageError(f"--dataset-config: {name} has none, as save_to_disk wrote it")
    try:
        if is_saved:
            return _split_of(datasets.load_from_disk(name), name, str(split))
        return datasets.load_dataset(
            name,
            options.dataset_config,
            split=split,
            revision=options.dataset_revision,
            streaming=True,
        )
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"--dataset {name}, --split {split}: {_words(error)}") from error


def _split_of(saved: Any, name: str, split: str) -> Any:
    """Return the split of what was saved. Raises UsageError where it has another."""
    if isinstance(saved, dict):
        if split not in saved:
            raise UsageError(f"--split {split}: {name} has {', '.join(saved)}")
        return saved[split]
    # One that was made of rows has no name; where one is needed, the package calls it train.
    if split != (own := str(saved.split or "train")):
        raise UsageError(f"--split {split}: {name} has {own}")
    return saved


def _words(error: Exception) -> str:
    return f"{' '.join(str(error).split()) or type(error).__name__:.300}"
