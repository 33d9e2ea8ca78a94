"""Lengths of gathered sequences: enough, few, tight. `test_step` holds the length of each batch to its keep mask."""

import numpy as np
import pytest
import torch
from tiny import CONTEXT, CPU, EOT, options, tiny_dropout

from tid.data.batches import Batches
from tid.lengths import MOST_LENGTHS, KeptLengths


def lengths(schedule, text: np.ndarray, *, samples: int = 4, steps: int = 50, context: int = CONTEXT) -> KeptLengths:
    dropout = tiny_dropout(schedule=schedule)
    batches = Batches(text, context=context, stride=context, seed=0, protected_token=EOT, device=CPU)
    return KeptLengths(dropout, batches, np.array([dropout.band(s / steps) for s in range(steps)]), samples)


def plain_text(size: int = 2001) -> np.ndarray:
    """Tokens without one EOT."""
    return (np.arange(size) % 50).astype(np.uint16)


@pytest.mark.parametrize("context", [1, 5, 16, 500])
@pytest.mark.parametrize("schedule", options("drop_schedule"))
def test_there_are_few_and_the_last_is_the_whole_sequence(schedule, context):
    found = lengths(schedule, plain_text(), samples=1, context=context).lengths
    assert len(found) <= MOST_LENGTHS + 1
    assert found == sorted(set(found))
    assert 0 <= found[0] <= found[-1] == context


@pytest.mark.parametrize(("rate", "kept"), [(0.5, 8), (0.3, 12), (0.9, 2)])
def test_a_constant_rate_needs_one_that_fits_exactly(rate, kept):
    cut = lengths(rate, plain_text())
    assert cut.lengths == [kept, CONTEXT]
    assert [cut(step) for step in range(20)] == [kept] * 20


def test_protected_tokens_that_are_common_are_allowed_for():
    text = plain_text()
    text[8::CONTEXT] = text[9::CONTEXT] = EOT
    cut = lengths(0.5, text)
    assert cut.lengths == [CONTEXT - round(13 * 0.5), CONTEXT]
    assert cut(3) == cut.lengths[0]


def test_a_rare_row_does_not_lengthen_all_the_others():
    text = plain_text(16 * 2000 + 1)
    text[16:32] = EOT
    cut = lengths(0.5, text, steps=500)
    assert cut.lengths == [8, CONTEXT]
    (rare,) = (step for step in range(500) if cut(step) == CONTEXT)
    assert 1 in cut.batches.sequences(rare * 4, 4)


def test_a_rate_that_moves_takes_the_next_length():
    cut = lengths("linear_decay", plain_text())
    taken = [cut(step) for step in range(50)]
    assert taken == sorted(taken)
    assert 1 < len(set(taken)) <= MOST_LENGTHS


def test_of_a_band_each_batch_takes_what_its_rows_draw():
    cut = lengths("uniform", plain_text(), samples=2)
    low, high = cut.bands[0]
    assert low < high
    taken = [cut(step) for step in range(50)]
    assert len(set(taken)) > 2
    for step in range(50):
        rate = cut.dropout.row_rates(torch.tensor(cut.bands[step]), torch.arange(2 * step, 2 * step + 2)).min()
        assert taken[step] >= CONTEXT - round(15 * float(rate))
