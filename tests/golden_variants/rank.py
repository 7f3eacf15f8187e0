"""Maker of a rank_mimic file."""

from collections.abc import Sequence

import numpy as np

from tests import brute_force

from .common import Arrays, noise

STRIDES = 8, 16, 32
WEIGHT = 4


def rank_mimic(seed: int = 0) -> Arrays:
    """Images: numbers of ground truths, and of those which have positives."""
    rng = np.random.default_rng(seed)
    return {
        **_layout(rng, 'three3_', 3, 4, ((3, 5), (2, 3), (1, 2)), images=((2, 2), (5, 4))),
        **_layout(rng, 'one1_', 1, 2, ((2, 4), (1, 1)), images=((3, 2), (1, 1), (1, 0))),
        **_layout(rng, 'retina9_', 9, 1, ((2, 3), (1, 1)), images=((3, 1),)),
        **_layout(rng, 'two2_', 2, 3, ((1, 1),), images=((1, 0),)),
    }


def _layout(
    rng: np.random.Generator,
    prefix: str,
    num_anchors: int,
    classes: int,
    sizes: Sequence[tuple[int, int]],
    images: Sequence[tuple[int, int]],
) -> Arrays:
    counts = [height * width * num_anchors for height, width in sizes]
    shape = len(images), sum(counts), classes
    # on a grid, so that scores tie
    student, teacher = (np.round(noise(rng, *shape, scale=2) * 4) / 4 for _ in range(2))
    targets = [_assignment(rng, shape[1], classes, *image) for image in images]
    losses, gradients = zip(*map(_image, student, teacher, targets), strict=True)
    arrays = {
        'anchors': _anchors(num_anchors, sizes),
        'feat_sizes': np.array(sizes),
        'strides': np.array(STRIDES[: len(sizes)]),
        'num_anchors': np.int64(num_anchors),
        'loss_weight': np.float32(WEIGHT),
        'loss': np.float32(WEIGHT * np.mean(losses)),
        'loss_per_image': np.float32(losses),
    }
    rows = {
        'student_cls': student,
        'teacher_cls': teacher,
        'grad_student_cls': WEIGHT / len(images) * np.stack(gradients),
    }
    for name, value in rows.items():
        parts = np.split(value, np.cumsum(counts)[:-1], axis=1)
        for level, (part, size) in enumerate(zip(parts, sizes, strict=True)):
            cells = part.reshape(len(images), *size, num_anchors * classes)
            arrays[f'lvl{level}_{name}'] = np.float32(cells.transpose(0, 3, 1, 2))
    for image, target in enumerate(targets):
        arrays |= {f'img{image}_{name}': value for name, value in target.items()}
    return {prefix + name: value for name, value in arrays.items()}


def _anchors(num_anchors: int, sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    levels = []
    for (height, width), stride in zip(sizes, STRIDES, strict=False):
        here, _ = brute_force.anchors(height * stride, width * stride, (stride,))
        levels.append(np.repeat(here, num_anchors, axis=0))
    return np.concatenate(levels)


def _assignment(
    rng: np.random.Generator, anchors: int, classes: int, num_gts: int, with_positives: int
) -> Arrays:
    """Of one image: about one anchor in three is positive, some are ignored, some left out."""
    labels = rng.integers(0, classes, num_gts)
    inside = rng.random(anchors) < 0.8
    background = rng.random(anchors) < 0.6
    index = np.where(background, 0, rng.integers(0, with_positives + 1, anchors))
    index[rng.random(anchors) < 0.1] = -1
    index = index * inside
    label_of = np.concatenate([[-1], labels])
    each = label_of[np.maximum(index, 0)]
    corner = rng.uniform(0, 20, (num_gts, 2))
    return {
        'gt_bboxes': np.float32(np.concatenate([corner, corner + 10], axis=1)),
        'gt_labels': labels,
        'inside_flags': inside,
        'gt_inds': index[inside],
        'labels': each[inside],
        'num_gts': np.int64(num_gts),
        'gt_inds_full': index,
        'labels_full': each,
    }


def _image(student: np.ndarray, teacher: np.ndarray, target: Arrays) -> tuple[float, np.ndarray]:
    """The loss and its gradient (P, C) of logits (P, C)."""
    loss, gradient, num_gts = 0.0, np.zeros(student.shape), int(target['num_gts'])
    for gt in range(num_gts):
        anchors = np.flatnonzero(target['gt_inds_full'] == gt + 1)
        if not len(anchors):
            continue
        label = target['gt_labels'][gt]
        scores, reference = (
            brute_force.sigmoid(logits[anchors, label].astype(float))
            for logits in (student, teacher)
        )
        order = scores.argsort()
        p, q = brute_force.softmax(np.sort(reference)), brute_force.softmax(scores[order])
        loss += (p * np.log(p / q)).sum() / num_gts
        slope = (scores * (1 - scores))[order]
        gradient[anchors[order], label] = (q - p) * slope / num_gts
    return loss, gradient
