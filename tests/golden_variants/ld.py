"""Makers of kd_kl, vlr_region, im_regions and ld_head files."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests import brute_force

from .common import Arrays, noise, objects


def kd_kl(seed: int = 0) -> Arrays:
    rng, arrays = np.random.default_rng(seed), {}
    for temperature, rows, bins in ((1, 7, 3), (5, 21, 9)):
        student, teacher = noise(rng, rows, bins, scale=3), noise(rng, rows, bins, scale=3)
        weight, divisor, factor = rng.uniform(0, 2, rows), 6.5, 1.5
        each = factor * brute_force.kl(student, teacher, temperature)
        gradient = factor * brute_force.kl_gradient(student, teacher, temperature)
        values = {
            'pred': student,
            'soft': teacher,
            'weight': weight,
            'avg_factor': divisor,
            'loss_weight': factor,
            'loss_none': each,
            'loss_none_weighted': each * weight,
            'loss_mean': each.mean(),
            'loss_sum': each.sum(),
            'loss_mean_weighted': (each * weight).mean(),
            'loss': (each * weight).sum() / divisor,
            'grad_pred': gradient * weight[:, None] / divisor,
            'grad_pred_loss_mean': gradient / rows,
        }
        arrays |= {f'T{temperature}_{name}': np.float32(value) for name, value in values.items()}
    return arrays


def vlr_region(seed: int = 0) -> Arrays:
    rng, arrays = np.random.default_rng(seed), {'num_images': np.int64(2)}
    for image, (height, width, number) in enumerate(((60, 90, 4), (70, 50, 0))):
        priors, sizes = brute_force.anchors(height, width, (8, 16, 32), scale=3)
        counts, gts = [h * w for h, w in sizes], objects(rng, number, height, width)
        labels, everywhere = np.arange(number) % 2, np.ones(len(priors), dtype=bool)
        index, overlap = brute_force.atss(priors, gts, counts, everywhere)
        values = {
            'image_hw': np.array([height, width]),
            'feat_sizes': np.array(sizes),
            'anchors': priors,
            'num_level_anchors': np.array(counts),
            'gt_bboxes': gts,
            'gt_labels': labels,
            'assign_gt_inds': index,
            'assign_max_overlaps': np.float32(overlap if number else overlap * 0),
            'assign_labels': np.array([labels[i - 1] if i else -1 for i in index]),
            'iou': np.float32(brute_force.pairwise(priors, gts)),
            'diou': np.float32(
                brute_force.pairwise(priors, gts, brute_force.centred_overlap, 'iof')
            ),
            'thr': np.float32(brute_force.atss_thresholds(priors, gts, counts, everywhere)),
            'vlr_is_tensor': np.bool_(number > 0),
        }
        if number:
            region = brute_force.vlr(priors, gts, counts, everywhere)
            values['vlr_region'] = np.float32(region)
        arrays |= {f'img{image}_{name}': value for name, value in values.items()}
    return arrays


def im_regions(seed: int = 0) -> Arrays:
    rng, arrays = np.random.default_rng(seed), {'num_images': np.int64(2), 'num_gi': np.int64(2)}
    for image, number in enumerate((3, 0)):
        priors, sizes = brute_force.anchors(60, 90, (8, 16, 32), scale=3)
        gts, everywhere = objects(rng, number, 60, 90), np.ones(len(priors), dtype=bool)
        values = {
            'anchors': priors,
            'num_level_anchors': np.array([h * w for h, w in sizes]),
            'gt_bboxes': gts,
            'im_finegrained': np.float32(brute_force.fine_grained(priors, gts, everywhere)),
            'im_in_gt': np.float32(brute_force.inside_gt(priors, gts, everywhere)),
        }
        arrays |= {f'img{image}_{name}': value for name, value in values.items()}
    for case, (stride, images, height, width) in enumerate(((8, 3, 4, 5), (32, 1, 2, 2))):
        priors, _ = brute_force.anchors(height * stride, width * stride, (stride,), scale=3)
        rows = images * height * width
        logits = {name: noise(rng, rows, 3, scale=2) for name in ('soft_label', 'cls_score')}
        boxes = {name: noise(rng, rows, 4 * 7, scale=2) for name in ('bbox_pred', 'soft_target')}
        anchors = np.tile(priors, (images, 1))
        score, wins, box, index = general_instances(
            **logits, **boxes, anchors=anchors, stride=stride
        )
        values = (
            logits
            | boxes
            | {
                'anchors': anchors,
                'idx': index,
                'stride': np.int64(stride),
                'batch': np.int64(images),
                'feat_hw': np.array([height, width]),
                'dbg_score': np.float32(score),
                'dbg_teacher_wins': wins,
                'dbg_box': np.float32(box),
            }
        )
        arrays |= {f'gi{case}_{name}': value for name, value in values.items()}
    return arrays


def general_instances(
    soft_label: np.ndarray,
    cls_score: np.ndarray,
    soft_target: np.ndarray,
    bbox_pred: np.ndarray,
    anchors: np.ndarray,
    stride: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores, whether the teacher wins, boxes in units of the stride, chosen rows."""
    difference = brute_force.sigmoid(np.float64(soft_label)) - brute_force.sigmoid(
        np.float64(cls_score)
    )
    best = np.abs(difference).argmax(1)[:, None]
    difference = np.take_along_axis(difference, best, 1)[:, 0]
    rows = np.where(difference[:, None] >= 0, soft_target, bbox_pred)
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    boxes = brute_force.decode(rows, centre, stride) / stride
    chosen = brute_force.top_boxes(boxes, np.abs(difference), 0.3, 10)
    return np.abs(difference), difference >= 0, boxes, np.array(chosen)


