"""What the comparison says in sentences: the answer, and how its numbers are to be read."""

from tid.comparison.agreement import APART, code, fact
from tid.comparison.controls import CONTROLS
from tid.comparison.report import Report, Row
from tid.comparison.statistics import RESAMPLES, Difference, Spread
from tid.comparison.views import Limit

UNIT = {"loss": "nats per token", "bpc": "bits per character", "bpb": "bits per UTF-8 byte"}
VIEW = {"final": "equal steps, last step, all documents", "best": "equal steps, best, odd documents",
        "flops": "equal FLOPs, best, odd documents", "seconds": "equal wall-clock, best, odd documents"}  # fmt: skip
CONTROL = {
    "exact": {"no_drop": "no drop", "random": "random at the same rate"},
    "tuned": {"no_drop": "the best no drop", "random": "the best random"},
}
BEST = (
    "Final is of all validation documents, best of the odd ones (the even chose it): so it may read higher than final."
)
PAIRED = {"exact": " (same initialisation, same data order)", "tuned": ""}
COUNTED = 5  # configurations that a sentence names
CORRECTION = {"bh": "Benjamini-Hochberg", "by": "Benjamini-Yekutieli"}


def called(control: str, report: Report) -> str:
    """What differences are from: "random at the same rate", or "the best random" at whatever rate."""
    return CONTROL[report.question.controls][control]


def name(row: Row) -> str:
    """A row's label, marked ‡ when runs of it were pruned or diverged."""
    return row.configuration.label + (" ‡" if row.configuration.is_censored else "")


def count(row: Row) -> str:
    """3, or 2/3 when seeds that the sweep has are not in the mean."""
    return str(row.n) if row.n == row.expected else f"{row.n}/{row.expected}"


def number(value: float, digits: int = 4, sign: bool = False) -> str:
    """Fixed digits, of a difference (with its sign) so many that it is not 0; a dash for what is not there."""
    if sign and 0 < abs(value) < 0.5 * 10**-digits:
        return f"{value:+.1e}"
    return "-" if value != value else f"{value:{'+' if sign else ''}.{digits}f}"


def mean_sd(spread: Spread) -> str:
    """1.2345 ± 0.0012, without the ± when n is 1."""
    return number(spread.mean) + (f" ± {number(spread.sd)}" if spread.n > 1 else "")


def interval(d: Difference) -> str:
    return f"[{number(d.low, sign=True)}, {number(d.high, sign=True)}]" if d.low == d.low else "-"


def probability(p: float, equals: str = "") -> str:
    return "-" if p != p else "< 0.0001" if p < 1e-4 else f"{equals}{p:.4f}"


def verdict(d: Difference, alpha: float) -> str:
    """better or worse than the control, by the corrected p-value; "" when that is not shown (or not tested)."""
    if d.method != "seeds" or not d.p_adjusted < alpha:
        return ""
    return "better" if d.estimate < 0 else "worse"


def level(report: Report) -> str:
    return f"{100 * report.question.confidence:g}%"


def alpha(report: Report) -> float:
    return round(1 - report.question.confidence, 6)


# -------------------------------------------------------------------------------------------------- answer


def answer(report: Report) -> list[str]:
    """The result in the primary view, in a few sentences."""
    rows = [row for row in report.rows if row.views[report.primary].n and not row.configuration.is_censored]
    if not rows:
        return ["Every configuration with a finished run has pruned or diverged ones, too: no mean is fair to rank."]
    first, unit, lacking = rows[0], report.question.metric, [row for row in rows if row.n < row.expected]
    figure = f"{mean_sd(first.views[report.primary])} {unit}, n={first.views[report.primary].n}"
    said = [f"Lowest validation {unit} ({VIEW[report.primary]}): {first.configuration.label} ({figure})."]
    if len(lacking) == len(rows) and len(rows) > 1:
        said.append("No configuration has all its seeds yet, so the lowest may be one that lacks the hard ones.")
    elif lacking:
        said.append(f"Not ranked with the others, since they lack seeds: {counted(lacking)}.")
    said += [_against(first, report, control) for control in CONTROLS]
    said += [_tally(rows, report, control) for control in CONTROLS]
    if len(report.rows) > 2 and not first.configuration.is_baseline:
        said.append(
            f"It was picked as the lowest of {len(report.rows)}, so part of its lead is luck: confirm it with fresh "
            "seeds."
        )
    return [sentence for sentence in said if sentence]


