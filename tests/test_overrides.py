"""A command line's settings as Hydra is to get them. What is refused: test_cli.py."""

from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.plugins import Plugins
from runs import CONF

from hydra_plugins.tid_sweeps import register
from tid import overrides
from tid.sweep import grid


@pytest.fixture(autouse=True)
def plugins():
    Plugins.instance()
    register()


@pytest.mark.parametrize(
    ("settings", "hidden"),
    [
        (["scorer=entropy,unigram", "scorer.smoothing=2"], True),
        (["scorer=unigram,entropy", "scorer.smoothing=2"], True),
        (["sweeps=scorers", "scorer.smoothing=2"], True),
        (["sweeps=scorers", "scorer=unigram", "scorer.smoothing=2"], False),
        (["scorer=unigram,random", "scorer.smoothing=2,3"], False),  # Hydra leaves these to the cells anyway
        (["scorer=entropy,surprisal", "scorer.of=predicting"], False),
        (["seed=0,1", "optim.lr=1e-3"], False),
        (["scorer=unigram,entropy", "~scorer.smoothing"], False),
    ],
)
def test_one_value_for_a_key_that_only_some_options_have_is_left_to_the_cells(settings, hidden):
    _, found = overrides.examine(settings, CONF, "train", multirun=True)
    assert found == [*settings[:-1], "scorer.smoothing=choice(2)"] if hidden else found == settings


def test_it_comes_to_the_options_that_have_it():
    with initialize_config_dir(CONF, version_base="1.3"):
        cells = grid.combinations(["scorer=entropy,unigram", "scorer.smoothing=choice(2)"])
        composed, _ = grid.compose_all("train", cells, Path("nowhere"))
    assert [config["scorer"].get("smoothing") for config in composed.configs] == [None, 2]
    assert composed.remarks == ["scorer.smoothing applies to unigram, not to entropy"]
