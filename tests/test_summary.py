"""The command in summary.json makes the run again, whoever started it."""

import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from runs import CONF

from hydra_plugins.tid_sweeps import register
from tid.config import run_hash
from tid.summary import command
from tid.sweep import grid

SWEEPS = sorted(path.stem for path in Path(CONF, "sweeps").glob("*.yaml"))


def test_settings_are_quoted_and_what_is_about_the_launch_is_left_out():
    settings = ["scorer=entropy", "question=Does it pay?", "hydra/launcher=slurm", "hydra.launcher.timeout_min=9"]
    made = command([*settings, "retry_failed=true"])
    assert shlex.split(made) == ["python", "-m", "tid.train", "scorer=entropy", "question=Does it pay?"]


@pytest.mark.parametrize("sweep", SWEEPS)
def test_the_command_of_a_sweeps_cell_is_of_that_cell_alone(sweep):
    Plugins.instance()
    register()  # as the command line does
    with initialize_config_dir(CONF, version_base="1.3"):
        params = compose("train", [f"sweeps={sweep}"], return_hydra_config=True).hydra.sweeper.params
        fixed, space, seeds = grid.search_space(grid.settings_of(params, [f"sweeps={sweep}", "hydra/launcher=slurm"]))
        first = {key: axis.low if isinstance(axis, grid.Interval) else axis[0] for key, axis in space.items()}
        cell = [*fixed, *(f"{key}={value}" for key, value in first.items()), seeds[-1]]
        words = shlex.split(command(cell))
        assert words[:5] == ["python", "-m", "tid.train", "-m", "hydra/sweeper=cells"]
        (again,) = grid.combinations(grid.settings_of(params, words[4:]))
        composer = grid.Composer("train")
        assert run_hash(composer(again)) == run_hash(composer(cell))
