"""Classes of a two-stage detector's proposals."""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from ..dense import DistillationContext, HeadSpec
from ..dense.positions import mean_counts
from ..dense.rois import RoIStage
from ..errors import ConfigError
from ..losses import DecoupledLoss
from ..registry import DISTILLERS
from .base import KINDS, Distiller, check_equal, check_offers
from .schedules import Schedule


class ProposalDistiller(Distiller):
    """Base of the distillers that compare what both RoI heads say of the student's proposals.

    The teacher's RoI head sees the very proposals that the student's sampler chose, stage by stage
    of a cascade, on the teacher's features. The stages are added up with the factors of the stock
    losses.

    Args:
        loss: How class logits are compared; the last class is background.
        schedule: A factor over training.
    """

    reads = frozenset({'rois'})

    def __init__(self, loss: nn.Module, schedule: Schedule | None = None) -> None:
        super().__init__(None, loss, schedule)

    def prepare(self, student: HeadSpec, teacher: HeadSpec, key: str) -> None:
        """See the base class; of both heads only the second stage has to fit.

        Raises:
            ConfigError: It does not, or makes no softmax over the classes and background.
        """
        check_offers(key, 'student', student, self.reads)
        check_offers(key, 'teacher', teacher, self.reads)
        for owner, spec in (('student', student), ('teacher', teacher)):
            if not spec.rois.has_background:
                raise ConfigError(
                    f"{key}: the {owner}'s roi_head.bbox_head.loss_cls makes no softmax over the "
                    'classes and background, which is compared; expected '
                    "dict(type='CrossEntropyLoss', use_sigmoid=False)."
                )
        check_equal(
            key,
            'stages of the RoI head (roi_head.num_stages)',
            student.rois.num_stages,
            teacher.rois.num_stages,
            'Choose a teacher with as many stages; features alone can be distilled from any.',
        )
        check_equal(
            key,
            'kinds of proposals, stage by stage (roi_head.bbox_roi_extractor)',
            [KINDS[box_dim] for box_dim in student.rois.box_dims],
            [KINDS[box_dim] for box_dim in teacher.rois.box_dims],
            "The teacher pools the student's proposals; choose one that pools boxes of the same "
            'kind. Features alone can be distilled from any.',
        )
        check_equal(
            key,
            'angle versions of the proposals (roi_head.bbox_head.bbox_coder.angle_version)',
            student.rois.angle_version,
            teacher.rois.angle_version,
            'The same box, written otherwise, is pooled from another side. Set angle_version '
            "to the teacher's wherever the student's config has it.",
        )
        check_equal(
            key,
            'number of classes (roi_head.bbox_head.num_classes)',
            student.rois.num_classes,
            teacher.rois.num_classes,
            "The names of the teacher's classes are not known: give them in model.teacher.classes, "
            "or choose a teacher that was trained on the student's; features alone can be "
            'distilled from any.',
        )

    def distill(self, context: DistillationContext) -> Tensor:
        return sum(stage.loss_weight * self.of_stage(stage) for stage in context.rois)

    @abstractmethod
    def of_stage(self, stage: RoIStage) -> Tensor:
        """The loss of one stage, a scalar."""


@DISTILLERS.register_module()
class RoIClassificationDistiller(ProposalDistiller):
    """Classes of the sampled proposals, averaged over those that have a label.

    ``dict(type='RoIClassificationDistiller',
    loss=dict(type='DistributionKLLoss', temperature=1, loss_weight=1, class_reduction='sum'))``

    Args:
        loss: How the softmax over classes and background is compared; default KL divergence at
            temperature 1, weight 1, summed over them.
        schedule: A factor over training.
    """

    defaults: ClassVar = dict(
        loss=dict(
            type='DistributionKLLoss', temperature=1.0, loss_weight=1.0, class_reduction='sum'
        )
    )

    def of_stage(self, stage: RoIStage) -> Tensor:
        (count,) = mean_counts([stage.label_weights > 0])
        return self.loss(stage.student, stage.teacher, stage.label_weights, avg_factor=count)


@DISTILLERS.register_module()
class DecoupledRoIClassificationDistiller(ProposalDistiller):
    """Classes of positive and of negative proposals, each averaged over their own number (DeFeat).

    Guo et al., CVPR 2021; with published weights for Faster R-CNN on VOC:
    ``dict(type='DecoupledRoIClassificationDistiller', loss=dict(type='DecoupledLoss'))``

    Args:
        loss: One loss for positives and one for negatives; default as published.
        schedule: A factor over training, such as the published linear decay.
    """

    loss_base = DecoupledLoss
    defaults: ClassVar = dict(loss=dict(type='DecoupledLoss'))

    def of_stage(self, stage: RoIStage) -> Tensor:
        background = stage.student.shape[1] - 1
        labelled = stage.label_weights > 0
        masks = labelled & (stage.labels < background), labelled & (stage.labels == background)
        weights = [mask / count for mask, count in zip(masks, mean_counts(masks), strict=True)]
        return self.loss(stage.student, stage.teacher, *weights)