def counted(rows: list[Row]) -> str:
    """Some of the labels, with how many of their seeds there are."""
    more = f" and {len(rows) - COUNTED} more" if len(rows) > COUNTED else ""
    return ", ".join(f"{name(row)} ({count(row)})" for row in rows[:COUNTED]) + more


def _against(row: Row, report: Report, control: str) -> str:
    d = row.differences[report.primary, control]
    if d.method == "none":
        mine = row.configuration
        is_control = mine.is_baseline or (mine.is_random and control == "random")
        return "" if is_control else f"Not compared with {called(control, report)}: {d.why}."
    unit, sure = report.question.metric, verdict(d, alpha(report)) or "not distinguishable"
    says = f"Against {called(control, report)}: {number(d.estimate, sign=True)} {unit}"
    if d.method == "point":
        return f"{says}, without an interval: {d.why}."
    if d.method == "documents":
        spread = f"{level(report)} interval {interval(d)}"
        documents = len(row.configuration.runs[d.seeds[0]].documents)
        return f"{says}, {spread} over {documents} documents and one seed: weak evidence, not a test."
    tested = f"corrected p {probability(d.p_adjusted, '= ')}, {d.pairs} pairs"
    return f"{says}, {level(report)} interval {interval(d)}, {tested}: {sure}."


def _tally(rows: list[Row], report: Report, control: str) -> str:
    found = [row.differences[report.primary, control] for row in rows]
    tested = [d for d in found if d.method == "seeds"]
    if not tested:
        return ""
    verdicts = [verdict(d, alpha(report)) for d in tested]
    better, worse = verdicts.count("better"), verdicts.count("worse")
    return (
        f"Of {len(tested)} tested against {called(control, report)}: {better} better, {worse} worse, "
        f"{len(tested) - better - worse} not distinguishable."
    )


# --------------------------------------------------------------------------------------------------- notes


def notes(report: Report) -> list[str]:
    """How to read the numbers: only what applies to this report."""
    question = report.question
    said = [
        f"Lower is better. mean ± sd (ddof 1) over n seeds, in {UNIT[question.metric]}. loss, bpc and bpb of one text "
        "are one number in three units, so tests come out alike in each.",
        BEST,
    ]
    methods = {d.method for row in report.rows for d in row.differences.values()}
    if "seeds" in methods:
        said.append(
            f"Differences are ours minus the control's, paired by seed{PAIRED[question.controls]}: Student's paired "
            f"t-test (scipy.stats.ttest_rel) with its {level(report)} interval. Corrected p: "
            f"{CORRECTION[question.correction]} (scipy.stats.false_discovery_control) over all {report.tests} tests "
            f"of this report (every configuration, both controls, every view){_more_tests(report)}; those below 0 and "
            "those above are corrected apart, each with the others as p = 1, so that many that are worse do not make "
            "it easy to be called better."
        )
    if "documents" in methods:
        said.append(
            f"†: one seed. {level(report)} interval of a paired bootstrap over validation documents "
            f"(scipy.stats.bootstrap, BCa, {RESAMPLES:,} resamples). It says how sure the difference between these two "
            "trained models is, and nothing about another seed: weaker evidence, so it has no p-value; and it takes "
            "documents as independent, which paragraphs of one speech are not. Run more seeds."
        )
    if report.question.at != ["final"] and report.question.at != ["best"]:
        said += _budgets(report)
    if question.controls == "tuned":
        said += _tuned(report)
    elif any(_selector_differs(row) for row in report.rows):
        said.append(
            "Where no random run has the same selector, one with another that drops as many tokens serves: given "
            "random scores lowest, highest and sampled choose alike."
        )
    if any(len(run.documents) == 1 for run in report.done):
        said.append(
            "The held-out text is one document: best, and what is read at equal FLOPs or wall-clock, was chosen on the "
            "text that it is reported on, and is too low."
        )
    if any(row.configuration.is_censored for row in report.rows):
        said.append(
            "‡: runs of it were pruned, or diverged. They are in no mean, and what is left is tested against nothing."
        )
    if any(run.state == "pruned" for run in report.runs):
        said.append("Losers were pruned: what was not is partly what had luck, and its differences read too low.")
    return said + _mixed(report) + report.said