class LDHead:
    """Maker of an ld_head file: 3 images, 4 classes, 9 bins, 6 channels, 3 levels.

    The second image is smaller than the batch, so it has priors in its padding; the third has no
    objects.
    """

    classes, bins, channels = 4, 9, 6
    strides = 8, 16, 32
    height, width, scale = 72, 104, 4
    pads = (72, 104), (48, 80), (72, 104)
    objects = 3, 2, 0

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.priors, self.sizes = brute_force.anchors(
            self.height, self.width, self.strides, self.scale
        )
        self.counts = [h * w for h, w in self.sizes]
        self.images = len(self.pads)

    def arrays(self) -> Arrays:
        targets, inputs = self._targets(), self._inputs()
        levels = [
            {name: value[:, start : start + count] for name, value in targets.items()}
            | {name: value[level] for name, value in inputs.items()}
            for level, (start, count) in enumerate(zip(self._starts, self.counts, strict=True))
        ]
        results = [self._results(*pair) for pair in zip(levels, self.strides, strict=True)]
        arrays = self._settings()
        for name in results[0]['out']:
            values = [result['out'][name] for result in results]
            arrays[f'out_{name}'] = np.array(values, bool if 'ran' in name else np.float32)
        for level, values in enumerate(levels):
            maps = {n: self._to_map(v, level) if n in inputs else v for n, v in values.items()}
            gradients = {
                f'grad_{n}': np.float32(self._to_map(v, level))
                for n, v in results[level]['grad'].items()
            }
            arrays |= {f'lvl{level}_{n}': v for n, v in (maps | gradients).items()}
        return arrays

    @property
    def _starts(self) -> list[int]:
        return [sum(self.counts[:level]) for level in range(len(self.counts))]

    def _to_map(self, rows: np.ndarray, level: int) -> np.ndarray:
        """(N, n, D) to (N, D, H, W)."""
        return rows.transpose(0, 2, 1).reshape(self.images, rows.shape[2], *self.sizes[level])

    def _settings(self) -> Arrays:
        return {
            'octave_base_scale': np.int64(self.scale),
            'image_hw': np.array([self.height, self.width]),
            'pad_hw': np.array(self.pads),
            'strides': np.array(self.strides),
            'feat_sizes': np.array(self.sizes),
            'num_total_samples': np.float32(1),
            'num_gts': np.array(self.objects),
            'gt_bboxes': np.concatenate(self.gts),
            'gt_labels': np.concatenate(self.labels),
            'gt_image': np.repeat(np.arange(self.images), self.objects),
        }

    def _inputs(self) -> dict[str, list[np.ndarray]]:
        """Rows (N, n, D) of every level."""
        depths = {
            'cls_score': self.classes,
            'bbox_pred': 4 * self.bins,
            'soft_label': self.classes,
            'soft_target': 4 * self.bins,
            'x': self.channels,
            'teacher_x': self.channels,
        }
        return {
            name: [noise(self.rng, self.images, n, depth, scale=2) for n in self.counts]
            for name, depth in depths.items()
        }

    def _targets(self) -> dict[str, np.ndarray]:
        """(N, P, ...), all images and levels."""
        self.gts = [
            objects(self.rng, number, *pad)
            for number, pad in zip(self.objects, self.pads, strict=True)
        ]
        self.labels = [self.rng.integers(0, self.classes, number) for number in self.objects]
        images = [
            self._image_targets(*image)
            for image in zip(self.gts, self.labels, self.pads, strict=True)
        ]
        return {name: np.stack([image[name] for image in images]) for name in images[0]}

    def _image_targets(
        self, gts: np.ndarray, labels: np.ndarray, pad: Sequence[int]
    ) -> dict[str, np.ndarray]:
        valid = np.concatenate(
            [
                ((np.arange(h)[:, None] * s < pad[0]) & (np.arange(w) * s < pad[1])).ravel()
                for (h, w), s in zip(self.sizes, self.strides, strict=True)
            ]
        )
        assigned, _ = brute_force.atss(self.priors, gts, self.counts, valid)
        # a background label and box stand at index 0
        label_of = np.concatenate([[self.classes], labels])
        box_of = np.concatenate([np.zeros((1, 4), np.float32), gts])
        in_gt = brute_force.inside_gt(self.priors, gts, valid)
        region = brute_force.vlr(self.priors, gts, self.counts, valid)
        return {
            'anchors': self.priors * valid[:, None],
            'labels': label_of[assigned].astype(np.int64),
            'label_weights': np.float32(valid),
            'bbox_targets': box_of[assigned],
            'vlr_region': np.float32(region),
            'im_region_finegrained': np.float32(brute_force.fine_grained(self.priors, gts, valid)),
            'im_region_in_gt': np.float32(in_gt),
            'im_region_half': np.float32(np.arange(len(valid)) % 2),
        }

    def _results(self, level: Arrays, stride: int) -> dict[str, dict[str, Any]]:
        """Losses of one level and their gradients, rows (N, n, D)."""
        positive = level['labels'] < self.classes
        scores = brute_force.sigmoid(level['cls_score']).max(-1) * positive
        out, grad = {}, {}
        sides = [
            level[n].reshape(*positive.shape, 4, self.bins) for n in ('bbox_pred', 'soft_target')
        ]
        each, slope = (f(*sides, 10) for f in (brute_force.kl, brute_force.kl_gradient))
        for name, weight in (('loss_ld', scores / 4), ('loss_ld_vlr', level['vlr_region'] / 16)):
            out[name] = 0.25 * (weight * each.sum(-1)).sum()
            rows = 0.25 * weight[..., None, None] * slope
            grad[f'bbox_pred_of_{name}'] = rows.reshape(*positive.shape, -1)
        classes = level['cls_score'], level['soft_label']
        weight = 10 * positive * level['label_weights'] / max(positive.sum(), 1)
        out['loss_kd'] = (weight * brute_force.kl(*classes, 2)).sum()
        out['loss_kd_neg'] = 0.0
        gradient = brute_force.kl_gradient(*classes, 2)
        grad['cls_score_of_loss_kd'] = weight[..., None] * gradient
        self._imitation(level, stride, positive.any(), out, grad)
        return dict(out=out, grad=grad)

    def _imitation(
        self, level: Arrays, stride: int, has_positives: bool, out: Arrays, grad: Arrays
    ) -> None:
        flat = {
            n: level[n].reshape(-1, level[n].shape[-1])
            for n in ('cls_score', 'soft_label', 'bbox_pred', 'soft_target', 'anchors')
        }
        gibox = np.zeros(level['labels'].size, dtype=bool)
        gibox[general_instances(**flat, stride=stride)[-1]] = True
        regions = {
            'finegrained': level['im_region_finegrained'] > 0,
            'fitnet': level['im_region_in_gt'] > 0,
            'gibox': gibox.reshape(level['labels'].shape),
        }
        difference = np.float64(level['x']) - level['teacher_x']
        for mode, region in regions.items():
            number = max(region.sum(), 1) * self.channels
            rows = difference * region[..., None] * has_positives
            out[f'loss_im_{mode}'], out[f'ran_{mode}'] = 2 * (rows**2).sum() / number, True
            grad[f'x_of_loss_im_{mode}'] = 4 * rows / number
        for mode, region in (('decouple', 'in_gt'), ('decouple_half', 'half')):
            inside = level[f'im_region_{region}'] > 0
            student, teacher = np.float64(level['x'][~inside]), level['teacher_x'][inside]
            ran = len(student) == len(teacher) or 1 in (len(student), len(teacher))
            loss = np.nan
            if ran:
                crossed = 4 * ((student - teacher) ** 2).mean()
                loss = has_positives * (2 * (difference[inside] ** 2).mean() + crossed)
            out[f'loss_im_{mode}'], out[f'ran_{mode}'] = loss, ran
