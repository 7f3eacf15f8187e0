"""Boxes of both kinds, as pure functions: nothing else asks which kind a box is.

Shape shorthand: ``...`` any leading dimensions, K boxes, G ground truths, P points. A box has E
numbers. With E = 4 it is horizontal: left, top, right, bottom. With E = 5 it is rotated: x and y of
the centre, width, height, and the angle from the x axis to the side of the width, in radians,
clockwise as one sees it. Everything else is in pixels.
"""

import math

import torch
from mmdet.structures.bbox import BaseBoxes, bbox_overlaps, convert_box_type, get_box_tensor
from torch import Tensor

#: what an area is taken for if it is smaller, in square pixels
_SMALLEST_AREA = 1e-6
#: sine of the angle between sides that count as parallel
_PARALLEL = 1e-6
#: of the longer side, which rounding goes with: how far outside a corner counts as lying on a box
_TOLERANCE = 1e-6


def plain(boxes: BaseBoxes | Tensor) -> Tensor:
    """Ground truth as float32 numbers (G, E), whatever a data set's pipeline made of it.

    Quadrilaterals, which Gliding Vertex learns, become the smallest rotated boxes around them.
    """
    if boxes.shape[-1] == 8:
        boxes = convert_box_type(boxes, src_type='qbox', dst_type='rbox')
    return get_box_tensor(boxes).float()


def is_rotated(boxes: Tensor) -> bool:
    """Whether these are rotated boxes."""
    return boxes.shape[-1] == 5


def centres(boxes: Tensor) -> Tensor:
    """(..., 2)."""
    return boxes[..., :2] if is_rotated(boxes) else (boxes[..., :2] + boxes[..., 2:]) / 2


def sides(boxes: Tensor) -> Tensor:
    """Width and height, (..., 2)."""
    return boxes[..., 2:4] if is_rotated(boxes) else boxes[..., 2:] - boxes[..., :2]


def bounds(boxes: Tensor) -> Tensor:
    """The smallest horizontal boxes around these, (..., 4)."""
    if not is_rotated(boxes):
        return boxes
    cos, sin = boxes[..., 4].cos().abs(), boxes[..., 4].sin().abs()
    width, height = boxes[..., 2], boxes[..., 3]
    reach = torch.stack([width * cos + height * sin, width * sin + height * cos], dim=-1) / 2
    return torch.cat([boxes[..., :2] - reach, boxes[..., :2] + reach], dim=-1)


def in_kind_of(others: Tensor, boxes: Tensor) -> Tensor:
    """Boxes (..., E), or if ``others`` are horizontal the smallest horizontal ones around them."""
    return boxes if is_rotated(others) else bounds(boxes)


def without_angle(boxes: Tensor) -> Tensor:
    """Horizontal boxes (..., 4) of the same centre, width and height: the angle is dropped."""
    if not is_rotated(boxes):
        return boxes
    half = boxes[..., 2:4] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1)


def in_first_quarter(boxes: Tensor) -> Tensor:
    """The same boxes, rotated ones (..., 5) with angles above 0 and up to a right angle.

    Width and height change places with every quarter turn. MMRotate makes ground truths of this
    form, but mirrors and turns them without going back to it, as its releases below 1.0 did.
    """
    quarter = math.pi / 2
    turns = (boxes[..., 4] / quarter).ceil() - 1
    size = torch.where((turns % 2 == 1)[..., None], boxes[..., 2:4].flip(-1), boxes[..., 2:4])
    angle = boxes[..., 4] - turns * quarter
    return torch.cat([boxes[..., :2], size, angle[..., None]], dim=-1)


def upright(boxes: Tensor) -> Tensor:
    """Horizontal boxes (..., 4) written as rotated ones of angle 0, (..., 5)."""
    return torch.cat([centres(boxes), sides(boxes), torch.zeros_like(boxes[..., :1])], dim=-1)


