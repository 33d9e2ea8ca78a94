"""Equal results have equal hashes, and others another: the identity of a run, and its name."""

import pytest
from composing import changed, composed
from omegaconf import OmegaConf

from tid.config import DROPPING, NEUTRAL, canonical, run_hash, run_slug
from tid.messages import keys_of
from tid.options import option_name, snake_case
from tid.pin import pin


@pytest.fixture(scope="module")
def reference() -> dict:
    return composed()


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


def test_an_option_is_called_as_it_is_chosen_unless_several_choose_its_class():
    assert option_name("optim", "tid.optim.AdamW8bit") == "adamw_8bit"
    assert option_name("model", "tid.model.GPT") == "gpt"
    assert option_name("scorer", "mine.OwnScorer") == "own_scorer"
