"""Which options of `seqloss plot` do something, by what is plotted: any other is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import typer

from seqloss_cli.cli.enums import Metric, PlotKind
from seqloss_cli.core.errors import UsageError

CURVE, GROUPS, SCATTER = PlotKind.curve, PlotKind.groups, PlotKind.scatter
HISTOGRAM, POSITION, CALIBRATION = PlotKind.histogram, PlotKind.position, PlotKind.calibration
WITH_INTERVALS = (CURVE, POSITION, GROUPS, CALIBRATION)
WITH_METRICS = (CURVE, GROUPS)
RESAMPLED = (CURVE, SCATTER, CALIBRATION)


@dataclass(frozen=True, slots=True)
class Asked:
    kind: PlotKind
    metric: Metric
    extension: str
    """Of -o; empty without it."""
    n_files: int
    objective: bool
    """A report of `objective`, not results."""


@dataclass(frozen=True, slots=True)
class _Rule:
    options: tuple[str, ...]
    """Parameters that do something only where `used` holds."""
    used: Callable[[Asked], bool]
    mends: str


def _only(*kinds: PlotKind) -> Callable[[Asked], bool]:
    return lambda asked: asked.kind in kinds


RULES = (
    _Rule(("by",), _only(GROUPS), "is for --kind groups"),
    _Rule(("metric",), _only(*WITH_METRICS), "is for --kind curve and groups"),
    _Rule(("level",), _only(SCATTER), "is for --kind scatter"),
    _Rule(("bins", "bins_by"), _only(CALIBRATION), "is for --kind calibration"),
    _Rule(
        ("unit",),
        lambda asked: asked.kind is not CALIBRATION,
        "is for losses, not for --kind calibration: probabilities have no unit",
    ),
    _Rule(
        ("unit",),
        lambda asked: asked.kind not in WITH_METRICS or asked.metric is Metric.mean_loss,
        "is for --metric mean_loss: perplexity has no unit, and bits_per_byte is in bits",
    ),
    _Rule(
        ("cluster", "confidence", "seed", "allow_different"),
        lambda asked: not asked.objective,
        "is for results files; a report of objective has its intervals already",
    ),
    _Rule(
        ("cluster", "confidence"),
        _only(*WITH_INTERVALS),
        "is for intervals: --kind curve, position, groups or calibration",
    ),
    _Rule(
        ("seed",),
        _only(*RESAMPLED),
        "is for what is drawn at random: --kind curve, scatter or calibration",
    ),
    _Rule(
        ("allow_different",),
        lambda asked: asked.n_files > 1,
        "is for two RESULTS files or more",
    ),
    _Rule(
        ("title", "width", "height", "dpi", "force"),
        lambda asked: bool(asked.extension),
        "is for the plot: say where with -o FILE",
    ),
    _Rule(
        ("dpi",),
        lambda asked: asked.extension == ".png" or asked.kind is SCATTER,
        "is for pixels: -o FILE.png, or the points of --kind scatter",
    ),
)


def refuse_idle_flags(context: typer.Context, asked: Asked) -> None:
    """Raises UsageError for one on the command line that would do nothing; variables and
    configuration files are defaults for other plots, too."""
    flags = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    for rule in RULES:
        for name in rule.options:
            source = context.get_parameter_source(name)
            given = source is not None and source.name == "COMMANDLINE"
            if given and not rule.used(asked):
                raise UsageError(f"{flags[name]} {rule.mends}")
