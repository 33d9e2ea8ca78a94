"""Which code a run was made by."""

import importlib
import json
import shutil
import sys

import pytest
import runs
from composing import composed
from test_imports import TREES, reached

from tid import revision

MARGIN = """
from tid.component import component
from tid.scorers import Random
@component
class Margin(Random):
    pass
"""

DROPS = {"scorer": {"_target_": "tid.scorers.Random"}, "drop_schedule": {"_target_": "tid.schedules.Constant"}}


@pytest.fixture
def package(tmp_path):
    """A copy of the package's sources, as pip would install it: no git around it."""
    return shutil.copytree(revision.PACKAGE, tmp_path / "tid", ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of one's own with a scorer, as a function of the text after it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "own_margin.py"

    def write(more: str) -> dict:
        file.write_text(MARGIN + more)
        sys.modules.pop("own_margin", None)
        importlib.invalidate_caches()
        return DROPS | {"scorer": {"_target_": "own_margin.Margin"}}

    yield write
    sys.modules.pop("own_margin", None)


def checksum(package) -> str:
    return revision.hash_of(revision.reached(package))


def edit(package, name: str, more: str = "# one change\n") -> str:
    """The checksum with a line more in a module."""
    file = package / name
    before = file.read_text()
    file.write_text(before + more)
    found = checksum(package)
    file.write_text(before)
    return found


def test_the_checksum_follows_the_contents_alone(package):
    before = checksum(package)
    assert before == revision.SOURCE  # no git, another place, other times
    one, other = edit(package, "model.py"), edit(package, "model.py", "# another change\n")
    assert len({before, one, other}) == 3  # two dirty trees of one commit
    assert edit(package, "model.py", "") == before


def test_it_is_of_what_training_imports_and_of_nothing_else(package):
    before = checksum(package)
    for name in ("loop", "step", "flat", "data/batches", "data/__init__", "scorers", "job"):
        assert edit(package, f"{name}.py") != before, name
    others = ("card", "demo", "dashboard", "report", "compare", "inspect", "sample", "export", "bench", "train", "cli")
    for name in (*others, "diagnostics", "inspection/figures", "comparison/page", "sweep/pool", "benchmark/race"):
        assert edit(package, f"{name}.py") == before, name
    (package / "margin.py").write_text("")
    assert checksum(package) == before  # until somebody imports it
    (package / "step.py").write_text((package / "step.py").read_text() + "def later():\n    import tid.margin\n")
    imported = checksum(package)
    assert edit(package, "margin.py") != imported


def test_no_module_of_a_component_is_forgotten():
    """Those of the settings' own are reached by import, but for the groups that change no result."""
    looks_on = set().union(*(reached(name) for name in revision.LOOKS_ON))
    assert reached("tid.job") - looks_on <= revision.REACHED.keys() <= reached("tid.job") - revision.LOOKS_ON
    assert all(name.startswith("tid.") and name in TREES for name in revision.REACHED)
    config = composed()
    assert {group for group in revision.NO_RESULT if group in config} == set(revision.NO_RESULT)
    assert revision.own_source(config) == {}


def test_a_module_of_ones_own_counts_for_the_runs_that_use_it(mine):
    one = revision.own_source(mine(""))
    assert one.keys() == {"own_margin"} and one != revision.own_source(mine("# changed\n"))
    nested = DROPS | {"drop_mode": {"_target_": "tid.drop_modes.Zero", "parts": [{"_target_": "own_margin.Margin"}]}}
    assert revision.own_source(nested).keys() == {"own_margin"}
    assert revision.own_source(DROPS | {"tracker": {"_target_": "own_margin.Margin"}}) == {}
    assert revision.own_source(DROPS | {"scorer": {"_target_": "gone.Margin"}}) == {}
    assert revision.own_source(mine("") | {"drop_schedule": {"_target_": "tid.schedules.NoDrop"}}) == {}  # not used


def test_what_a_module_of_ones_own_imports_of_ones_own_counts_too(mine, tmp_path):
    files = {
        "__init__": "", "deep": "from . import deeper\nfrom .. import own_parts\n", "deeper": "import own_margin\n",
        "lazy": "", "spare": "",
    }  # fmt: skip
    (tmp_path / "own_parts/more").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / "own_parts" / f"{name}.py").write_text(text)
    (tmp_path / "own_parts/more/far.py").write_text("import numpy, torch.nn.functional, json, gone\n")
    config = mine("import own_parts.deep\ndef late():\n    from own_parts import lazy\n    import own_parts.more.far\n")
    reached = {"", ".deep", ".deeper", ".lazy", ".more.far"}
    assert revision.own_modules("own_margin").keys() == {"own_margin"} | {f"own_parts{name}" for name in reached}
    assert "own_parts" not in sys.modules  # nothing is imported to find out
    before = revision.own_source(config)
    assert before.keys() == {"own_margin"} and revision.own_source(config) == before
    for name in (*files, "more/far"):
        file = tmp_path / "own_parts" / f"{name}.py"
        text = file.read_text()
        file.write_text(text + "# changed\n")
        assert (revision.own_source(config) == before) == (name == "spare"), name
        file.write_text(text)


