"""Maker of a bckd file."""

from typing import Any

import numpy as np

from tests import brute_force

from .common import Arrays, noise
from .ld import LDHead


class BCKD(LDHead):
    """Maker of a bckd file; without gradients of the box loss."""

    def arrays(self) -> Arrays:
        self.intermediates: list[Arrays] = []
        rng, arrays = self.rng, super().arrays()
        for level, values in enumerate(self.intermediates):
            if (arrays[f'lvl{level}_labels'] < self.classes).any():
                arrays |= {f'lvl{level}_dbg_{n}': np.float32(v) for n, v in values.items()}
        arrays['num_total_samples'] = np.float32(self.samples)
        student, teacher = noise(rng, 9, 3, scale=3), noise(rng, 9, 3, scale=3)
        weight = np.float32(rng.uniform(0, 2, 9))
        arrays |= {
            'nkd_pred': student,
            'nkd_soft': teacher,
            'nkd_weight': weight,
            'nkd_avg_factor': np.float32(4),
        }
        for beta in (1, 1.5, 3):
            rows = brute_force.binary_kl(student, teacher, beta).sum(1)
            slope = brute_force.binary_kl_gradient(student, teacher, beta)
            arrays |= {
                f'nkd_beta{beta}_none': np.float32(rows),
                f'nkd_beta{beta}_loss': np.float32((weight * rows).sum() / 4),
                f'nkd_beta{beta}_grad': np.float32(weight[:, None] * slope / 4),
            }
        return arrays

    def _inputs(self) -> dict[str, list[np.ndarray]]:
        return {n: v for n, v in super()._inputs().items() if n not in ('x', 'teacher_x')}

    def _targets(self) -> dict[str, np.ndarray]:
        targets = {n: v for n, v in super()._targets().items() if not n.startswith('im_region')}
        self.samples = np.maximum((targets['labels'] < self.classes).sum(1), 1).sum()
        return targets

    def _results(self, level: Arrays, stride: int) -> dict[str, dict[str, Any]]:
        """Losses of one level and the gradient of one, rows (N, n, D)."""
        scale = (level['labels'] < self.classes).any() / self.samples
        logits = level['cls_score'], level['soft_label']
        weights = level['label_weights']
        differences = np.abs(np.subtract(*(brute_force.sigmoid(np.float64(z)) for z in logits)))
        centre = (level['anchors'][..., :2] + level['anchors'][..., 2:]).reshape(-1, 2) / 2
        boxes = [
            brute_force.decode(level[n].reshape(len(centre), -1), centre, stride) / stride
            for n in ('bbox_pred', 'soft_target')
        ]
        giou = np.array([brute_force.generalized_iou(*pair) for pair in zip(*boxes, strict=True)])
        box_weight = weights * differences.max(-1)
        each = box_weight * (1 - giou.reshape(weights.shape))
        kd_none = brute_force.binary_kl(*logits, 1).sum(-1)
        kd = weights * kd_none
        self.intermediates.append(
            {
                'student_box': boxes[0],
                'teacher_box': boxes[1],
                'giou': giou,
                'box_weight': box_weight.ravel(),
                'kd_none': kd_none.ravel(),
            }
        )
        gradient = weights[..., None] * brute_force.binary_kl_gradient(*logits, 1)
        return dict(
            out=dict(loss_kd=scale * kd.sum(), loss_score_kd=4 * scale * each.sum()),
            grad={'cls_score_of_loss_kd': scale * gradient},
        )
