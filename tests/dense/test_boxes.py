"""Geometry of horizontal and rotated boxes, beside mmcv's operators and MMRotate's box type."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import box_iou_rotated
from mmdet.structures.bbox import HorizontalBoxes, bbox_overlaps
from torch import Tensor

from ld_plugin.dense.boxes import (
    bounds,
    centres,
    corners,
    hold,
    in_first_quarter,
    in_kind_of,
    overlaps,
    overlaps_with,
    plain,
    sides,
    upright,
    without_angle,
)


def random_boxes(count: int = 500) -> Tensor:
    """(K, 5)."""
    size = 1 + 40 * torch.rand(count, 2)
    return torch.cat([40 * torch.rand(count, 2), size, 6 * torch.rand(count, 1) - 3], dim=1)


def rewritten(boxes: Tensor) -> Tensor:
    """The same boxes with their other side as the width."""
    x, y, width, height, angle = boxes.unbind(1)
    return torch.stack([x, y, height, width, angle + math.pi / 2], dim=1)


@pytest.mark.parametrize('mode', ['iou', 'iof'])
def test_overlaps_are_those_of_mmcv(mode: str) -> None:
    boxes, others = random_boxes(), random_boxes()
    expected = box_iou_rotated(boxes, others, mode, aligned=True)
    torch.testing.assert_close(overlaps(boxes, others, mode), expected, rtol=1e-4, atol=1e-5)


def test_overlaps_of_upright_boxes_are_those_of_horizontal_ones() -> None:
    boxes, others = bounds(random_boxes()), bounds(random_boxes())
    expected = bbox_overlaps(boxes, others, is_aligned=True)
    assert torch.equal(overlaps(boxes, others), expected)
    torch.testing.assert_close(overlaps(upright(boxes), upright(others)), expected)


def test_a_box_overlaps_itself_however_it_is_written() -> None:
    boxes = random_boxes()
    for same in (boxes, rewritten(boxes), boxes + torch.tensor([0, 0, 0, 0, math.pi])):
        torch.testing.assert_close(overlaps(boxes, same), torch.ones(len(boxes)), atol=1e-4, rtol=0)


def test_small_boxes_overlap_themselves_too() -> None:
    boxes = random_boxes() * torch.tensor([1, 1, 0.02, 0.02, 1])
    torch.testing.assert_close(overlaps(boxes, boxes), torch.ones(len(boxes)), atol=2e-3, rtol=0)


@pytest.mark.parametrize('angle', [1e-3, 5e-3])
def test_sides_cross_though_their_angle_is_small(angle: float) -> None:
    boxes = random_boxes() * torch.tensor([1, 1, 4, 0.2, 1]) + torch.tensor([0, 0, 20, 2, 0])
    others = boxes + torch.tensor([0, 0, 0, 0, angle])
    # both halves are cut off on one side by a triangle each, from the centre on
    cut = boxes[:, 2].square() * angle / 4
    area = boxes[:, 2] * boxes[:, 3]
    expected = (area - cut) / (area + cut)
    torch.testing.assert_close(overlaps(boxes, others), expected, atol=3e-3, rtol=0)


def test_elongated_boxes() -> None:
    needles = random_boxes() * torch.tensor([1, 1, 10, 0.05, 1])
    others = needles + torch.tensor([0.01, 0.02, 0, 0, 1e-3])
    exact = overlaps(needles.double(), others.double())
    torch.testing.assert_close(overlaps(needles, others), exact.float(), atol=2e-2, rtol=0)


def needles() -> Tensor:
    """About a thousand times as long as they are wide, (K, 5)."""
    return random_boxes() * torch.tensor([1, 1, 1, 0, 1]) + torch.tensor([0, 0, 400, 0.4, 0])


@pytest.mark.parametrize('part', [0.25, 0.5, 0.75])
def test_needles_shifted_along_their_length(part: float) -> None:
    boxes = needles()
    along = torch.stack([boxes[:, 4].cos(), boxes[:, 4].sin()], dim=1)
    others = torch.cat([boxes[:, :2] + part * boxes[:, 2:3] * along, boxes[:, 2:]], dim=1)
    expected = torch.full((len(boxes),), (1 - part) / (1 + part))
    torch.testing.assert_close(overlaps(boxes, others), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize('angle', [1e-5, 5e-5, 1e-4])
def test_almost_parallel_needles(angle: float) -> None:
    """A ten thousandth of a radian is a twentieth of a pixel at their ends."""
    boxes = needles()
    others = boxes + torch.tensor([0, 0, 0, 0, angle])
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = boxes.to(dtype).requires_grad_()
        value = overlaps(leaf, others.to(dtype))
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        found.append((value.double(), gradient.double()))
    (value, gradient), (exact, exact_gradient) = found
    torch.testing.assert_close(value, exact, atol=1e-3, rtol=0)
    # of the angle, which matters most
    torch.testing.assert_close(gradient[:, 4], exact_gradient[:, 4], rtol=0.01, atol=0.1)


def test_gradient_of_overlaps() -> None:
    boxes, others = random_boxes(30).double().requires_grad_(), random_boxes(30).double()
    assert torch.autograd.gradcheck(lambda x: overlaps(x, others), boxes)


def test_gradient_of_equal_boxes_is_finite() -> None:
    boxes = random_boxes().requires_grad_()
    for other in (boxes.detach(), rewritten(boxes.detach())):
        (gradient,) = torch.autograd.grad(overlaps(boxes, other).sum(), boxes)
        assert gradient.isfinite().all()


def test_boxes_without_an_area_overlap_nothing() -> None:
    flat = random_boxes(20) * torch.tensor([1, 1, 0, 1, 1])
    assert overlaps(flat, random_boxes(20)).max() < 1e-6
    assert overlaps(flat, flat).max() < 1e-6


@pytest.mark.parametrize('sides_of', [(1, -1), (-1, 1), (-1, -1), (0, 20), (20, 0)], ids=str)
def test_boxes_inside_out_or_flat_overlap_nothing(sides_of: tuple[int, int]) -> None:
    """However near they are, and in the gradient, too."""
    boxes, factors = random_boxes(), torch.tensor([1, 1, *sides_of, 1])
    wrong = (boxes * factors).requires_grad_()
    for other in (boxes, boxes * factors + torch.tensor([0.01, 0.02, 0, 0, 1e-3])):
        for found in (
            overlaps(wrong, other),
            overlaps(other, wrong),
            overlaps(wrong, other, 'iof'),
        ):
            assert not found.any()
            assert torch.autograd.grad(found.sum(), wrong)[0].isfinite().all()


def test_overlaps_are_at_most_1() -> None:
    for width in (1e-3, 1e-4):
        boxes = random_boxes() * torch.tensor([1, 1, width, 20, 1])
        assert overlaps(boxes, boxes).max() <= 1


@pytest.mark.parametrize('dim', [4, 5])
def test_no_boxes_have_a_gradient(dim: int) -> None:
    boxes = torch.empty(0, dim, requires_grad=True)
    found = overlaps(boxes, torch.empty(0, dim))
    assert found.shape == (0,)
    found.sum().backward()


@pytest.mark.parametrize('form', [bounds, torch.clone], ids=['horizontal', 'rotated'])
def test_overlaps_in_sets(form: object) -> None:
    boxes = form(random_boxes(12)).view(2, 6, -1)
    found = overlaps_with(boxes[:, :1], boxes)
    for image, rows in zip(boxes, found, strict=True):
        torch.testing.assert_close(rows, overlaps(image[:1].expand_as(image), image))


def test_bounds_hold_the_corners_and_touch_them() -> None:
    boxes = random_boxes()
    expected = torch.cat([corners(boxes).amin(1), corners(boxes).amax(1)], dim=1)
    torch.testing.assert_close(bounds(boxes), expected, rtol=1e-5, atol=1e-4)


def test_the_angle_alone_is_dropped() -> None:
    boxes = random_boxes()
    lying = without_angle(boxes)
    torch.testing.assert_close(centres(lying), centres(boxes), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sides(lying), sides(boxes), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(upright(lying)[:, :4], boxes[:, :4], rtol=1e-5, atol=1e-5)
    assert torch.equal(without_angle(lying), lying)
    assert torch.equal(bounds(lying), lying)


def test_the_form_of_the_first_quarter_is_the_same_box() -> None:
    boxes = torch.cat([random_boxes(), random_boxes() * torch.tensor([1, 1, 1, 1, -1])])
    found = in_first_quarter(boxes)
    assert (found[:, 4] > 0).all()
    assert (found[:, 4] <= math.pi / 2 + 1e-6).all()
    expected = corners(boxes).flatten(1).sort().values
    torch.testing.assert_close(corners(found).flatten(1).sort().values, expected, atol=1e-3, rtol=0)
    assert not torch.equal(found, boxes)
    torch.testing.assert_close(in_first_quarter(found), found, atol=1e-3, rtol=0)


@pytest.mark.parametrize('degrees', [90, -90])
def test_a_right_angle_stays_or_becomes_one(degrees: float) -> None:
    box = torch.tensor([[5.0, 6.0, 20.0, 80.0, math.radians(degrees)]])
    expected = torch.tensor([[5.0, 6.0, 20.0, 80.0, math.pi / 2]])
    torch.testing.assert_close(in_first_quarter(box), expected)


@settings(max_examples=50, deadline=None)
@given(st.floats(-0.49, 0.49), st.floats(-0.49, 0.49), st.floats(-4, 4))
def test_a_point_of_the_box_is_held_wherever_the_box_points(
    along: float, across: float, angle: float
) -> None:
    width, height = 40.0, 6.0
    box = torch.tensor([[100.0, 60.0, width, height, angle]])
    cos, sin = math.cos(angle), math.sin(angle)
    x = 100 + along * width * cos - across * height * sin
    y = 60 + along * width * sin + across * height * cos
    assert hold(box, torch.tensor([x]), torch.tensor([y])).all()
    beside = 60 - 0.6 * height * sin, 60 + 0.6 * height * cos
    assert not hold(box, torch.tensor([40 + beside[0]]), torch.tensor([beside[1]])).any()


@pytest.mark.parametrize('form', [torch.clone, upright], ids=['horizontal', 'rotated'])
def test_a_point_on_a_side_is_not_held(form: object) -> None:
    box = form(torch.tensor([[2.0, 4, 10, 8]]))
    x, y = torch.tensor([[6.0, 2, 10, 6, 6], [6, 6, 6, 4, 8]])
    assert hold(box, x, y).tolist() == [[True, False, False, False, False]]


def test_boxes_beside_horizontal_ones_are_the_rectangles_around_them() -> None:
    boxes = random_boxes(20)
    assert torch.equal(in_kind_of(bounds(boxes), boxes), bounds(boxes))
    assert torch.equal(in_kind_of(boxes, boxes), boxes)
    assert torch.equal(in_kind_of(bounds(boxes), bounds(boxes)), bounds(boxes))


def test_numbers_of_every_type_of_box() -> None:
    boxes = random_boxes(20)
    horizontal = bounds(boxes)
    assert torch.equal(plain(horizontal), horizontal)
    assert torch.equal(plain(HorizontalBoxes(horizontal)), horizontal)
    assert plain(horizontal.double()).dtype == torch.float32  # the precision of the priors
    structures = pytest.importorskip('mmrotate.structures')
    assert torch.equal(plain(structures.RotatedBoxes(boxes)), boxes)
    quadrilaterals = structures.RotatedBoxes(boxes).convert_to('qbox')
    found = plain(quadrilaterals)
    torch.testing.assert_close(overlaps(found, boxes), torch.ones(20), atol=1e-3, rtol=0)
    assert torch.equal(plain(quadrilaterals.tensor), found)  # as rotated RepPoints takes them
    assert plain(structures.QuadriBoxes(torch.empty(0, 8))).shape == (0, 5)


def test_hold_is_find_inside_points_of_mmrotate() -> None:
    structures = pytest.importorskip('mmrotate.structures')
    boxes, points = random_boxes(20), 60 * torch.rand(300, 2)
    expected = structures.RotatedBoxes(boxes).find_inside_points(points, eps=0)
    assert torch.equal(hold(boxes, *points.unbind(1)), expected.t())


def test_overlaps_far_from_the_origin() -> None:
    generator = torch.Generator().manual_seed(0)
    extent = torch.tensor([8.0, 8, 16, 16, 3])
    boxes, others = (torch.rand(200, 5, generator=generator) * extent for _ in range(2))
    for some in (boxes, others):
        some[:, :2] = some[:, :2].round()  # so that float32 knows them far away, too
    far = torch.tensor([20000.0, 20000, 0, 0, 0])
    expected = overlaps(boxes.double(), others.double()).float()
    torch.testing.assert_close(overlaps(boxes + far, others + far), expected, atol=1e-4, rtol=0)
