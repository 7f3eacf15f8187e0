"""Everything that a training step computes stays on the model's device.

Torch's fake tensors know shapes, types and devices but hold no values: they claim to lie on a CUDA
device where there is none, and refuse, as real ones do, to meet tensors of another device.
"""

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ld_plugin.dense import Assignment, DenseOutputs, DistillationContext
from ld_plugin.dense.head_features import HeadFeatures
from ld_plugin.dense.rois import RoISpec, RoIStage
from ld_plugin.detectors.input_conversion import InputConversion
from ld_plugin.distillers import FeatureDistiller, build_distillers
from ld_plugin.losses import channel_statistics
from ld_plugin.regions import Region
from ld_plugin.registry import DISTILLERS, LOSSES, REGIONS
from tests import needs
from tests.contexts import context

FOUND = 7


class SevenNonzero(TorchDispatchMode):
    """``nonzero`` of a tensor without values: says that it found seven."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_empty((FOUND, args[0].dim()), dtype=torch.int64)
        return func(*args, **(kwargs or {}))


class NoCopies(TorchDispatchMode):
    """Refuses to copy from the processor to another device, for which a step would wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            source = args[0] if func.overloadpacket is torch.ops.aten._to_copy else args[1]
            assert source.device == result.device, 'copied to another device'
        return result


def gradients(output: Tensor, inputs: list[Tensor], **options: bool) -> list[Tensor]:
    """What ``torch.autograd.grad`` gives; its engine asks for a device that exists."""
    assert output.is_cuda
    return [torch.empty_like(x) for x in inputs]


@pytest.fixture(autouse=True)
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.autograd, 'grad', gradients)
    with needs.fake_gpu(), SevenNonzero():
        yield


def on_cuda(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device='cuda', requires_grad=x.requires_grad)


def cuda_outputs(dense: DenseOutputs) -> DenseOutputs:
    maps = {
        name: [on_cuda(level) for level in getattr(dense, name)]
        for name in ('class_maps', 'box_maps', 'features', 'quality_maps')
    }
    features, priors = maps['features'], on_cuda(dense.priors)
    spec = replace(
        dense.spec,
        extras=dense.spec.extras | {'head_features'},
        tower_channels=(features[0].shape[1],) * 5,
        rois=RoISpec(dense.spec.num_classes, num_stages=1, has_background=True, box_dims=(4,)),
    )
    return replace(
        dense,
        spec=spec,
        make_priors=lambda: priors,
        head_features={3: HeadFeatures(features, features)},
        rest_of_head=lambda layer, entered: (maps['class_maps'], maps['box_maps']),
        **maps,
    )


def with_statistics(teacher: DenseOutputs) -> DenseOutputs:
    kept = {
        layer: HeadFeatures(*([channel_statistics(x) for x in levels] for levels in features))
        for layer, features in teacher.head_features.items()
    }
    return replace(teacher, head_features=kept)


def cuda_proposals() -> RoIStage:
    boxes, logits, labels = torch.empty(7, 5), torch.empty(7, 4), torch.empty(7).long()
    return RoIStage(
        rois=on_cuda(boxes),
        student=on_cuda(logits),
        teacher=on_cuda(logits),
        labels=on_cuda(labels),
        label_weights=on_cuda(labels.float()),
        loss_weight=0.5,
    )


def cuda_context(priors_per_cell: int) -> DistillationContext:
    plain = context(images=3, priors_per_cell=priors_per_cell)
    assigned = plain.assignment
    labels, label_weights, valid = (
        on_cuda(x) for x in (assigned.labels, assigned.label_weights, assigned.valid)
    )
    positive_gts = [on_cuda(index) for index in assigned.positive_gts]
    return DistillationContext(
        student=cuda_outputs(plain.student),
        teacher=with_statistics(cuda_outputs(plain.teacher)),
        assignment=Assignment(labels, label_weights, valid, assigned.num_classes, positive_gts),
        gt_bboxes=[on_cuda(boxes) for boxes in plain.gt_bboxes],
        rois=[cuda_proposals()],
    )


@pytest.fixture
def step() -> DistillationContext:
    """A context on the fake device."""
    return cuda_context(priors_per_cell=3)


