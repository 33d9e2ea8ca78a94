"""Every YAML composes and builds; errors name the YAML key."""

from fractions import Fraction
from pathlib import Path

import pytest
from composing import CONF, changed, composed
from omegaconf import OmegaConf

from tid.config import ConfigError, build, check, coerced, doubts, instantiate, plain, run_folder, run_hash, run_slug

MAINS = sorted(path.stem for path in CONF.glob("*.yaml"))
OPTIONS = sorted(
    f"{path.relative_to(CONF).parent}={path.stem}"
    for path in CONF.rglob("*.yaml")
    if path.parent != CONF and path.relative_to(CONF).parts[0] != "hydra"
)


@pytest.fixture(scope="module")
def reference() -> dict:
    return composed()


# ------------------------------------------------------------------------------------------------- YAML files


def test_there_are_options_to_test():
    assert len(OPTIONS) > 30 and "train" in MAINS


@pytest.mark.parametrize("name", MAINS)
def test_each_main_yaml_composes_and_builds(name):
    cfg = composed(name=name)
    mappings = {key for key, node in cfg.items() if isinstance(node, dict)}
    assert set(build(cfg)) == mappings - {"diagnostics", "scorers", "drop_modes", "optims"}  # which are no components


@pytest.mark.parametrize("setting", OPTIONS)
def test_each_option_composes_checks_and_builds(setting):
    cfg = composed(setting)
    check(cfg)
    parts = build(cfg)
    group = setting.partition("=")[0]
    assert group == "experiment" or type(parts[group]).__name__ == cfg[group]["_target_"].rpartition(".")[2]
    assert run_slug(cfg) and len(run_hash(cfg)) == 8


def test_defaults_are_the_reference_run(reference):
    cfg = composed("scorer=entropy", "drop_schedule=linear_decay")
    assert cfg == reference
    assert (cfg["context"], cfg["stride"], cfg["batch_size"], cfg["accumulate_steps"]) == (128, 128, 8, 1)
    assert cfg["total_steps"] == 200_000
    model = cfg["model"]
    assert (model["num_layers"], model["hidden_size"], model["num_heads"]) == (12, 768, 12)
    assert (model["intermediate_size"], model["vocab_size"]) == (2048, 50257)
    optim = cfg["optim"]
    assert (optim["lr"], optim["weight_decay"], optim["warmup_steps"]) == (3e-4, 0.1, 1000)
    data = cfg["data"]
    assert data["repo"] == "Skylion007/openwebtext" and data["revision"] == "refs/convert/parquet"
    assert (data["train_documents"], data["val_documents"]) == (10_000, 1_000)
    assert run_slug(cfg) == "entropy-lowest-zero-linear_decay-seed0"


def test_identical_yaml_is_not_repeated():
    texts = [path.read_text() for path in CONF.rglob("*.yaml")]
    assert len(set(texts)) == len(texts)


# ----------------------------------------------------------------------------------------------------- schema


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, "seed: wanted a value greater than or equal to 0, got -1"),
        ("seed", True, "seed: wanted a number, got true"),
        ("seed", "x", "seed: wanted a valid integer, got 'x'"),
        ("seed", None, "seed: wanted a valid integer, got null"),
        ("total_steps", 0, "total_steps: wanted a value greater than or equal to 1, got 0"),
        ("total_steps", 1.5, "total_steps: wanted a valid integer, got 1.5"),
        ("device", "gpu", "device: wanted 'auto', 'cuda' or 'cpu', got 'gpu'"),
        ("precision", "fp23", "got 'fp23'; did you mean fp32?"),
        ("stride", 129, "stride: wanted at most context (128), got 129"),
        ("protect_first", 128, "protect_first: wanted less than context (128), got 128"),
        ("name", "../elsewhere", "name: wanted letters"),
        ("name", "/tmp/x", "name: wanted letters"),
        ("scorer", {"of": "predicted"}, "scorer: wanted one of its options"),
        ("seeed", 1, "seeed: unknown key; did you mean seed?"),
        ("scorr", {"_target_": "x.Y"}, "scorr: unknown key; did you mean scorer?"),
        ("lr", 0.1, "lr: unknown key; did you mean optim.lr?"),
    ],
)
def test_check_refuses(reference, key, value, message):
    with pytest.raises(ConfigError) as error:
        check(changed(reference, key, value))
    assert message in str(error.value)


def test_check_says_what_is_missing(reference):
    with pytest.raises(ConfigError, match=r"^seed: missing; give it in the YAML or as seed=\.\.\.$"):
        check({key: value for key, value in reference.items() if key != "seed"})


