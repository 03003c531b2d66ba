"""Plots for papers: the numbers behind each kind, and its drawing."""

from seqloss_cli.display.plots.calibrations import (
    CalibrationOptions,
    CalibrationPlot,
    calibration_plot,
)
from seqloss_cli.display.plots.charts import MOST_SERIES, Plot, draw, size_of
from seqloss_cli.display.plots.curves import CurvePlot, curve_of_objective, curve_plot, is_objective
from seqloss_cli.display.plots.groups import MOST_GROUPS, GroupsPlot, groups_plot, position_plot
from seqloss_cli.display.plots.histograms import HistogramPlot, histogram_plot
from seqloss_cli.display.plots.measures import Measure, Metric, without_directories
from seqloss_cli.display.plots.scatters import ScatterPlot, scatter_plot
from seqloss_cli.display.plots.style import Paper, drawn, require_matplotlib
from seqloss_cli.display.plots.together import RowsTaken, Together

__all__ = [
    "MOST_GROUPS",
    "MOST_SERIES",
    "CalibrationOptions",
    "CalibrationPlot",
    "CurvePlot",
    "GroupsPlot",
    "HistogramPlot",
    "Measure",
    "Metric",
    "Paper",
    "Plot",
    "RowsTaken",
    "ScatterPlot",
    "Together",
    "calibration_plot",
    "curve_of_objective",
    "curve_plot",
    "draw",
    "drawn",
    "groups_plot",
    "histogram_plot",
    "is_objective",
    "position_plot",
    "require_matplotlib",
    "scatter_plot",
    "size_of",
    "without_directories",
]
