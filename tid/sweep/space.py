"""What a search chooses among, and the cells of a choice."""

from typing import Any

import optuna

from tid.config import ConfigError, SweepConfig, coerced
from tid.sweep.conduct import check_all, compare_command, winner_command
from tid.sweep.grid import Applying, Composer, Interval, search_space
from tid.sweep.plan import Cell, make_cells, sweep_folder
from tid.sweep.trials import has_result

NEW_SEEDS = 5  # for the winner's runs


class Space:
    """fixed: settings that stay; axes: key → list of values, or an interval; seeds: of every trial, as settings; ends:
    key → its values, of an interval the two ends; corners: all first values, and all last ones.

    What is known of a search before it starts, is known of its `points`; every option of a group is in some of them.
    """

    def __init__(self, settings: list[str], composer: Composer, retry_failed: bool) -> None:
        self.fixed, self.axes, self.seeds = search_space(settings)
        self.composer, self.retry_failed = composer, retry_failed
        self.ends = {
            key: [axis.low, axis.high] if isinstance(axis, Interval) else axis for key, axis in self.axes.items()
        }
        self.corners = [{key: values[end] for key, values in self.ends.items()} for end in (0, -1)]
        points = [self.corners[0], *(point for key in self.ends for pair in self.points(key) for point in pair)]
        self.applying = Applying([self.words(as_settings(point), self.seeds[0]) for point in points], composer)

    def points(self, key: str) -> list[list[dict[str, Any]]]:
        """For each value of the key that value beside those of either corner."""
        return [[corner | {key: value} for corner in self.corners] for value in self.ends[key]]

    def words(self, settings: list[str], seed: str) -> list[str]:
        return [*self.fixed, *settings, seed]

    def first(self) -> tuple[dict, list[str]]:
        """The configuration of the first corner, and those of the fixed settings that do not apply to it."""
        words = self.applying(self.words(as_settings(self.corners[0]), self.seeds[0]))
        return self.composer(words), [text for text in self.fixed if text not in words]

    def cells(self, settings: list[str], seeds: list[str] | None = None) -> list[Cell]:
        """A cell for each seed. Raises ConfigError for what cannot be run."""
        meant = [self.applying(self.words(settings, seed)) for seed in seeds or self.seeds]
        labels = [" ".join(word for word in words if word not in self.fixed) for words in meant]
        configs = [self.composer(words) | {"label": label} for words, label in zip(meant, labels, strict=True)]
        cells = make_cells(configs, meant, self.retry_failed)
        check_all(cells)
        return cells

    def check(self) -> list[Cell]:
        """A cell of each point that can be run. Raises ConfigError when there is none, and for a value that is refused,
        by its own key, beside both corners. All else is a matter of the combination, which fails a trial that meets it.
        """
        known: dict[str, Cell | ConfigError] = {}
        for key in self.ends:
            for pair in self.points(key):
                texts = [" ".join(as_settings(point)) for point in pair]
                known |= {text: self.tried(point) for text, point in zip(texts, pair, strict=True) if text not in known}
                found = [known[text] for text in texts]
                if all(isinstance(it, ConfigError) and str(it).startswith(f"{key}: ") for it in found):
                    raise found[0]
        cells = [it for it in known.values() if isinstance(it, Cell)]
        if known and not cells:
            raise next(iter(known.values()))
        return cells

    def tried(self, point: dict[str, Any]) -> Cell | ConfigError:
        try:
            return self.cells(as_settings(point), self.seeds[:1])[0]
        except ConfigError as error:
            return error

    def winner(self, params: dict[str, Any]) -> list[str]:
        """The settings that run the trial of these values again, with seeds that the search did not use."""
        meant = [self.applying(self.words(as_settings(params), seed)) for seed in self.seeds]
        chosen = [word for word in meant[0] if word not in (*self.fixed, self.seeds[0])]
        unused = 1 + max(coerced(self.composer(words))["seed"] for words in meant)
        return [*chosen, f"seed=range({unused},{unused + NEW_SEEDS})"]

    def idle(self, params: dict[str, Any]) -> set[str]:
        """Keys of the fixed settings that do not apply to these values."""
        words = self.applying(self.words(as_settings(params), self.seeds[0]))
        return {text.partition("=")[0] for text in self.fixed if text not in words}

    def advice(self, study: optuna.Study, sweep: SweepConfig) -> str:
        """What to do with what was found. Of a search among lists the trials may be compared; where there is an
        interval no two are alike in it, so that none is the control of another."""
        if not any(isinstance(axis, Interval) for axis in self.axes.values()):
            return compare_command([sweep_folder(sweep)])
        if not has_result(study):
            return "no trial has a result"
        params = study.best_trial.params
        command = winner_command(self.winner(params), {*self.axes, *self.idle(params)}, sweep.name)
        return f"the best trial again, with seeds that had no part in choosing it: {command}"


def as_settings(point: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in point.items()]