def test_check_names_every_wrong_key_up_to_five_lines(reference):
    cfg = reference
    for number in range(9):
        cfg = changed(cfg, f"wrong{number}", 1)
    with pytest.raises(ConfigError) as error:
        check(cfg)
    assert len(str(error.value).splitlines()) == 5 and "5 more" in str(error.value)


def test_check_accepts_numbers_as_names_and_whole_floats_as_counts(reference):
    run = check(changed(changed(reference, "name", 7), "total_steps", 1e5))
    assert run.name == "7" and run.total_steps == 100_000 and isinstance(run.total_steps, int)


def test_what_yaml_takes_for_another_type_becomes_the_schema_s(reference):
    assert coerced(reference) == reference and list(coerced(reference)) == list(reference)
    given = {"name": 2024, "output_dir": 7, "question": 1.5, "total_steps": 1e5, "seed": "3", "dry_run": "no"}
    found = coerced(reference | given)
    assert [found[key] for key in given] == ["2024", "7", "1.5", 100_000, 3, False]
    assert run_folder(found) == Path("7", "2024", f"{run_slug(found)}-{run_hash(found)}")
    with pytest.raises(ConfigError, match="name: wanted letters"):
        coerced(reference | {"name": "a b"})


def test_baseline_may_protect_everything(reference):
    assert check({**composed("drop_schedule=none"), "protect_first": 128}).protect_first == 128


def test_doubts_speak_of_a_warm_up_longer_than_the_run(reference):
    assert doubts(reference) == []
    (line,) = doubts({**reference, "total_steps": 1000})
    assert "optim.warmup_steps (1000)" in line


def test_plain_resolves_and_names_what_is_missing():
    assert plain(OmegaConf.create({"a": 3, "b": "${a}"})) == {"a": 3, "b": 3}
    with pytest.raises(ConfigError, match="^b: Interpolation key 'nope' not found"):
        plain(OmegaConf.create({"b": "${nope}"}))
    with pytest.raises(ConfigError, match=r"^data\.repo: has no default; give it as data\.repo=\.\.\.$"):
        plain(OmegaConf.create({"data": {"repo": "???"}}))


# ------------------------------------------------------------------------------------------------- components


ENTROPY = {"_target_": "tid.scorers.Entropy", "of": "predicted", "source": "fresh"}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {**ENTROPY, "of": "predictd"},
            "scorer.of: wanted 'predicted' or 'predicting', got 'predictd'; did you mean predicted?",
        ),
        ({**ENTROPY, "off": 1}, "scorer.off: unknown key; did you mean scorer.of?"),
        ({"_target_": "tid.scorers.Entropy"}, "scorer.of: missing; give it in the YAML or as scorer.of=..."),
        ({"_target_": "tid.scorers.Entropi"}, "tid.scorers has no 'Entropi'; did you mean Entropy?"),
        ({"_target_": "tid.scorer.Entropy"}, "scorer._target_: cannot import 'tid.scorer.Entropy'"),
        ({"_target_": "Entropy"}, "scorer._target_: cannot import 'Entropy'"),
        ({"of": "predicted"}, "scorer: wanted a mapping with the key _target_"),
        (None, "scorer: wanted a mapping with the key _target_, got null"),
        (
            {"_target_": "tid.schedules.Constant", "rate": 1.5},
            "scorer.rate: wanted a value less than 1, got 1.5",
        ),
        ({"_target_": "tid.schedules.Constant", "rate": "x"}, "scorer.rate: wanted a valid number, got 'x'"),
        (
            {"_target_": "tid.schedules.Step", "rate": 0.1, "factor": 0.5, "boundaries": [0.5, 2]},
            "scorer.boundaries.1: wanted a value less than or equal to 1, got 2",
        ),
        ({"_target_": "fractions.Fraction", "numerator": "x"}, "scorer: Invalid literal for Fraction"),
    ],
)
def test_instantiate_refuses_by_key(node, message):
    with pytest.raises(ConfigError) as error:
        instantiate(node, "scorer")
    assert message in str(error.value)


def test_instantiate_builds_nested_components():
    inner = {"_target_": "fractions.Fraction", "numerator": 1, "denominator": 3}
    made = instantiate({"_target_": "argparse.Namespace", "items": [inner], "other": {"one": inner}}, "x")
    assert made.items == [Fraction(1, 3)] and made.other == {"one": Fraction(1, 3)}
    with pytest.raises(ConfigError, match=r"^x\.items\.0: "):
        instantiate(
            {
                "_target_": "argparse.Namespace",
                "items": [{"_target_": "fractions.Fraction", "numerator": "?"}],
            },
            "x",
        )


def test_instantiate_reports_what_a_component_itself_refuses():
    shape = composed()["model"]
    with pytest.raises(ConfigError, match="^model: hidden_size must be an even multiple of num_heads"):
        instantiate({**shape, "num_heads": 7}, "model")
