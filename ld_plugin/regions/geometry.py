"""Selections of priors as pure functions of boxes and scores.

Shape shorthand: P priors of one image over all levels, G ground truths of the image, Q pairs of a
prior and a ground truth that overlap. Boxes have E numbers, in pixels: horizontal or rotated ones,
as :mod:`ld_plugin.dense.boxes` says, both of the same kind. A few priors overlap a ground truth
at all, so overlaps are computed for those pairs and never for all P x G.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dense.boxes import bounds, centres, hold, is_rotated, overlaps, overlaps_with, sides

OVERLAPS = ('iof', 'diou')
_BLOCK = 64  # priors


def valuable_localization_region(
    priors: Tensor,
    gt_bboxes: Tensor,
    num_level_priors: Sequence[int],
    valid: Tensor | None = None,
    alpha: float = 0.25,
    topk: int = 9,
    overlap: str = 'iof',
) -> Tensor:
    """Weight of every prior in the valuable localization region (Zheng et al., CVPR 2022, Alg. 1).

    A prior is in the region of a ground truth when its overlap lies in ``[alpha * t, t)``, where t
    is the ATSS threshold of that ground truth.

    Args:
        priors: (P, E), by level.
        gt_bboxes: (G, E).
        num_level_priors: Priors of every level; they sum to P.
        valid: (P,) bool, False for priors to leave out; all count if None.
        alpha: Share of the threshold where the region begins.
        topk: Nearest priors per level that make the threshold.
        overlap: What is compared with the threshold: see :func:`centred_overlap`.

    Returns:
        (P,), the largest IoU with a ground truth in whose region the prior lies, else 0.
    """
    weights = priors.new_zeros(priors.shape[0])
    if gt_bboxes.shape[0] == 0:
        return weights
    threshold = atss_thresholds(priors, gt_bboxes, num_level_priors, valid, topk)
    # the threshold is never negative, so a prior in the region has an overlap above 0
    prior_index, gt_index = overlapping_pairs(priors, gt_bboxes, valid)
    pair_priors, pair_gts = _rows(priors, prior_index), _rows(gt_bboxes, gt_index)
    distance = centred_overlap(pair_priors, pair_gts, overlap)
    pair_threshold = threshold[gt_index]
    inside = (distance >= alpha * pair_threshold) & (distance < pair_threshold)
    inside = inside.nonzero()[:, 0]  # a small part of the pairs
    iou = overlaps(pair_priors[inside], pair_gts[inside])
    return weights.scatter_reduce(0, prior_index[inside], iou, 'amax')


def overlap_region(
    priors: Tensor,
    gt_bboxes: Tensor,
    num_level_priors: Sequence[int],
    valid: Tensor | None = None,
    alpha: float = 0.25,
    topk: int = 9,
) -> Tensor:
    """Weight of every prior in the region of rotated localization distillation (TPAMI 2023).

    A prior is in the region of a ground truth when their IoU is at least ``alpha * t``, with the
    ATSS threshold t of that ground truth: positives and the valuable localization region together.

    Args:
        priors: (P, E), by level.
        gt_bboxes: (G, E).
        num_level_priors: Priors of every level; they sum to P.
        valid: (P,) bool, False for priors to leave out; all count if None.
        alpha: Share of the threshold where the region begins.
        topk: Nearest priors per level that make the threshold.

    Returns:
        (P,), the largest IoU with a ground truth in whose region the prior lies, else 0.
    """
    weights = priors.new_zeros(priors.shape[0])
    if gt_bboxes.shape[0] == 0:
        return weights
    threshold = atss_thresholds(priors, gt_bboxes, num_level_priors, valid, topk)
    prior_index, gt_index = overlapping_pairs(priors, gt_bboxes, valid)
    iou = overlaps(_rows(priors, prior_index), _rows(gt_bboxes, gt_index))
    inside = iou >= alpha * threshold[gt_index]
    return weights.scatter_reduce(0, prior_index, iou.where(inside, 0), 'amax')


def atss_thresholds(
    priors: Tensor,
    gt_bboxes: Tensor,
    num_level_priors: Sequence[int],
    valid: Tensor | None = None,
    topk: int = 9,
) -> Tensor:
    """Mean + standard deviation of the IoU over each ground truth's nearest priors (ATSS).

    Args:
        priors: (P, E), by level.
        gt_bboxes: (G, E).
        num_level_priors: Priors of every level.
        valid: (P,) bool, False for priors to leave out.
        topk: Candidates per level, those with the nearest centre, or all where there are fewer.

    Returns:
        (G,); NaN, which no overlap reaches, where there are fewer than two candidates.
    """
    nearest = _nearest_priors(priors, gt_bboxes, num_level_priors, valid, topk)
    iou = overlaps(
        priors[nearest].flatten(0, 1), gt_bboxes.repeat_interleave(nearest.shape[1], dim=0)
    ).view(nearest.shape)
    # where a level has fewer valid priors than topk, the rest of its candidates must not count
    counted = torch.ones_like(iou) if valid is None else valid[nearest].to(iou.dtype)
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
) -> Tensor:
    """(G, candidates of all levels), indices into ``priors``."""
    # contiguous (2, P) and (2, G): the P x G distances are the one large array here
    x, y = centres(priors).t().contiguous()
    gt_x, gt_y = centres(gt_bboxes).t().contiguous()[..., None]
    nearest, start = [], 0
    for n in num_level_priors:
        here = slice(start, start + n)
        distance = (x[here] - gt_x).square_().add_((y[here] - gt_y).square_())
        if valid is not None:
            distance.masked_fill_(~valid[here], torch.inf)
        nearest.append(_smallest(distance, min(topk, n)) + start)
        start += n
    return torch.cat(nearest, dim=1)


def _smallest(values: Tensor, k: int) -> Tensor:
    """Indices (G, k) of the k smallest of every row of (G, n), in no order.

    They lie in the k blocks of a row whose minima are the smallest. A minimum costs much less than
    ``topk``, which is left with those blocks and what remains behind the last one.
    """
    topk = partial(torch.topk, k=k, dim=1, largest=False, sorted=False)
    n = values.shape[1]
    if n <= 256 * k:  # a short row is faster without blocks
        return topk(values).indices
    size = math.isqrt(n // k)
    end = n - n % size
    blocks = topk(values[:, :end].unflatten(1, (-1, size)).amin(2)).indices
    index = torch.arange(n, device=values.device)
    in_blocks = (blocks[..., None] * size + index[:size]).flatten(1)
    candidates = torch.cat([in_blocks, index[end:].expand(len(values), -1)], dim=1)
    return candidates.gather(1, topk(values.gather(1, candidates)).indices)


def overlapping_pairs(
    priors: Tensor, gt_bboxes: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Indices (Q,) of prior and ground truth of all pairs whose intersection has an area.

    Of rotated boxes, the smallest horizontal boxes around them are looked at: others come too.
    """
    priors, gt_bboxes = bounds(priors), bounds(gt_bboxes)
    # neighbouring priors first in blocks, most of which overlap nothing; nor does NaN, the filling
    missing = -len(priors) % _BLOCK
    sides = F.pad(priors.t(), (0, missing), value=torch.nan).unflatten(1, (-1, _BLOCK))
    low, high = sides[:2].nan_to_num(torch.inf).amin(2), sides[2:].nan_to_num(-torch.inf).amax(2)
    gt_sides = gt_bboxes.t().contiguous()[..., None]
    gt_index, block = _intersect(torch.cat([low, high]), gt_sides).nonzero().unbind(1)
    within = _intersect(sides.index_select(1, block), gt_sides.index_select(1, gt_index))
    if valid is not None:
        within &= F.pad(valid, (0, missing)).unflatten(0, (-1, _BLOCK))[block]
    hit, offset = within.nonzero().unbind(1)
    return block[hit] * _BLOCK + offset, gt_index[hit]


