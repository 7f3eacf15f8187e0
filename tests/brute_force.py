"""Regions and losses once more, in numpy and float64: every pair, loops, nothing left out.

The tests compare the plugin with these. Shapes as in :mod:`ld_plugin.regions.geometry`: P priors, G
ground truths.
"""

from collections.abc import Sequence

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def kl(student: np.ndarray, teacher: np.ndarray, temperature: float) -> np.ndarray:
    """(..., B) and (..., B) to (...)."""
    p, q = (softmax(np.asarray(z, float) / temperature) for z in (student, teacher))
    return temperature**2 * (q * (np.log(q) - np.log(p))).mean(-1)


def kl_gradient(student: np.ndarray, teacher: np.ndarray, temperature: float) -> np.ndarray:
    """Of every row's :func:`kl` in the student's logits, (..., B)."""
    p, q = (softmax(np.asarray(z, float) / temperature) for z in (student, teacher))
    return temperature / student.shape[-1] * (p - q)


def binary_kl(student: np.ndarray, teacher: np.ndarray, beta: float) -> np.ndarray:
    """Binary cross entropy of sigmoid scores times |their difference|^beta, (..., C)."""
    p, q = (sigmoid(np.asarray(z, float)) for z in (student, teacher))
    return -(q * np.log(p) + (1 - q) * np.log(1 - p)) * np.abs(q - p) ** beta


def binary_kl_gradient(student: np.ndarray, teacher: np.ndarray, beta: float) -> np.ndarray:
    """Of every element of :func:`binary_kl` in the student's logits, for beta of at least 1."""
    p, q = (sigmoid(np.asarray(z, float)) for z in (student, teacher))
    entropy = -(q * np.log(p) + (1 - q) * np.log(1 - p))
    slope = beta * np.abs(q - p) ** (beta - 1) * np.sign(p - q) * p * (1 - p)
    return (p - q) * np.abs(q - p) ** beta + entropy * slope


def rank_kl(student: np.ndarray, teacher: np.ndarray, group: np.ndarray, num_groups: int):
    """(G,): divergence of the softmax over the members of every group, (K,)."""
    result = np.zeros(num_groups)
    for index in range(num_groups):
        here = group == index
        if here.any():
            result[index] = kl(student[here], teacher[here], 1) * here.sum()
    return result


def generalized_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Of two boxes (4,)."""
    size = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    around = np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2])
    union = sum(np.prod(box[2:] - box[:2]) for box in (a, b)) - size.prod()
    return overlap(a, b) - (around.prod() - union) / max(around.prod(), 1e-6)


def overlap(a: np.ndarray, b: np.ndarray, over: str = 'union') -> float:
    """Intersection of two boxes (4,) over their union, or over the area of the first."""
    size = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    intersection = size[0] * size[1]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    divisor = areas[0] if over == 'first' else sum(areas) - intersection
    return intersection / max(divisor, 1e-6)


def centred_overlap(prior: np.ndarray, gt: np.ndarray, kind: str) -> float:
    """Overlap less the squared centre distance over the squared diagonal of the box around both."""
    distance = (((prior[:2] + prior[2:]) - (gt[:2] + gt[2:])) / 2) ** 2
    diagonal = (np.maximum(prior[2:], gt[2:]) - np.minimum(prior[:2], gt[:2])) ** 2
    covered = overlap(prior, gt, 'first' if kind == 'iof' else 'union')
    return covered - distance.sum() / max(diagonal.sum(), 1e-6)


def pairwise(priors: np.ndarray, gts: np.ndarray, function=overlap, *args: str) -> np.ndarray:
    """(P, G)."""
    values = [[function(p, g, *args) for g in gts] for p in priors]
    return np.array(values, dtype=float).reshape(len(priors), len(gts))


def nearest(
    priors: np.ndarray, gt: np.ndarray, counts: Sequence[int], valid: np.ndarray, topk: int = 9
) -> list[int]:
    """The valid priors of every level whose centres are nearest to a ground truth's."""
    offset = (priors[:, :2] + priors[:, 2:]) / 2 - (gt[:2] + gt[2:]) / 2
    distance = (offset**2).sum(1)
    candidates, start = [], 0
    for count in counts:
        level = [i for i in range(start, start + count) if valid[i]]
        candidates += sorted(level, key=lambda i: distance[i])[:topk]
        start += count
    return candidates


