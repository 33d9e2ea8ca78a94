"""The whole comparison as data: what is averaged, tested, withheld and named."""

import math
from dataclasses import replace

import numpy as np
import pytest
import synthetic
from scipy import stats

from tid.comparison import report, words
from tid.comparison.folders import read_all
from tid.comparison.report import Question
from tid.config import ConfigError

VIEWS = ["final", "best", "flops", "seconds"]


def ask(root, at=VIEWS, metric="loss", allow=(), confidence=0.95, correction="bh"):
    return report.build(read_all([str(root)]), Question(metric, list(at), confidence, correction, list(allow)))


def rows(found):
    return {row.configuration.label: row for row in found.rows}


def write(root, seed, loss, *, scorer="entropy", drop="constant", **how):
    keys = {key: how.pop(key) for key in ("total_steps", "drop_mode", "selector", "name") if key in how}
    run = synthetic.settings(**{"scorer": scorer, "drop_schedule": drop, "seed": seed, "name": "s", **keys})
    return synthetic.write_run(root, run, loss=loss, **how)


@pytest.fixture
def three(tmp_path):
    """No drop, random and entropy with three seeds; their final losses."""
    losses = {"none": [4.0, 4.1, 4.2], "random": [4.03, 4.10, 4.26], "entropy": [3.95, 4.06, 4.12]}
    for scorer, values in losses.items():
        for seed, loss in enumerate(values):
            how = {"drop": "none" if scorer == "none" else "constant", "score_share": 0.3 * (scorer == "entropy")}
            write(tmp_path, seed, loss, scorer=scorer, **how)
    return tmp_path, losses


def test_differences_are_paired_with_both_controls(three):
    folder, losses = three
    found = ask(folder, ["final"])
    entropy = rows(found)["entropy"]
    for control, theirs in (("no_drop", "none"), ("random", "random")):
        d = entropy.differences["final", control]
        reference = stats.ttest_rel(losses["entropy"], losses[theirs])
        assert d.estimate == pytest.approx(np.mean(losses["entropy"]) - np.mean(losses[theirs]))
        assert (d.p, d.seeds, d.method) == (pytest.approx(reference.pvalue), (0, 1, 2), "seeds")
        assert (d.low, d.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))
    assert found.tests == 3  # entropy against both, random against no drop
    raw = [d.p for row in found.rows for d in row.differences.values() if d.method == "seeds"]
    corrected = [d.p_adjusted for row in found.rows for d in row.differences.values() if d.method == "seeds"]
    below = [d.estimate < 0 for row in found.rows for d in row.differences.values() if d.method == "seeds"]
    for direction in (True, False):  # each with the others as p = 1
        own = [p if b == direction else 1.0 for p, b in zip(raw, below, strict=True)]
        wanted = stats.false_discovery_control(own)
        pairs = zip(corrected, wanted, below, strict=True)
        assert all(got == pytest.approx(value) for got, value, b in pairs if b == direction)


def test_rows_are_ordered_and_hold_mean_sd_and_n(three):
    found = ask(three[0])
    assert [row.configuration.label for row in found.rows] == ["entropy", "no drop", "random"]
    spread = rows(found)["no drop"].figures["final", "loss"]
    assert (spread.mean, spread.sd, spread.n) == (pytest.approx(4.1), pytest.approx(0.1), 3)
    assert found.tests == 3 * len(VIEWS)


def test_units_do_not_change_the_tests(three):
    by_unit = [rows(ask(three[0], ["final"], unit))["entropy"].differences["final", "no_drop"] for unit in report.UNITS]
    assert len({round(d.p, 9) for d in by_unit}) == 1
    assert len({round(d.estimate, 6) for d in by_unit}) == 3


def test_scoring_is_charged_at_equal_flops_and_seconds(three):
    """Entropy costs 1.3 times as much: its curve is read at 1/1.3 of its steps, between those at 140 and at 160."""
    found = ask(three[0])
    limits = next(iter(found.limits.values()))
    assert limits["flops"].amount == 200e9 and limits["seconds"].amount == pytest.approx(2.0)
    entropy = rows(found)["entropy"]
    for view in ("flops", "seconds"):
        for run, value in zip(entropy.configuration.runs.values(), entropy.views[view].values, strict=True):
            spent, curve = run.evaluations["step"] * 1.3, run.evaluations["report_loss"]
            flat = run.evaluations["step"] >= 100  # these curves do not rise again
            assert value == pytest.approx(curve[flat][0]) == pytest.approx(np.interp(200, spent, curve))
    odd = [run.evaluations["report_loss"][-1] for run in rows(found)["no drop"].configuration.runs.values()]
    assert rows(found)["no drop"].views["flops"].values == pytest.approx(odd)
    assert any("chosen on the even documents" in note for note in words.notes(found))


