"""Each file in sweeps/ as `python -m tid.train -m sweeps=<name>` takes it."""

import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from runs import CONF

import sweeps
from hydra_plugins.tid_sweeps import register

SWEEPS = {path.stem: path for path in (sweeps.ROOT / "sweeps").glob("*.yaml")}
SWEEPERS = {"optuna": "OptunaSweeper", "cells": "CellSweeper"}


def chosen(path) -> str:
    """The sweeper that the file asks for."""
    entries = OmegaConf.to_container(OmegaConf.load(path)).get("defaults", [])
    named = [entry["override /hydra/sweeper"] for entry in entries if "override /hydra/sweeper" in entry]
    return named[0] if named else "cells"


@pytest.mark.parametrize("name", SWEEPS)
def test_it_has_the_sweeper_and_the_launcher_that_it_names(name):
    Plugins.instance()
    register()
    with initialize_config_dir(CONF, version_base="1.3"):
        found = compose("train", [f"sweeps={name}"], return_hydra_config=True).hydra
        assert found.sweeper._target_.endswith(SWEEPERS[chosen(SWEEPS[name])])
        assert found.launcher._target_.endswith("LocalLauncher")
        other = compose("train", [f"sweeps={name}", "hydra/sweeper=optuna"], return_hydra_config=True).hydra
        assert other.sweeper._target_.endswith("OptunaSweeper")


def test_there_are_sweeps_of_either_kind():
    assert {chosen(path) for path in SWEEPS.values()} == SWEEPERS.keys()


@pytest.mark.parametrize("name", sorted(name for name, path in SWEEPS.items() if chosen(path) == "optuna"))
def test_a_search_is_described_as_readme_has_it(name, tmp_path):
    pytest.importorskip("optuna")
    command = [sys.executable, "-m", "tid.train", "-m", f"sweeps={name}", "dry_run=true", "device=cpu"]
    done = subprocess.run(command, cwd=tmp_path, env=sweeps.environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "search of " in done.stdout + done.stderr and list(tmp_path.iterdir()) == []
