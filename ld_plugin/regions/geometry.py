"""Selections of priors as pure functions of boxes and scores.

Shape shorthand: P priors of one image over all levels, G ground truths, Q pairs of a prior and a
ground truth that overlap. Several images, which share the priors, are looked at together where
``image``, (G,) int64, tells the image of every ground truth; ``valid`` has a row for each of the N
images then. Boxes have E numbers, in pixels: horizontal or rotated ones, as
:mod:`ld_plugin.dense.boxes` says, both of the same kind. A few priors overlap a ground truth at
all, so overlaps are computed for those pairs and never for all P x G. They are looked for in blocks
of priors that follow one another, and so are mostly neighbours.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dense.boxes import bounds, centres, hold, is_rotated, overlaps, overlaps_with, sides
from ..losses.eager_gradient import pieces_of

OVERLAPS = ('iof', 'diou')
_BLOCK = 32  # priors
_INDEX = 0xFFFFFFFF  # the bits of a key that hold an index
_ROUNDED = 0.999  # what is left of a bound on overlaps that are computed in another way


def valuable_localization_region(
    priors: Tensor,
    gt_bboxes: Tensor,
    num_level_priors: Sequence[int],
    valid: Tensor | None = None,
    alpha: float = 0.25,
    topk: int = 9,
    overlap: str = 'iof',
    image: Tensor | None = None,
) -> Tensor:
    """Weight of every prior in the valuable localization region (Zheng et al., CVPR 2022, Alg. 1).

    A prior is in the region of a ground truth when its overlap lies in ``[alpha * t, t)``, where t
    is the ATSS threshold of that ground truth.

    Args:
        priors: (P, E), by level.
        gt_bboxes: (G, E).
        num_level_priors: Priors of every level; they sum to P.
        valid: (P,) or (N, P) bool, False for priors to leave out; all of one image count if None.
        alpha: Share of the threshold where the region begins.
        topk: Nearest priors per level that make the threshold.
        overlap: What is compared with the threshold: see :func:`centred_overlap`.
        image: (G,), the image of every ground truth, if there are several.

    Returns:
        (P,) or (N, P), the largest IoU with a ground truth in whose region the prior lies, else 0.
    """
    weights = priors.new_zeros(priors.shape[0] if valid is None else valid.shape)
    if gt_bboxes.shape[0] == 0:
        return weights
    priors, gt_bboxes = _by_coordinate(priors), _by_coordinate(gt_bboxes)
    threshold = atss_thresholds(priors, gt_bboxes, num_level_priors, valid, topk, image)
    # no overlap exceeds the share of the prior that is covered, apart from rounding
    share = _ROUNDED * alpha * threshold
    prior_index, gt_index = overlapping_pairs(priors, gt_bboxes, valid, share, image)
    pair_priors, pair_gts = _rows(priors, prior_index), _rows(gt_bboxes, gt_index)
    distance = centred_overlap(pair_priors, pair_gts, overlap)
    pair_threshold = threshold.index_select(0, gt_index)
    inside = (distance >= alpha * pair_threshold) & (distance < pair_threshold)
    iou = overlaps(pair_priors, pair_gts)
    return _raised(weights, iou.where(inside, 0), prior_index, gt_index, image)


def overlap_region(
    priors: Tensor,
    gt_bboxes: Tensor,
    num_level_priors: Sequence[int],
    valid: Tensor | None = None,
    alpha: float = 0.25,
    topk: int = 9,
    image: Tensor | None = None,
) -> Tensor:
    """Weight of every prior in the region of rotated localization distillation (TPAMI 2023).

    A prior is in the region of a ground truth when their IoU is at least ``alpha * t``, with the
    ATSS threshold t of that ground truth: positives and the valuable localization region together.

    Args:
        priors: (P, E), by level.
        gt_bboxes: (G, E).
        num_level_priors: Priors of every level; they sum to P.
        valid: (P,) or (N, P) bool, False for priors to leave out; all of one image count if None.
        alpha: Share of the threshold where the region begins.
        topk: Nearest priors per level that make the threshold.
        image: (G,), the image of every ground truth, if there are several.

    Returns:
        (P,) or (N, P), the largest IoU with a ground truth in whose region the prior lies, else 0.
    """
    weights = priors.new_zeros(priors.shape[0] if valid is None else valid.shape)
    if gt_bboxes.shape[0] == 0:
        return weights
    priors, gt_bboxes = _by_coordinate(priors), _by_coordinate(gt_bboxes)
    threshold = atss_thresholds(priors, gt_bboxes, num_level_priors, valid, topk, image)
    share = _ROUNDED * alpha * threshold
    prior_index, gt_index = overlapping_pairs(priors, gt_bboxes, valid, share, image)
    iou = overlaps(_rows(priors, prior_index), _rows(gt_bboxes, gt_index))
    inside = iou >= alpha * threshold.index_select(0, gt_index)
    return _raised(weights, iou.where(inside, 0), prior_index, gt_index, image)


def atss_thresholds(
    priors: Tensor,
    gt_bboxes: Tensor,
    num_level_priors: Sequence[int],
    valid: Tensor | None = None,
    topk: int = 9,
    image: Tensor | None = None,
) -> Tensor:
    """Mean + standard deviation of the IoU over each ground truth's nearest priors (ATSS).

    Args:
        priors: (P, E), by level.
        gt_bboxes: (G, E).
        num_level_priors: Priors of every level.
        valid: (P,) or (N, P) bool, False for priors to leave out; all of one image count if None.
        topk: Candidates per level, those with the nearest centre (of equally near ones, those that
            come first, where rounding does not make another of a cell's anchors the nearer one),
            or all where there are fewer.
        image: (G,), the image of every ground truth, if there are several.

    Returns:
        (G,); NaN, which no overlap reaches, where there are fewer than two candidates.
    """
    nearest = _nearest_priors(priors, gt_bboxes, num_level_priors, valid, topk, image)
    each_gt = gt_bboxes.t()[..., None].expand(-1, -1, nearest.shape[1]).flatten(1).t()
    iou = overlaps(_rows(priors, nearest.flatten()), each_gt).view(nearest.shape)
    # where a level has fewer valid priors than topk, the rest of its candidates must not count
    counted = torch.ones_like(iou)
    if valid is not None:
        counted = valid.flatten()[_in_batch(nearest, image, priors.shape[0])].to(iou.dtype)
    number = counted.sum(1)
    mean = (iou * counted).sum(1) / number
    variance = ((iou - mean[:, None]).square() * counted).sum(1) / (number - 1)
    return mean + variance.sqrt()


def _nearest_priors(
    priors: Tensor,
    gt_bboxes: Tensor,
    num_level_priors: Sequence[int],
    valid: Tensor | None,
    topk: int,
    image: Tensor | None,
) -> Tensor:
    """(G, candidates of all levels), indices into ``priors``.

    The k nearest of a level lie in the k blocks whose minima are the smallest. A minimum costs much
    less than ``topk``, which is left with those blocks.
    """
    x, y = centres(priors).t().float()
    if valid is not None:
        x = x.where(valid, torch.inf)
    x, y = (_levels_in_blocks(axis, num_level_priors).flatten(-2) for axis in (x, y))
    if image is not None:
        x = x.index_select(0, image)
    gt_x, gt_y = centres(gt_bboxes).t().float().contiguous()[..., None]
    distance = (x - gt_x).square_().add_((y - gt_y).square_())  # G x P, the largest array here
    blocks = distance.unflatten(1, (-1, _BLOCK))
    keys = _keys(blocks.amin(2), torch.arange(blocks.shape[1], device=blocks.device))
    num_blocks = [math.ceil(number / _BLOCK) for number in num_level_priors]
    parts = keys.split(num_blocks, dim=1)
    near = [part.topk(min(topk, part.shape[1]), dim=1, largest=False).values for part in parts]
    block = (torch.cat(near, dim=1) & _INDEX)[..., None]
    place = block * _BLOCK + torch.arange(_BLOCK, device=block.device)
    keys = _keys(blocks.gather(1, block.expand_as(place)), place).flatten(1)
    parts = keys.split([part.shape[1] * _BLOCK for part in near], dim=1)
    nearest, filling = [], 0
    for part, count, number in zip(parts, num_blocks, num_level_priors, strict=True):
        nearest.append(part.topk(min(topk, number), dim=1, largest=False).values - filling)
        filling += count * _BLOCK - number
    return torch.cat(nearest, dim=1) & _INDEX


def _keys(values: Tensor, index: Tensor) -> Tensor:
    """Integers with the order of values that are not negative, and of ``index`` where they equal.

    The bits of such floats, read as integers, have their order. The index comes below them.
    """
    return values.view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(index)


def overlapping_pairs(
    priors: Tensor,
    gt_bboxes: Tensor,
    valid: Tensor | None = None,
    share: Tensor | None = None,
    image: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Indices (Q,) of prior and ground truth of all pairs whose intersection has an area.

    Of rotated boxes, the smallest horizontal boxes around them are looked at: others come too.

    Args:
        priors: (P, E).
        gt_bboxes: (G, E).
        valid: (P,) or (N, P) bool, False for priors to leave out; all of one image count if None.
        share: (G,), leaves out priors of which the ground truth covers no more than this share.
        image: (G,), the image of every ground truth, if there are several.
    """
    low, high = bounds(priors).t()[:, None].split(2)  # (2, N, P), or (2, 1, P) of a single image
    if valid is not None:
        low, high = low.where(valid, torch.inf), high.where(valid, -torch.inf)
    # what fills the blocks overlaps nothing
    low, high = _in_blocks(low, torch.inf), _in_blocks(high, -torch.inf)
    area = _in_blocks(sides(priors).prod(1), torch.inf)
    gt_low, gt_high = bounds(gt_bboxes).t()[..., None].split(2)
    share = gt_bboxes.new_zeros(gt_bboxes.shape[0]) if share is None else share
    least = area.amin(1) * share[:, None]
    block_low, block_high = low.amin(3), high.amax(3)
    if image is not None:
        block_low, block_high = (x.index_select(1, image) for x in (block_low, block_high))
    near = _intersections(block_low, block_high, gt_low, gt_high) > least
    gt_index, block = near.nonzero().unbind(1)
    place = _in_batch(block, None if image is None else image.index_select(0, gt_index), len(area))
    low, high = (corner.flatten(1, 2).index_select(1, place) for corner in (low, high))
    gt_low, gt_high = (corner.index_select(1, gt_index) for corner in (gt_low, gt_high))
    least = area.index_select(0, block) * share.index_select(0, gt_index)[:, None]
    hit, offset = (_intersections(low, high, gt_low, gt_high) > least).nonzero().unbind(1)
    return (block * _BLOCK).index_select(0, hit).add_(offset), gt_index.index_select(0, hit)


def _in_blocks(values: Tensor, filling: float) -> Tensor:
    """(..., n) as (..., blocks, _BLOCK)."""
    missing = -values.shape[-1] % _BLOCK
    return F.pad(values, (0, missing), value=filling).unflatten(-1, (-1, _BLOCK))


def _levels_in_blocks(values: Tensor, num_level_priors: Sequence[int]) -> Tensor:
    """(..., P) as (..., blocks, _BLOCK), none of which holds priors of two levels."""
    levels = values.split(list(num_level_priors), dim=-1)
    return torch.cat([_in_blocks(level, torch.inf) for level in levels], dim=-2)


def _in_batch(index: Tensor, image: Tensor | None, number: int) -> Tensor:
    """Indices into ``number`` things of an image, as those into the things of all images.

    Args:
        index: (K, ...).
        image: (K,); None if there is a single one.
        number: Of an image's things.
    """
    return index if image is None else index + (image * number).view(-1, *[1] * (index.dim() - 1))


def _raised(
    weights: Tensor, values: Tensor, prior_index: Tensor, gt_index: Tensor, image: Tensor | None
) -> Tensor:
    """Weights of priors, (P,) or (N, P), raised to the values of their pairs, (Q,)."""
    of_pair = None if image is None else image.index_select(0, gt_index)
    index = _in_batch(prior_index, of_pair, weights.shape[-1])
    return weights.flatten().scatter_reduce(0, index, values, 'amax').view_as(weights)


def _intersections(low: Tensor, high: Tensor, other_low: Tensor, other_high: Tensor) -> Tensor:
    """Area that boxes share, from their first and last corners: (2, ...) each to (...)."""
    size = torch.minimum(high, other_high).sub_(torch.maximum(low, other_low)).clamp_(min=0)
    return size[0] * size[1]


def _by_coordinate(boxes: Tensor) -> Tensor:
    """The same boxes, stored by coordinate, so that arithmetic on one is contiguous."""
    return boxes.t().contiguous().t()


def _rows(boxes: Tensor, index: Tensor) -> Tensor:
    """``boxes[index]``, (Q, E), stored by coordinate."""
    return _by_coordinate(boxes).t().index_select(1, index).t()


def centred_overlap(priors: Tensor, gt_bboxes: Tensor, overlap: str) -> Tensor:
    """Overlap of aligned pairs less their centre distance, (Q, E) and (Q, E) to (Q,).

    The distance term is that of DIoU: squared centre distance over the squared diagonal of the
    smallest horizontal box around both.

    Args:
        priors: (Q, E).
        gt_bboxes: (Q, E).
        overlap: ``'diou'`` takes the IoU; ``'iof'`` divides the intersection by the prior's area
            instead, as the published localization distillation does.
    """
    covered = overlaps(priors, gt_bboxes, mode='iou' if overlap == 'diou' else 'iof')
    centre = centres(priors) - centres(gt_bboxes)
    priors, gt_bboxes = bounds(priors), bounds(gt_bboxes)
    corner = torch.maximum(priors[:, 2:], gt_bboxes[:, 2:])
    diagonal = corner - torch.minimum(priors[:, :2], gt_bboxes[:, :2])
    return covered - centre.square().sum(1) / diagonal.square().sum(1).clamp(min=1e-6)


def inside_gt_region(priors: Tensor, gt_bboxes: Tensor, valid: Tensor | None = None) -> Tensor:
    """(P,) bool: the prior's centre lies strictly inside a ground truth, (P, E) and (G, E)."""
    x, y = centres(priors).t().contiguous()
    inside = hold(gt_bboxes, x, y).any(dim=0)
    return inside if valid is None else inside & valid


def fine_grained_region(
    priors: Tensor,
    gt_bboxes: Tensor,
    valid: Tensor | None = None,
    share: float = 0.5,
    image: Tensor | None = None,
) -> Tensor:
    """(P,) or (N, P) bool: the IoU with a ground truth exceeds ``share`` of its best."""
    weights = priors.new_zeros(priors.shape[0] if valid is None else valid.shape)
    prior_index, gt_index = overlapping_pairs(priors, gt_bboxes, valid, image=image)
    iou = overlaps(priors[prior_index], gt_bboxes[gt_index])
    best = iou.new_zeros(gt_bboxes.shape[0]).scatter_reduce(0, gt_index, iou, 'amax')
    near_best = (iou > share * best[gt_index]).to(weights.dtype)
    return _raised(weights, near_best, prior_index, gt_index, image) > 0


def general_instance_scores(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """How much two models' class scores differ (Dai et al., CVPR 2021, eq. 1-2).

    Args:
        student: Class logits (..., C).
        teacher: Class logits (..., C).

    Returns:
        The largest absolute difference of a class's score, (...) in [0, 1], and a bool (...): the
        teacher scores that class at least as high.
    """
    difference = teacher.float().sigmoid() - student.float().sigmoid()
    scores, classes = difference.abs().max(dim=-1)
    return scores, difference.gather(-1, classes[..., None])[..., 0] >= 0


def level_instance_scores(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`general_instance_scores` of a whole level.

    Args:
        student: Class logits (N, A, H, W, C), which are not copied as a whole.
        teacher: The same of the teacher.

    Returns:
        Two of (N, A, H, W).
    """
    pieces = pieces_of(student)
    cut = zip(student.chunk(pieces, dim=1), teacher.chunk(pieces, dim=1), strict=True)
    scores, teacher_wins = zip(*(general_instance_scores(*piece) for piece in cut), strict=True)
    return torch.cat(scores, dim=1), torch.cat(teacher_wins, dim=1)


def select_top_boxes(
    boxes: Tensor, scores: Tensor, iou_threshold: float, topk: int
) -> tuple[Tensor, Tensor]:
    """The first ``topk`` survivors of greedy non-maximum suppression in each of N sets of boxes.

    Only the few survivors are looked for, one after another, so no list of boxes is sorted.

    Args:
        boxes: (N, M, E).
        scores: (N, M); boxes below 0 take no part.
        iou_threshold: A box that overlaps a survivor by more is suppressed.
        topk: Most survivors per set.

    Returns:
        (N, M) bool, and the survivors' indices (N, topk) from best to worst, -1 where there are
        fewer.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    order = []
    for _ in range(min(topk, boxes.shape[1])):
        best = scores.argmax(dim=1, keepdim=True)
        alive = scores.gather(1, best) >= 0
        kept |= torch.zeros_like(kept).scatter(1, best, alive)
        order.append(best.where(alive, -1))
        best_boxes = boxes.gather(1, best[..., None].expand(-1, -1, boxes.shape[2]))
        similar = overlaps_with(best_boxes, boxes) > iou_threshold
        scores = scores.masked_fill(similar & alive, -1).scatter(1, best, -1)
    return kept, torch.cat(order, dim=1)


def level_by_size(gt_bboxes: Tensor, num_levels: int, finest_scale: float) -> Tensor:
    """The pyramid level of every ground truth by FPN's rule (Lin et al., CVPR 2017, eq. 1).

    Args:
        gt_bboxes: (..., E).
        num_levels: L.
        finest_scale: In pixels; ground truths of up to twice that side go on the finest level, of
            up to four times on the next, and so on.

    Returns:
        (...) int64 in 0..L-1. Sides count one pixel more than their coordinates differ by, as in
        the published DeFeat.
    """
    side = (sides(gt_bboxes) + 1).clamp(min=0).prod(dim=-1).sqrt()
    level = (side / finest_scale + 1e-6).log2().floor()
    return level.clamp(min=0, max=num_levels - 1).long()


def covered_cells(gt_bboxes: Tensor, size: tuple[int, int], stride: tuple[float, float]) -> Tensor:
    """Cells of a level that lie in a ground truth (Guo et al., CVPR 2021).

    Corners are truncated to cells, so cells that a right or bottom side cuts do not count. A ground
    truth that is thinner than a cell covers the one that holds its first corner. What lies outside
    the map is cut off.

    Of a rotated ground truth, cells count whose middle it holds, and the one that holds its centre.

    Args:
        gt_bboxes: (..., G, E), of any number of images.
        size: (H, W) of the level.
        stride: (x, y) of the level.

    Returns:
        (..., H, W) bool.
    """
    if is_rotated(gt_bboxes):
        return _cells_in_rotated(gt_bboxes, size, stride)
    (height, width), (x, y) = size, stride
    left, right = ((gt_bboxes[..., i] / x).clamp(0, width).trunc() for i in (0, 2))
    top, bottom = ((gt_bboxes[..., i] / y).clamp(0, height).trunc() for i in (1, 3))
    seen = (gt_bboxes[..., 2:] > 0).all(-1)
    thin = (left == right) | (top == bottom)
    right, bottom = (end.where(~thin, start + 1) for start, end in ((left, right), (top, bottom)))
    column = torch.arange(width, device=gt_bboxes.device)
    row = torch.arange(height, device=gt_bboxes.device)
    columns = (column >= left[..., None]) & (column < right[..., None]) & seen[..., None]
    rows = (row >= top[..., None]) & (row < bottom[..., None])
    return _in_any(rows, columns)


def _in_any(rows: Tensor, columns: Tensor) -> Tensor:
    """(..., H, W) bool, cells that a ground truth takes by its rows and columns.

    Args:
        rows: (..., G, H) bool.
        columns: (..., G, W) bool.
    """
    # how many ground truths hold each cell, without a map for every ground truth
    return rows.float().mT @ columns.float() > 0


def _cells_in_rotated(
    gt_bboxes: Tensor, size: tuple[int, int], stride: tuple[float, float]
) -> Tensor:
    if gt_bboxes.dim() > 2:  # one image after the other: each ground truth takes a map here
        return torch.stack([_cells_in_rotated(boxes, size, stride) for boxes in gt_bboxes])
    (height, width), (x, y) = size, stride
    column = torch.arange(width, device=gt_bboxes.device)
    row = torch.arange(height, device=gt_bboxes.device)
    middle_y, middle_x = torch.meshgrid((row + 0.5) * y, (column + 0.5) * x, indexing='ij')
    held = hold(gt_bboxes, middle_x.flatten(), middle_y.flatten()).any(0).view(height, width)
    has_area = (gt_bboxes[:, 2:4] > 0).all(1, keepdim=True)
    rows = (row == (gt_bboxes[:, 1:2] / y).floor()) & has_area
    columns = column == (gt_bboxes[:, :1] / x).floor()
    return held | _in_any(rows, columns)