def test_a_run_whose_curve_starts_beyond_the_budget_is_not_extrapolated(tmp_path):
    write(tmp_path, 0, 4.0, scorer="none", drop="none")
    write(tmp_path, 0, 3.9, score_share=30.0)
    d = rows(ask(tmp_path))["entropy"].differences["flops", "no_drop"]
    assert d.method == "none" and "before the first evaluation" in d.why
    assert rows(ask(tmp_path))["entropy"].views["flops"].n == 0


def test_one_seed_is_compared_over_documents_and_called_weaker(tmp_path):
    write(tmp_path, 0, 4.0, scorer="none", drop="none", document_count=80)
    write(tmp_path, 0, 3.9, document_count=80, best=3.8)
    found = ask(tmp_path)
    d = rows(found)["entropy"].differences
    assert d["final", "no_drop"].method == d["best", "no_drop"].method == "documents"
    assert d["final", "no_drop"].estimate == pytest.approx(-0.1)
    assert d["final", "no_drop"].low < -0.1 < d["final", "no_drop"].high
    assert math.isnan(d["final", "no_drop"].p) and found.tests == 0
    assert d["flops", "no_drop"].method == "point"
    odd = [run.documents[1::2] for run in found.done]
    ours, theirs = (documents[:, 4].sum() / documents[:, 0].sum() for documents in odd)
    assert abs(d["best", "no_drop"].estimate) == pytest.approx(abs(ours - theirs))
    assert any("weaker evidence" in note for note in words.notes(found))
    assert any("weak evidence, not a test" in sentence for sentence in words.answer(found))


def test_pairs_are_the_seeds_that_both_have(tmp_path):
    for seed in (0, 1, 2):
        write(tmp_path, seed, 4.0 + seed, scorer="none", drop="none")
    for seed, loss in ((1, 4.9), (2, 5.7), (3, 9.0)):
        write(tmp_path, seed, loss)
    d = rows(ask(tmp_path, ["final"]))["entropy"].differences["final", "no_drop"]
    assert d.seeds == (1, 2) and d.estimate == pytest.approx((-0.1 - 0.3) / 2)


def test_without_a_common_seed_nothing_is_compared(tmp_path):
    write(tmp_path, 0, 4.0, scorer="none", drop="none")
    write(tmp_path, 1, 3.9)
    d = rows(ask(tmp_path))["entropy"].differences["final", "no_drop"]
    assert d.method == "none" and "no seed in common" in d.why


def test_tuned_controls_are_compared_with_and_named(tmp_path):
    for scorer, lr, losses in [("none", 0.1, (4.0, 4.1)), ("none", 0.2, (3.9, 4.2)), ("entropy", 0.3, (3.8, 3.95))]:
        for seed, loss in enumerate(losses):
            drop = "none" if scorer == "none" else "constant"
            run = synthetic.settings(scorer=scorer, drop_schedule=drop, seed=seed, optim__lr=lr)
            synthetic.write_run(tmp_path, run, loss=loss)
    runs, question = read_all([str(tmp_path)]), Question("loss", ["final"], 0.95, "bh", [])
    assert rows(report.build(runs, question))["entropy · lr=0.3"].differences["final", "no_drop"].method == "none"
    found = report.build(runs, replace(question, controls="tuned"))
    d = rows(found)["entropy · lr=0.3"].differences["final", "no_drop"]
    assert d.estimate == pytest.approx((3.8 - 4.0 + 3.95 - 4.1) / 2) and d.seeds == (0, 1)
    [note] = [note for note in words.notes(found) if "Controls are tuned" in note]
    assert "the best no drop: no drop · lr=0.1 (id " in note and ") (final). That is fair only" in note
    assert any(sentence.startswith("Against the best no drop: ") for sentence in words.answer(found))


def test_a_random_control_that_dropped_more_or_less_compares_with_nothing(tmp_path):
    for seed in (0, 1):
        write(tmp_path, seed, 4.0, scorer="none", drop="none")
        for scorer, rate in (("entropy", 0.623), ("random", 0.299), ("unigram", 0.304)):
            write(tmp_path, seed, 3.9 - rate * seed, scorer=scorer, selector="threshold", drop_rate=rate)
    found = rows(ask(tmp_path, ["final"]))
    d = found["entropy"].differences["final", "random"]
    assert d.method == "none" and "it dropped 62.3% of what may go, the control 29.9%" in d.why
    assert found["entropy"].differences["final", "no_drop"].method == "seeds"
    assert found["unigram"].differences["final", "random"].method == "seeds"


