"""The short tour: ``python -m tid.demo`` trains a small model twice, with and without dropping, and compares.

It runs the same commands that a user would type; runs that are done already are not run again.
"""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib

from tid.logs import read_metrics

RUNS = {
    "no drop": ["drop_schedule=none"],
    "entropy, linear decay": ["scorer=entropy", "drop_schedule=linear_decay"],
}
FOLDER = Path("outputs/demo")


def main() -> None:
    """Train both, print the table, draw the curves. Exits with the code of a run that fails."""
    folders = {label: trained(label, settings) for label, settings in RUNS.items()}
    print(f"\n{table(folders)}\n")
    picture = FOLDER / "curves.png"
    draw(folders, picture)
    print(f"{'curves':<22} {picture}")
    for label, folder in folders.items():
        print(f"{label:<22} {folder}")
    print(
        "\nOne seed each shows that it works, not which is better. Next:\n"
        "  python -m tid.train experiment=quickstart scorer=random drop_mode=mask_aux     your own run\n"
        "  python -m tid.evaluate checkpoint=<one of the folders above>                   its figures, per document\n"
        "  python -m tid.train --help                                                     everything else"
    )


def trained(label: str, settings: list[str]) -> Path:
    """Folder of the finished run with `settings`."""
    command = ["-m", "tid.train", "experiment=quickstart", "name=demo", *settings]
    print(f"\n{label}: python {' '.join(command)}", flush=True)
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return Path(done.stdout.strip().splitlines()[-1])


def table(folders: dict[str, Path]) -> str:
    """One line per run: best and final validation loss and bpc, mean drop rate, step time and scoring's part of it."""
    header = ("run", "val loss", "best", "bpc", "drop rate", "ms/step", "scoring ms")
    lines = [header]
    for label, folder in folders.items():
        found = json.loads((folder / "summary.json").read_text())
        final, best = found["final"], found["best"]
        numbers = (final["val_loss"], best["val_loss"], final["val_bpc"], found["drop_rate"])
        times = (found["step_ms"], found["score_ms"])
        lines.append((label, *(f"{x:.3f}" for x in numbers), *(f"{x:.0f}" for x in times)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, tuple("-" * width for width in widths))
    aligned = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join("  ".join(cells) for cells in aligned)


def draw(folders: dict[str, Path], picture: Path) -> None:
    """Training loss, validation loss and drop rate against tokens, as PNG."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=(2, 1), layout="constrained")
    colours = ("#000000", "#D55E00")  # told apart by the colour-blind too
    for colour, (label, folder) in zip(colours, folders.items(), strict=True):
        rows, _ = read_metrics(folder)
        validated = [row for row in rows if "val_loss" in row]
        tokens = [row["tokens"] for row in rows]
        left.plot(tokens, [row["train_loss"] for row in rows], color=colour, alpha=0.35, lw=1)
        left.plot([row["tokens"] for row in validated], [row["val_loss"] for row in validated], "o-", color=colour,
                  ms=4, label=label)  # fmt: skip
        right.plot(tokens, [row["drop_rate_realised"] for row in rows], color=colour)
    left.set(xlabel="training tokens", ylabel="loss (nats per token)", title="validation (dots), training (faint)")
    right.set(xlabel="training tokens", ylabel="fraction of tokens", title="dropped")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 3))
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
