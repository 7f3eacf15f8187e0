"""The loss between decoded boxes of both kinds."""

import pytest
import torch
from mmcv.ops import box_iou_rotated
from mmdet.models.losses import GIoULoss
from torch import Tensor

from ld_plugin import ConfigError
from ld_plugin.losses import BoxLoss, box
from tests import needs
from tests.dense.test_boxes import random_boxes

#: (x, y, width, height, angle)
EXTREME = torch.tensor(
    [
        [10, 10, 0, 0, 0],
        [10, 10, 20, 0, 0.3],
        [10, 10, 1e4, 1e-3, 0.3],
        [-900, 5000, 4, 2, 1.5],
        [10, 10, 1e-9, 30, -1.5],
    ]
)
every_kind = pytest.mark.parametrize('kind', ['iou', 'kld', 'gwd'])


def needs_mmrotate(kind: str) -> None:
    if kind != 'iou':
        pytest.importorskip('mmrotate')


def test_horizontal_boxes() -> None:
    corner, size = 40 * torch.rand(2, 30, 2), 1 + 20 * torch.rand(2, 30, 2)
    pair = torch.cat([corner, corner + size], dim=-1)
    weight = torch.rand(30)
    found = BoxLoss(loss_weight=4)(*pair, weight=weight, avg_factor=3)
    assert torch.equal(found, 4 * GIoULoss()(*pair, weight=weight, avg_factor=3))


def test_overlap_of_rotated_boxes() -> None:
    boxes, others = random_boxes(40), random_boxes(40)
    found = BoxLoss(rotated='iou')(boxes, others, reduction_override='none')
    expected = 1 - box_iou_rotated(boxes, others, aligned=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    weight = torch.rand(40)
    found = BoxLoss(loss_weight=2, rotated='iou')(boxes, others, weight=weight, avg_factor=3)
    torch.testing.assert_close(found, 2 * (weight * expected).sum() / 3, rtol=1e-4, atol=1e-4)


def test_overlaps_in_parts_keep_little_for_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all priors of a large image, what autograd keeps of them would take gigabytes."""
    whole, target = random_boxes(50), random_boxes(50)
    parts = whole.clone().requires_grad_()
    whole.requires_grad_()
    loss = BoxLoss(rotated='iou')
    loss(whole, target, reduction_override='sum').backward()
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(box, '_PAIRS', 8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(parts, target, reduction_override='sum').backward()
    torch.testing.assert_close(parts.grad, whole.grad)
    assert whole.grad.abs().sum() > 0
    assert sum(kept) / 50 < 200


@pytest.mark.parametrize('kind', ['kld', 'gwd'])
def test_distances_of_gaussians(kind: str) -> None:
    """Beside their definitions, with matrices for the covariances."""
    pytest.importorskip('mmrotate')
    boxes, others = random_boxes(20), random_boxes(20)
    found = BoxLoss(rotated=kind)(boxes, others, reduction_override='none')
    distance = dict(kld=divergence, gwd=wasserstein)[kind]
    expected = [distance(*pair) for pair in zip(boxes.double(), others.double(), strict=True)]
    expected = 1 - 1 / (1 + torch.stack(expected).log1p())
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-4)


def covariance(box: Tensor) -> Tensor:
    cos, sin = box[4].cos(), box[4].sin()
    turn = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
    return turn @ torch.diag((box[2:4] / 2).square()) @ turn.t()


def divergence(box: Tensor, other: Tensor) -> Tensor:
    """Of the teacher's box, the second, from the student's."""
    mine, theirs, shift = covariance(box), covariance(other), box[:2] - other[:2]
    size = mine.det().log() - theirs.det().log()
    return 0.5 * (shift @ mine.inverse() @ shift + (mine.inverse() @ theirs).trace() + size) - 1


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.t()


def wasserstein(box: Tensor, other: Tensor) -> Tensor:
    """Divided by twice the mean side of both boxes' Gaussians."""
    mine, theirs = covariance(box), covariance(other)
    coupled = root(root(mine) @ theirs @ root(mine)).trace()
    squared = (box[:2] - other[:2]).square().sum() + mine.trace() + theirs.trace() - 2 * coupled
    return squared.sqrt() / (2 * (mine.det() * theirs.det()).pow(0.125))


@every_kind
def test_equal_boxes(kind: str) -> None:
    needs_mmrotate(kind)
    boxes = random_boxes(40).requires_grad_()
    loss = BoxLoss(rotated=kind)(boxes, boxes.detach())
    assert loss.abs() < 1e-3
    (gradient,) = torch.autograd.grad(loss, boxes)
    assert gradient.isfinite().all()


@every_kind
def test_boxes_of_half_precision_are_compared_in_float32(kind: str) -> None:
    needs_mmrotate(kind)
    boxes, others = random_boxes(40).bfloat16(), random_boxes(40).bfloat16()
    loss = BoxLoss(rotated=kind)
    found = loss(boxes, others, reduction_override='none')
    expected = loss(boxes.float(), others.float(), reduction_override='none')
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())


@every_kind
def test_extreme_boxes(kind: str) -> None:
    needs_mmrotate(kind)
    boxes = EXTREME.repeat(len(EXTREME), 1).requires_grad_()
    others = EXTREME.repeat_interleave(len(EXTREME), 0)
    loss = BoxLoss(rotated=kind)(boxes, others, reduction_override='none')
    assert loss.isfinite().all()
    (gradient,) = torch.autograd.grad(loss.sum(), boxes)
    assert gradient.isfinite().all()


def test_the_loss_depends_on_the_device_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def remember(kind: str) -> object:
        def compare(pred: Tensor, target: Tensor, *how: object) -> Tensor:
            asked.append((pred.device.type, kind))
            return (pred - target).sum()

        return compare

    monkeypatch.setattr(box, '_gaussian_loss', remember)
    monkeypatch.setattr(box, '_overlap_loss', remember('iou'))
    for rotated in (None, 'gwd', 'iou'):
        boxes = random_boxes(3)
        BoxLoss(rotated=rotated)(boxes, boxes)
        with needs.fake_gpu():
            boxes = torch.empty(3, 5, device='cuda')
            BoxLoss(rotated=rotated)(boxes, boxes)
    assert asked == [
        *(('cpu', 'kld'), ('cuda', 'iou')),
        *(('cpu', 'gwd'), ('cuda', 'gwd')),
        *(('cpu', 'iou'), ('cuda', 'iou')),
    ]


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match=r"^rotated: found 'giou', expected one of"):
        BoxLoss(rotated='giou')
    with pytest.raises(ConfigError, match=r'^loss_weight: found -1'):
        BoxLoss(loss_weight=-1)


def test_sides_are_a_hundredth_of_a_pixel_at_least() -> None:
    boxes = torch.tensor([[0.0, 0, 0.05, 0.02], [0, 0, 0.001, -3]])
    assert torch.equal(box.with_extent(boxes)[0], boxes[0])
    assert box.with_extent(boxes)[1].tolist() == pytest.approx([0, 0, 0.01, 0.01])


def test_sides_of_rotated_boxes_are_neither_shorter_nor_endless() -> None:
    boxes = torch.tensor([[8, 9, torch.inf, 0.001, 0.5]])
    assert box.with_extent(boxes)[0].tolist() == pytest.approx([8, 9, 1e5, 0.01, 0.5])