REGION_CONFIGS = [dict(type=name) for name in sorted(REGIONS.module_dict)] + [
    dict(type='ValuableLocalizationRegion', overlap='diou', exclude_positives=True),
    dict(type='EverywhereRegion', exclude_positives=True),
    dict(type='GTCellsRegion', levels='assigner'),
    dict(type='GIRegion', scope='batch'),
]


@pytest.mark.parametrize('region', REGION_CONFIGS, ids=str)
@pytest.mark.parametrize('priors_per_cell', [1, 3])
def test_regions(priors_per_cell: int, region: dict) -> None:
    step = cuda_context(priors_per_cell)
    region = REGIONS.build(region)
    selection = step.select(region)
    for found in (
        selection.weights,
        selection.priors.counts,
        selection.priors.prior_index,
        selection.priors.mean_level_count,
        selection.cells.prior_index,
        region.position_weight(step, selection),
    ):
        assert found.device.type == 'cuda'


@pytest.mark.parametrize('name', sorted(LOSSES.module_dict))
def test_losses(name: str) -> None:
    loss = LOSSES.get(name)()
    if name == 'RankKLLoss':
        values, group = torch.empty(5, device='cuda'), torch.empty(5, device='cuda').long()
        assert loss(values, values, group, 3, avg_factor=1.0).is_cuda
        return
    student, teacher = torch.empty(2, 5, 4, 17, device='cuda').unbind()
    weight = torch.empty(5, 4, device='cuda')
    if name == 'DecoupledLoss':
        assert loss(student, teacher, weight, weight).is_cuda
        return
    assert loss(student, teacher, weight, avg_factor=torch.ones((), device='cuda')).is_cuda
    assert loss(student, teacher).is_cuda


def takes_a_region(name: str) -> bool:
    return 'region' in inspect.signature(DISTILLERS.get(name)).parameters


DISTILLER_CONFIGS = [
    *[
        dict(type=name, region=region)
        for name in sorted(filter(takes_a_region, DISTILLERS.module_dict))
        for region in REGION_CONFIGS
    ],
    *[dict(type=name) for name in sorted(DISTILLERS.module_dict) if not takes_a_region(name)],
    dict(type='RankDistiller', on='iou'),
]


@pytest.mark.parametrize('cfg', DISTILLER_CONFIGS, ids=str)
def test_distillers(step: DistillationContext, cfg: dict) -> None:
    with torch.device('cuda'):
        cfg = dict(x=cfg)
        distiller = build_distillers(cfg, step.student.spec, step.teacher.spec)['x']
    loss = distiller(step)
    assert loss.device.type == 'cuda'
    assert loss.shape == ()


def test_the_adapter_between_widths(step: DistillationContext) -> None:
    wide = replace(step.teacher.spec, feature_channels=6)
    features = [torch.empty(3, 6, h, w, device='cuda') for h, w, _ in step.teacher.level_shapes]
    step = replace(step, teacher=replace(step.teacher, features=features))
    cfg = dict(im=dict(type=FeatureDistiller.__name__))
    with torch.device('cuda'):
        distiller = build_distillers(cfg, step.student.spec, wide)['im']
    assert distiller(step).device.type == 'cuda'


class RegionWithAConstant(Region):
    """Wrong: the constant lies on the CPU whatever the device is."""

    def weights(self, context: DistillationContext) -> Tensor:
        return context.assignment.valid & torch.ones(context.assignment.valid.shape).bool()


def test_a_tensor_on_the_wrong_device_is_noticed(step: DistillationContext) -> None:
    with pytest.raises(RuntimeError, match='device'):
        step.select(RegionWithAConstant())


def test_conversion_of_images_copies_nothing() -> None:
    images = torch.empty(2, 3, 8, 8, device='cuda')
    conversion = InputConversion(True, (1.5, 2.0, 0.5), (0.1, 0.2, 0.3), 0.0, 0.0)
    with NoCopies():
        assert conversion(images, [(8, 8), (4, 8)]).is_cuda
    with NoCopies(), pytest.raises(AssertionError, match='copied'):
        images.new_tensor([1.5, 2.0, 0.5])