def test_a_module_in_a_package_of_ones_own_has_its_packages_with_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_all/inner").mkdir(parents=True)
    for name in ("own_all/__init__", "own_all/inner/__init__", "own_all/inner/margin", "own_all/other"):
        (tmp_path / f"{name}.py").write_text("from ..other import x\n" if name.endswith("margin") else "")
    found = revision.own_modules("own_all.inner.margin")
    assert found.keys() == {"own_all", "own_all.inner", "own_all.inner.margin", "own_all.other"}


def test_what_training_does_not_reach_of_tid_is_nobodys_own(mine):
    mine("import tid.report, tid.comparison.page\nfrom tid.inspection import study\n")
    assert revision.own_modules("own_margin").keys() == {"own_margin"}  # as it would be with tid installed
    assert revision.own_modules("tid.report").keys() == {"tid.report"}  # unless a component comes from there


def test_other_code_is_told_by_its_sources_whatever_the_commit(monkeypatch):
    monkeypatch.setattr(revision, "git_sha", lambda: "a" * 40 + "-dirty")
    assert not revision.is_other({"git_sha": "b" * 40, "source": revision.SOURCE}, {})  # a commit of the README
    assert revision.is_other({"git_sha": "a" * 40 + "-dirty", "source": "0" * 12}, {})
    assert not revision.is_other({}, {})


def test_other_code_of_ones_own_is_told_too(mine):
    config = mine("")
    recorded = revision.present(config)
    assert not revision.is_other(recorded, config)
    assert revision.is_other(recorded, mine("# changed\n"))
    assert not revision.is_other({"source": revision.SOURCE}, config)  # an older run, of which that is not known


def test_it_is_said_in_words():
    facts = {"git_sha": "c" * 40 + "-dirty", "source": "0123456789ab"}
    assert revision.in_words(facts) == "source 0123456789ab of commit cccccccccc with uncommitted changes"
    own = facts | {"own_source": {"mine": "ba9876543210"}}
    assert revision.in_words(own).startswith("source 0123456789ab, mine ba9876543210, of commit cccccccccc with")
    assert revision.in_words({"git_sha": "c" * 40}) == "commit cccccccccc"
    assert revision.in_words({"git_sha": None, "source": "0123456789ab"}) == "source 0123456789ab of an unknown commit"


def test_a_run_that_goes_on_with_other_code_is_of_both(mine):
    now, config = revision.SOURCE, mine("")
    own = revision.own_source(config)["own_margin"]
    assert revision.continued(None, {}) == revision.continued({"git_sha": "c" * 40}, {}) == revision.present()
    assert not revision.is_mixed(revision.continued({"source": now}, config))
    assert revision.continued({"source": now}, {})["source"] == now
    assert revision.continued({"source": "0" * 12}, {})["source"] == f"{'0' * 12}+{now}"
    before = {"source": "0" * 12, "own_source": {"own_margin": "1" * 12}}
    both = revision.continued(revision.continued(before, config), config)
    assert both["source"] == f"{'0' * 12}+{now}" and both["own_source"] == {"own_margin": f"{'1' * 12}+{own}"}
    assert revision.is_other(both, config) and revision.is_mixed(both)
    assert revision.is_mixed(revision.continued(before | {"source": now}, config))


def test_a_resumed_run_records_the_code_of_every_sitting(tmp_path):
    run = runs.train(tmp_path)
    assert runs.read(run, "summary.json")["source"] == revision.SOURCE
    status = runs.read(run, "status.json") | {"state": "preempted", "source": "0" * 12}
    (run / "status.json").write_text(json.dumps(status))
    assert runs.train(tmp_path) == run
    assert runs.read(run, "summary.json")["source"] == f"{'0' * 12}+{revision.SOURCE}"
    assert "warning: this run was begun by other code, and is of both" in (run / "logs/train.log").read_text()


def test_seeds_of_a_scorer_that_was_changed_between_them_are_told_apart(tmp_path, mine, monkeypatch):
    from tid.comparison import agreement
    from tid.comparison import runs as compared
    from tid.config import ConfigError

    short = ["total_steps=2", "eval_every=2", "drop_schedule=constant", "~scorer.of", "~scorer.source"]
    mine("")
    found = [runs.train(tmp_path, *short, "scorer._target_=own_margin.Margin")]
    found.append(runs.train(tmp_path, *short[:3], "scorer=random"))
    assert agreement.insist([compared.read(run) for run in found], []) == {}  # a scorer of tid's is held against it
    mine("# changed\n")
    found.append(runs.train(tmp_path, *short, "scorer._target_=own_margin.Margin", "seed=1"))
    read = [compared.read(run) for run in found]
    assert {run.summary["source"] for run in read} == {revision.SOURCE}
    with pytest.raises(ConfigError, match=r"differ in code,.*\n.*own_margin") as refused:
        agreement.insist(read, [])
    assert all(run.summary["own_source"]["own_margin"] in str(refused.value) for run in (read[0], read[2]))
