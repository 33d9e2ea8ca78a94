"""Each file in sweeps/ as `python -m tid.train -m sweeps=<name>` takes it."""

import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from runs import CONF

import sweeps
from hydra_plugins.tid_sweeps import register

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


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_is_described_as_readme_has_it(name, tmp_path):
    pytest.importorskip("optuna")
    command = [sys.executable, "-m", "tid.train", "-m", f"sweeps={name}", "dry_run=true", "device=cpu"]
    done = subprocess.run(command, cwd=tmp_path, env=sweeps.environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "search of " in done.stdout + done.stderr and list(tmp_path.iterdir()) == []
