"""FCOS: points, distances to the sides of the box, and a branch for centerness."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from mmdet.structures.bbox import BaseBoxes, distance2bbox, get_box_tensor
from torch import Tensor

from ..boxes import centres
from ..context import Assignment, OnDemand
from ..outputs import HeadSpec
from ..recorder import HeadRecorder
from .base import by_image, register_reader
from .points import PointReader, find_ground_truths


@register_reader('FCOSHead')
class FCOSReader(PointReader):
    """Reads ``FCOSHead`` (Tian et al., ICCV 2019), with and without normalised distances.

    Its targets hold no padding, which its loss counts as background: label weights are 1 there,
    too, but the priors are not valid. Nor do they name ground truths, so these are found again by
    their boxes.
    """

    recorded_methods: ClassVar[tuple[str, ...]] = ('loss_by_feat', 'get_targets')
    tower_names: ClassVar[tuple[str, ...]] = ('cls_convs', 'reg_convs')
    rated_quality: ClassVar[str] = 'centerness'

    @property
    def spec(self) -> HeadSpec:
        return self.describe(extras={'quality', 'matched_gts'})

    def maps(self, outs: tuple) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Distances are in pixels, those of normalised heads in training mode like all others."""
        class_maps, box_maps, _ = outs
        if self.head.norm_on_bbox and self.head.training:
            strides = self.head.prior_generator.strides
            box_maps = [level * x for level, (x, _) in zip(box_maps, strides, strict=True)]
        return class_maps, box_maps

    def quality(self, outs: tuple) -> Sequence[Tensor]:
        return outs[2]

    def decode(self, rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        return distance2bbox(centres(priors), rows)

    def assignment(self, record: HeadRecorder) -> Assignment:
        labels, targets = record.returned['get_targets'][-1]
        if self.head.norm_on_bbox:
            strides = self.head.prior_generator.strides
            targets = [level * x for level, (x, _) in zip(targets, strides, strict=True)]
        weights = [torch.ones_like(level, dtype=torch.float32) for level in labels]
        return self.assigned(record, labels, weights, self.matched(record, labels, targets))

    def matched(
        self, record: HeadRecorder, labels: Sequence[Tensor], targets: Sequence[Tensor]
    ) -> OnDemand:
        """Per image the ground truths of its positives.

        Args:
            record: Of the loss.
            labels: Per level, (N * n_l,).
            targets: Per level, (N * n_l, E), distances in pixels.
        """
        call = record.arguments['loss_by_feat'][-1]
        gts = call['batch_gt_instances']
        # what is held here, the predictions not among it, is held until somebody looks
        sizes = [level.shape[-2:] for level in call['cls_scores']]

        def find() -> list[Tensor]:
            of_image = by_image(labels, len(gts))
            boxes = torch.cat([level.view(len(gts), -1, self.box_dim) for level in targets], dim=1)
            priors = self.priors(sizes, boxes.device)
            found = []
            for image, gt in enumerate(gts):
                at = (of_image[image] < self.head.num_classes).nonzero().squeeze(1)
                found.append(
                    find_ground_truths(
                        self.target_boxes(boxes[image, at], priors[at]),
                        of_image[image, at],
                        self.gt_boxes(gt.bboxes),
                        gt.labels,
                    )
                )
            return found

        return OnDemand(find)

    def target_boxes(self, targets: Tensor, priors: Tensor) -> Tensor:
        """Boxes (K, E) from targets (K, E), distances in pixels, and priors (K, E)."""
        return distance2bbox(centres(priors), targets)

    def gt_boxes(self, boxes: Tensor | BaseBoxes) -> Tensor:
        """(G, E), ground truths in the form that targets decode to."""
        return get_box_tensor(boxes)
