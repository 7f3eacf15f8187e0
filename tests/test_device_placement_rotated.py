"""What :mod:`tests.test_device_placement` tests, for rotated boxes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ld_plugin.dense import DenseOutputs, DistillationContext
from ld_plugin.dense.boxes import overlaps, upright
from ld_plugin.distillers import build_distillers
from ld_plugin.registry import REGIONS
from tests.test_device_placement import (
    REGION_CONFIGS,
    NoCopies,
    cuda_context,
    fake_cuda,  # noqa: F401  (used by every test)
)


def decode(rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
    return priors + rows[:, :1]


def rotated(dense: DenseOutputs) -> DenseOutputs:
    spec = replace(dense.spec, box_dim=5, num_bins=4)  # 20 channels, as five bins of four sides
    priors = upright(dense.priors)
    return replace(dense, spec=spec, make_priors=lambda: priors, decoder=decode)


def rotated_context(priors_per_cell: int) -> DistillationContext:
    plain = cuda_context(priors_per_cell)
    return replace(
        plain,
        student=rotated(plain.student),
        teacher=rotated(plain.teacher),
        gt_bboxes=[upright(boxes) for boxes in plain.gt_bboxes],
    )


COMPARING = ('ValuableLocalizationRegion', 'OverlapRegion', 'FineGrainedRegion')


@pytest.mark.parametrize(
    'region', [*REGION_CONFIGS, *(dict(type=name, rotated=True) for name in COMPARING)], ids=str
)
@pytest.mark.parametrize('priors_per_cell', [1, 3])
def test_regions(priors_per_cell: int, region: dict) -> None:
    step = rotated_context(priors_per_cell)
    region = REGIONS.build(region)
    selection = step.select(region)
    assert selection.weights.is_cuda
    assert region.position_weight(step, selection).is_cuda


@pytest.mark.parametrize(
    'cfg',
    [
        dict(type='RankDistiller', on='iou'),
        dict(type='BoxDistiller', loss=dict(type='BoxLoss')),
        dict(type='BoxDistiller', loss=dict(type='BoxLoss', rotated='kld')),
        dict(type='BoxDistiller', loss=dict(type='BoxLoss', rotated='gwd')),
        dict(type='LocalizationDistiller', normalizer='level_positions'),
        dict(type='ClassificationDistiller', region=dict(type='OverlapRegion'), weights='region'),
    ],
    ids=str,
)
def test_distillers(cfg: dict) -> None:
    if cfg['type'] == 'BoxDistiller':
        pytest.importorskip('mmrotate')
    step = rotated_context(3)
    with torch.device('cuda'):
        built = build_distillers(dict(x=cfg), step.student.spec, step.teacher.spec)
    assert built['x'](step).is_cuda


def test_overlaps_copy_nothing() -> None:
    boxes = torch.empty(7, 5, device='cuda')
    with NoCopies():
        assert overlaps(boxes, boxes).is_cuda