def _more_tests(report: Report) -> str:
    """Those that the correction counts besides."""
    count = report.never_made
    return f" and {count} that were never made, of what was pruned or diverged" if count else ""


def _tuned(report: Report) -> list[str]:
    """Which configurations everything else is held against, in each view."""
    named: dict[str, list[str]] = {}
    for view in report.question.at:
        for control in CONTROLS:
            chosen = {row.configuration.controls.get((view, control)) for row in report.rows} - {None}
            labels = ", ".join(sorted(f"{c.label} (id {c.key})" for c in chosen))
            if labels:
                named.setdefault(f"{called(control, report)}: {labels}", []).append(view)
    listed = "; ".join(f"{what} ({', '.join(views)})" for what, views in named.items())
    return [
        "Controls are tuned: of each kind and in each view the one with the lowest mean on the even documents, "
        f"censored ones left out, whatever else differs: {listed or 'there is none'}. That is fair only if the "
        "controls were searched as widely as what is held against them."
    ]


def _selector_differs(row: Row) -> bool:
    control = next((c for (_, kind), c in row.configuration.controls.items() if kind == "random"), None)
    return control is not None and control.settings["selector"] != row.configuration.settings["selector"]


def _budgets(report: Report) -> list[str]:
    shown = [
        (cost, limits[cost])
        for limits in report.limits.values()
        for cost in ("flops", "seconds")
        if cost in report.question.at and cost in limits
    ]
    if not shown:
        return []
    said = [_budget(cost, limit) for cost, limit in shown]
    said.append(
        "There the best value so far counts: it is chosen on the even documents, and its figure is that of the odd "
        "ones. (The last would favour the run cut shortest, where runs over-fit.) A run cut short has not finished "
        "its learning-rate and drop schedules, which favours the cheapest: a claim that rests on it wants a run of "
        "fewer steps."
    )
    return said


def _budget(cost: str, limit: Limit) -> str:
    flops, seconds = f"{limit.amount:.3g} FLOPs", f"{limit.amount:,.0f} seconds"
    name, spent = ("FLOPs", flops) if cost == "flops" else ("wall-clock", seconds)
    return (
        f"Equal {name}: every curve is read at {spent}, scoring included, which is what the cheapest run spent in all "
        f"({limit.cheapest.folder.name}), on straight lines between evaluations and never beyond them."
    )


def _mixed(report: Report) -> list[str]:
    said = []
    for name, values in report.mixed.items():
        averaged = "averaged over nevertheless, as asked; pairs whose two runs differ in it are left out"
        how = "in rows of their own, never in one mean" if name in APART else averaged
        shown = "; ".join(f"{value}: {len(runs)} runs" for value, runs in values.items())
        said.append(f"The runs differ in {name} ({how}): {shown}.")
    return said


def provenance(report: Report) -> list[str]:
    """What all done runs share: text, budget, code, precision, device."""
    run = report.done[0]
    facts = {"text": "data", "budget": "budget", "precision": "precision", "device": "device"}
    shared = [f"{word} {fact(run, name)}" for word, name in facts.items() if name not in report.mixed]
    return [*shared, *([f"code {code(run.summary)}"] if "code" not in report.mixed else [])]
