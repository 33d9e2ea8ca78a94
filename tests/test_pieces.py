"""Which kernels are by hand, and where."""

from types import SimpleNamespace

import pytest
import torch

from tid import pieces
from tid.config import ConfigError
from tid.device import choose_fast, is_hopper
from tid.pieces import BY_HAND

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("hopper", "kernels", "chosen"),
    [
        (False, "auto", ()), (False, "none", ()), (False, "all", BY_HAND[1:]), (False, BY_HAND[1], BY_HAND[1:2]),
        (True, "auto", BY_HAND), (True, "none", ()), (True, "all", BY_HAND), (True, "attention", BY_HAND[:1]),
    ],
)  # fmt: skip
def test_which_kernels_are_by_hand(hopper, kernels, chosen, monkeypatch):
    monkeypatch.setattr(pieces, "is_hopper", lambda device: hopper)
    assert pieces.by_hand_for(kernels, CPU) == chosen


def test_attention_by_hand_is_for_hopper():
    with pytest.raises(ValueError, match="needs a Hopper GPU"):
        pieces.by_hand_for("attention", CPU)


def test_a_cpu_is_no_hopper_and_is_not_asked_for_its_kernels():
    assert not is_hopper(CPU)
    for kernels in ("auto", "none"):
        assert not choose_fast(SimpleNamespace(compile=True, kernels=kernels), CPU)
    with pytest.raises(ConfigError, match="kernels=all needs a CUDA GPU"):
        choose_fast(SimpleNamespace(compile=True, kernels="all"), CPU)
