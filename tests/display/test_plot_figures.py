"""What `seqloss plot` draws: every plotted number against one that is made another way."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from helpers.program import document
from helpers.results import row, rows_of, write
from seqloss_cli.analysis.plot_data import _baseline
from seqloss_cli.display import plots
from seqloss_cli.metrics.intervals import Estimate

Run = Callable[..., Any]
N = 40


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [
        write(tmp_path / f"{n}.jsonl", rows_of(N, 0.1 * n), model=f"step-{n}00") for n in (1, 6)
    ]


@pytest.fixture
def figure_of(run_cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """The figure that a command draws, and the numbers that it prints."""
    kept: list[Figure] = []

    def keep(draw: Callable[[Figure], None], *_: object) -> bytes:
        kept.append(Figure(layout="constrained"))
        with matplotlib.rc_context({"text.parse_math": False}):
            draw(kept[-1])
        return b""

    monkeypatch.setattr("seqloss_cli.display.plots.file_bytes", keep)

    def make(*words: object) -> tuple[Figure, Any]:
        output = ["-o", tmp_path / "drawn.svg", "--force", "--json"]
        numbers = document(run_cli("plot", *words, *output))
        return kept[-1], numbers

    return make


def losses_of(rows: list[dict[str, Any]]) -> list[float]:
    return [x for each in rows for x in each["token_losses"] if x is not None]


def labelled(figure: Figure) -> list[str]:
    """The names in the legend."""
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    return [text.get_text() for text in legend.get_texts()]


def of_errorbar(axes: Any, n: int) -> tuple[Any, Any, Any]:
    """The points of series n, and the ends of their intervals."""
    line, _, (bars,) = axes.containers[n]
    ends = np.array([s if len(s) else [[math.nan] * 2] * 2 for s in bars.get_segments()])
    return line.get_xydata(), ends[:, 0, 1], ends[:, 1, 1]


def test_the_histogram_draws_the_shares(figure_of: Any, files: list[Path]) -> None:
    figure, _ = figure_of(*files, "--kind", "histogram", "--unit", "bits")
    for n, patch in enumerate(figure.axes[0].patches):
        values, edges, _ = patch.get_data()
        losses = np.array(losses_of(rows_of(N, (0.1, 0.6)[n]))) / math.log(2)
        assert values == pytest.approx(100 * np.histogram(losses, edges)[0] / len(losses))
        mean = figure.axes[0].lines[n].get_xdata()[0]
        assert mean == pytest.approx(losses.mean())
        assert f"(mean {losses.mean():.4g})" in labelled(figure)[n]


def test_the_curve_draws_means_and_intervals(figure_of: Any, files: list[Path]) -> None:
    figure, _ = figure_of(*reversed(files), "--kind", "curve")
    (line,), (band,) = figure.axes[0].lines, figure.axes[0].collections
    lows = dict(band.get_paths()[0].vertices[1 : len(files) + 1].tolist())
    for x, y in line.get_xydata():
        rows = rows_of(N, x / 1000)
        losses = np.array(losses_of(rows))
        counts = np.array([each["n_scored"] for each in rows])
        sums = np.array([each["total_loss"] for each in rows])
        assert y == pytest.approx(losses.mean())
        residuals = sums - losses.mean() * counts
        error = math.sqrt(N / (N - 1) * (residuals**2).sum()) / counts.sum()
        # t of 97.5 % on 39 degrees
        assert lows[x] == pytest.approx(y * math.exp(-2.0226909 * error / y))
    assert [int(x) for x, _ in line.get_xydata()] == [100, 600]


def test_positions_draw_the_means_of_their_bins(figure_of: Any, files: list[Path]) -> None:
    figure, _ = figure_of(*files, "--kind", "position")
    for n, shift in enumerate((0.1, 0.6)):
        by_bin: dict[int, list[float]] = {}
        for each in rows_of(N, shift):
            for position, loss in enumerate(each["token_losses"]):
                if loss is not None:
                    by_bin.setdefault(position.bit_length(), []).append(loss)
        points, low, high = of_errorbar(figure.axes[0], n)
        assert points[:, 1] == pytest.approx([np.mean(by_bin[k]) for k in sorted(by_bin)])
        assert (low < points[:, 1]).all()
        assert (points[:, 1] < high).all()


def test_a_line_is_broken_where_no_position_is_scored(figure_of: Any, tmp_path: Path) -> None:
    losses = [None, 1.0, *[None] * 6, *[2.0] * 8]
    file = write(tmp_path / "g.jsonl", [row(f"r{n}", losses) for n in range(3)])
    figure, numbers = figure_of(file, "--kind", "position")
    y = figure.axes[0].containers[0][0].get_ydata()
    assert [p["first"] for p in numbers["series"][0]["positions"]] == [1, 8]
    assert [None if math.isnan(value) else value for value in y] == [1.0, None, None, 2.0]


def test_a_curve_is_broken_at_a_checkpoint_without_a_figure(figure_of: Any, tmp_path: Path) -> None:
    files = []
    for step in (1, 2, 3):
        rows = rows_of(10, 0.1)
        if step == 2:
            rows[0] = row("r0", [None, math.inf, 1.0, 1.0])
        files.append(write(tmp_path / f"{step}.jsonl", rows, model=f"step-{step}"))
    figure, _ = figure_of(*files, "--kind", "curve")
    points, low, _ = of_errorbar(figure.axes[0], 0)
    assert np.isnan(points[:, 1]).tolist() == [False, True, False]
    assert np.isfinite(low[[0, 2]]).all()  # no band, which shows nothing at a lone point


def test_the_scatter_draws_the_means_of_documents(figure_of: Any, files: list[Path]) -> None:
    figure, _ = figure_of(*files)
    (points,) = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    expected = [
        [each["total_loss"] / each["n_scored"] for each in rows_of(N, shift)]
        for shift in (0.1, 0.6)
    ]
    assert pytest.approx(np.array(expected)) == np.asarray(points.get_offsets()).T
    said = figure.axes[0].get_title(loc="right")
    assert said == f"B is higher on {N} of {N} documents,\nlower on 0"


def test_bars_are_the_means_of_their_groups(figure_of: Any, files: list[Path]) -> None:
    figure, _ = figure_of(*files, "--by", "set")
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    bars = [c for c in axes.containers if hasattr(c, "patches")]
    for n, shift in enumerate((0.1, 0.6)):
        for name, bar in zip(names, bars[n].patches, strict=True):
            rows = [each for each in rows_of(N, shift) if each["meta"]["set"] == name[0]]
            assert bar.get_width() == pytest.approx(np.mean(losses_of(rows)))
            assert name == f"{name[0]} ({len(rows)})"


def test_documents_of_a_group_are_shown_as_they_are_in_each_file(
    figure_of: Any, tmp_path: Path
) -> None:
    files = [
        write(
            tmp_path / f"{n}.jsonl",
            [row(f"r{k}", [None, 1.0], meta={"set": "a"}) for k in range(n)]
            + [row("b", [None, 1.0], meta={"set": "b"})],
            model=f"m{n}",
        )
        for n in (2, 5)
    ]
    figure, numbers = figure_of(*files, "--by", "set")
    assert {g["value"]: g["n_documents"] for g in numbers["groups"]} == {"a": [2, 5], "b": [1, 1]}
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert sorted(names) == ["a (2 to 5)", "b (1)"]


@pytest.mark.parametrize("by", ["width", "mass"])
def test_the_diagram_draws_the_shares_of_its_bins(
    figure_of: Any, files: list[Path], by: str
) -> None:
    figure, numbers = figure_of(*files, "--kind", "calibration", "--bins-by", by, "--bins", 7)
    tokens = [
        (math.exp(top[0]["log_prob"]), top[0]["id"] == id)
        for each in rows_of(N)
        for id, top in zip(each["token_ids"], each["top_logprobs"], strict=True)
        if top
    ]
    above, below = figure.axes
    for n, series in enumerate(numbers["series"]):
        points, low, high = of_errorbar(above, n)
        heights = below.patches[n].get_data()[0]
        for k, each in enumerate(series["bins"]):
            here = [t for t in tokens if each["low"] < t[0] <= each["high"]]
            sure, right = np.mean(here, axis=0)
            assert points[k] == pytest.approx([sure, right])
            assert 0 <= low[k] <= right <= high[k] <= 1
            width = each["high"] - each["low"]
            density = len(here) / len(tokens) / width
            assert heights[k] == pytest.approx(len(here) if by == "width" else density)
        error = series["expected_calibration_error"]
        shown = f"ECE {error['value']:.3f} [{error['low']:.3f}, {error['high']:.3f}]"
        assert labelled(figure)[n].endswith(f"\n{shown}")


def test_legends_stand_above_the_data(figure_of: Any, files: list[Path]) -> None:
    for kind in ("histogram", "position", "calibration"):
        figure, _ = figure_of(*files, "--kind", kind)
        figure.draw_without_rendering()
        axes = figure.axes[0]
        assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1


def test_what_is_left_out_stands_in_the_figure(figure_of: Any, tmp_path: Path) -> None:
    """One row alone, one whose other tokens are scored, and one of which nothing is."""
    rows = [row(f"r{n}", [None, 1.0, 2.0]) for n in range(5)]
    first = write(tmp_path / "a.jsonl", [*rows, row("none", [None])], model="step-1")
    rows[1] = row("r1", [None, None, 2.0])
    second = write(tmp_path / "b.jsonl", [*rows[1:], row("none", [None])], model="step-2")
    for kind in ("curve", "scatter"):
        figure, numbers = figure_of(first, second, "--kind", kind)
        assert numbers["rows"] == {
            "n_joined": 5,
            "n_used": 3,
            "left_out": {"other tokens are scored": 1, "nothing scored": 1},
            "n_alone": [1, 0],
        }
        assert "3 documents; 3 rows left out" in figure.axes[0].get_title(loc="right")


@pytest.mark.parametrize("kind", ["histogram", "position", "calibration", "groups"])
def test_a_plot_of_one_file_names_its_model(figure_of: Any, files: list[Path], kind: str) -> None:
    by = ("--by", "set") if kind == "groups" else ()
    figure, _ = figure_of(files[0], "--kind", kind, *by)
    (name,) = labelled(figure)
    assert name.startswith("step-100")


def test_names_without_steps_are_rows_of_dots(figure_of: Any, tmp_path: Path) -> None:
    names = ["zebra", "a-model-with-a-name-of-some-length", "ant"]
    files = [
        write(tmp_path / f"{n}.jsonl", rows_of(N, 0.2 * n), model=name)
        for n, name in enumerate(names)
    ]
    figure, numbers = figure_of(*files, "--kind", "curve")
    (axes,) = figure.axes
    (dots, _, _) = axes.containers[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    means = [point["estimate"]["value"] for point in numbers["points"]]
    assert dots.get_xydata().tolist() == [[mean, n] for n, mean in enumerate(means)]
    assert dots.get_linestyle() == "None"
    assert axes.yaxis_inverted()
    assert axes.get_xlabel() == "Mean loss (nats per token)"


def test_groups_that_differ_little_are_dots_on_an_axis_that_says_where_it_begins(
    figure_of: Any, tmp_path: Path
) -> None:
    rows = [
        row(f"r{n}", [None, 6.0 + n % 7 / 50 + (n % 2) / 5], meta={"set": "ab"[n % 2]})
        for n in range(40)
    ]
    figure, numbers = figure_of(write(tmp_path / "r.jsonl", rows), "--by", "set")
    (axes,) = figure.axes
    assert axes.get_xlim()[0] == numbers["baseline"] == 6
    assert axes.get_xlabel().endswith("; the axis begins at 6")
    assert len(axes.patches) == 0
    (dots, _, _) = axes.containers[0]
    values = [group["estimates"][0]["value"] for group in numbers["groups"]]
    assert dots.get_xdata().tolist() == values


def test_groups_that_differ_much_are_bars_from_0(figure_of: Any, tmp_path: Path) -> None:
    rows = [row(f"r{n}", [None, 1.0 + 3 * (n % 2)], meta={"set": n % 2}) for n in range(40)]
    figure, numbers = figure_of(write(tmp_path / "r.jsonl", rows), "--by", "set")
    assert figure.axes[0].get_xlim()[0] == numbers["baseline"] == 0
    assert len(figure.axes[0].patches) == 2
    assert "begins" not in figure.axes[0].get_xlabel()


@given(values=st.lists(st.floats(0.001, 1e6), min_size=1, max_size=9), reach=st.floats(0, 0.5))
def test_no_dot_lies_left_of_the_axis(values: list[float], reach: float) -> None:
    estimates = [
        Estimate(value, low=value * (1 - reach), high=value * (1 + reach)) for value in values
    ]
    least, most = min(e.low or 0 for e in estimates), max(e.high or 0 for e in estimates)
    begins = _baseline(estimates)
    assert 0 <= begins < least
    # What is drawn fills a good part of the axis, or begins at 0.
    if not most > least or most - least >= most / 2:
        assert begins == 0
    elif most - least > 1e-9 * most:
        assert most - begins <= 2.2 * (most - least)


def test_positions_say_of_how_many_documents(figure_of: Any, tmp_path: Path) -> None:
    rows = [row(f"r{n}", [None, *[1.0 + n / 10] * (2 if n else 9)]) for n in range(6)]
    figure, _ = figure_of(write(tmp_path / "r.jsonl", rows, model="m"), "--kind", "position")
    assert labelled(figure) == ["m (6 documents, 1 in the last bin)"]
    alike = write(tmp_path / "s.jsonl", [row(f"r{n}", [None, 1.0]) for n in range(6)], model="m")
    figure, _ = figure_of(alike, "--kind", "position")
    assert labelled(figure) == ["m (6 documents)"]


@pytest.mark.parametrize(("n_sure", "scale"), [(1, "log"), (150, "linear")])
def test_an_axis_on_a_logarithmic_scale_says_so(
    figure_of: Any, tmp_path: Path, n_sure: int, scale: str
) -> None:
    chances = [0.01] * 200 + [0.9] * n_sure
    tops = [None, *([{"id": 1, "token": "a", "log_prob": math.log(c)}] for c in chances)]
    made = row("r", [None, *[1.0] * len(chances)])
    rows = [made | {"id": f"r{n}", "top_logprobs": tops} for n in range(6)]
    figure, _ = figure_of(write(tmp_path / "r.jsonl", rows), "--kind", "calibration")
    below = figure.axes[1]
    assert below.get_yscale() == scale
    assert ("log scale" in below.get_ylabel()) == (scale == "log")


@pytest.mark.parametrize("width", [1.5, 3, 4.5])
@pytest.mark.parametrize("kind", ["histogram", "position", "calibration"])
def test_a_legend_fits_its_figure(figure_of: Any, tmp_path: Path, kind: str, width: float) -> None:
    file = write(tmp_path / "r.jsonl", rows_of(N), model="a-model-with-a-name-" * 5)
    figure, _ = figure_of(file, "--kind", kind)
    figure.set_size_inches(width, 3)
    (axes,) = [axes for axes in figure.axes if axes.get_legend()]
    with matplotlib.rc_context(plots._STYLE):
        plots.legend(axes)
        drawn = axes.get_legend()
        figure.draw_without_rendering()
    assert drawn.get_window_extent().x0 >= 0
    assert drawn.get_window_extent().x1 <= figure.bbox.x1
