"""What belongs to one configuration, what it is called, and what must not be mixed."""

import pytest
import synthetic

from tid.comparison import agreement, controls
from tid.comparison.configurations import group, once
from tid.comparison.runs import read
from tid.config import ConfigError


def made(root, *cells, **how):
    """Runs of the given settings, each under a sweep of its own name when it has one."""
    return [read(synthetic.write_run(root, synthetic.settings(**{"name": "s", **cell}), **how)) for cell in cells]


def labels(runs):
    return [c.label for c in group(runs)]


def test_seeds_of_one_configuration_are_one_row_and_settings_that_change_nothing_make_none(tmp_path):
    runs = made(tmp_path, {"seed": 0}, {"seed": 1}, {"seed": 2, "log_every": 5, "tracker": "wandb"})
    (only,) = group(runs)
    assert sorted(only.runs) == [0, 1, 2] and not only.others


def test_every_way_to_drop_nothing_is_one_baseline(tmp_path):
    runs = made(tmp_path, {"drop_schedule": "none"}, {"scorer": "none", "drop_schedule": "constant", "seed": 1})
    (only,) = group(runs)
    assert only.is_baseline and only.label == "no drop" and only.role == "no drop"


def test_unfinished_runs_join_their_configuration_without_counting(tmp_path):
    runs = made(tmp_path, {"seed": 0}) + made(tmp_path, {"seed": 1}, state="pruned", until=40)
    (only,) = group(runs[::-1])
    assert list(only.runs) == [0] and list(only.others) == [1] and only.is_censored


def test_labels_say_what_differs_and_only_that(tmp_path):
    assert labels(made(tmp_path / "1", {"scorer": "entropy"}, {"scorer": "grad_norm"}, {"drop_schedule": "none"})) == [
        "entropy", "grad_norm", "no drop",
    ]  # fmt: skip
    rates = [{"drop_schedule": "constant", "drop_schedule__rate": rate} for rate in (0.1, 0.3)]
    assert labels(made(tmp_path / "2", *rates, {"drop_schedule": "step"})) == [
        "entropy · constant · rate=0.1", "entropy · constant · rate=0.3", "entropy · step",
    ]  # fmt: skip
    assert labels(made(tmp_path / "3", {"optim__lr": 0.1}, {"optim__lr": 0.2}, {"optim": "muon"})) == [
        "entropy · adamw · lr=0.1", "entropy · adamw · lr=0.2", "entropy · muon",
    ]  # fmt: skip
    modes = [{"drop_mode": "mask_aux", "drop_mode__weight": w} for w in (0.4, 1.0)] + [{"scorer": "random"}]
    assert labels(made(tmp_path / "4", *modes)) == [
        "entropy · mask_aux · weight=0.4", "entropy · mask_aux · weight=1", "random · zero",
    ]  # fmt: skip
    documents = [{"data__train_documents": count} for count in (None, 500)]
    assert labels(made(tmp_path / "5", *documents)) == [
        "entropy · train_documents=None",
        "entropy · train_documents=500",
    ]


def test_two_budgets_are_two_rows(tmp_path):
    cells = [{"total_steps": n, "drop_schedule": d} for n in (100, 200) for d in ("none", "constant")]
    found = group(made(tmp_path, *cells))
    assert [c.label for c in found] == [f"{w} · total_steps={n}" for n in (100, 200) for w in ("no drop", "entropy")]


def test_the_same_cell_in_two_sweeps_counts_once(tmp_path):
    one, again = made(tmp_path, {"name": "a"}, {"name": "b"})
    (failed,) = made(tmp_path, {"name": "c"}, state="failed", until=10)
    kept, repeats = once([failed, one, again])
    assert kept == [one]
    assert {(left.folder, stayed.folder) for left, stayed in repeats} == {
        (again.folder, one.folder), (failed.folder, one.folder),
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------- agreement

CHANGES = {
    "data": {"data": {**synthetic.DATA, "val.jsonl": "d" * 64}},
    "code": {"source": "e" * 12},
    "budget": {"until": 100},
    "precision": {"precision": "bf16"},
    "device": {"device": "NVIDIA H100"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_must_not_be_mixed_is_refused_by_name_with_the_way_out(tmp_path, name):
    runs = made(tmp_path, {"seed": 0}, {"seed": 1}) + made(tmp_path, {"seed": 2}, **CHANGES[name])
    with pytest.raises(ConfigError) as caught:
        agreement.insist(runs, [])
    text = str(caught.value)
    assert f"differ in {name}," in text and f"allow={name}" in text
    assert "2 runs" in text and "1 run, as" in text and str(runs[2].folder) in text
    values = {agreement.fact(run, name) for run in runs}
    assert len(values) == 2 and all(value in text for value in values)
    assert agreement.insist(runs, [name]).keys() == {name}


def test_all_differences_are_told_at_once(tmp_path):
    runs = made(tmp_path, {"seed": 0}) + made(tmp_path, {"seed": 1}, **CHANGES["code"], **CHANGES["precision"])
    with pytest.raises(ConfigError, match=r"(?s)differ in code and precision.*allow=code,precision"):
        agreement.insist(runs, [])
    with pytest.raises(ConfigError, match=r"differ in precision,"):
        agreement.insist(runs, ["code"])


def test_texts_of_one_content_are_one_whatever_they_are_called(tmp_path):
    other = {"data": {**synthetic.DATA, "text": "renamed-12345678"}}
    assert agreement.insist(made(tmp_path, {"seed": 0}) + made(tmp_path, {"seed": 1}, **other), []) == {}


def test_code_is_its_sources_whatever_the_commit(tmp_path):
    runs = made(tmp_path, {"seed": 0}) + made(tmp_path, {"seed": 1}, git_sha="e" * 40)
    assert agreement.insist(runs, []) == {}


def test_runs_without_a_checksum_of_their_sources_are_known_by_their_commit(tmp_path):
    old = [made(tmp_path, {"seed": seed}, source=None)[0] for seed in (0, 1)]
    assert agreement.insist(old, []) == {}
    for run in old:
        del run.summary["source"]
    assert agreement.insist(old, []) == {}
    with pytest.raises(ConfigError, match="code"):
        agreement.insist([*old, *made(tmp_path, {"seed": 2}, git_sha="e" * 40, source=None)], [])


def test_data_that_differ_are_never_in_one_row_even_when_allowed(tmp_path):
    runs = made(tmp_path, {"seed": 0}) + made(tmp_path, {"seed": 1}, **CHANGES["data"])
    (elsewhere,) = made(tmp_path, {"drop_schedule": "none"}, **CHANGES["data"])
    first, second, baseline = groups = group([*runs, elsewhere])
    controls.assign(groups, ["final"], {}, "exact")
    assert list(first.runs) == [0] and list(second.runs) == [1]
    assert not first.controls and second.controls == {("final", "no_drop"): baseline}  # it has read the same text
    assert first.label != second.label and "bbbbbb" in first.label and "dddddd" in second.label


def test_code_that_differs_is_averaged_over_when_allowed(tmp_path):
    runs = made(tmp_path, {"seed": 0}) + made(tmp_path, {"seed": 1}, **CHANGES["code"])
    (only,) = group(runs)
    assert sorted(only.runs) == [0, 1]


def test_a_key_that_not_all_have_makes_another_row_that_is_told_apart(tmp_path):
    new, old = {"seed": 0}, {"seed": 1}
    runs = made(tmp_path, new, old)
    del runs[1].config["stride"]
    first, second = group(runs)
    assert first.label == f"entropy · id {first.key}" and second.label == f"entropy · id {second.key}"
