"""The nearest name, what users can correct, and values as YAML writes them."""

import errno

import pytest
import torch

from tid.config import ConfigError
from tid.data import DataError
from tid.messages import correctable, did_you_mean, keys_of, nearest, quantity, shown


@pytest.mark.parametrize(
    ("word", "options", "found"),
    [
        ("entropyy", ["random", "entropy"], "entropy"),
        ("Entropy", ["random", "entropy"], "entropy"),
        ("gradnorm", ["grad_norm", "grad_x_input"], "grad_norm"),
        ("lr", ["optim.lr", "seed"], "optim.lr"),
        ("optim.lrr", ["model.num_layers", "optim.lr"], "optim.lr"),
        ("schedule", ["scorer", "drop_schedule"], "drop_schedule"),
        ("gpu", ["auto", "cuda", "cpu"], None),
        ("banana", ["scorer", "seed"], None),
    ],
)
def test_nearest(word, options, found):
    assert nearest(word, options) == found
    assert did_you_mean(word, options, "x.") == (f"; did you mean x.{found}?" if found else "")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConfigError("a: wrong"), "a: wrong"),
        (DataError("no text"), "no text"),
        (OSError(errno.ENOSPC, "No space left on device", "x/y"), "the disk is full (x/y): No space left on device. "),
        (torch.OutOfMemoryError("Tried to allocate 2.00 GiB.\nMore."), "out of memory: Tried to allocate 2.00 GiB.\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "out of memory: DefaultCPUAllocator: "),
        (MemoryError(), "out of memory: Python got no more\n  a smaller batch_size takes less"),
    ],
)
def test_what_users_can_correct_has_a_message(error, message):
    assert correctable(error).startswith(message)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("a bug"), OSError(errno.EIO, "x"), KeyError(1)])
def test_bugs_have_none(error):
    assert correctable(error) is None


def test_shown_is_yaml_on_one_line():
    assert [shown(value) for value in (None, True, "a", 1.5)] == ["null", "true", "'a'", "1.5"]
    assert len(shown("x" * 500)) == 60


def test_keys_of_lists_groups_and_leaves_without_targets():
    assert keys_of({"a": 1, "b": {"_target_": "x.Y", "c": {"d": 2}}}) == ["a", "b", "b.c", "b.c.d"]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (2e14, "200T"), (1.234e9, "1.23G"), (999.0, "999"), (999.4, "999"), (999.6, "1k"), (999_499, "999k"),
        (999_950, "1M"), (1000, "1k"), (1e6, "1M"), (123_604_224, "124M"), (1e21, "1Z"), (0.0, "0"), (0.25, "0.25"),
        (-3.0, "-3"), (float("nan"), "-"), (float("inf"), "-"), (None, "-"),
    ],
)  # fmt: skip
def test_quantities(value, written):
    assert quantity(value) == written
