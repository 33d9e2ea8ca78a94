"""Each file in sweeps/ as `python -m tid.train -m sweeps=<name>` takes it."""

import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from runs import CONF

import sweeps
from hydra_plugins.tid_sweeps import CellLauncher, RayLauncher, SlurmLauncher, register
from tid.config import ConfigError

SWEEPS = sorted(path.stem for path in (sweeps.ROOT / "sweeps").glob("*.yaml"))
SEARCHES = [name for name in SWEEPS if name.startswith("optuna_")]


@pytest.mark.parametrize("name", SWEEPS)
def test_it_has_the_sweeper_and_the_launcher_that_it_names(name):
    Plugins.instance()
    register()
    with initialize_config_dir(CONF, version_base="1.3"):
        found = compose("train", [f"sweeps={name}"], return_hydra_config=True).hydra
        assert found.sweeper._target_.endswith("OptunaSweeper" if name in SEARCHES else "CellSweeper")
        assert found.launcher._target_.endswith("LocalLauncher")
        other = compose("train", [f"sweeps={name}", "hydra/sweeper=optuna"], return_hydra_config=True).hydra
        assert other.sweeper._target_.endswith("OptunaSweeper")
        assert other.sweeper.objective == "best/val_select_loss"  # the odd documents are for the report


def dry_run(folder, *words: str) -> str:
    """What is said of a sweep that is only to be listed; nothing may be written."""
    command = [sys.executable, "-m", "tid.train", "-m", *words, "dry_run=true"]
    done = subprocess.run(command, cwd=folder, env=sweeps.environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return done.stdout + done.stderr


def test_a_search_is_described_as_readme_has_it(tmp_path):
    pytest.importorskip("optuna")
    assert "search of " in dry_run(tmp_path, "sweeps=optuna_random", "device=cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_what_this_machine_would_refuse_is_listed_all_the_same(tmp_path):
    said = dry_run(tmp_path, "sweeps=scorers")
    assert "33 runs: 33 to be run" in said
    assert "one after the other for the training steps alone, judged by the speed of this CPU" in said
    assert "it would be refused: no CUDA device, and on this CPU each of 33 runs would take" in said


def test_a_package_that_a_launcher_needs_is_asked_for_at_once():
    class Elsewhere(CellLauncher):
        needs = "no_such_package"

    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", return_hydra_config=True)
    OmegaConf.set_struct(config, False)
    config.hydra.runtime.choices = {"hydra/launcher": "elsewhere"}
    with pytest.raises(ConfigError, match="hydra/launcher=elsewhere: needs no_such_package; pip install"):
        Elsewhere().setup(hydra_context=None, task_function=None, config=config)
    assert (SlurmLauncher.needs, RayLauncher.needs) == ("submitit", "ray")
    config.dry_run = True
    Elsewhere().setup(hydra_context=None, task_function=None, config=config)