def _intersect(sides: Tensor, other: Tensor) -> Tensor:
    """Whether boxes share an area; sides left, top, right, bottom come first: (4, ...) to (...)."""
    overlapping = sides[0] < other[2]
    overlapping &= sides[2] > other[0]
    overlapping &= sides[1] < other[3]
    overlapping &= sides[3] > other[1]
    return overlapping


def _rows(boxes: Tensor, index: Tensor) -> Tensor:
    """``boxes[index]``, (Q, E), stored by coordinate, so that arithmetic on one is contiguous."""
    return boxes.t().contiguous().index_select(1, index).t()


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
    priors: Tensor, gt_bboxes: Tensor, valid: Tensor | None = None, share: float = 0.5
) -> Tensor:
    """(P,) bool: the IoU with a ground truth exceeds ``share`` of its best over all priors."""
    prior_index, gt_index = overlapping_pairs(priors, gt_bboxes, valid)
    iou = overlaps(priors[prior_index], gt_bboxes[gt_index])
    best = iou.new_zeros(gt_bboxes.shape[0]).scatter_reduce(0, gt_index, iou, 'amax')
    near_best = (iou > share * best[gt_index]).to(iou.dtype)
    return priors.new_zeros(priors.shape[0]).scatter_reduce(0, prior_index, near_best, 'amax') > 0


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
    scores = scores.clone()
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
        gt_bboxes: (G, E).
        num_levels: L.
        finest_scale: In pixels; ground truths of up to twice that side go on the finest level, of
            up to four times on the next, and so on.

    Returns:
        (G,) int64 in 0..L-1. Sides count one pixel more than their coordinates differ by, as in
        the published DeFeat.
    """
    side = (sides(gt_bboxes) + 1).clamp(min=0).prod(dim=1).sqrt()
    level = (side / finest_scale + 1e-6).log2().floor()
    return level.clamp(min=0, max=num_levels - 1).long()


def covered_cells(gt_bboxes: Tensor, size: tuple[int, int], stride: tuple[float, float]) -> Tensor:
    """Cells of a level that lie in a ground truth (Guo et al., CVPR 2021).

    Corners are truncated to cells, so cells that a right or bottom side cuts do not count. A ground
    truth that is thinner than a cell covers the one that holds its first corner. What lies outside
    the map is cut off.

    Of a rotated ground truth, cells count whose middle it holds, and the one that holds its centre.

    Args:
        gt_bboxes: (G, E).
        size: (H, W) of the level.
        stride: (x, y) of the level.

    Returns:
        (H, W) bool.
    """
    if is_rotated(gt_bboxes):
        return _cells_in_rotated(gt_bboxes, size, stride)
    (height, width), (x, y) = size, stride
    left, right = ((gt_bboxes[:, i] / x).clamp(0, width).trunc() for i in (0, 2))
    top, bottom = ((gt_bboxes[:, i] / y).clamp(0, height).trunc() for i in (1, 3))
    seen = (gt_bboxes[:, 2:] > 0).all(1) & (left < width) & (top < height)
    thin = (left == right) | (top == bottom)
    right, bottom = (end.where(~thin, start + 1) for start, end in ((left, right), (top, bottom)))
    column = torch.arange(width, device=gt_bboxes.device)
    row = torch.arange(height, device=gt_bboxes.device)
    columns = (column >= left[:, None]) & (column < right[:, None]) & seen[:, None]
    rows = (row >= top[:, None]) & (row < bottom[:, None])
    # how many ground truths hold each cell, without a map for every ground truth
    return rows.float().t() @ columns.float() > 0


def _cells_in_rotated(
    gt_bboxes: Tensor, size: tuple[int, int], stride: tuple[float, float]
) -> Tensor:
    (height, width), (x, y) = size, stride
    column = torch.arange(width, device=gt_bboxes.device)
    row = torch.arange(height, device=gt_bboxes.device)
    middle_y, middle_x = torch.meshgrid((row + 0.5) * y, (column + 0.5) * x, indexing='ij')
    held = hold(gt_bboxes, middle_x.flatten(), middle_y.flatten()).any(0).view(height, width)
    has_area = (gt_bboxes[:, 2:4] > 0).all(1, keepdim=True)
    rows = (row == (gt_bboxes[:, 1:2] / y).floor()) & has_area
    columns = column == (gt_bboxes[:, :1] / x).floor()
    return held | (rows.float().t() @ columns.float() > 0)
