"""Small :class:`DistillationContext` objects without any detector behind them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ld_plugin.dense import Assignment, DenseOutputs, DistillationContext, HeadSpec
from ld_plugin.distillers import Distiller, build_distillers
from tests.brute_force import anchors

IMAGE = 40, 48
STRIDES = 8, 16, 32


def decode(rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
    """Boxes (K, 4) in pixels: expected distances of the sides, (K, 4 * B), around the centres."""
    bins = rows.unflatten(-1, (4, -1)).softmax(-1)
    steps = torch.arange(bins.shape[-1], device=rows.device, dtype=rows.dtype)
    distance = (bins * steps).sum(-1) * strides
    centre = (priors[:, :2] + priors[:, 2:]) / 2
    return torch.cat([centre - distance[:, :2], centre + distance[:, 2:]], dim=1)


def outputs(
    images: int = 2, priors_per_cell: int = 1, seed: int = 0, requires_grad: bool = False
) -> DenseOutputs:
    """Random maps of 3 classes, 5 bins, a quality and 2 feature channels on three levels."""
    generator = torch.Generator().manual_seed(seed)
    boxes, sizes = anchors(*IMAGE, STRIDES)

    def maps(channels: int) -> list[Tensor]:
        return [
            torch.randn(images, channels, *size, generator=generator).requires_grad_(requires_grad)
            for size in sizes
        ]

    # further priors of a cell are the first one, grown
    scales = 1 + torch.arange(priors_per_cell) / 4
    priors = torch.from_numpy(boxes)[:, None]
    centre = (priors[..., :2] + priors[..., 2:]).repeat(1, 1, 2) / 2
    grown = (centre + (priors - centre) * scales[:, None]).flatten(0, 1)
    return DenseOutputs(
        spec=HeadSpec(
            name='Head',
            num_classes=3,
            strides=tuple((s, s) for s in STRIDES),
            num_base_priors=(priors_per_cell,) * len(STRIDES),
            num_bins=5,
            box_dim=4,
            feature_channels=2,
            extras=frozenset({'quality', 'matched_gts'}),
        ),
        class_maps=maps(priors_per_cell * 3),
        box_maps=maps(priors_per_cell * 4 * 5),
        features=maps(2),
        make_priors=lambda: grown,
        decoder=decode,
        quality_maps=maps(priors_per_cell),
    )


def context(images: int = 2, priors_per_cell: int = 1, seed: int = 0) -> DistillationContext:
    """Random student with gradient, teacher, labels, padding, and 0 to 3 objects per image."""
    student = outputs(images, priors_per_cell, seed, requires_grad=True)
    generator = torch.Generator().manual_seed(seed + 2)
    shape = images, len(student.priors)
    valid = torch.ones(shape, dtype=torch.bool)
    # the last column of cells is padding in every second image
    last = torch.cat(
        [
            torch.arange(h * w * a).div(a, rounding_mode='floor') % w == w - 1
            for h, w, a in student.level_shapes
        ]
    )
    valid[1::2, last] = False
    labels = torch.randint(0, 12, shape, generator=generator).clamp(max=3)
    labels[~valid] = 3
    corner = torch.rand(images, 3, 2, generator=generator) * 30
    size = 6 + torch.rand(images, 3, 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + size], dim=-1)
    counts = [(3 - i) % 4 for i in range(images)]
    labels.masked_fill_(torch.tensor(counts)[:, None] == 0, 3)  # without objects, no positives
    return DistillationContext(
        student=student,
        teacher=outputs(images, priors_per_cell, seed + 1),
        assignment=Assignment(
            labels,
            valid.float(),
            valid,
            num_classes=3,
            positive_gts=[
                image[(image < 3).nonzero()[:, 0]] % max(count, 1)
                for image, count in zip(labels, counts, strict=True)
            ],
        ),
        gt_bboxes=[boxes[i, :count] for i, count in enumerate(counts)],
    )


def make(step: DistillationContext, **cfg: Any) -> Distiller:
    """The distiller of a config, ``model.distillers.x``, between the heads of a context."""
    return build_distillers(dict(x=cfg), step.student.spec, step.teacher.spec)['x']


def rows(step: DistillationContext, read: str) -> tuple[np.ndarray, np.ndarray]:
    """What a method of the outputs reads of every level, of student and teacher: (N, P, ...)."""
    return tuple(
        torch.cat([getattr(dense, read)(level) for level in range(len(STRIDES))], dim=1)
        .detach()
        .numpy()
        for dense in (step.student, step.teacher)
    )


def take_images(whole: DistillationContext, images: Sequence[int]) -> DistillationContext:
    """The context of these images of the batch, in this order; one may come several times.

    The student's maps are indexed, so gradients reach the whole batch's maps.
    """
    index = torch.tensor(images)

    def take(dense: DenseOutputs) -> DenseOutputs:
        maps = {
            name: [level[index] for level in getattr(dense, name)]
            for name in ('class_maps', 'box_maps', 'features', 'quality_maps')
        }
        return replace(dense, **maps)

    assigned = whole.assignment
    return DistillationContext(
        student=take(whole.student),
        teacher=take(whole.teacher),
        assignment=Assignment(
            assigned.labels[index],
            assigned.label_weights[index],
            assigned.valid[index],
            assigned.num_classes,
            [assigned.positive_gts[i] for i in images],
        ),
        gt_bboxes=[whole.gt_bboxes[i] for i in images],
    )
