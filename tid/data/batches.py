"""Training batches, cut from one token stream that lives on the training device."""

import warnings

import numpy as np
import torch
from torch import Tensor

from tid.config import ConfigError


class Batches:
    """Sequences of `context` inputs and their targets, every sequence once per epoch, reshuffled each epoch.

    Sequence i starts at token i · stride. The order of epoch e is a function of (seed, e) alone, so a position in
    the data is a single number: the count of samples read. Nothing is copied per run: on a CPU the stream stays the
    memory-mapped uint16 file, on a GPU it takes 2 bytes per token.

    Raises ConfigError when the text is shorter than one sequence.
    """

    def __init__(
        self, tokens: np.ndarray, *, context: int, stride: int, seed: int, protected_token: int, device: torch.device
    ) -> None:
        self.context, self.stride, self.seed = context, stride, seed
        self.num_sequences = count_sequences(len(tokens), context, stride)
        self.tokens, self.protected_token = tokens, protected_token
        # torch indexes int16, not uint16, everywhere: the bits are the same, & 0xFFFF restores the value
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable")  # nobody writes to it
            self.stream = torch.from_numpy(np.asarray(tokens).view(np.int16)).to(device)
        self.offsets = torch.arange(context + 1, device=device)
        self.orders = torch.zeros(2, self.num_sequences, dtype=torch.int64, device=device)  # even and odd epochs
        self.loaded: list[int | None] = [None, None]
        self.host_orders: list[np.ndarray] = [np.empty(0), np.empty(0)]

    def load_orders(self, first_sample: int, count: int) -> None:
        """Have the orders of all epochs that samples [first_sample, first_sample + count) touch on the device.

        Raises ConfigError when these can be more than two epochs.
        """
        refuse_large_update(count, self.num_sequences)
        for epoch in range(first_sample // self.num_sequences, (first_sample + count - 1) // self.num_sequences + 1):
            if self.loaded[epoch % 2] != epoch:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                order = torch.randperm(self.num_sequences, generator=generator)
                self.orders[epoch % 2].copy_(order)
                self.host_orders[epoch % 2] = order.numpy()
                self.loaded[epoch % 2] = epoch

    def protected_counts(self, first: int) -> np.ndarray:
        """How many of the inputs of each sequence from position `first` on are the protected token, (sequences,)."""
        length = max(0, self.context - first)
        return count_in_windows(self.tokens[first:], self.protected_token, self.num_sequences, self.stride, length)

    def sequences(self, first_sample: int, count: int) -> np.ndarray:
        """Sequence numbers (count,) int64 of samples first_sample … first_sample + count − 1, on the host."""
        self.load_orders(first_sample, count)
        epoch, place = np.divmod(np.arange(first_sample, first_sample + count), self.num_sequences)
        return np.array([self.host_orders[e % 2][p] for e, p in zip(epoch, place, strict=True)])

    def sequences_of(self, samples: Tensor) -> Tensor:
        """`sequences` on the device, of running sample numbers (B,) int64. Needs `load_orders` before."""
        return self.orders[samples // self.num_sequences % 2, samples % self.num_sequences]

    def gather(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Running sample numbers (B,) int64 → inputs and targets, (B, T) int64 each. Needs `load_orders` before."""
        window = self.stream[self.sequences_of(samples)[:, None] * self.stride + self.offsets].long() & 0xFFFF
        return window[:, :-1], window[:, 1:]


def count_sequences(length: int, context: int, stride: int) -> int:
    """Sequences in a text of `length` tokens. Raises ConfigError when it has none."""
    if length < context + 1:
        raise ConfigError(
            f"context: the training text has {length:,} tokens, fewer than one sequence of context ({context:,}) + 1; "
            "use a smaller context or more text"
        )
    return (length - 1 - context) // stride + 1


def refuse_large_update(count: int, sequences: int) -> None:
    """Raise ConfigError when the `count` sequences that an update reads can be of more than two epochs."""
    if count > sequences + 1:
        raise ConfigError(
            f"batch_size: an update reads {count:,} sequences (batch_size x accumulate_steps), and the training text "
            f"has only {sequences:,}; use a smaller batch_size or accumulate_steps, or more text"
        )


def count_in_windows(tokens: np.ndarray, token: int, windows: int, stride: int, length: int) -> np.ndarray:
    """How often `token` stands in each window [i · stride, i · stride + length), (windows,) int64."""
    places = np.flatnonzero(np.asarray(tokens) == token)
    starts = np.arange(windows, dtype=np.int64) * stride
    return np.searchsorted(places, starts + length) - np.searchsorted(places, starts)
