"""What can be known of a search before it starts."""

import pytest
from hydra import initialize_config_dir
from runs import CONF

from sweeps import space as space_of
from tid.config import ConfigError
from tid.sweep import grid

CYCLIC = ["experiment=quickstart", "drop_schedule=cyclic", "seed=3,5"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["drop_schedule.rate=interval(0.1,1.5)"], "drop_schedule.rate: wanted a value less than 1, got 1.5"),
        (["optim.lr=interval(-1e-3,1e-3)"], "optim.lr: wanted a value greater than 0, got -0.001"),
        (["drop_schedule.cycles=3,2,0,4"], "drop_schedule.cycles: wanted a value greater than or equal to 1, got 0"),
        (["drop_schedule.low=interval(0.4,0.5)"], "drop_schedule: low must be at most rate"),  # never possible
    ],
)
def test_what_no_trial_can_have_is_refused_before_the_start(settings, message):
    with initialize_config_dir(CONF, version_base="1.3"), pytest.raises(ConfigError, match=message):
        space_of(*CYCLIC, *settings).check()


@pytest.mark.parametrize("low", ["interval(0.0,0.5)", "interval(0.2,0.7)"])  # also where neither corner can be run
def test_what_only_some_combinations_can_have_is_left_to_the_trials(low):
    with initialize_config_dir(CONF, version_base="1.3"):
        space = space_of(*CYCLIC, f"drop_schedule.low={low}", "drop_schedule.rate=interval(0.1,0.6)")
        assert space.check()
        (cell, _) = space.cells(["drop_schedule.low=0.3", "drop_schedule.rate=0.4"])
        assert cell.label == "drop_schedule.low=0.3 drop_schedule.rate=0.4 seed=3"
        with pytest.raises(ConfigError, match="low must be at most rate"):
            space.cells(["drop_schedule.low=0.4", "drop_schedule.rate=0.3"])


def test_a_key_that_only_some_options_have_is_given_to_their_trials():
    with initialize_config_dir(CONF, version_base="1.3"):
        space = space_of(*CYCLIC, "scorer=none,entropy,random", "scorer.source=cached", "optim.lr=1e-3,1e-4")
        assert space.applying.remarks() == ["scorer.source applies to entropy, not to none, random"]
        assert {cell.config["scorer"].get("source") for cell in space.check()} == {"cached", None}
        (cell, _) = space.cells(["scorer=random", "optim.lr=1e-3"])
        assert "scorer.source=cached" not in cell.meant and cell.label == "scorer=random optim.lr=1e-3 seed=3"
        assert space.winner({"scorer": "random", "optim.lr": "1e-3"})[-1] == "seed=range(6,11)"
        assert space.idle({"scorer": "random", "optim.lr": "1e-3"}) == {"scorer.source"}
        assert space.idle({"scorer": "entropy", "optim.lr": "1e-3"}) == set()


def test_no_seed_is_searched_for():
    with initialize_config_dir(CONF, version_base="1.3"), pytest.raises(ConfigError, match="seed=0,1"):
        grid.search_space(["optim.lr=1e-2,1e-3", "seed=interval(0,5)"])
