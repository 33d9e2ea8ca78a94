import numpy as np
import pytest
import torch
from tiny import CONTEXT, CPU, EOT, tiny_text

from tid.config import ConfigError
from tid.data.batches import Batches, count_in_windows


def make(tokens, context: int = CONTEXT, stride: int | None = None, seed: int = 0) -> Batches:
    return Batches(
        tokens, context=context, stride=stride or context, seed=seed, protected_token=EOT, device=CPU
    )


def counting(length: int) -> np.ndarray:
    """Tokens 0, 1, 2, …: a token is its own place."""
    return np.arange(length, dtype=np.uint16)


def starts(batches: Batches, first: int, count: int) -> list[int]:
    """Where the sequences of `count` samples begin in a counting text."""
    batches.load_orders(first, count)
    tokens, _ = batches.gather(torch.arange(first, first + count))
    return tokens[:, 0].tolist()


def test_a_sequence_and_its_targets():
    batches = make(counting(100), context=10)
    batches.load_orders(0, 9)
    tokens, targets = batches.gather(torch.arange(9))
    assert tokens.dtype == targets.dtype == torch.int64
    assert tokens.shape == targets.shape == (9, 10)
    assert torch.equal(targets, tokens + 1)
    assert torch.equal(tokens, tokens[:, :1] + torch.arange(10))
    assert (tokens[:, 0] % 10 == 0).all()


@pytest.mark.parametrize(
    ("length", "context", "stride", "sequences"),
    [(11, 10, 10, 1), (20, 10, 10, 1), (21, 10, 10, 2), (101, 10, 10, 10), (101, 10, 5, 19), (101, 10, 1, 91),
     (26, 10, 5, 4)],
)  # fmt: skip
def test_every_sequence_once_per_epoch(length, context, stride, sequences):
    batches = make(counting(length), context, stride)
    assert batches.num_sequences == sequences
    assert (sequences - 1) * stride + context + 1 <= length < sequences * stride + context + 1  # all
    for epoch in range(4):
        first = starts(batches, epoch * sequences, sequences)
        assert sorted(first) == [i * stride for i in range(sequences)]


def test_orders_differ_between_epochs_and_seeds_and_repeat():
    batches = make(counting(1001), context=10)
    epochs = [starts(batches, epoch * 100, 100) for epoch in range(5)]
    assert len({tuple(order) for order in epochs}) == 5
    assert starts(batches, 200, 100) == epochs[2]  # back again
    assert starts(make(counting(1001), context=10), 300, 100) == epochs[3]  # straight there
    assert starts(make(counting(1001), context=10, seed=1), 0, 100) not in epochs
    fixed = [sum(a == b for a, b in zip(epochs[0], other, strict=True)) for other in epochs[1:]]
    assert max(fixed) < 10  # a random permutation agrees with another in about one place


def test_batches_that_straddle_epochs():
    batches, sequences = make(counting(221), context=10), 22
    together = [place for first in range(0, 88, 8) for place in starts(batches, first, 8)]
    for epoch in range(4):
        part = together[epoch * sequences : (epoch + 1) * sequences]
        assert sorted(part) == list(range(0, 220, 10)), epoch
    one_by_one = [starts(batches, sample, 1)[0] for sample in range(88)]
    assert one_by_one == together
    assert (batches.sequences(17, 10) * 10).tolist() == together[17:27]


@pytest.mark.parametrize("sequences", [1, 2, 3, 5])
def test_a_batch_of_several_epochs_reads_them_in_their_own_orders_or_is_refused(sequences):
    text = counting(10 * sequences + 1)
    one_by_one = [starts(make(text, context=10), sample, 1)[0] for sample in range(12)]
    try:
        together = starts(make(text, context=10), 0, 12)
    except ConfigError as error:
        assert "sequences" in str(error)
    else:
        assert together == one_by_one


def test_overlapping_sequences():
    batches = make(counting(41), context=10, stride=4)
    batches.load_orders(0, batches.num_sequences)
    tokens, _ = batches.gather(torch.arange(batches.num_sequences))
    tokens = tokens[tokens[:, 0].argsort()]
    assert torch.equal(tokens[1:, :6], tokens[:-1, 4:])


def test_token_ids_above_32767_survive():
    tokens = np.array([0, 1, 32767, 32768, 50256, 65535, 7, 8, 9, 10, 11], dtype=np.uint16)
    batches = make(tokens, context=10)
    batches.load_orders(0, 1)
    inputs, targets = batches.gather(torch.zeros(1, dtype=torch.int64))
    assert inputs.tolist() == [tokens[:-1].tolist()]
    assert targets.tolist() == [tokens[1:].tolist()]


@pytest.mark.filterwarnings("error")  # torch warns of arrays that it could write to by mistake
def test_a_memory_mapped_file_is_read_in_place(tmp_path):
    path = tmp_path / "tokens.bin"
    tiny_text(500).tofile(path)
    mapped = np.memmap(path, dtype=np.uint16, mode="r")
    batches, reference = make(mapped), make(tiny_text(500))
    for each in (batches, reference):
        each.load_orders(0, 20)
    assert torch.equal(batches.gather(torch.arange(20))[1], reference.gather(torch.arange(20))[1])
    assert batches.stream.data_ptr() == mapped.ctypes.data


@pytest.mark.parametrize(("stride", "length"), [(16, 16), (5, 16), (1, 16), (16, 1)])
@pytest.mark.parametrize("token", [EOT, 0, 99])
def test_count_in_windows_against_counting(token, stride, length):
    text = tiny_text(300)
    windows = (len(text) - length) // stride + 1
    expected = [int((text[i * stride : i * stride + length] == token).sum()) for i in range(windows)]
    assert count_in_windows(text, token, windows, stride, length).tolist() == expected


@pytest.mark.parametrize("first", [0, 1, 5, 16])
def test_protected_counts_are_those_of_the_inputs(first):
    batches = make(tiny_text(500), stride=7)
    n = batches.num_sequences
    batches.load_orders(0, n)
    tokens, _ = batches.gather(torch.arange(n))
    counted = batches.protected_counts(first)[batches.sequences(0, n)]
    assert (tokens[:, first:] == EOT).sum(dim=1).tolist() == counted.tolist()


def test_text_shorter_than_one_sequence_is_refused():
    with pytest.raises(ConfigError, match=r"10 tokens, fewer than one sequence of context \(10\) \+ 1"):
        make(counting(10), context=10)
    make(counting(11), context=10)


def test_global_generators_are_left_alone():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    starts(make(counting(101), context=10), 7, 10)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()
