"""What a training step says of its batch and its outputs, whatever heads made them."""

import inspect
import sys
from dataclasses import is_dataclass, replace
from functools import cached_property

import pytest
import torch
from torch import Tensor

from ld_plugin.dense import DenseOutputs
from ld_plugin.dense.context import OnDemand
from tests.contexts import context, outputs
from tests.dense.heads import all_boxes, everything


def test_what_caches_properties_is_not_frozen() -> None:
    """PyTorch's compiler cannot set one of a frozen dataclass in Python 3.12."""
    modules = [x for name, x in sys.modules.items() if name.startswith('ld_plugin.')]
    classes = {cls for x in modules for _, cls in inspect.getmembers(x, is_dataclass)}
    caching = {
        cls for cls in classes if any(isinstance(x, cached_property) for x in vars(cls).values())
    }
    assert DenseOutputs in caching
    assert [cls for cls in caching if cls.__dataclass_params__.frozen] == []


def test_images_and_positives_are_means_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    # of which there are two, and the other one holds nothing
    monkeypatch.setattr('ld_plugin.dense.context.reduce_mean', lambda x: x.clone().div_(2))
    step = context(images=4)
    positives = step.assignment.positive.sum(1).tolist()
    assert positives[-1] == 0  # which counts as one, as in the stock losses
    assert step.mean_num_images.item() == 2
    assert step.mean_num_positives.item() == (sum(positives) + 1) / 2


def test_positives_that_cannot_be_distilled_count_too() -> None:
    step = context(images=2)
    assignment = replace(step.assignment, all_positives=torch.tensor([500, 0]))
    assert replace(step, assignment=assignment).mean_num_positives.item() == 501


def test_maps_of_half_precision_are_decoded_in_float32() -> None:
    dense = outputs()
    half = [level.bfloat16() for level in dense.box_maps]
    found, expected = (
        replace(dense, box_maps=maps) for maps in (half, [level.float() for level in half])
    )
    assert torch.equal(all_boxes(found), all_boxes(expected))
    assert torch.equal(found.boxes(everything(dense)), expected.boxes(everything(dense)))


def test_on_demand_is_computed_once_and_not_before() -> None:
    calls = []

    def compute() -> list[Tensor]:
        calls.append(len(calls))
        return [torch.zeros(2), torch.ones(3)]

    found = OnDemand(compute)
    assert not calls
    assert len(found) == 2
    assert torch.cat(list(found)).tolist() == [0, 0, 1, 1, 1]
    assert calls == [0]
