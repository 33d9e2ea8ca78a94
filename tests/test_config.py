"""Every YAML composes and builds; errors name the YAML key; equal results have equal hashes."""

from fractions import Fraction
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tid.config import (
    DROPPING,
    NEUTRAL,
    ConfigError,
    build,
    canonical,
    check,
    coerced,
    doubts,
    instantiate,
    plain,
    run_folder,
    run_hash,
    run_slug,
    snake_case,
)
from tid.messages import keys_of
from tid.pin import pin

CONF = Path(__file__).parents[1] / "conf"
MAINS = sorted(path.stem for path in CONF.glob("*.yaml"))
OPTIONS = sorted(
    f"{path.relative_to(CONF).parent}={path.stem}"
    for path in CONF.rglob("*.yaml")
    if path.parent != CONF and path.relative_to(CONF).parts[0] != "hydra"
)


def composed(*settings: str, name: str = "train") -> dict:
    """The configuration as a run sees it, with a word in the place of every value that the user must give."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, list(settings))
    OmegaConf.set_struct(cfg, False)
    for key in OmegaConf.missing_keys(cfg):
        OmegaConf.update(cfg, key, "given-by-the-user")
    return plain(cfg)


@pytest.fixture(scope="module")
def reference() -> dict:
    return composed()


def changed(cfg: dict, key: str, value: object) -> dict:
    """A copy of `cfg` with another value at the dotted key."""
    copy = OmegaConf.create(cfg)
    OmegaConf.update(copy, key, value, merge=False)
    return OmegaConf.to_container(copy)


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


# --------------------------------------------------------------------------------------------------- identity


def test_hash_ignores_key_order_whole_floats_and_neutral_keys(reference):
    reversed_keys = {key: reference[key] for key in reversed(reference)}
    assert run_hash(reversed_keys) == run_hash(reference)
    assert run_hash(changed(reference, "total_steps", 200_000.0)) == run_hash(reference)
    assert run_hash(changed(reference, "optim.clip_norm", 1)) == run_hash(reference)
    for key in NEUTRAL:
        assert run_hash({**reference, key: "another"}) == run_hash(reference)


def test_a_text_of_ones_own_is_its_content_wherever_it_lies(tmp_path, monkeypatch):
    for name, text in {"one": '"a"', "copy": '"a"', "other": '"b"'}.items():
        (tmp_path / f"{name}.jsonl").write_text(text)

    def config(train, val=None) -> dict:
        return composed("data=jsonl", f"data.train={train}", f"data.val={val or 'null'}")

    def hashed(*files) -> str:
        return run_hash(config(*files))

    monkeypatch.chdir(tmp_path)
    one = hashed(tmp_path / "one.jsonl")
    assert one == hashed("one.jsonl") == hashed("copy.jsonl") != hashed("other.jsonl")
    assert len({hashed("one.jsonl", val) for val in (None, "other.jsonl", "copy.jsonl", "absent.jsonl")}) == 4
    pinned = pin(config("copy.jsonl", "absent.jsonl"))
    assert pinned["data"]["train"].startswith("copy.jsonl@sha256:") and pinned["data"]["val"] == "absent.jsonl"
    before = hashed("copy.jsonl", "absent.jsonl")
    (tmp_path / "copy.jsonl").write_text('"changed"')
    assert run_hash(pinned) == before != hashed("copy.jsonl", "absent.jsonl") and pin(pinned) == pinned
    (tmp_path / "copy.jsonl").unlink()
    assert run_hash(pinned) == before


def test_hash_heeds_every_other_key(reference):
    known = {run_hash(reference)}
    keys = [key for key in keys_of(reference) if key.partition(".")[0] not in NEUTRAL]
    leaves = [key for key in keys if not isinstance(OmegaConf.select(OmegaConf.create(reference), key), dict)]
    leaves = [key for key in leaves if "." in key or key not in DROPPING[:4]]
    leaves += [f"{group}._target_" for group in ("model", "scorer", "drop_schedule", "data", "optim")]
    for key in leaves:
        known.add(run_hash(changed(reference, key, "another")))
    assert len(known) == len(leaves) + 1


def test_hash_tells_true_from_one_and_null_from_zero():
    base = {"scorer": {"_target_": "a.B"}, "drop_schedule": {"_target_": "a.C"}}
    assert len({run_hash({**base, "x": x}) for x in (True, 1, False, 0, None, "1", 1.5, float("inf"))}) == 8


def test_hash_takes_a_sum_of_steps_for_the_number_that_was_meant():
    parts = {"scorer": {"_target_": "a.B"}, "drop_schedule": {"_target_": "a.C"}}
    assert run_hash(parts | {"x": 0.1 + 0.1 + 0.1}) == run_hash(parts | {"x": 0.3})
    assert canonical(parts | {"x": [0.1 + 0.1 + 0.1, 0.7 + 0.2 + 0.1]})["x"] == [0.3, 1]
    typed = [0.123456789012, 0.123456789011, 1.23456789012e-30, 12345678901.5, 10**15 + 1, 1e-5]
    assert canonical(parts | {"x": typed})["x"] == typed  # as many digits as anyone gives


def test_hash_is_the_same_in_every_version():
    """It names folders and W&B runs: a change of the algorithm would orphan all of them."""
    node = {"b": [1.0, 2.5], "_target_": "tid.scorers.Entropy", "a": None}
    cfg = {"seed": 3, "scorer": node, "drop_schedule": {"_target_": "x.Y"}, "device": "cpu"}
    assert canonical(cfg) == {
        "seed": 3,
        "scorer": {"_target_": "tid.scorers.Entropy", "a": None, "b": [1, 2.5]},
        "drop_schedule": {"_target_": "x.Y"},
    }
    assert run_hash(cfg) == "480f03f3"


def test_every_baseline_is_one_cell():
    settings = (
        ["scorer=none"],
        ["drop_schedule=none"],
        ["scorer=none", "drop_schedule=constant", "drop_mode=mask_aux", "selector=highest"],
        ["scorer=grad_norm", "drop_schedule=none", "protect_first=7"],
    )
    cells = {(run_slug(cfg), run_hash(cfg)) for cfg in (composed(*chosen) for chosen in settings)}
    assert len(cells) == 1 and cells.pop()[0] == "no_drop-seed0"
    assert run_hash(composed("scorer=none", "seed=1")) != run_hash(composed("scorer=none"))


def test_slug_is_short_and_keeps_the_seed(reference):
    long = changed(reference, "scorer._target_", "mine." + "VeryLongName" * 30)
    assert run_slug(long).endswith("-seed0") and len(run_slug(long)) <= 100


def test_snake_case():
    names = ("GradXInput", "LinearDecay", "Zero", "TokenFile2")
    assert [snake_case(name) for name in names] == ["grad_x_input", "linear_decay", "zero", "token_file2"]
