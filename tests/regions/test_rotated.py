"""Regions of rotated boxes, beside overlaps by mmcv's operator computed pair by pair."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from mmcv.ops import box_iou_rotated, nms_rotated
from torch import Tensor

from ld_plugin.dense import DistillationContext
from ld_plugin.dense.boxes import bounds, upright, without_angle
from ld_plugin.errors import ConfigError
from ld_plugin.regions import (
    FineGrainedRegion,
    GTCellsRegion,
    InsideGTRegion,
    OverlapRegion,
    Region,
    ValuableLocalizationRegion,
)
from ld_plugin.regions.geometry import (
    atss_thresholds,
    covered_cells,
    fine_grained_region,
    level_by_size,
    overlap_region,
    select_top_boxes,
    valuable_localization_region,
)
from ld_plugin.registry import REGIONS
from tests.contexts import context

COUNTS = [64, 16, 4]


def priors() -> Tensor:
    """(84, 5), squares and lying boxes of two kinds on three levels of 64 x 64 pixels."""
    levels = []
    for stride, count in ((8, 8), (16, 4), (32, 2)):
        y, x = torch.meshgrid(*[torch.arange(count) * stride] * 2, indexing='ij')
        size = torch.tensor([3.0 * stride, 2.0 * stride]).expand(count * count, -1)
        angle = torch.full((count * count, 1), -math.pi / 2 if stride == 16 else 0)
        levels.append(torch.cat([x.reshape(-1, 1), y.reshape(-1, 1), size, angle], dim=1))
    return torch.cat(levels)


def gts(count: int = 4) -> Tensor:
    size = 12 + 30 * torch.rand(count, 2)
    return torch.cat([60 * torch.rand(count, 2), size, 3 * torch.rand(count, 1) - 1.5], dim=1)


def expected_thresholds(boxes: Tensor, others: Tensor) -> list[float]:
    found = []
    for gt in others:
        candidates = []
        for level in boxes.split(COUNTS):
            distance = (level[:, :2] - gt[:2]).square().sum(1)
            nearest = level[distance.argsort()[:9]]
            candidates.append(box_iou_rotated(nearest, gt[None])[:, 0])
        iou = torch.cat(candidates)
        found.append((iou.mean() + iou.std()).item())
    return found


def test_thresholds() -> None:
    boxes, others = priors() + 0.01 * torch.rand(84, 5), gts()  # no two are equally near
    found = atss_thresholds(boxes, others, COUNTS)
    torch.testing.assert_close(found, torch.tensor(expected_thresholds(boxes, others)))


def test_overlap_region() -> None:
    boxes, others = priors() + 0.01 * torch.rand(84, 5), gts()
    iou = box_iou_rotated(boxes, others)
    inside = iou >= 0.25 * torch.tensor(expected_thresholds(boxes, others))
    expected = (iou * inside).amax(1)
    assert (expected > 0).any()
    torch.testing.assert_close(overlap_region(boxes, others, COUNTS), expected)


def centre_term(boxes: Tensor, others: Tensor) -> Tensor:
    """(P, G) of DIoU."""
    a, b = bounds(boxes)[:, None], bounds(others)[None]
    corner = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    centre = (boxes[:, None, :2] - others[None, :, :2]).square().sum(-1)
    return centre / corner.square().sum(-1)


@pytest.mark.parametrize(('overlap', 'mode'), [('iof', 'iof'), ('diou', 'iou')])
def test_valuable_localization_region(overlap: str, mode: str) -> None:
    boxes, others = priors() + 0.01 * torch.rand(84, 5), gts()
    distance = box_iou_rotated(boxes, others, mode) - centre_term(boxes, others)
    threshold = torch.tensor(expected_thresholds(boxes, others))
    inside = (distance >= 0.25 * threshold) & (distance < threshold)
    expected = (box_iou_rotated(boxes, others) * inside).amax(1)
    found = valuable_localization_region(boxes, others, COUNTS, overlap=overlap)
    torch.testing.assert_close(found, expected)
    assert (found > 0).any()


def test_fine_grained_region() -> None:
    boxes, others = priors(), gts()
    iou = box_iou_rotated(boxes, others)
    expected = ((iou > 0.5 * iou.amax(0)) & (iou > 0)).any(1)
    assert torch.equal(fine_grained_region(boxes, others), expected)


def test_top_boxes_are_those_of_suppression() -> None:
    boxes, scores = gts(40), torch.rand(40)
    found, order = select_top_boxes(boxes[None], scores[None], 0.3, topk=10)
    _, kept = nms_rotated(boxes, scores, 0.3)
    assert order[0].tolist() == kept[:10].tolist()
    assert found.sum() == 10


# ----------------------------------------------------------------------------- cells of objects


def corner_test(box: Tensor, x: float, y: float) -> bool:
    """Whether a point lies on the inner side of all four sides, one by one."""
    centre_x, centre_y, width, height, angle = box.tolist()
    for turn, reach in ((0, width), (math.pi / 2, height)):
        along = math.cos(angle + turn) * (x - centre_x) + math.sin(angle + turn) * (y - centre_y)
        if abs(along) >= reach / 2:
            return False
    return True


def test_covered_cells() -> None:
    others = gts(3)
    found = covered_cells(others, (8, 8), (8, 8))
    for row in range(8):
        for column in range(8):
            inside = any(corner_test(box, 8 * column + 4, 8 * row + 4) for box in others)
            middle = any((int(x // 8), int(y // 8)) == (column, row) for x, y in others[:, :2])
            assert found[row, column] == (inside or middle)
    rectangle = covered_cells(bounds(others), (8, 8), (8, 8))
    assert found.sum() < rectangle.sum()


@pytest.mark.parametrize('angle', [-0.5, 0.5])
def test_a_ground_truth_that_holds_no_cells_middle_covers_that_of_its_centre(angle: float) -> None:
    found = covered_cells(torch.tensor([[18, 21.9, 12, 1, angle]]), (8, 8), (8, 8))
    assert found.nonzero().tolist() == [[2, 2]]


def test_covered_cells_of_nothing_and_of_what_lies_outside() -> None:
    outside = torch.tensor([[-90.0, 20, 10, 10, 1]])
    beside = torch.tensor([[-3.0, 20, 4, 4, 1], [20, -3, 4, 4, 1]])
    lines = torch.tensor([[20.0, 20, 0, 10, 1], [20, 20, 10, 0, 1]])
    for boxes in (torch.zeros(2, 5), torch.empty(0, 5), outside, beside, lines):
        assert not covered_cells(boxes, (4, 4), (8, 8)).any()


def test_levels_do_not_depend_on_the_angle() -> None:
    others = gts(20)
    plain = level_by_size(without_angle(others), 3, 10.0)
    assert torch.equal(level_by_size(others, 3, 10.0), plain)


# ------------------------------------------------------------------------------------- regions


def horizontal_step() -> DistillationContext:
    """A context whose objects are wider than high."""
    step = context()
    low = [torch.cat([b[:, :3], b[:, 1:2] + (b[:, 3:] - b[:, 1:2]) / 3], 1) for b in step.gt_bboxes]
    return replace(step, gt_bboxes=low)


@pytest.fixture
def step() -> DistillationContext:
    """The same with rotated boxes."""
    plain = horizontal_step()
    student, teacher = (
        replace(
            dense, spec=replace(dense.spec, box_dim=5), make_priors=partial(upright, dense.priors)
        )
        for dense in (plain.student, plain.teacher)
    )
    turned = [
        upright(boxes) + torch.tensor([0, 0, 0, 0, 0.6]).expand(len(boxes), -1)
        for boxes in plain.gt_bboxes
    ]
    return replace(plain, student=student, teacher=teacher, gt_bboxes=turned)


COMPARE = ['ValuableLocalizationRegion', 'OverlapRegion', 'FineGrainedRegion']


@pytest.mark.parametrize('name', COMPARE)
def test_boxes_are_compared_without_their_angle(step: DistillationContext, name: str) -> None:
    region = REGIONS.build(dict(type=name))
    plain = horizontal_step().select(region).weights
    torch.testing.assert_close(step.select(region).weights.float(), plain.float())


@pytest.mark.parametrize('rotated', [False, True])
@pytest.mark.parametrize('turns', [-2, -1, 1, 2])
@pytest.mark.parametrize('name', COMPARE)
def test_regions_do_not_depend_on_how_an_object_is_written(
    step: DistillationContext, name: str, turns: int, rotated: bool
) -> None:
    """Mirrored and turned images leave the same boxes with other angles, sides changed or not."""
    region = REGIONS.build(dict(type=name, rotated=rotated))
    order = [0, 1, 3, 2] if turns % 2 else [0, 1, 2, 3]
    other = [
        torch.cat([boxes[:, order], boxes[:, 4:] + turns * math.pi / 2], dim=1)
        for boxes in step.gt_bboxes
    ]
    found = replace(step, gt_bboxes=other).select(region).weights.float()
    assert found.any()
    torch.testing.assert_close(found, step.select(region).weights.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'cfg', [dict(type=name) for name in COMPARE[:2]] + [dict(type=COMPARE[2], share=0.9)]
)
def test_boxes_are_compared_as_they_are_if_asked_for(step: DistillationContext, cfg: dict) -> None:
    plain, rotated = REGIONS.build(cfg), REGIONS.build(dict(cfg, rotated=True))
    assert not torch.equal(step.select(rotated).weights, step.select(plain).weights)


def test_lying_priors_are_compared_as_the_upright_boxes_they_are(step: DistillationContext) -> None:
    x, y, width, height, angle = step.student.priors.unbind(1)
    lying = torch.stack([x, y, height, width, angle - math.pi / 2], dim=1)
    other = replace(step, student=replace(step.student, make_priors=lambda: lying))
    for region in (ValuableLocalizationRegion(), ValuableLocalizationRegion(rotated=True)):
        torch.testing.assert_close(
            other.select(region).weights, step.select(region).weights, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize('rotated', [False, True])
@pytest.mark.parametrize('name', COMPARE)
def test_beside_horizontal_priors_objects_are_the_rectangles_around_them(
    step: DistillationContext, name: str, rotated: bool
) -> None:
    """As their assigners see them: the proposals of RoI Transformer are horizontal."""
    plain = horizontal_step()
    region = REGIONS.build(dict(type=name, rotated=rotated))
    mixed = replace(plain, gt_bboxes=step.gt_bboxes)
    around = replace(plain, gt_bboxes=[bounds(boxes) for boxes in step.gt_bboxes])
    assert mixed.select(region).weights.any()
    assert torch.equal(mixed.select(region).weights, around.select(region).weights)


def test_objects_hold_what_lies_in_the_turned_box(step: DistillationContext) -> None:
    for region in (InsideGTRegion(), GTCellsRegion()):
        turned, plain = step.select(region).weights, horizontal_step().select(region).weights
        assert turned.any()
        assert not torch.equal(turned, plain)
    for image, boxes in enumerate(step.gt_bboxes):
        for prior, inside in zip(
            step.student.priors, step.select(InsideGTRegion()).weights[image], strict=True
        ):
            held = any(corner_test(box, *prior[:2].tolist()) for box in boxes)
            assert not inside or held


@pytest.mark.parametrize('bad', [dict(alpha=0), dict(alpha=1), dict(topk=1)], ids=str)
def test_bad_arguments(bad: dict) -> None:
    with pytest.raises(ConfigError, match=f'^{next(iter(bad))}: found'):
        OverlapRegion(**bad)


@pytest.mark.parametrize(
    'region', [ValuableLocalizationRegion(), OverlapRegion(), FineGrainedRegion()], ids=type
)
def test_priors_written_with_their_other_side(region: Region) -> None:
    """As MMRotate writes some anchors: the same boxes, a quarter turn off."""
    step = context(images=2)
    tilt = torch.tensor([0, 0, 0, 0, 0.3])
    step = replace(step, gt_bboxes=[upright(boxes) + tilt for boxes in step.gt_bboxes])
    lying = upright(step.student.priors) * torch.tensor([1, 1, 1, 0.5, 1])
    turned = lying[:, [0, 1, 3, 2, 4]] - torch.tensor([0, 0, 0, 0, math.pi / 2])
    spec = replace(step.student.spec, box_dim=5)
    found = []
    for priors in (lying, turned):
        student = replace(step.student, spec=spec, make_priors=lambda priors=priors: priors)
        found.append(region(replace(step, student=student)).weights.float())
    assert found[0].any()
    torch.testing.assert_close(*found)