def hold(boxes: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Which points, (P,) and (P,), lie strictly inside which boxes (G, E): (G, P) bool."""
    if not is_rotated(boxes):
        left, top, right, bottom = boxes.t().contiguous()[..., None]
        return (x > left) & (x < right) & (y > top) & (y < bottom)
    centre_x, centre_y, width, height, angle = boxes.t().contiguous()[..., None]
    cos, sin = angle.cos(), angle.sin()
    x, y = x - centre_x, y - centre_y
    along, across = x * cos + y * sin, y * cos - x * sin
    return (along.abs() < width / 2) & (across.abs() < height / 2)


def overlaps(boxes: Tensor, others: Tensor, mode: str = 'iou') -> Tensor:
    """Overlaps of pairs, (K, E) and (K, E) to (K,), differentiable.

    Args:
        boxes: (K, E).
        others: (K, E).
        mode: ``'iou'``, intersection over union, or ``'iof'``, over the area of ``boxes``.
    """
    if len(boxes) == 0:
        return boxes.sum(1)  # the stock overlap of no boxes has no gradient
    if not is_rotated(boxes):
        return bbox_overlaps(boxes, others, mode=mode, is_aligned=True)
    # far from objects a head whose distances may be negative predicts boxes inside out: no area
    area, other_area = (b[:, 2:4].clamp(min=0).prod(1) for b in (boxes, others))
    # of boxes without an area, rounding leaves more in common than they have
    common = torch.minimum(_common_area(boxes, others), torch.minimum(area, other_area))
    whole = area + other_area - common if mode == 'iou' else area
    return common / whole.clamp(min=_SMALLEST_AREA)


def overlaps_with(box: Tensor, boxes: Tensor) -> Tensor:
    """IoU of one box with M others in each of N sets, (N, 1, E) and (N, M, E) to (N, M)."""
    around = bbox_overlaps(bounds(box), bounds(boxes))[:, 0]
    if not is_rotated(boxes):
        return around
    near = (around > 0).nonzero(as_tuple=True)  # few of many: rotated overlaps are costly
    return torch.zeros_like(around).index_put(near, overlaps(box[near[0], 0], boxes[near]))


def corners(boxes: Tensor) -> Tensor:
    """The corners of rotated boxes (K, 5) in the order of their outline, (K, 4, 2)."""
    x, y = (boxes[:, 2:4] / 2).unbind(-1)
    along, across = torch.stack([-x, x, x, -x], dim=-1), torch.stack([-y, -y, y, y], dim=-1)
    cos, sin = boxes[:, 4:].cos(), boxes[:, 4:].sin()
    offset = torch.stack([along * cos - across * sin, along * sin + across * cos], dim=-1)
    return boxes[:, None, :2] + offset


def _common_area(boxes: Tensor, others: Tensor) -> Tensor:
    """Area that pairs of rotated boxes share, (K,).

    Its outline's corners are those of either box that lie in the other one, and the points where
    two sides cross. mmcv has two operators for it: one without a gradient, which finds nothing in
    common if the same box is written with its other side as the width, and one for CUDA alone.
    """
    # around the first box's centre, where float32 is most exact
    shift = torch.cat([boxes[:, :2], torch.zeros_like(boxes[:, 2:])], dim=1).detach()
    boxes, others = boxes - shift, others - shift
    mine, theirs = corners(boxes), corners(others)
    crossings, cross = _crossings(mine, theirs)
    points = torch.cat([mine, theirs, crossings], dim=1)
    found = torch.cat([_inside(mine, others), _inside(theirs, boxes), cross], dim=1)
    points = points.where(found[..., None], 0)
    middle = points.sum(1, keepdim=True) / found.sum(1)[:, None, None].clamp(min=1)
    x, y = (points - middle).detach().unbind(-1)
    order = torch.atan2(y, x).masked_fill(~found, torch.inf).argsort(dim=1)
    # those that do not exist come last, and repeat the first one, which adds no area
    outline = points.gather(1, order[..., None].expand_as(points))
    outline = outline.where(found.gather(1, order)[..., None], outline[:, :1])
    return _cross(outline, outline.roll(-1, dims=1)).sum(1).abs() / 2


def _crossings(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Where sides of two outlines (K, 4, 2) cross: points (K, 16, 2), and whether, (K, 16)."""
    start, way = mine[:, :, None], (mine.roll(-1, dims=1) - mine)[:, :, None]
    other_start, other_way = theirs[:, None], (theirs.roll(-1, dims=1) - theirs)[:, None]
    sine = _cross(way, other_way)
    parallel = sine.abs() <= _PARALLEL * way.norm(dim=-1) * other_way.norm(dim=-1)
    sine = sine.where(~parallel, 1)
    at = _cross(other_start - start, other_way) / sine
    other_at = _cross(other_start - start, way) / sine
    cross = ~parallel & (at >= 0) & (at <= 1) & (other_at >= 0) & (other_at <= 1)
    points = start + at.where(cross, 0)[..., None] * way
    return points.flatten(1, 2), cross.flatten(1)


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Which points (K, 4, 2) lie in or on their rotated box (K, 5): (K, 4) bool."""
    x, y = (points - boxes[:, None, :2]).unbind(-1)
    cos, sin = boxes[:, 4:].cos(), boxes[:, 4:].sin()
    half = boxes[:, 2:4] / 2 + _TOLERANCE * boxes[:, 2:4].amax(1, keepdim=True)
    along, across = x * cos + y * sin, y * cos - x * sin
    return (along.abs() <= half[:, :1]) & (across.abs() <= half[:, 1:])


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
