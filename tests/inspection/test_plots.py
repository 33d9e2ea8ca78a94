"""The figures about what is dropped: where their lines and labels are."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from test_figures import PIECES, marks

from tid.inspection import plots
from tid.inspection.figures import Rates, diagnose, wilson
from tid.reporting import curves
from tid.reporting.facts import Facts


def rates(groups: list[str], **dropped: list[int]) -> Rates:
    """Of ten tokens in each group."""
    seen = np.full(len(groups), 10)
    ends = {name: wilson(np.array(hits), seen) for name, hits in dropped.items()}
    low, high = ({name: both[side] for name, both in ends.items()} for side in (0, 1))
    return Rates("place", "", groups, seen, {name: np.array(hits) / 10 for name, hits in dropped.items()}, low, high)


def levels(axes: Axes) -> list[float]:
    """Of the lines from edge to edge."""
    return [
        line.get_ydata()[0] for line in axes.lines if line.get_transform() == axes.get_yaxis_transform(which="grid")
    ]


def test_the_dashed_line_is_at_what_was_dropped_and_not_at_what_was_asked_for():
    keep = [True, False, True, True, True, False, True, True]
    found = diagnose(marks([0, 1, 2, 3, 0, 1, 1, 1], keep), np.ones(len(PIECES), int), PIECES)
    assert found.rate == 0.5
    assert levels(plots.figures(found)["position"][0].axes[0]) == [2 / 6]


def test_scorers_that_drop_alike_have_one_line_in_common():
    two = rates(["a", "b", "c"], one=[3, 4, 2], other=[2, 5, 2])
    assert levels(plots.drop_rate(two, 0.3, 0.301).axes[0]) == [0.3]
    assert levels(plots.drop_rate(two, 0.2, 0.4).axes[0]) == [0.2, 0.4]


@pytest.mark.parametrize(
    "groups",
    [
        ["0", "1–9", "10–99", "100–999", "1k–9k", "10k–99k", "100k–999k"],
        ["0", "1–9", "10–99", "100–999", "1k–9k", "10k–99k", "100k–999k", "1M–9M", "10M–99M", "100M–999M"],
        [f"{64 * n}–{64 * n + 63}" for n in range(16)],
    ],
)
def test_labels_of_neighbours_do_not_touch(groups):
    figure = plots.drop_rate(rates(groups, one=[3] * len(groups)), 0.3)
    FigureCanvasAgg(figure).draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    letter = boxes[0].height / 2
    assert all(one.x1 + letter / 2 < other.x0 for one, other in zip(boxes[:-1], boxes[1:], strict=True))


def test_a_runs_drop_rates_stand_in_the_middle_of_their_steps():
    ends = [10, 16, 20, 30]
    rows = [{"step": end, "drop_rate_scheduled": 0.1, "drop_rate_realised": 0.1} for end in ends]
    axes = curves.drops(Facts(Path(), {}, {}, None, rows, [], [])).axes[0]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[5, 13, 18, 25]] * 2
