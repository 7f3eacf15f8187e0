"""Maker of a rotated_ld file; without the stock box loss."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tests import brute_force

from .common import Arrays, noise, single

#: as the recipe has them
CONSTANTS = {'T_ld': 5, 'weight_ld': 10, 'T_kd': 5, 'weight_kd': 20, 'weight_im': 2}
STRIDES, ANCHORS, DELTAS = (8, 16, 32), 9, 5
RANGES = (-2, 2), (-2, 2), (-2, 2), (-2, 2), (-5, 2)


def rotated_ld(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    arrays, numbers = {'region_num_images': np.int64(3)}, (4, 1, 0)
    for image, number in enumerate(numbers):
        region = _region(rng, 70 - 9 * image, 45, STRIDES[image:], number)
        arrays |= {f'region{image}_{name}': value for name, value in region.items()}
    # of several images the last has no objects, and all others are padded
    objects = ((3, 0), (1, 2, 0), (2,))[seed % 3]
    classes, factor = ((1, 1), (4, 1), (3, 1.5))[seed % 3]
    constants = {name: factor * value for name, value in CONSTANTS.items()}
    return arrays | RotatedHead(rng, objects, 4 + seed % 4, classes, constants).arrays()


def _region(
    rng: np.random.Generator, height: int, width: int, strides: Sequence[int], number: int
) -> Arrays:
    priors, sizes = rotated_anchors(height, width, strides)
    gts, counts = rotated_objects(rng, number, height, width), [ANCHORS * h * w for h, w in sizes]
    everywhere = np.ones(len(priors), dtype=bool)
    values = {
        'image_hw': np.array([height, width]),
        'anchors': priors,
        'num_level_anchors': np.array(counts),
        'gt_bboxes': gts,
        'ld_region_ran': np.bool_(number > 0),
    }
    boxes = without_angle(priors), without_angle(gts)
    found = {'im_region': brute_force.fine_grained(*boxes, everywhere)}
    if number:
        found['ld_region'] = overlap_region(*boxes, counts, everywhere)
        found['dbg_thr'] = brute_force.atss_thresholds(*boxes, counts, everywhere)
    return values | single(found)


def overlap_region(
    priors: np.ndarray, gts: np.ndarray, counts: Sequence[int], valid: np.ndarray
) -> np.ndarray:
    """(P,), the largest IoU with a ground truth, of those that reach a quarter of its threshold."""
    iou = brute_force.pairwise(priors, gts)
    threshold = brute_force.atss_thresholds(priors, gts, counts, valid)
    inside = (iou >= 0.25 * threshold) & valid[:, None]
    return np.where(inside, iou, 0).max(1, initial=0)


def without_angle(boxes: np.ndarray) -> np.ndarray:
    """(K, 4) as if the angle of (K, 5) were 0."""
    centre, half = boxes[:, :2].astype(float), boxes[:, 2:4].astype(float) / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def rotated_objects(rng: np.random.Generator, number: int, height: int, width: int) -> np.ndarray:
    """(G, 5), some of them partly outside."""
    centre = rng.uniform([0, 0], [width, height], (number, 2))
    size, angle = rng.uniform(8, 40, (number, 2)), rng.uniform(-1.5, 1.5, (number, 1))
    return np.float32(np.concatenate([centre, size, angle], axis=1))


def rotated_anchors(
    height: int, width: int, strides: Sequence[int]
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """(P, 5), nine at every cell's corner: three sizes of each of three shapes."""
    squares, sizes = brute_force.anchors(height, width, strides)
    side = squares[:, 2:] - squares[:, :2]
    centre = (squares[:, 2:] + squares[:, :2]) / 2
    shapes = [
        (scale / np.sqrt(ratio), scale * np.sqrt(ratio))
        for ratio in (1, 0.5, 2)
        for scale in (1, 2 ** (1 / 3), 2 ** (2 / 3))
    ]
    boxes = np.zeros((len(squares), ANCHORS, 5))
    boxes[..., :2] = centre[:, None]
    boxes[..., 2:4] = side[:, None] * shapes
    return np.float32(boxes.reshape(-1, 5)), sizes


