"""Diagnostics as tables of text, for a terminal and for a page."""

import math
from dataclasses import dataclass

from tid.inspection.figures import MIN_SEEN, Channel, Diagnostics, Rates

CORRELATION = "Rank correlation"
ENOUGH = 20  # tokens of a kind, to speak of its drop rate


@dataclass(frozen=True)
class Table:
    """The first column is text, the others are numbers. note: how to read it."""

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]


def percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}%"


def bits(value: float) -> str:
    return f"{value:.3f}".replace("-0.000", "0.000")


def by_group(rates: Rates) -> Table:
    rows = [
        [group, f"{seen:,}", *(percent(own[i]) for own in rates.rates.values())]
        for i, (group, seen) in enumerate(zip(rates.groups, rates.seen, strict=True))
    ]
    return Table(f"Drop rate by {rates.title}", rates.note, [rates.title, "tokens", *rates.rates], rows)


def correlations(found: Diagnostics) -> Table:
    rows = [
        [name, *("-" if math.isnan(value) else f"{value:+.2f}" for value in row)]
        for name, row in zip(found.names, found.correlation, strict=True)
    ]
    note = "Spearman's ρ over the droppable tokens of the whole text; log-frequency is of the training text."
    return Table(CORRELATION, note, ["", *found.names], rows)


def extremes(found: Diagnostics) -> Table:
    rows = [
        [name, f"{e.kinds:,}", *map(percent, (e.never, e.never_by_chance, e.always, e.always_by_chance))]
        for name, e in found.extremes.items()
    ]
    note = f"Of the distinct tokens that occur {MIN_SEEN} times or more. By chance: with as many drops, at random."
    header = ["scorer", "distinct tokens", "never dropped", "by chance", "always dropped", "by chance"]
    return Table("Never and always dropped", note, header, rows)


def channels(found: Diagnostics) -> Table:
    def cells(channel: Channel) -> list[str]:
        share = channel.told / channel.mask if channel.mask else 0.0
        return [bits(channel.told), percent(share), bits(channel.measured), bits(channel.chance)]

    rows = []
    for name in found.own:
        rows.append([f"{name}: the token itself", bits(found.own[name].mask), *cells(found.own[name])])
        rows.append([f"{name}: the next token", bits(found.following[name].mask), *cells(found.following[name])])
    note = (
        "Mutual information of a token's dropped bit and a token, in bits per droppable token. Training sees the mask, "
        "evaluation does not: what it tells of the next token, the target, is a leak. Told = H · (measured − chance) / "
        "(H − chance), with H the entropy of the bit and chance what an independent mask would show on the same counts "
        "(Vinh et al. 2010)."
    )
    header = ["what the mask tells", "bits in the mask", "told", "of the bit", "measured", "chance"]
    return Table("The mask as a channel", note, header, rows)


def churn(found: Diagnostics) -> Table | None:
    if not found.churn:
        return None
    names = list(found.drop_rate)
    rows = [
        [f"{row['before']} → {row['after']}", *(percent(row["churn"][name]) for name in names)] for row in found.churn
    ]
    rows.append(["masks that have nothing in common", *(percent(1 - found.drop_rate[name]) for name in names)])
    note = "Share of the tokens dropped at the first checkpoint that the second keeps; random choices are drawn anew."
    return Table("Churn of the mask", note, ["checkpoints", *names], rows)


def all_tables(found: Diagnostics) -> list[Table]:
    """Every table, the rates by group first."""
    tables = [*(by_group(rates) for rates in found.by.values()), correlations(found), extremes(found), channels(found)]
    return [*tables, *filter(None, [churn(found)])]


def findings(found: Diagnostics) -> dict[str, str]:
    """What stands out, in a sentence for each scorer."""
    return {name: _finding(found, name) for name in found.drop_rate}


def _finding(found: Diagnostics, name: str) -> str:
    words = found.by["word"]
    each = zip(words.rates[name], words.groups, words.seen, strict=True)
    rates = [(rate, group) for rate, group, seen in each if seen >= ENOUGH]
    told, following, mask = (
        max(0.0, v) for v in (found.own[name].told, found.following[name].told, found.own[name].mask)
    )
    text = f"drops {percent(found.drop_rate[name])} of the droppable tokens"
    if len(rates) > 1:
        (high, most), (low, least) = max(rates), min(rates)
        text += f", most often “{most}” ({percent(high)}), least often “{least}” ({percent(low)})"
    return f"{text}. Of the {mask:.2f} bits of its mask {told:.2f} tell the token, {following:.2f} the next one."
