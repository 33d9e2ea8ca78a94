"""The curves of one run, as matplotlib Figures."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from tid.comparison.drawing import DASHES, OKABE_ITO, PAPER
from tid.inspection.plots import WIDTH, dress, legend
from tid.reporting.facts import Facts

SETTLED = 0.04  # of the way: the loss before is out of the picture
WIDE = 30  # a range of the gradient norm that wants a logarithmic axis
BLUE, ORANGE, GREEN = OKABE_ITO[:3]


def figures(facts: Facts) -> dict[str, tuple[Figure, str]]:
    """Every curve that the run has logged, by name, with what it shows."""
    words = "Loss in nats per token: of training with its tokens dropped, and of validation with none dropped."
    found = {"loss": (loss(facts), words)}
    if not facts.is_baseline:
        found["drops"] = (
            drops(facts),
            "Share of the droppable tokens that were dropped: scheduled, and as it came out.",
        )
    if len(facts.diagnostics) > 1:
        words = (
            "Above: what the keep mask tells of a token, in bits. Below: churn, the share of the dropped tokens that "
            "were kept at the next figures; dotted: of masks that have nothing in common."
        )
        found["mask"] = (mask(facts), words)
    found["optim"] = (optim(facts), "Learning rate, and the gradient's norm before clipping.")
    found["speed"] = (speed(facts), "Milliseconds per step; shaded: the part that is scoring.")
    return found


def panels(number: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    found = list(figure.subplots(number, 1, sharex=True, squeeze=False)[:, 0])
    for axes in found:
        dress(axes)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    found[-1].set_xlabel("step")
    return figure, found


def loss(facts: Facts) -> Figure:
    figure, (axes,) = panels(1, 3.1)
    steps, train = facts.column("train_loss")
    evaluated, val = facts.column("val_loss")
    axes.plot(steps, train, color=BLUE, lw=0.9, alpha=0.8, label="training")
    axes.plot(
        evaluated, val, color=ORANGE, ls=DASHES[1], marker="o", ms=4, mec=PAPER, mew=0.4, lw=1.6, label="validation"
    )
    late = steps >= SETTLED * facts.config["total_steps"]
    if late.sum() > 5:
        seen = np.concatenate((train[late], val))
        margin = 0.05 * (seen.max() - seen.min()) or 0.01
        axes.set_ylim(seen.min() - margin, seen.max() + margin)
    axes.set_ylabel("nats per token")
    legend(figure, axes)
    return figure


def drops(facts: Facts) -> Figure:
    figure, (axes,) = panels(1, 2.6)
    for name, colour, dashes, width in (("scheduled", BLUE, "-", 3.0), ("realised", ORANGE, DASHES[1], 1.2)):
        ends, rates = facts.column(f"drop_rate_{name}")
        begins = np.append(0, ends[:-1])  # a row's rates are means over the steps since the row before
        axes.plot(
            (begins + ends) / 2,
            rates,
            color=colour,
            ls=dashes,
            lw=width,
            alpha=0.6 if width > 2 else 1,
            label=name,
        )
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel("dropped")
    legend(figure, axes)
    return figure


def mask(facts: Facts) -> Figure:
    figure, (told, churn) = panels(2, 3.4)
    steps = np.array([found["step"] for found in facts.diagnostics])

    def series(part: str, key: str) -> np.ndarray:
        return np.array([next(iter(found[part].values()))[key] for found in facts.diagnostics], dtype=float)

    told.plot(steps, series("own", "mask"), color=GREEN, lw=1.0, ls=DASHES[2], label="the bit itself")
    told.plot(steps, series("own", "told"), color=BLUE, marker="o", ms=4, mec=PAPER, label="of the token")
    told.plot(
        steps, series("following", "told"), color=ORANGE, ls=DASHES[1], marker="s", ms=4, mec=PAPER, label="of the next"
    )
    told.set_ylabel("bits")
    rate = np.array([next(iter(found["drop_rate"].values())) for found in facts.diagnostics])
    churn.plot(steps, [np.nan if f["churn"] is None or f["churn"] == [] else f["churn"] for f in facts.diagnostics],
               color=BLUE, marker="o", ms=4, mec=PAPER)  # fmt: skip
    churn.plot(steps, 1 - rate, color=GREEN, ls=DASHES[2], lw=1.0)
    churn.set_ylim(0, 1)
    churn.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    churn.set_ylabel("churn")
    legend(figure, told)
    return figure


def optim(facts: Facts) -> Figure:
    figure, (rate, norm) = panels(2, 3.1)
    rate.plot(*facts.column("lr"), color=BLUE, lw=1.4)
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    steps, norms = facts.column("grad_norm")
    norm.plot(steps, norms, color=ORANGE, lw=0.9)
    if len(norms) and norms.max() > WIDE * max(norms.min(), 1e-12):
        norm.set_yscale("log")
    else:
        norm.set_ylim(bottom=0)
    norm.set_ylabel("gradient norm")
    return figure


def speed(facts: Facts) -> Figure:
    figure, (axes,) = panels(1, 2.6)
    axes.plot(*facts.column("step_ms"), color=BLUE, lw=1.2)
    axes.fill_between(*facts.column("score_ms"), color=ORANGE, alpha=0.35, lw=0)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("ms per step")
    return figure
