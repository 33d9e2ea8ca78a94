"""Terminal, Markdown and CSV."""

import csv
import io
import re

import pytest
import synthetic

from tid.comparison import report, tables
from tid.comparison.folders import read_all
from tid.comparison.report import Question
from tid.logs import write_csv


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A sweep with a pruned, a failed and a running cell."""
    root = tmp_path_factory.mktemp("tables")
    synthetic.sweep(root)
    pruned = synthetic.settings(name="sweep", drop_mode="mask_aux", drop_schedule="constant", optim__weight_decay=1.0)
    synthetic.write_run(root, pruned, state="pruned", reason="above the siblings' median", until=60)
    for seed, state in ((3, "failed"), (4, "running")):
        run = synthetic.settings(name="sweep", drop_schedule="constant", seed=seed)
        synthetic.write_run(root, run, state=state, reason="a | b" * (state == "failed"), until=60)
    return report.build(read_all([str(root)]), Question("bpc", ["final", "best", "flops", "seconds"], 0.95, "bh", []))


def test_the_terminal_keeps_to_100_columns_and_has_everything(found):
    text = tables.terminal(found, ["a/file"])
    assert max(len(line) for line in text.splitlines()) <= tables.WIDTH
    for part in ("final bpc", "95% interval", "corrected", "random at the same rate", "pruned", "failed", "running",
                 "missing", "Benjamini-Hochberg", "Lowest validation bpc", "a/file"):  # fmt: skip
        assert part in text, part
    assert "\033" not in text  # no terminal here


def test_heads_say_which_documents_a_figure_is_of(found):
    """Final is of all, the reported best of the odd ones: side by side they must not pass for the same."""
    assert tables.results(found).header[2:4] == ["final bpc, all documents", "best bpc, odd documents"]
    assert [head for head in tables.units(found).header if "bpc" in head] == [
        "final bpc, all documents", "best bpc, all documents", "best bpc, odd documents",
    ]  # fmt: skip
    for row, cells in zip(found.rows, tables.results(found).rows, strict=True):
        assert cells[3] == tables.mean_sd(row.figures["report", "bpc"])
    assert "may read higher than final" in " ".join(tables.terminal(found).split())


def test_columns_are_aligned(found):
    lines = tables.aligned(tables.results(found)).splitlines()
    rule = next(line for line in lines if line.startswith("---"))
    ends = [match.end() for match in re.finditer("-+", rule)]
    body = [line for line in lines[lines.index(rule) + 1 :] if not line.startswith("  ")]
    assert len(body) == len(found.rows)
    for line in body:
        assert all(end >= len(line) or line[end - 1] != " " for end in ends[1:-1]), line


def test_bold_is_for_terminals_that_want_it(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert tables.bold("x") == "\033[1mx\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert tables.bold("x") == "x"


def test_many_configurations_are_cut_with_a_word(found):
    table = tables.Table("t", ["configuration", "n"], [[f"row{i}", "1"] for i in range(80)])
    text = tables.aligned(table)
    assert "row49" in text and "row50" not in text and "... and 30 more" in text


def test_markdown_is_well_formed(found):
    text = tables.markdown(found, "Title", ["Which *scorer*?"])
    assert text.startswith("# Title\n\n*Which \\*scorer\\*?*\n")
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) >= 10
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block}
        assert len(widths) == 1, block[0]
    assert "a \\| b" in text


def test_csv_holds_every_figure_in_full(found, tmp_path):
    write_csv(tmp_path / "x.csv", *tables.configurations_csv(found))
    text = (tmp_path / "x.csv").read_text()
    by_label = {row["configuration"]: row for row in csv.DictReader(io.StringIO(text))}
    row = next(row for row in found.rows if row.configuration.names.get("scorer") == "surprisal")
    cells = by_label[row.configuration.label]
    d = row.differences["flops", "random"]
    assert float(cells["flops_vs_random_difference"]) == d.estimate
    assert float(cells["flops_vs_random_p_corrected"]) == d.p_adjusted
    assert float(cells["final_bpc_sd"]) == row.figures["final", "bpc"].sd
    assert (cells["n"], cells["seeds"], cells["role"]) == ("3", "0 1 2", "")
    assert cells["scorer"] == "surprisal" and cells["final_vs_no_drop_method"] == "seeds"
    baseline = next(cells for cells in by_label.values() if cells["role"] == "no drop")
    assert baseline["final_vs_no_drop_difference"] == "" and "control" in baseline["final_vs_no_drop_why"]


def test_every_run_is_in_runs_csv(found, tmp_path):
    write_csv(tmp_path / "x.csv", *tables.runs_csv(found))
    listed = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text())))
    assert len(listed) == len(found.runs)
    assert {row["state"] for row in listed} == {"done", "pruned", "failed", "running"}
    assert all((row["final_bpc"] == "") == (row["state"] != "done") for row in listed)


@pytest.mark.parametrize(("value", "shown"), [(3.0, "3s"), (600.0, "10m"), (9000.0, "2.5h"), (float("nan"), "-")])
def test_durations(value, shown):
    assert tables.duration(value) == shown
