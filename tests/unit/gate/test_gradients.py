"""Norms of groups: every kind of tensor, and sizes whose squares float32 cannot hold."""

import math

import pytest
import torch

from musicnet.gate.gradients import group_norms


def test_the_norm_of_halves_adds_up_in_single_precision() -> None:
    # 2^16 ones: the sum of squares is beyond what float16 can hold.
    ones = torch.ones(1 << 16, dtype=torch.float16)
    assert group_norms({"all": [ones]}) == {"all": 256.0}


def test_norms_of_complex_and_sparse_tensors_are_those_of_their_entries() -> None:
    duplicate = torch.sparse_coo_tensor(
        torch.tensor([[1, 1]]), torch.tensor([1.0, 2.0]), (5,), check_invariants=True
    )
    norms = group_norms({"complex": [torch.tensor([3.0 + 4.0j])], "sparse": [duplicate]})
    assert norms == {"complex": 5.0, "sparse": 3.0}


def test_a_tiny_a_huge_a_zero_and_a_broken_group_keep_to_themselves() -> None:
    norms = group_norms(
        {
            "tiny": [torch.tensor([3e-25]), torch.tensor([4e-25])],
            "huge": [torch.tensor([3e25, 4e25])],
            "double": [torch.tensor([3e60, 4e60], dtype=torch.float64)],
            "zero": [torch.zeros(2)],
            "broken": [torch.tensor([1.0, math.nan])],
        }
    )
    assert norms.pop("tiny") == pytest.approx(5e-25, rel=1e-6, abs=0)
    assert norms.pop("huge") == pytest.approx(5e25)
    assert norms.pop("double") == pytest.approx(5e60)
    assert norms.pop("zero") == 0
    assert math.isnan(norms.pop("broken"))
