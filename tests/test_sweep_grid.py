"""From a sweep's settings to its cells, in this process."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import runs
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import SearchPathElement
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from runs import CONF
from tiny import tiny_shape

from hydra_plugins.tid_sweeps import register
from tid.config import ConfigError, canonical, is_baseline, plain, run_hash
from tid.llama import llama_config, write_weights
from tid.sweep import grid
from tid.sweep.cell import train_frozen
from tid.sweep.labels import labels
from tid.sweep.plan import Cell, Slot, expected_seconds, freeze, look, make_cells
from tid.sweep.screen import Screen

SWEEPS = sorted(path.stem for path in Path(CONF, "sweeps").glob("*.yaml"))
SMALL = ["experiment=quickstart"]


@pytest.fixture
def hydra():
    Plugins.instance()
    register()
    with initialize_config_dir(CONF, version_base="1.3"):
        yield


def configs_of(settings: list[str]) -> list[dict]:
    composer = grid.Composer("train")
    return [composer(cell) for cell in grid.combinations(settings)]


def params_of(sweep: str) -> list[str]:
    cfg = compose("train", [f"sweeps={sweep}"], return_hydra_config=True)
    return grid.settings_of(cfg.hydra.sweeper.params, [f"sweeps={sweep}"])


def test_every_combination_and_the_command_line_wins(hydra):
    settings = grid.settings_of({"scorer": "entropy,random", "seed": "range(3)"}, ["seed=5,6", "context=64"])
    assert grid.combinations(settings) == [
        [f"scorer={scorer}", f"seed={seed}", "context=64"] for scorer in ("entropy", "random") for seed in (5, 6)
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("scorer=entropy,randm", "did you mean scorer=random?"),
        ("drop_schedule.rate=interval(0,1)", "hydra/sweeper=optuna"),
    ],
)
def test_what_cannot_be_enumerated_is_refused(hydra, setting, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        grid.combinations([setting])


def test_composing_quickly_is_composing_as_hydra_does(hydra):
    settings = [
        *SMALL, "scorer=entropy,none", "drop_schedule=constant,uniform", "drop_schedule.rate=0.1,0.2", "seed=0,1",
        "optim={lr:1e-4}", "+data.extra=1", "context=64",
    ]  # fmt: skip
    settings.remove("optim={lr:1e-4}")  # a group takes an option only
    cells = grid.combinations(settings)
    assert configs_of(settings) == [plain(compose("train", cell)) for cell in cells] and len(cells) == 16


def composed(*settings: str) -> grid.Composed:
    return grid.compose_all("train", grid.combinations(list(settings)), Path("nowhere"))[0]


@pytest.mark.parametrize(
    ("settings", "remark", "having"),
    [
        (
            ["scorer=entropy,random,grad_norm", "scorer.source=cached"],
            "scorer.source applies to entropy, grad_norm, not to random",
            {"Entropy": "cached", "GradNorm": "cached", "Random": None},
        ),
        (
            ["drop_schedule=none,constant,early", "drop_schedule.rate=0.2"],
            "drop_schedule.rate applies to constant, early, not to none",
            {"Constant": 0.2, "Early": 0.2, "NoDrop": None},
        ),
        (
            ["experiment=entrodrop,importance_mir", "drop_schedule.midpoint=0.25"],  # which choose a schedule each
            "drop_schedule.midpoint applies to sigmoid_ramp, not to uniform",
            {"SigmoidRamp": 0.25, "Uniform": None},
        ),
    ],
)
def test_a_key_that_only_some_options_have_is_given_to_those(hydra, settings, remark, having):
    found = composed(*settings)
    assert found.remarks == [remark]
    group, _, key = settings[1].partition("=")[0].partition(".")
    nodes = [config[group] for config in found.configs]
    assert {node["_target_"].rpartition(".")[2]: node.get(key) for node in nodes} == having
    assert [settings[1] in words for words in found.settings] == [key in node for node in nodes]


def test_cells_that_become_equal_by_what_does_not_apply_are_one(hydra):
    found = composed(*SMALL, "drop_schedule=none,constant", "drop_schedule.rate=0.1,0.2")
    cells = make_cells(found.configs, found.settings, retry_failed=False)
    assert [cell.label for cell in cells] == [
        "no_drop seed=0",
        "drop_schedule=constant drop_schedule.rate=0.1 seed=0",
        "drop_schedule=constant drop_schedule.rate=0.2 seed=0",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["scorer=entropy,random", "scorer.sauce=cached"], "scorer.sauce: unknown key; did you mean scorer.source?"),
        (["scorer=random", "scorer.of=predicted"], "scorer.of: unknown key; scorer=random has no keys"),
        (["scorer=entropy,random", "context.of=1"], "context.of: unknown key"),
    ],
)
def test_a_key_that_no_cell_has_is_refused_by_name(hydra, settings, message):
    with pytest.raises(ConfigError) as refusal:
        composed(*settings)
    assert message in str(refusal.value)


def test_a_range_has_the_numbers_that_were_meant(hydra):
    def values(setting: str) -> list[str]:
        return [words[0].partition("=")[2] for words in grid.combinations([setting])]

    assert values("drop_schedule.rate=range(0.1,0.5,0.1)") == ["0.1", "0.2", "0.3", "0.4"]
    assert values("optim.lr=range(-0.3,0.1,0.1)") == ["-0.3", "-0.2", "-0.1", "0.0"]
    assert values("optim.lr=range(0.3,0,-0.1)") == ["0.3", "0.2", "0.1"]
    assert values("seed=range(3)") == ["0", "1", "2"]
    assert values("optim.lr=0.30000000000000004,1e-3") == ["0.30000000000000004", "0.001"]  # given, not added up
    _, space, _ = grid.search_space(["drop_schedule.rate=range(0.1,0.5,0.1)"])
    assert space == {"drop_schedule.rate": ["0.1", "0.2", "0.3", "0.4"]}


def test_a_baseline_is_one_cell_whatever_would_drop_nothing(hydra):
    settings = [*SMALL, "scorer=entropy,random,none", "drop_schedule=linear_decay,none", "seed=0,1"]
    configs = configs_of(settings)
    cells = make_cells(configs, grid.combinations(settings), retry_failed=False)
    assert len(configs) == 12 and len(cells) == 6
    assert sum(is_baseline(cell.config) for cell in cells) == 2
    assert {cell.label for cell in cells} == {
        f"{what} seed={seed}" for what in ("no_drop", "scorer=entropy drop_schedule=linear_decay",
        "scorer=random drop_schedule=linear_decay") for seed in (0, 1)
    }  # fmt: skip


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_ablation_asks_a_question_and_holds_its_controls(hydra, sweep):
    text = Path(CONF, "sweeps", f"{sweep}.yaml").read_text()
    assert text.startswith("# @package _global_\n# ") and "?" in text.splitlines()[1] and "\nquestion: " in text
    settings = params_of(sweep)
    if "optuna" in text:
        return
    configs = configs_of(settings)
    assert {config["name"] for config in configs} == {sweep} and all(config["question"] for config in configs)
    baselines = [config for config in configs if is_baseline(config)]
    seeds = {config["seed"] for config in configs}
    assert {config["seed"] for config in baselines} == seeds
    unique = {run_hash(config): config for config in configs}
    hashes = set(unique)
    assert len(set(labels(list(unique.values())))) == len(unique)  # each can be told from the others
    assert len({run_hash(config) for config in baselines}) == len(seeds)
    for config in configs:  # and for each the random one at the same rate
        if not is_baseline(config):
            assert run_hash(config | {"scorer": {"_target_": "tid.scorers.Random"}}) in hashes


def test_labels_show_what_differs_within_an_option_too(hydra):
    configs = configs_of([*SMALL, "scorer=entropy", "scorer.of=predicted,predicting", "optim.lr=1e-3,1e-4"])
    assert labels(configs)[:2] == [
        "scorer.of=predicted optim.lr=0.001 seed=0",
        "scorer.of=predicted optim.lr=0.0001 seed=0",
    ]


def composed_in(conf: Path, cache: Path, *seeds: int) -> tuple[grid.Composed, Path | None]:
    with initialize_config_dir(str(conf), version_base="1.3"):
        return grid.compose_all("train", [[*SMALL, f"seed={seed}"] for seed in seeds], cache)


def test_an_unchanged_sweep_is_not_composed_again(tmp_path):
    conf, cache = tmp_path / "conf", tmp_path / "cache"
    shutil.copytree(CONF, conf)
    first, file = composed_in(conf, cache, 0, 1)
    assert file is not None and not file.exists()
    file.parent.mkdir()
    first.configs[0]["question"] = "from the cache"
    file.write_text(first.as_json())
    assert composed_in(conf, cache, 0, 1) == (first, None)
    (conf / "scorer" / "entropy.yaml").write_text("_target_: tid.scorers.Entropy\nof: predicting\n")
    again, other = composed_in(conf, cache, 0, 1)
    assert other not in (None, file) and again.configs[0]["question"] == ""
    (conf / "sweeps" / "seeds.yaml").write_text("name: changed\n")
    assert composed_in(conf, cache, 0, 1)[1] not in (file, other)
    more, _ = composed_in(conf, cache, 0, 1, 2)
    assert [config["seed"] for config in more.configs] == [0, 1, 2]


def test_a_sweep_with_yaml_of_several_folders_is_composed_each_time(tmp_path):
    """As with --config-dir: what such a folder holds is not known, and may be large."""
    mine, cells = tmp_path / "mine/drop_schedule/mine.yaml", [[*SMALL, "drop_schedule=mine"]]
    mine.parent.mkdir(parents=True)
    found = []
    for rate in (0.1, 0.5):
        mine.write_text(f"_target_: tid.schedules.Constant\nrate: {rate}\n")
        with initialize_config_dir(CONF, version_base="1.3"):
            sources = GlobalHydra.instance().config_loader().get_search_path()
            sources.get_path().insert(-1, SearchPathElement("command-line", f"file://{tmp_path}/mine"))
            GlobalHydra.instance().hydra.config_loader = ConfigLoaderImpl(sources)
            made, file = grid.compose_all("train", cells, tmp_path)
            found.append((made.configs[0]["drop_schedule"]["rate"], file))
    assert found == [(0.1, None), (0.5, None)]


def cell(state: str, seconds: float | None, step: int = 0, **config) -> Cell:
    common = dict.fromkeys(("model", "batch_size", "accumulate_steps", "total_steps", "eval_every", "data"), 0)
    made = Cell({**common, "context": 64} | config, None, "", Path("x"), state, step, seconds=seconds)
    made.settings = type("Settings", (), {"total_steps": 100})
    return made


def test_time_is_judged_by_finished_cells_of_the_same_size():
    known = [cell("done", 10.0), cell("done", 30.0), cell("done", 20.0), cell("done", 999.0, context=128)]
    assert expected_seconds(cell("new", None), known) == 20
    assert expected_seconds(cell("interrupted", None, step=75), known) == 5
    assert expected_seconds(cell("new", None, context=32), known) is None


def test_what_a_sweep_adds_does_not_change_a_runs_identity(hydra):
    config = configs_of(SMALL)[0]
    extras = {"label": "x", "question": "y", "cell": "z", "dry_run": True, "fail_fast": True, "retry_failed": True}
    assert canonical(config | extras) == canonical(config)


def test_a_frozen_cell_refuses_weights_that_changed_since_its_launch(hydra, tmp_path, monkeypatch):
    """From the command line's folder to the process of the cell, which comes to it later."""
    start = tmp_path / "start"
    start.mkdir()
    shape = tiny_shape(num_layers=2, hidden_size=16, num_heads=1, intermediate_size=32, vocab_size=50257, init_std=0.02)
    write_weights(shape.build(seed=9), start / "model.safetensors")
    (start / "config.json").write_text(json.dumps(llama_config(shape, 16, 50256)))
    settings = runs.settings(tmp_path, f"model.init_from={start}", "total_steps=2", "eval_every=1")
    (cell,) = make_cells(configs_of(settings), [settings], retry_failed=False)
    digest = hashlib.sha256((start / "model.safetensors").read_bytes()).hexdigest()
    assert cell.config["model"]["init_from"] == f"{start}@sha256:{digest}"
    assert cell.name.endswith(run_hash(configs_of(settings)[0]))  # the same cell as the command line's
    freeze(cell)
    write_weights(shape.build(seed=10), start / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"had weights with sha256 {digest} and now has .*put the first ones back"):
        train_frozen(cell.frozen)
    assert not cell.folder.exists()
    (other,) = make_cells(configs_of(settings), [settings], retry_failed=False)
    assert other.name != cell.name  # the same command again means the new weights
    write_weights(shape.build(seed=9), start / "model.safetensors")
    assert train_frozen(cell.frozen) == cell.folder and look(cell).state == "done"


def test_what_is_left_is_judged_by_finished_cells_and_shared_by_the_slots(monkeypatch):
    monkeypatch.setattr("tid.sweep.screen.time.monotonic", lambda: 110.0)
    done, running, new = cell("done", 30.0), cell("running", None), cell("new", None)
    done.folder, running.folder, new.folder = (Path(name) for name in ("a", "b", "c"))
    slots = [Slot(0, None, running, started=100.0), Slot(1, None)]
    assert Screen([done, running, new]).left(slots) == 30  # 20 and 30 side by side
    assert Screen([done, running, new]).left(slots[:1]) == 50
    assert Screen([running, new]).left(slots) is None and Screen([done]).left(slots) is None
