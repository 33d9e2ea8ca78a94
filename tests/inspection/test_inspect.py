"""python -m tid.inspect: what it accepts, what it says, what it writes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from tiny import build

from tid import config
from tid.data.tokenizer import EOT
from tid.export import ExportConfig, export
from tid.inspect import as_hydra
from tid.inspection import page, terminal
from tid.inspection.study import Wish, study

ROOT = Path(__file__).parents[2]
DROPPING = ("drop_schedule=constant", "drop_schedule.rate=0.3", "scorer=entropy")


def call(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "tid.inspect", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=100)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return runs.train(tmp_path_factory.mktemp("trained"), *DROPPING)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory) -> Path:
    return runs.train(tmp_path_factory.mktemp("baseline"), "drop_schedule=none")


def wish(run: Path, **changes) -> Wish:
    shared = run.parents[2]
    fields = {
        "checkpoints": [str(run)], "text": None, "source": None, "scorers": None, "selector": None, "rate": None,
        "tokens": 200, "device": "cpu", "precision": None, "data_dir": str(shared / "data"),
        "tokenizer_dir": str(shared / "tokenizer"),
    }  # fmt: skip
    return Wish(**(fields | changes))


# ---------------------------------------------------------------------------------------------- command line


def test_several_scorers_and_checkpoints_are_written_with_commas(capsys):
    assert as_hydra(["scorer=entropy,random", "checkpoint=a,b c", "drop_rate=0.3"]) == [
        "+scorer@scorers.entropy=entropy", "+scorer@scorers.random=random", 'checkpoint=["a","b c"]', "drop_rate=0.3",
    ]  # fmt: skip
    assert as_hydra(["scorer=entropy", "scorer.of=predicting"]) == [
        "+scorer@scorers.entropy=entropy", "scorers.entropy.of=predicting",
    ]  # fmt: skip
    assert as_hydra(["scorer=entropy,surprisal", "scorer.of=predicting"])[2:] == [
        "scorers.entropy.of=predicting", "scorers.surprisal.of=predicting",
    ]  # fmt: skip
    assert capsys.readouterr().err == ""
    assert as_hydra(["scorer=entropy,random", "scorer.of=predicting"])[2:] == ["scorers.entropy.of=predicting"]
    assert capsys.readouterr().err == "scorer.of applies to entropy, not to random\n"
    assert as_hydra(["checkpoint=[a,b]", "text=scorer=a,b", "checkpoint="]) == [
        "checkpoint=[a,b]", "text=scorer=a,b", "checkpoint=",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "checkpoint: missing. Inspecting shows what a trained model finds important; it trains nothing"),
        (("checkpoint=x", "scorer=entropyy"), "scorer=entropyy: no such option; did you mean scorer=entropy?"),
        (("checkpoint=x", "text=a", "file=b"), "text and file: wanted one text, got 2"),
        (("checkpoint=x", "drop_rate=1"), "drop_rate: wanted a value less than 1, got 1"),
        (("checkpoint=x", "drop_rat=0.1"), "drop_rat: unknown key; did you mean drop_rate?"),
        (("checkpoint=x", "scorer=random", "text_=1"), "text_: unknown key; did you mean text?"),
        (("checkpoint=x", "scorer=entropy,random", "scorer.off=predicting"), "scorers.entropy.off: unknown key"),
        (("checkpoint=x", "scorer.of=predicting"), "scorer.of: of which scorer? Name it, too, as in scorer=entropy"),
        (("checkpoint=x",), "no such checkpoint"),
    ],
)
def test_wrong_settings_are_refused_in_one_message(tmp_path, arguments, message):
    done = call(tmp_path, *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_without_a_checkpoint_the_newest_run_is_named(tmp_path):
    (tmp_path / "outputs" / "name" / "the-run" / "checkpoints").mkdir(parents=True)
    done = call(tmp_path)
    assert done.returncode == 2 and "the newest here: outputs/name/the-run" in done.stderr
    assert "python -m tid.train experiment=quickstart" in done.stderr


def test_the_whole_command(trained, tmp_path):
    shared = trained.parents[2]
    text = "One, two: 'three' = {four}\\ and ${five}, it's [six] ünd 7."
    done = call(
        tmp_path, f"checkpoint={trained}", f"text={text}", "scorer=entropy,random", "drop_rate=0.5", "device=cpu",
        f"data_dir={shared / 'data'}", f"tokenizer_dir={shared / 'tokenizer'}", f"output={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout  # not a terminal
    shown = done.stdout.partition("random, ")[0].partition("dropped\n")[2]
    assert text in re.sub(r"\[-(.*?)-\]", r"\1", shown.replace("◌", ""))
    page = (tmp_path / "out" / "inspect.html").read_text()
    assert "python -m tid.inspect checkpoint=" in page
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert figures["rate"] == 0.5 and figures["names"] == ["entropy", "random", "position", "log-frequency"]
    assert figures["drop_rate"]["random"] == pytest.approx(0.5, abs=0.05)


# ---------------------------------------------------------------------------------------------- what is studied


def test_the_runs_own_scorer_selector_and_rate(trained):
    found = study(wish(trained))
    assert list(found.marks.fates) == ["entropy"] and found.marks.rate == 0.3 and found.selector == "lowest"
    assert found.said == ["Drop rate 0.3, the largest of the run's schedule; another with drop_rate=..."]
    assert found.marks.tokens[0] == EOT and found.found.tokens == 200


def test_another_scorer_selector_rate_and_text(trained):
    scorers = {"position": build("scorer", "position"), "noise": build("scorer", "random")}
    found = study(
        wish(trained, scorers=scorers, selector=build("selector", "highest"), rate=0.25, text="a b c d e f g h")
    )
    assert list(found.marks.fates) == ["position", "noise"] and found.selector == "highest" and found.said == []
    assert "".join(found.texts) == "∎a b c d e f g h"
    assert (~found.marks.fates["position"].keep).nonzero()[0].tolist() == [7, 8]  # late is important


def test_a_baseline_needs_a_scorer_named(baseline):
    with pytest.raises(config.ConfigError, match="scorer: this model was trained without one; name some"):
        study(wish(baseline))
    found = study(wish(baseline, scorers={"random": build("scorer", "random")}))
    assert found.marks.rate == 0.3 and "as the run has none of its own" in found.said[0] and len(found.said) == 2


def test_churn_between_checkpoints(trained, tmp_path):
    """Between the checkpoints given, by step; of random masks it is 1 − rate, of position's 0."""
    other = tmp_path / "other.pt"
    state = torch.load(trained / "checkpoints" / "last.pt", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for value in state["train"]["model"].values():
        if value.ndim > 1:
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    state["run"]["done"] = 3
    torch.save(state, other)
    names = ("random", "position", "entropy")
    last = str(trained / "checkpoints" / "last.pt")
    found = study(
        wish(trained, checkpoints=[last, str(other)], scorers={n: build("scorer", n) for n in names}, tokens=320)
    )
    (churn,) = found.found.churn
    assert (churn["before"], churn["after"]) == ("other.pt (step 3)", "last.pt (step 12)")
    assert churn["churn"]["position"] == 0
    assert churn["churn"]["random"] == pytest.approx(0.7, abs=0.15) and 0.2 < churn["churn"]["entropy"] < 1


def test_best_and_last_are_compared_unasked(trained, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name, done in (("best.pt", 6), ("last.pt", 12)):
        state = torch.load(trained / "checkpoints" / "last.pt", weights_only=True)
        state["run"]["done"] = done
        torch.save(state, folder / name)
    position = {"position": build("scorer", "position")}  # has no ties, which are drawn by lot
    found = study(wish(trained, checkpoints=[str(folder / "best.pt")], scorers=position))
    assert found.found.churn == [
        {"before": "best.pt (step 6)", "after": "last.pt (step 12)", "churn": {"position": 0.0}}
    ]
    assert study(wish(trained)).found.churn == []  # there both are of step 12


def test_an_exported_model_shows_the_same_and_a_foreign_one_needs_a_text(trained, tmp_path):
    folder, shared = tmp_path / "exported", trained.parents[2]
    tokenizer_dir = str(shared / "tokenizer")
    export(ExportConfig(checkpoint=str(trained), to=str(folder), overwrite=False, tokenizer_dir=tokenizer_dir))
    one, other = study(wish(trained)), study(wish(trained, checkpoints=[str(folder)]))
    assert one.marks.fates["entropy"].keep.tolist() == other.marks.fates["entropy"].keep.tolist()
    assert page.about(other, "x").startswith(f"{folder}, step 12, on x: 200 tokens")
    (folder / "tid.json").unlink()
    with pytest.raises(config.ConfigError, match="does not say which text it was trained on"):
        study(wish(trained, checkpoints=[str(folder)]))
    source = config.instantiate(one.loaded.record["config"]["data"], "data")
    with pytest.raises(config.ConfigError, match="scorer: this model was trained without one"):
        study(wish(trained, checkpoints=[str(folder)], source=source))
    scorers = {"entropy": build("scorer", "entropy")}
    found = study(wish(trained, checkpoints=[str(folder)], source=source, scorers=scorers))
    assert found.marks.fates["entropy"].keep.tolist() == one.marks.fates["entropy"].keep.tolist()


# ---------------------------------------------------------------------------------------------- terminal


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    class Screen:
        def __init__(self, tty: bool) -> None:
            self.isatty = lambda: tty

    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert terminal.coloured(Screen(True)) and not terminal.coloured(Screen(False))
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert terminal.coloured(Screen(False))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not terminal.coloured(Screen(True))


def test_the_terminal_view_paints_and_strikes(trained):
    found = study(wish(trained, text="one two three four five six seven eight nine ten", rate=0.5))
    view = terminal.view(found.marks, found.texts, found.found, colour=True)
    assert view.count("\x1b[0m") >= len(found.texts) and "\x1b[9;2" in view
    plain = terminal.view(found.marks, found.texts, found.found, colour=False)
    struck = re.findall(r"\[-(.*?)-\]", plain.splitlines()[1])
    keep = found.marks.fates["entropy"].keep
    assert struck == [text.strip() for text, kept in zip(found.texts, keep, strict=True) if not kept]
    assert "Drop rate by part of word" in plain and "Rank correlation" in plain


def test_control_characters_do_not_reach_the_terminal(trained):
    found = study(wish(trained, text="a\x1b[31mb\x07c d e f"))
    assert "\x1b" not in terminal.view(found.marks, found.texts, found.found, colour=False)
    assert not np.isnan(list(found.found.drop_rate.values())).any()