class RotatedHead:
    """Of three levels."""

    channels = 3
    height, width = 36, 52

    def __init__(
        self,
        rng: np.random.Generator,
        objects: Sequence[int],
        reg_max: int,
        classes: int,
        constants: dict[str, float],
    ) -> None:
        self.rng, self.images, self.bins = rng, len(objects), reg_max + 1
        self.classes, self.constants = classes, constants
        self.values = np.stack([np.linspace(*ends, self.bins) for ends in RANGES])
        self.priors, self.sizes = rotated_anchors(self.height, self.width, STRIDES)
        self.counts = [ANCHORS * h * w for h, w in self.sizes]
        self.pads = [(self.height, self.width - 12)] * (self.images - 1)
        self.pads.append((self.height, self.width))
        self.gts = [
            rotated_objects(rng, number, *pad)
            for number, pad in zip(objects, self.pads, strict=True)
        ]
        self.labels = [rng.integers(0, self.classes, number) for number in objects]

    def arrays(self) -> Arrays:
        targets = [
            self._targets(*image) for image in zip(self.gts, self.labels, self.pads, strict=True)
        ]
        samples = [max((image['labels'] < self.classes).sum(), 1) for image in targets]
        whole = {name: np.stack([image[name] for image in targets]) for name in targets[0]}
        arrays, totals = self._settings(sum(samples)) | self._integral(), []
        bounds = np.cumsum([0, *self.counts])
        for level, (start, end) in enumerate(pairwise(bounds)):
            values = {name: value[:, start:end] for name, value in whole.items()}
            maps = self._maps(level)
            found, gradients = self._losses(values, maps, sum(samples))
            totals.append(found)
            values |= self._decoded(values['anchors'], maps['bbox_pred'])
            values['ld_num'] = np.float32(self._number(values))
            maps |= {f'grad_{n}': np.float32(value) for n, value in gradients.items()}
            values |= {name: self._to_map(rows, level) for name, rows in maps.items()}
            arrays |= {f'lvl{level}_{name}': value for name, value in values.items()}
        for name in totals[0]:
            arrays[f'out_{name}'] = np.float32([found[name] for found in totals])
        return arrays

    def _settings(self, samples: int) -> Arrays:
        constants = self.constants | {'reg_max': self.bins - 1, 'num_anchors': ANCHORS}
        return {
            'image_hw': np.array([self.height, self.width]),
            'pad_hw': np.array(self.pads),
            'strides': np.array(STRIDES),
            'feat_sizes': np.array(self.sizes),
            'num_total_samples': np.float32(samples),
            'gt_bboxes': np.concatenate(self.gts),
            'gt_labels': np.concatenate(self.labels),
            'gt_image': np.repeat(np.arange(self.images), [len(gts) for gts in self.gts]),
        } | {f'const_{name}': np.float32(value) for name, value in constants.items()}

    def _targets(self, gts: np.ndarray, labels: np.ndarray, pad: Sequence[int]) -> Arrays:
        """Of every prior of an image; positives are drawn, whatever they overlap."""
        valid = np.concatenate(
            [
                np.repeat(
                    (np.arange(h)[:, None] * s < pad[0]) & (np.arange(w) * s < pad[1]), ANCHORS
                )
                for (h, w), s in zip(self.sizes, STRIDES, strict=True)
            ]
        )
        number = len(valid)
        taken = valid & (self.rng.random(number) < 0.2)
        index = taken * self.rng.integers(0, len(gts) + 1, number)
        ignored = (index == 0) & (self.rng.random(number) < 0.1)
        # a background label and box stand at index 0
        label_of = np.concatenate([[self.classes], labels])
        box_of = np.concatenate([np.zeros((1, 5), np.float32), gts])
        boxes = without_angle(self.priors), without_angle(gts)
        return {
            'anchors': self.priors * valid[:, None],
            'labels': label_of[index].astype(np.int64),
            'label_weights': np.float32(valid & ~ignored),
            'bbox_targets': box_of[index],
            'bbox_weights': np.float32(np.repeat(index[:, None] > 0, DELTAS, axis=1)),
            'ld_region': np.float32(overlap_region(*boxes, self.counts, valid)),
            'im_region': np.float32(brute_force.fine_grained(*boxes, valid)),
        }

    def _integral(self) -> Arrays:
        logits, angles = noise(self.rng, 20, self.bins), noise(self.rng, 5, self.bins)
        arrays = {'project': self.values[0], 'in': logits}
        arrays |= {'angle_project': self.values[-1], 'angle_in': angles}
        for prefix, rows, values in (
            ('', logits, self.values[0]),
            ('angle_', angles, self.values[-1]),
        ):
            share = brute_force.softmax(rows.astype(float))
            out = share @ values
            arrays[f'{prefix}out'] = out if prefix else out.reshape(-1, 4)
            arrays[f'{prefix}grad_of_sum'] = share * (values - out[:, None])
        return {f'integral_{name}': value for name, value in single(arrays).items()}

    def _maps(self, level: int) -> Arrays:
        """Rows (N, n, D), and the neck's (N, H * W, C)."""
        depths = {
            'cls_score': self.classes,
            'bbox_pred': DELTAS * self.bins,
            'soft_label': self.classes,
            'soft_target': DELTAS * self.bins,
        }
        maps = {
            name: noise(self.rng, self.images, self.counts[level], depth, scale=2)
            for name, depth in depths.items()
        }
        cells = self.counts[level] // ANCHORS
        neck = {n: noise(self.rng, self.images, cells, self.channels) for n in ('x', 'teacher_x')}
        return maps | neck

    def _to_map(self, rows: np.ndarray, level: int) -> np.ndarray:
        """(N, A * D, H, W)."""
        return np.moveaxis(rows.reshape(self.images, *self.sizes[level], -1), -1, 1)

    def _decoded(self, anchors: np.ndarray, rows: np.ndarray) -> Arrays:
        share = brute_force.softmax(rows.astype(float).reshape(-1, DELTAS, self.bins))
        deltas, anchors = (share * self.values).sum(-1), anchors.reshape(-1, 5).astype(float)
        centre = anchors[:, :2] + anchors[:, 2:4] * deltas[:, :2]
        size, angle = anchors[:, 2:4] * np.exp(deltas[:, 2:4]), anchors[:, 4:] + deltas[:, 4:]
        box = np.concatenate([centre, size, angle], axis=1)
        return single({'decoded_delta': deltas, 'decoded_box': box})

    @staticmethod
    def _number(values: Arrays) -> int:
        return max((values['ld_region'] > 0).sum(), 1)

    def _losses(self, values: Arrays, maps: Arrays, samples: int) -> tuple[Arrays, Arrays]:
        """Of one level, and their gradients as rows (N, n, D)."""
        region, found, gradients = values['ld_region'].astype(float), {}, {}
        pairs = {'ld': ('bbox_pred', 'soft_target'), 'kd': ('cls_score', 'soft_label')}
        for name, pair in pairs.items():
            parts = DELTAS if name == 'ld' else 1
            rows = [maps[n].reshape(*region.shape, parts, -1) for n in pair]
            temperature = self.constants[f'T_{name}']
            weight = self.constants[f'weight_{name}'] * region / self._number(values)
            each = brute_force.kl(*rows, temperature).sum(-1)
            slope = brute_force.kl_gradient(*rows, temperature)
            found[f'loss_{name}'] = (weight * each).sum()
            gradient = (weight[..., None, None] * slope).reshape(*region.shape, -1)
            gradients[f'{pair[0]}_of_loss_{name}'] = gradient
        score = brute_force.sigmoid(maps['cls_score'].astype(float))
        wanted = values['labels'][..., None] == np.arange(self.classes)
        focal = np.where(
            wanted,
            -0.25 * (1 - score) ** 2 * np.log(score),
            -0.75 * score**2 * np.log(1 - score),
        )
        found['loss_cls'] = (values['label_weights'][..., None] * focal).sum() / samples
        found['loss_im'] = np.nan  # of the wrong cells as published: nothing compares with it
        return found, gradients
