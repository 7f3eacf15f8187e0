"""The second stage of two-stage detectors: classes of sampled proposals (regions of interest).

Shape shorthand: R proposals of the whole batch in one stage, C classes without background.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmcv.ops import RiRoIAlignRotated, RoIAlignRotated
from torch import Tensor, nn

from .recorder import HeadRecorder

#: RoI heads whose classes come out of the pooled features alone
ROI_HEADS = (
    'StandardRoIHead',
    'CascadeRoIHead',
    'DynamicRoIHead',
    'GVRatioRoIHead',
    'MaskScoringRoIHead',
    'PointRendRoIHead',
)


@dataclass(frozen=True)
class RoISpec:
    """What a RoI head classifies, known when it is built.

    Attributes:
        num_classes: C.
        num_stages: 1, or the stages of a cascade.
        has_background: Whether its classes are a softmax with one of background, the last.
        box_dims: Per stage, E of the proposals that it pools: 4 of horizontal boxes, 5 of rotated
            ones, as :mod:`ld_plugin.dense.boxes` says.
        angle_version: How MMRotate writes rotated proposals, ``'oc'``, ``'le90'`` or ``'le135'``;
            None where all are horizontal.
    """

    num_classes: int
    num_stages: int
    has_background: bool
    box_dims: tuple[int, ...]
    angle_version: str | None = None


@dataclass(frozen=True)
class RoIStage:
    """What one stage of the student's RoI head, and of the teacher's, say of the same proposals.

    Attributes:
        rois: (R, 1 + E), index of the image, and box in pixels of the network's input.
        student: Class logits (R, C + 1) with gradient, the last of background.
        teacher: Class logits (R, C + 1) without.
        labels: (R,), 0..C-1, and C for background.
        label_weights: (R,), 0 where the classification loss ignores the proposal.
        loss_weight: Factor of this stage's stock losses, below 1 in later stages of a cascade.
    """

    rois: Tensor
    student: Tensor
    teacher: Tensor
    labels: Tensor
    label_weights: Tensor
    loss_weight: float


class RoIReader:
    """Reads a stock RoI head of Faster R-CNN or Cascade R-CNN, or of their rotated kin.

    The latter are Oriented R-CNN, RoI Transformer, whose first stage pools horizontal boxes and
    whose second pools rotated ones, and Gliding Vertex.

    Args:
        roi_head: Of student or teacher.
    """

    def __init__(self, roi_head: nn.Module) -> None:
        self.roi_head = roi_head

    @classmethod
    def find(cls, roi_head: nn.Module) -> 'RoIReader | None':
        """The reader of a head; None for RoI heads that pool or classify in another way."""
        known = type(roi_head).__name__ in ROI_HEADS and roi_head.with_bbox
        return cls(roi_head) if known else None

    @property
    def bbox_heads(self) -> Sequence[nn.Module]:
        """The head of every stage."""
        return _stages(self.roi_head.bbox_head)

    @property
    def spec(self) -> RoISpec:
        """What the head classifies."""
        head = self.bbox_heads[0]
        return RoISpec(
            num_classes=head.num_classes,
            num_stages=len(self.bbox_heads),
            has_background=not (head.loss_cls.use_sigmoid or head.custom_cls_channels),
            box_dims=self._box_dims,
            angle_version=self._angle_version,
        )

    @property
    def _box_dims(self) -> tuple[int, ...]:
        return tuple(5 if _pools_rotated(extractor) else 4 for extractor in self._extractors)

    @property
    def _angle_version(self) -> str | None:
        versions = [
            getattr(head.bbox_coder, 'angle_version', None)
            for head, box_dim in zip(self.bbox_heads, self._box_dims, strict=True)
            if box_dim == 5
        ]
        return versions[0] if versions else None

    @property
    def _extractors(self) -> Sequence[nn.Module]:
        return _stages(self.roi_head.bbox_roi_extractor)

    @property
    def loss_weights(self) -> Sequence[float]:
        """Factors of the stages' stock losses."""
        return getattr(self.roi_head, 'stage_loss_weights', (1.0,))

    def recorders(self) -> list[HeadRecorder]:
        """What to run the stock loss in, one for every stage."""
        return [HeadRecorder(head, ('loss',)) for head in self.bbox_heads]

    def classify(self, stage: int, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Class logits (R, C + 1) of proposals.

        Args:
            stage: Counted from 0.
            features: The neck's levels.
            rois: (R, 1 + E), in pixels of the network's input.
        """
        extractor = self._extractors[stage]
        pooled = extractor(features[: extractor.num_inputs], rois)
        if self.roi_head.with_shared_head:
            pooled = self.roi_head.shared_head(pooled)
        return self.bbox_heads[stage](pooled)[0]


def sampled(record: HeadRecorder) -> dict[str, Tensor] | None:
    """What a stage's stock loss was called with, as :class:`RoIStage` names it.

    None where the stage had no proposals left; a cascade stops there.
    """
    if not record.arguments['loss']:
        return None
    call = record.arguments['loss'][-1]
    return dict(
        rois=call['rois'],
        student=call['cls_score'],
        labels=call['labels'],
        label_weights=call['label_weights'],
    )


def nothing_sampled(spec: RoISpec, stage: int, device: torch.device) -> dict[str, Tensor]:
    """As :func:`sampled`, of a stage without proposals."""
    return dict(
        rois=torch.zeros(0, 1 + spec.box_dims[stage], device=device),
        student=torch.zeros(0, spec.num_classes + 1, device=device, requires_grad=True),
        labels=torch.zeros(0, dtype=torch.int64, device=device),
        label_weights=torch.zeros(0, device=device),
    )


def _pools_rotated(extractor: nn.Module) -> bool:
    return isinstance(extractor.roi_layers[0], RoIAlignRotated | RiRoIAlignRotated)


def _stages(modules: nn.Module) -> Sequence[nn.Module]:
    return modules if isinstance(modules, nn.ModuleList) else [modules]
