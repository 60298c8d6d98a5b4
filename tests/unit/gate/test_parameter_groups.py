"""Every trainable parameter in exactly one group."""

import math

import pytest
from torch import nn

from musicnet.gate.parameter_groups import ParameterGroup, backbone_and_head, named_groups


def net() -> nn.ModuleDict:
    return nn.ModuleDict({"backbone": nn.Linear(2, 3), "head": nn.Linear(3, 1)})


def test_the_head_trains_at_four_times_the_rate() -> None:
    groups = named_groups(net(), backbone_and_head(), base_rate=3e-4)
    assert [(g["name"], g["lr"]) for g in groups] == [("backbone", 3e-4), ("head", 1.2e-3)]
    assert [len(g["params"]) for g in groups] == [2, 2]


def test_a_parameter_in_no_group_is_named() -> None:
    module = net()
    module["extra"] = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"in no group: extra.weight, extra.bias"):
        named_groups(module, backbone_and_head(), 1.0)


def test_a_frozen_parameter_may_be_in_no_group() -> None:
    module = net()
    module["extra"] = nn.Linear(1, 1).requires_grad_(requires_grad=False)
    assert len(named_groups(module, backbone_and_head(), 1.0)) == 2


def test_a_parameter_in_two_groups_is_named_with_both() -> None:
    groups = [*backbone_and_head(), ParameterGroup("bias", ["head.bias"])]
    with pytest.raises(ValueError, match=r"in several groups: head.bias \(head, bias\)"):
        named_groups(net(), groups, 1.0)


def test_a_misspelt_prefix_leaves_a_group_empty_and_is_told() -> None:
    groups = [ParameterGroup("backbone", ["backbone", "head"]), ParameterGroup("head", ["haed"])]
    with pytest.raises(ValueError, match="groups without parameters: head"):
        named_groups(net(), groups, 1.0)


def test_a_prefix_ends_at_a_dot() -> None:
    module = nn.ModuleDict({"head": nn.Linear(1, 1), "header": nn.Linear(1, 1)})
    groups = [ParameterGroup("head", ["head"]), ParameterGroup("header", ["header"])]
    assert [len(g["params"]) for g in named_groups(module, groups, 1.0)] == [2, 2]


def test_frozen_parameters_of_a_group_are_there_for_when_they_thaw() -> None:
    module = net()
    module["backbone"].requires_grad_(requires_grad=False)
    assert len(named_groups(module, backbone_and_head(), 1.0)[0]["params"]) == 2


def test_two_groups_of_one_name_are_refused() -> None:
    twice = [ParameterGroup("head", ["head"]), ParameterGroup("head", ["backbone"])]
    with pytest.raises(ValueError, match=r"got \['head', 'head'\]"):
        named_groups(net(), twice, 1.0)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_rates_must_be_positive_numbers(scale: float) -> None:
    with pytest.raises(ValueError, match="got"):
        ParameterGroup("head", ["head"], scale)


def test_a_group_without_prefixes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prefixes=\[\]"):
        ParameterGroup("head", [])
