"""How many tokens a row keeps, told on the host before the step: drop modes that gather the kept ones have to know."""

import numpy as np
import torch

from tid.data.batches import Batches
from tid.dropout import TokenDropout

MOST_LENGTHS = 8
ENOUGH = 0.99  # share of batches that the lengths are made for


class KeptLengths:
    """Of a run, the lengths to which the sequences of its batches are cut, and which of them each batch takes.

    A row of n droppable tokens keeps T − round(rate · n) of its T. Every length is compiled and captured, so there must
    be few; every token more than a batch needs is computed for nothing, so they must be tight. They are what rows keep
    at the rates of the schedule, MOST_LENGTHS of these at most, where a row has as many protected tokens as any has in
    ENOUGH of the batches. A batch that needs more takes the next length; the last is T.

    bands (total_steps, 2): lowest and highest drop rate of each step; samples: sequences per update.
    """

    def __init__(self, dropout: TokenDropout, batches: Batches, bands: np.ndarray, samples: int) -> None:
        self.dropout, self.batches, self.bands, self.samples = dropout, batches, bands, samples
        self.protected = batches.protected_counts(dropout.protect_first)
        protected = np.quantile(self.protected, ENOUGH ** (1 / samples), method="higher")
        needed: set[int] = set()
        for most, least in np.unique(self.kept(protected, bands[bands[:, 1] > 0]), axis=0).astype(int):
            needed |= set(range(least, most + 1))
        thinned = sorted(needed, reverse=True)[:: -(-len(needed) // MOST_LENGTHS) or 1]
        self.lengths = sorted({*thinned, batches.context})

    def kept(self, protected: np.ndarray, rates: np.ndarray) -> np.ndarray:
        """Tokens that rows with so many protected ones after the first positions keep at drop rates, float64."""
        context = self.batches.context
        return context - np.round(np.maximum(0, context - self.dropout.protect_first - protected) * rates)

    def __call__(self, step: int) -> int:
        """The length for a step that drops: no row of its batch keeps more."""
        first = np.arange(step * self.samples, (step + 1) * self.samples)
        protected = self.protected[self.batches.sequences(first[0], self.samples)]
        rates = self.dropout.row_rates(torch.tensor(self.bands[step]), torch.from_numpy(first)).numpy()
        most = self.kept(protected, rates).max()
        return next(length for length in self.lengths if length >= most)
