"""Quality distillation: the branch that rates a box."""

from typing import ClassVar

from torch import Tensor

from ..dense import DistillationContext, HeadSpec
from ..errors import ConfigError
from ..registry import DISTILLERS
from .base import Distiller, check_equal


@DISTILLERS.register_module()
class QualityDistiller(Distiller):
    """Centerness, IoU or objectness, as sigmoid scores, averaged over the positives of the batch.

    The number of positives, one at least for each image, is averaged over the GPUs. With the
    default loss, plain binary cross entropy, a student that equals its teacher has no gradient, yet
    a value: the teacher's entropy.

    ``dict(type='QualityDistiller', region=dict(type='MainRegion'),
    loss=dict(type='BinaryKDLoss', beta=0))``

    Args:
        region: Where; default the main region, where the student's own quality loss is taken.
        loss: How; default binary cross entropy, weight 1.
        schedule: A factor over training.

    Raises:
        ConfigError: The heads' branches rate different things, or the loss compares the softmax of
            several numbers, where a prior has one.
    """

    reads = frozenset({'quality'})
    defaults: ClassVar = dict(
        region=dict(type='MainRegion'), loss=dict(type='BinaryKDLoss', beta=0.0, loss_weight=1.0)
    )

    def prepare(self, student: HeadSpec, teacher: HeadSpec, key: str) -> None:
        super().prepare(student, teacher, key)
        check_equal(
            key,
            f'meanings of the quality that {student.name} and {teacher.name} predict',
            student.quality,
            teacher.quality,
            "Choose a teacher whose head rates boxes by the student's, or leave this distiller out "
            f'({key}=None).',
        )
        if self.has_softmax:
            raise ConfigError(
                f'{key}.loss: found DistributionKLLoss over the one quality of a prior, whose '
                "softmax is 1 whatever it is. Expected dict(type='BinaryKDLoss', beta=0)."
            )

    def distill(self, context: DistillationContext) -> Tensor:
        selection = context.select(self.region)
        at = selection.priors
        return self.loss(
            context.student.quality_logits(at),
            context.teacher.quality_logits(at),
            weight=at.take(context.assignment.where_known(selection.weights > 0)).float(),
            avg_factor=context.mean_num_positives,
        )
