"""Which kernels are by hand, and where."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from tiny import build

from tid import pieces
from tid.config import ConfigError
from tid.device import choose_fast, is_hopper
from tid.pieces import BY_HAND

CPU = torch.device("cpu")
SHAPE = build("model", "gpt_125m")


def chosen(kernels: str, shape=SHAPE, context: int = 128, precision: str = "bf16") -> tuple[str, ...]:
    return pieces.by_hand_for(kernels, shape, context, precision, CPU)


@pytest.fixture
def hopper(monkeypatch):
    """The CPU passes for a Hopper GPU."""
    kernels = pytest.importorskip("tid.kernels")
    for module in (pieces, kernels):
        monkeypatch.setattr(module, "is_hopper", lambda device: True)


def test_elsewhere_none_is_the_default():
    assert chosen("auto") == chosen("none") == ()


def test_elsewhere_all_can_be_asked_for_but_attention():
    pytest.importorskip("triton")
    assert chosen("all") == BY_HAND[1:] and chosen(BY_HAND[1]) == BY_HAND[1:2]
    with pytest.raises(ValueError, match="attention by hand wants a Hopper GPU"):
        chosen("attention")


def test_on_hopper_all_are_the_default(hopper):
    assert chosen("auto") == chosen("all") == BY_HAND and chosen("none") == ()
    assert chosen("row_gradient") == ("row_gradient",)


@pytest.mark.parametrize(
    ("lacking", "changes", "why"),
    [
        ("attention", {"context": 129}, "a context of at most 128 tokens"),
        ("attention", {"precision": "fp32"}, "16-bit precision"),
        ("attention", {"shape": dataclasses.replace(SHAPE, num_heads=6)}, "a head size of 32 or 64"),
    ],
)
def test_only_kernels_that_will_run_are_named(hopper, lacking, changes, why):
    assert lacking not in chosen("all", **changes) and lacking not in chosen("auto", **changes)
    with pytest.raises(ValueError, match=f"{lacking} by hand wants .*{why}"):
        chosen(lacking, **changes)


def test_a_cpu_is_no_hopper_and_is_not_asked_for_its_kernels():
    assert not is_hopper(CPU)
    for kernels in ("auto", "none"):
        assert not choose_fast(SimpleNamespace(compile=True, kernels=kernels), CPU)
    with pytest.raises(ConfigError, match="kernels=all needs a CUDA GPU"):
        choose_fast(SimpleNamespace(compile=True, kernels="all"), CPU)