def atss_thresholds(
    priors: np.ndarray, gts: np.ndarray, counts: Sequence[int], valid: np.ndarray, topk: int = 9
) -> np.ndarray:
    """(G,), mean + unbiased standard deviation of the IoU of the nearest priors of every level."""
    iou, thresholds = pairwise(priors, gts), []
    for j, gt in enumerate(gts):
        chosen = iou[nearest(priors, gt, counts, valid, topk), j]
        thresholds.append(chosen.mean() + chosen.std(ddof=1) if len(chosen) > 1 else np.nan)
    return np.array(thresholds)


def atss(
    priors: np.ndarray, gts: np.ndarray, counts: Sequence[int], valid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(P,), 1 + the assigned ground truth, 0 for background; and the IoU with it, else -1e8."""
    iou = pairwise(priors, gts)
    index, best = np.zeros(len(priors), dtype=np.int64), np.full(len(priors), -1e8)
    for j, threshold in enumerate(atss_thresholds(priors, gts, counts, valid)):
        for i in nearest(priors, gts[j], counts, valid):
            x, y = (priors[i, :2] + priors[i, 2:]) / 2
            l, t, r, b = gts[j]
            inside = min(x - l, y - t, r - x, b - y) > 0.01
            if inside and iou[i, j] >= threshold and iou[i, j] > best[i]:
                index[i], best[i] = j + 1, iou[i, j]
    return index, best


def vlr(
    priors: np.ndarray,
    gts: np.ndarray,
    counts: Sequence[int],
    valid: np.ndarray,
    kind: str = 'iof',
    alpha: float = 0.25,
    topk: int = 9,
) -> np.ndarray:
    """(P,), Algorithm 1 of Zheng et al., CVPR 2022, read off the page."""
    thresholds = atss_thresholds(priors, gts, counts, valid, topk)
    iou = pairwise(priors, gts)
    value = pairwise(priors, gts, centred_overlap, kind)
    weights = np.zeros(len(priors))
    for i in range(len(priors)):
        for j, threshold in enumerate(thresholds):
            if valid[i] and alpha * threshold <= value[i, j] < threshold:
                weights[i] = max(weights[i], iou[i, j])
    return weights


def fine_grained(
    priors: np.ndarray, gts: np.ndarray, valid: np.ndarray, share: float = 0.5
) -> np.ndarray:
    """(P,) bool."""
    inside = np.zeros(len(priors), dtype=bool)
    if not valid.any():
        return inside
    for iou in pairwise(priors, gts).T:
        inside |= valid & (iou > share * iou[valid].max())
    return inside


def inside_gt(priors: np.ndarray, gts: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(P,) bool."""
    inside = np.zeros(len(priors), dtype=bool)
    for i, (x, y) in enumerate((priors[:, :2] + priors[:, 2:]) / 2):
        inside[i] = valid[i] and any(l < x < r and t < y < b for l, t, r, b in gts)
    return inside


def top_boxes(boxes: np.ndarray, scores: np.ndarray, threshold: float, topk: int) -> list[int]:
    """Greedy suppression, best first; boxes with a score below 0 take no part."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind='stable'):
        if scores[i] >= 0 and all(overlap(boxes[i], boxes[k]) <= threshold for k in kept):
            kept.append(int(i))
    return kept[:topk]


def decode(rows: np.ndarray, centres: np.ndarray, stride: float) -> np.ndarray:
    """GFL's boxes (K, 4) in pixels of rows (K, 4 * B) around centres (K, 2)."""
    by_side = np.asarray(rows, float).reshape(len(rows), 4, -1)
    distance = (softmax(by_side) * np.arange(by_side.shape[-1])).sum(-1) * stride
    return np.concatenate([centres - distance[:, :2], centres + distance[:, 2:]], axis=1)


def anchors(
    height: int, width: int, strides: Sequence[int], scale: float = 4
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Square priors (P, 4) of side ``scale * stride`` at cell corners, and the maps' sizes."""
    sizes = [(-(-height // s), -(-width // s)) for s in strides]
    boxes = []
    for stride, (rows, columns) in zip(strides, sizes, strict=True):
        half = scale * stride / 2
        for row in range(rows):
            for column in range(columns):
                x, y = column * stride, row * stride
                boxes.append([x - half, y - half, x + half, y + half])
    return np.array(boxes, dtype=np.float32), sizes