def test_one_document_chooses_and_reports_and_that_is_said(tmp_path):
    write(tmp_path, 0, 4.0, scorer="none", drop="none", document_count=1)
    write(tmp_path, 0, 3.9, best=3.8, document_count=1)
    found = ask(tmp_path, ["final", "best"])
    d = rows(found)["entropy"].differences["best", "no_drop"]
    assert d.method == "point" and d.estimate == pytest.approx(-0.2) and "too few documents" in d.why
    assert any("The held-out text is one document" in note for note in words.notes(found))


def test_pruned_runs_are_censored(three):
    folder, _ = three
    write(folder, 3, 5.0, state="pruned", reason="loses", until=60)
    found = ask(folder)
    entropy = rows(found)["entropy"]
    assert entropy.n == 3 and entropy.views["final"].mean == pytest.approx(np.mean([3.95, 4.06, 4.12]))
    assert all(d.method == "none" and "censored" in d.why for d in entropy.differences.values())
    assert found.rows[-1] is entropy  # a mean of survivors is not ranked among the others
    assert words.answer(found)[0].startswith("Lowest validation loss (equal steps, last step, all documents): no drop")
    cell = next(cell for cell in found.absent if cell.state == "pruned")
    assert (cell.label, cell.seed) == ("entropy", 3) and "censored" in cell.detail and "step 60 of 200" in cell.detail


def test_diverged_runs_are_censored_and_other_failures_are_not(three):
    folder, _ = three
    write(folder, 3, 5.0, state="failed", reason="out of memory", until=60)
    assert rows(ask(folder))["entropy"].differences["final", "no_drop"].method != "none"
    write(folder, 4, 5.0, state="failed", reason="loss nan", until=60, status={"diverged": True})
    found = ask(folder)
    entropy = rows(found)["entropy"]
    assert all(d.method == "none" and "diverged" in d.why for d in entropy.differences.values())
    assert found.rows[-1] is entropy
    details = {cell.seed: cell.detail for cell in found.absent if cell.label == "entropy"}
    assert "censored: it diverged" in details[4] and "censored" not in details[3]


def test_a_pruned_control_compares_with_nothing(three):
    write(three[0], 3, 5.0, scorer="random", state="pruned", until=60)
    d = rows(ask(three[0]))["entropy"].differences
    assert "the control's pruned or diverged runs" in d["final", "random"].why
    assert d["final", "no_drop"].method == "seeds"


def test_every_cell_that_is_in_no_mean_is_named_with_its_reason(three):
    folder, _ = three
    write(folder, 3, 5.0, state="failed", reason="loss nan is not finite at step 33", until=30)
    write(folder, 3, 5.0, scorer="none", drop="none", state="running", until=100)
    broken = write(folder, 4, 4.0)
    (broken / "config.yaml").unlink()
    found = {(cell.state, cell.label): cell for cell in ask(folder).absent}
    assert "loss nan" in found["failed", "entropy"].detail and "validation loss" in found["failed", "entropy"].detail
    assert "step 100 of 200" in found["running", "no drop"].detail
    assert found["missing", "random"].seed == 3
    assert found["unreadable", broken.name].detail.startswith("config.yaml is missing")
    assert rows(ask(folder))["random"].expected == 4


def test_a_failed_seed_does_not_count_and_its_pairs_are_left_out(three):
    folder, _ = three
    write(folder, 3, 5.0, state="failed", until=30)
    write(folder, 3, 4.3, scorer="none", drop="none")
    entropy = rows(ask(folder))["entropy"]
    assert entropy.n == 3 and entropy.differences["final", "no_drop"].pairs == 3


def test_nothing_finished_is_said_with_the_states(tmp_path):
    write(tmp_path, 0, 4.0, state="running", until=40)
    write(tmp_path, 1, 4.0, state="failed", reason="out of memory", until=40)
    with pytest.raises(ConfigError, match=r"(?s)none of the 2 runs is done.*running.*failed.*out of memory"):
        ask(tmp_path)


def test_different_code_is_refused_before_repeats_are_dropped(tmp_path):
    write(tmp_path, 0, 4.0, name="a")
    write(tmp_path, 0, 4.1, name="b", source="e" * 12)
    with pytest.raises(ConfigError, match="differ in code"):
        ask(tmp_path)
    found = ask(tmp_path, allow=["code"])
    assert len(found.done) == 1
    assert any("count once (1:" in note and "1 of them reached another" in note for note in words.notes(found))
    assert any("differ in code (averaged over nevertheless" in note for note in words.notes(found))


