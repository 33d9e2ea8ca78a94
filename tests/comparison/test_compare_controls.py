"""What a configuration is held against, exactly and tuned."""

import numpy as np
import pytest
import synthetic

from tid.comparison import controls
from tid.comparison.configurations import group
from tid.comparison.runs import read
from tid.comparison.views import VIEWS, budgets, choosing


def written(root, *cells):
    """Runs of the given settings; loss and best are what they reach."""
    runs = []
    for cell in cells:
        reached = {key: cell.pop(key) for key in ("loss", "best", "document_count") if key in cell}
        runs.append(read(synthetic.write_run(root, synthetic.settings(name="s", **cell), **reached)))
    return runs


def held(runs, how="exact", views=("final",)):
    """Configurations with their controls."""
    found = group(runs)
    controls.assign(found, list(views), budgets(found), how)
    return found


def against(c, control, view="final"):
    return c.controls.get((view, control))


def dropping(scorer, **more):
    return {"scorer": scorer, "drop_schedule": "none" if scorer == "none" else "constant", **more}


def test_controls_differ_in_nothing_else(tmp_path):
    base = {"scorer": "entropy", "drop_schedule": "constant", "drop_schedule__rate": 0.2, "drop_mode": "hide"}
    runs = written(
        tmp_path,
        dict(base),
        base | {"scorer": "random"},
        base | {"scorer": "random", "drop_schedule__rate": 0.3},
        base | {"scorer": "random", "drop_mode": "zero"},
        base | {"scorer": "random", "optim__lr": 0.5},
        {"drop_schedule": "none", "optim__lr": 0.5},
        {"drop_schedule": "none"},
        base | {"protect_first": 4},
    )
    found = held(runs, views=VIEWS)
    for view in VIEWS:
        assert against(found[0], "random", view) is found[1] and against(found[0], "no_drop", view) is found[6]
    assert against(found[1], "random") is None and against(found[1], "no_drop") is found[6]
    assert against(found[4], "no_drop") is found[5]
    # nothing is dropped: protection is no setting
    assert against(found[7], "random") is None and against(found[7], "no_drop") is found[6]
    assert against(found[5], "no_drop") is None


def test_each_budget_has_its_own_control(tmp_path):
    cells = [{"total_steps": n, "drop_schedule": d} for n in (100, 200) for d in ("none", "constant")]
    found = held(written(tmp_path, *cells))
    assert against(found[1], "no_drop") is found[0] and against(found[3], "no_drop") is found[2]


def test_random_with_an_equivalent_selector_serves_unless_the_same_is_there(tmp_path):
    cells = [{"selector": s, "scorer": k} for k in ("entropy", "random") for s in ("highest", "lowest", "threshold")]

    def found(folder, *left_out):
        kept = [dict(cell) for cell in cells if (cell["scorer"], cell["selector"]) not in left_out]
        return {(c.names["scorer"], c.names["selector"]): c for c in held(written(tmp_path / folder, *kept))}

    all_of_them = found("1")
    assert against(all_of_them["entropy", "highest"], "random") is all_of_them["random", "highest"]
    without = found("2", ("random", "highest"))
    assert against(without["entropy", "highest"], "random") is without["random", "lowest"]
    without = found("3", ("random", "threshold"))
    assert against(without["entropy", "threshold"], "random") is None  # it drops another number of tokens


def test_tuned_controls_are_the_best_of_their_kind(tmp_path):
    losses = {("none", 0.1): 4.1, ("none", 0.2): 4.0, ("random", 0.1): 4.2, ("random", 0.2): 4.3, ("entropy", 0.3): 3.9}
    runs = written(tmp_path, *(dropping(scorer, optim__lr=lr, loss=loss) for (scorer, lr), loss in losses.items()))
    assert all(not c.controls for c in held(runs) if c.settings["optim"]["lr"] == 0.3)
    found = {c.label: c for c in held(runs, "tuned")}
    ours = found["entropy · lr=0.3"]
    assert against(ours, "no_drop") is found["no drop · lr=0.2"] and against(ours, "random") is found["random · lr=0.1"]
    assert against(found["random · lr=0.2"], "no_drop") is found["no drop · lr=0.2"]
    assert against(found["random · lr=0.2"], "random") is against(found["no drop · lr=0.1"], "no_drop") is None


def test_a_tuned_control_lacks_no_seed_that_the_others_have(tmp_path):
    """One that is worse with every seed, and has not run the hard one, has the lower mean."""
    hard = {0: 1.0, 1: 0.0, 2: 0.0}
    cells = [dropping("none", optim__lr=0.1, seed=s, loss=4.0 + hard[s]) for s in hard]
    cells += [dropping("none", optim__lr=0.2, seed=s, loss=4.1 + hard[s]) for s in (1, 2)]
    cells += [dropping("entropy", seed=s, loss=4.0 + hard[s]) for s in hard]
    found = {c.label: c for c in held(written(tmp_path, *cells), "tuned")}
    (ours,) = (c for c in found.values() if not c.is_baseline)
    assert against(ours, "no_drop").settings["optim"]["lr"] == 0.1


def test_a_tuned_control_is_the_best_of_its_view(tmp_path):
    """Weak weight decay is better at its best, and has over-fitted by the last step."""
    weak = dropping("none", optim__weight_decay=0.1, best=3.9, loss=5.0)
    strong = dropping("none", optim__weight_decay=3, best=3.95, loss=4.0)
    runs = written(tmp_path, weak, strong, dropping("entropy", best=3.93, loss=4.3))
    early, late, ours = held(runs, "tuned", VIEWS)
    assert against(ours, "no_drop", "final") is late
    assert all(against(ours, "no_drop", view) is early for view in ("best", "flops", "seconds"))


def test_what_a_run_is_chosen_by_is_of_its_even_documents(tmp_path):
    [run] = written(tmp_path, dropping("entropy", loss=4.2, best=4.0))
    tokens, nats = run.documents[::2, 0].sum(), run.documents[::2]
    limits = budgets(group([run]))[group([run])[0].stratum]
    assert choosing(run, "final", limits) == pytest.approx(nats[:, 3].sum() / tokens)
    assert choosing(run, "best", limits) == pytest.approx(nats[:, 4].sum() / tokens)
    assert choosing(run, "flops", limits) == pytest.approx(nats[:, 4].sum() / tokens)  # its best lies within it
    assert np.isnan(choosing(run, "flops", {}))
