"""What readers hand out stays on the head's device; see ``tests/test_device_placement.py``."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import BaseBoxes
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ld_plugin.dense import DistillationContext, HeadRecorder, get_reader
from ld_plugin.registry import REGIONS
from tests import needs
from tests.dense.heads import build_head, metas, objects, random_features, record_loss
from tests.dense.test_readers import FAMILIES
from tests.test_device_placement import FOUND, SevenNonzero, on_cuda


def to_cuda(found: Any) -> Any:
    """A copy of what was recorded, its tensors on the fake device."""
    if isinstance(found, Tensor):
        return on_cuda(found)
    if isinstance(found, dict):
        return {key: to_cuda(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return type(found)(map(to_cuda, found))
    if isinstance(found, SamplingResult):
        names = ('pos_inds', 'pos_assigned_gt_inds', 'pos_gt_labels')
        return SimpleNamespace(**{name: on_cuda(getattr(found, name)) for name in names})
    if isinstance(found, BaseBoxes):
        return type(found)(on_cuda(found.tensor))
    if isinstance(found, InstanceData):
        return InstanceData(**{name: to_cuda(value) for name, value in found.items()})
    return found


def cuda_head(family: str) -> nn.Module:
    generator = build_head(family).prior_generator  # keeps its boxes on the CPU
    with torch.device('cuda'):
        head = build_head(family)
    head.prior_generator = generator
    return head


# the phase-shifting coder looks at the values of its constants when it is built
@pytest.mark.parametrize('family', [name for name in FAMILIES if not name.endswith('psc')])
def test_reader(family: str) -> None:
    MessageHub.get_current_instance().update_info('epoch', 0)
    on_cpu = build_head(family)
    record = record_loss(on_cpu, random_features(on_cpu), objects(on_cpu, 2, 1))
    with needs.fake_gpu(), SevenNonzero():
        head = cuda_head(family)
        reader = get_reader(head)
        there = HeadRecorder(head, ())
        there.returned, there.arguments = to_cuda(record.returned), to_cuda(record.arguments)
        outputs = reader.read(to_cuda(record.outs), to_cuda(record.inputs))
        assignment = reader.assignment(there)
        step = DistillationContext(outputs, outputs, assignment, [])
        at = step.select(REGIONS.build(dict(type='MainRegion'))).priors
        for found in (
            outputs.priors,
            outputs.prior_strides,
            outputs.level_boxes(0),
            outputs.level_class_logits(0),
            outputs.boxes(at),
            outputs.class_logits(at),
            *outputs.quality_maps,
            assignment.labels,
            assignment.label_weights,
            assignment.valid,
            *assignment.positive_gts,
        ):
            assert found.device.type == 'cuda'
        if outputs.spec.num_bins is not None:
            logits = outputs.distribution_logits(at)
            assert logits.device.type == 'cuda'
            sides = outputs.spec.box_dim
            assert logits.shape == (len(outputs.level_shapes) * FOUND, sides, outputs.spec.num_bins)


def test_reader_of_features_alone() -> None:
    on_cpu = build_head('foveabox')
    features = random_features(on_cpu)
    samples = [DetDataSample(metainfo=meta) for meta in metas()]
    with needs.fake_gpu():
        with torch.device('cuda'):
            head = build_head('foveabox')
        record = HeadRecorder(head, ())
        record.inputs = to_cuda(features)
        record.arguments['loss'].append(dict(batch_data_samples=samples))
        reader = get_reader(head)
        outputs, found = reader.read((), record.inputs), reader.assignment(record)
        made = outputs.priors, outputs.prior_strides, found.labels, found.label_weights, found.valid
        for tensor in made:
            assert tensor.device.type == 'cuda'
