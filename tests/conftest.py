"""Shared by all tests."""

import pytest
import torch
from tiny import tiny_model

torch.set_num_threads(1)  # sums in one order, and no contention for tensors this small


@pytest.fixture
def model():
    """A fresh tiny model."""
    return tiny_model()