def test_a_pair_is_of_runs_that_agree(tmp_path):
    """What may differ is averaged over, but not between ours and the control's."""
    for seed in range(3):
        mine, its = ("bf16", "fp32") if seed else ("fp32", "fp32")
        write(tmp_path, seed, 3.9 + 0.01 * seed**2, precision=mine)
        write(tmp_path, seed, 4.0, scorer="none", drop="none", precision=its)
        write(tmp_path, seed, 4.1, scorer="random", precision="bf16")
    found = ask(tmp_path, ["final"], allow=["precision"])
    entropy = rows(found)["entropy"].differences
    assert entropy["final", "no_drop"].seeds == (0,) and entropy["final", "random"].seeds == (1, 2)
    d = rows(found)["random"].differences["final", "no_drop"]
    assert d.method == "none" and d.why == "its runs and the control's differ in precision, too"
    assert any("pairs whose two runs differ in it are left out" in note for note in words.notes(found))


def test_a_mean_that_lacks_seeds_is_not_the_lowest(three):
    folder, _ = three
    write(folder, 0, 3.0, scorer="unigram")  # an easy seed
    found = ask(folder, ["final"])
    assert [row.configuration.label for row in found.rows][0] == "entropy"
    said = " ".join(words.answer(found))
    assert "Lowest validation loss (equal steps, last step, all documents): entropy" in said
    assert "Not ranked with the others, since they lack seeds: unigram (1/3)." in said


def test_what_was_pruned_counts_among_the_tests(three):
    folder, _ = three
    before = rows(ask(folder, ["final"]))["entropy"].differences["final", "random"]
    for seed in range(3):
        write(folder, seed, 4.5, scorer="unigram", state="pruned", until=100)
    found = ask(folder, ["final"])
    after = rows(found)["entropy"].differences["final", "random"]
    assert after.p == before.p and after.p_adjusted > before.p_adjusted and found.never_made == 2
    notes = " ".join(words.notes(found))
    assert "and 2 that were never made, of what was pruned or diverged" in notes and "Losers were pruned" in notes
    assert "picked as the lowest of 4" in " ".join(words.answer(found))


def test_unlike_speed_has_no_common_wall_clock(tmp_path):
    write(tmp_path, 0, 4.0, kernels_by_hand=["attention"])
    write(tmp_path, 1, 4.0, kernels_by_hand=[])
    found = ask(tmp_path)
    assert "seconds" not in found.question.at
    assert any("different compile= or kernels=" in text for text in found.said)


def test_half_the_dose_is_another_dose(tmp_path):
    for seed in range(2):
        write(tmp_path, seed, 4.0 + 0.1 * seed**2, drop_rate=0.01)
        write(tmp_path, seed, 4.1, scorer="random", drop_rate=0.02)
    assert "one of dose" in rows(ask(tmp_path, ["final"]))["entropy"].differences["final", "random"].why


@pytest.mark.parametrize(("value", "shown"), [(-3e-6, "-3.0e-06"), (0.0, "+0.0000"), (-0.0312, "-0.0312")])
def test_a_difference_is_not_rounded_to_none(value, shown):
    assert words.number(value, sign=True) == shown


def test_different_devices_have_no_common_wall_clock(tmp_path):
    write(tmp_path, 0, 4.0)
    write(tmp_path, 1, 4.0, device="another")
    found = ask(tmp_path, allow=["device"])
    assert "seconds" not in found.question.at and any(
        "no comparison at equal wall-clock" in n for n in words.notes(found)
    )


def test_the_report_does_not_depend_on_the_order_of_the_runs(three):
    runs = read_all([str(three[0])])
    question = Question("bpc", VIEWS, 0.95, "bh", [])
    one, other = report.build(runs, question), report.build(runs[::-1], question)
    assert [row.configuration.label for row in one.rows] == [row.configuration.label for row in other.rows]
    for left, right in zip(one.rows, other.rows, strict=True):
        assert left.configuration.key == right.configuration.key
        assert {k: d.p_adjusted for k, d in left.differences.items() if d.method == "seeds"} == pytest.approx(
            {k: d.p_adjusted for k, d in right.differences.items() if d.method == "seeds"}
        )


def test_the_answer_says_better_worse_and_not_distinguishable(tmp_path):
    rng = np.random.default_rng(1)
    for seed in range(5):
        luck = rng.normal(0, 0.05)
        for scorer, loss in (("none", 4.0), ("random", 4.1), ("entropy", 3.9), ("grad_norm", 4.0)):
            drop = "none" if scorer == "none" else "constant"
            write(tmp_path, seed, loss + luck + rng.normal(0, 0.01), scorer=scorer, drop=drop)
    said = words.answer(ask(tmp_path, ["final"]))
    assert said[0].startswith("Lowest validation loss (equal steps, last step, all documents): entropy (")
    assert "Against no drop: -0.1" in said[1] and said[1].endswith("5 pairs: better.")
    assert "Of 3 tested against no drop: 1 better, 1 worse, 1 not distinguishable." in said
    assert "Of 2 tested against random at the same rate: 2 better, 0 worse, 0 not distinguishable." in said
    assert "picked as the lowest of 4" in said[-1]
