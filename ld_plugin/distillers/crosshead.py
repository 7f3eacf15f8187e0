"""Cross-head distillation: the student's features on their way through the teacher's head."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmdet.registry import MODELS
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from ..checks import is_count
from ..dense import DenseOutputs, DistillationContext, HeadSpec
from ..dense.head_features import HeadFeatures, is_large
from ..dense.matching import take_levels
from ..dense.outputs import level_rows, prior_views
from ..errors import ConfigError
from ..losses import ChannelStatistics, DistillationLoss, eager_gradient, pieces_of, standardized
from ..losses.eager_gradient import levels_at_once, numbers_at_once, takes_rows_together
from ..regions import EverywhereRegion
from ..registry import DISTILLERS, LOSSES, build
from .base import Distiller, adapted, check_equal
from .box import check_box_loss, level_box_loss
from .schedules import Schedule

#: compares the box distributions where the teacher's head has them
DISTRIBUTION_LOSS = dict(
    type='DistributionKLLoss', temperature=1.0, loss_weight=4.0, class_reduction='sum'
)
#: compares decoded boxes otherwise, by GIoU where they are horizontal
BOX_LOSS = dict(type='BoxLoss', loss_weight=1.0)

_BRANCHES = HeadFeatures._fields


@DISTILLERS.register_module()
class CrossHeadDistiller(Distiller):
    r"""CrossKD (Wang et al., CVPR 2024).

    What leaves the student's i-th stacked convolutions, given the teacher's mean and deviation
    channel by channel, goes through the rest of the teacher's frozen head. These cross-head
    predictions mimic the teacher's own, so the student's predictions are left to its labels:

    .. math:: \frac{1}{n} \sum_i w_i \, \ell_{cls}(\hat z_i, z_{T,i}) +
              \frac{1}{\sum_i r_i} \sum_i r_i \, \ell_{box}(\hat b_i, b_{T,i})

    over all priors, with the label weights w, the number n of positives, one at least for each
    image, and the teacher's highest score r, which is 0 where w is. The loss of a prior's box
    distributions is the mean over its sides. The mean and the deviation are those of the batch on
    this process, level by level.

    ``dict(type='CrossHeadDistiller', layer=3)``

    Towers of other widths than the teacher's pass a trainable 1x1 convolution first, one for each
    branch, under ``distillers.`` in the checkpoint; the deviations that follow are the teacher's,
    so it adds no scale to be learned.

    Args:
        loss: How class logits are compared; default the quality focal loss against the teacher's
            score, weight 1.
        layer: i, from 0 (the neck's features) to the number of stacked convolutions. Published: 3.
        box_loss: How boxes are compared: a distillation loss over bins where the teacher's head has
            distributions, else a regression loss of MMDetection's for decoded boxes. Default:
            KL divergence, weight 4, or :class:`~ld_plugin.losses.BoxLoss`, weight 1: GIoU, and of
            rotated boxes its counterpart.
        schedule: A factor over training.

    Raises:
        ConfigError: A head has no stacked convolutions, or their numbers do not fit.
    """

    reads = frozenset({'class_logits', 'boxes', 'head_features'})
    looks_at_predictions = False
    defaults: ClassVar = dict(loss=dict(type='BinaryKDLoss', beta=1.0, loss_weight=1.0))

    def __init__(
        self,
        loss: DistillationLoss,
        layer: int = 3,
        box_loss: Mapping[str, Any] | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(None, loss, schedule)
        self.layer = layer
        self.head_layers = frozenset({layer})
        self.everywhere = EverywhereRegion()
        self._box_loss_cfg = box_loss

    def prepare(self, student: HeadSpec, teacher: HeadSpec, key: str) -> None:
        super().prepare(student, teacher, key)
        depths = len(student.tower_channels) - 1, len(teacher.tower_channels) - 1
        check_equal(
            key,
            'stacked convolutions (bbox_head.stacked_convs)',
            *depths,
            "Set model.bbox_head.stacked_convs to the teacher's, or choose another teacher.",
        )
        if not (is_count(self.layer, 0) and self.layer <= depths[0]):
            raise ConfigError(
                f'{key}.layer: found {self.layer!r}, expected 0 to {depths[0]}, the number of '
                f'stacked convolutions of {student.name}.'
            )
        widths = student.tower_channels[self.layer], teacher.tower_channels[self.layer]
        self.adapters = nn.ModuleList(
            nn.Identity() if widths[0] == widths[1] else nn.Conv2d(*widths, 1) for _ in _BRANCHES
        )
        self.box_loss = self._build_box_loss(student, teacher, f'{key}.box_loss')

    def _build_box_loss(self, student: HeadSpec, teacher: HeadSpec, key: str) -> nn.Module:
        if teacher.num_bins is None:
            registry, other, base, default = MODELS, LOSSES, None, BOX_LOSS
            what = 'boxes without distributions, which are compared decoded'
        else:
            registry, other, base, default = LOSSES, MODELS, DistillationLoss, DISTRIBUTION_LOSS
            what = 'distributions of boxes, and these are compared'
        cfg = self._box_loss_cfg or default
        kind = cfg.get('type') if isinstance(cfg, Mapping) else None
        if isinstance(kind, str) and registry.get(kind) is None and other.get(kind) is not None:
            raise ConfigError(
                f'{key}: found {kind}, but {teacher.name} predicts {what}. Expected a loss such as '
                f'{default}.'
            )
        loss = build(registry, cfg, key, base)
        if base is None:
            check_box_loss(loss, student, key)
        elif takes_rows_together(loss):
            raise ConfigError(
                f'{key}: found {type(loss).__name__}, which compares whole maps, but every '
                f'prior has a weight of its own. Expected a loss of single rows such as {default}.'
            )
        return loss

    def distill(self, context: DistillationContext) -> Tensor:
        classes, boxes = self.class_weights(context), self.box_weights(context)
        count, score_sum = context.mean_num_positives, reduce_mean(sum(w.sum() for w in boxes))
        # by the count the sum alone is divided: the gradients of a large batch are so small that
        # many would become 0 on their way through a teacher in float16
        boxes = [w * (count / score_sum.where(score_sum > 0, 1)) for w in boxes]
        weights = dict(classes=classes, boxes=boxes)
        # where the head has branches of their own, one after the other
        separate = context.teacher.spec.has_separate_branches
        parts = [[branch] for branch in _BRANCHES] if separate else [_BRANCHES]
        total = sum(
            self._through_head(context, weights, levels, branches)
            for levels in self._levels_together(context)
            for branches in parts
        )
        return total / count

    def _levels_together(self, context: DistillationContext) -> list[list[int]]:
        """Levels that go through the head in one pass: large ones alone."""
        features = context.student.head_features[self.layer].boxes
        large = [level for level, level_map in enumerate(features) if is_large(level_map)]
        others = [level for level in range(len(features)) if level not in large]
        return [*([level] for level in large), *([others] if others else [])]

    def _through_head(
        self,
        context: DistillationContext,
        weights: Mapping[str, Sequence[Tensor]],
        levels: Sequence[int],
        branches: Sequence[str],
    ) -> Tensor:
        """The loss of a part, whose gradient at the student's features is computed at once.

        So what the teacher's head keeps for it is gone before the next part comes, and before the
        student's backward pass begins.
        """
        teacher = context.teacher
        if len(levels) < len(teacher.level_shapes):
            teacher = take_levels(teacher, levels)
        student, statistics = (
            x.head_features[self.layer]._asdict() for x in (context.student, teacher)
        )
        adapters = dict(zip(_BRANCHES, self.adapters, strict=True))

        def loss(*features: Tensor) -> Tensor:
            aligned = {
                # each level is made when the head asks for it: no two of them exist together
                branch: map(_aligned, features[i :: len(branches)], statistics[branch])
                for i, branch in enumerate(branches)
            }
            crossed = teacher.cross_head(self.layer, HeadFeatures(**aligned))
            return sum(
                self.summed(branch, crossed, teacher, [weights[branch][level] for level in levels])
                for branch in branches
            )

        widened = [
            adapted(adapters[branch], student[branch][level])
            for level in levels
            for branch in branches
        ]
        return eager_gradient(loss, *widened, modules=[self.loss, self.box_loss])

    def summed(
        self,
        branch: str,
        crossed: DenseOutputs,
        teacher: DenseOutputs,
        weights: Sequence[Tensor],
    ) -> Tensor:
        """The weighted sum over all priors of what a branch predicts, a scalar.

        Args:
            branch: ``'classes'`` or ``'boxes'``.
            crossed: Cross-head predictions; the branch's maps are overwritten.
            teacher: The teacher's own.
            weights: Per level, (N, A, H, W).
        """
        maps, of_levels = dict(
            classes=('class_maps', self._classes), boxes=('box_maps', self._boxes)
        )[branch]
        predicted, total = getattr(crossed, maps), 0
        sizes, at_once = [level.numel() for level in predicted], numbers_at_once(predicted[0])
        for levels in levels_at_once(sizes, at_once):
            total = total + of_levels(crossed, teacher, levels, [weights[x] for x in levels])
            for level in levels:
                # another in its place, lest all maps stand beside all of their gradients
                predicted[level] = getattr(teacher, maps)[level]
        return total

    def class_weights(self, context: DistillationContext) -> Sequence[Tensor]:
        """w of every prior, per level (N, A, H, W)."""
        counts = context.select(self.everywhere).weights
        weights = context.assignment.label_weights * counts
        return prior_views(weights, context.teacher.level_shapes)

    def box_weights(self, context: DistillationContext) -> Sequence[Tensor]:
        """r of every prior, per level (N, A, H, W)."""
        teacher = context.teacher
        counts = context.select(self.everywhere).weights & (context.assignment.label_weights > 0)
        return [
            logits.detach().amax(-1).float().sigmoid() * level
            for logits, level in zip(
                teacher.class_views, prior_views(counts, teacher.level_shapes), strict=True
            )
        ]

    def _classes(
        self,
        crossed: DenseOutputs,
        teacher: DenseOutputs,
        levels: Sequence[int],
        weights: Sequence[Tensor],
    ) -> Tensor:
        """The weighted sum over the priors of some levels; weights (N, A, H, W)."""

        def of_rows(logits: Tensor, reference: Tensor, weights: Tensor) -> Tensor:
            return self.loss(logits, reference, weights, avg_factor=1.0)

        rows = _rows('class_maps', crossed, teacher, levels, weights)
        return eager_gradient(
            of_rows, *rows, modules=[self.loss], pieces=pieces_of(rows[0]), overwrite=True
        )

    def _boxes(
        self,
        crossed: DenseOutputs,
        teacher: DenseOutputs,
        levels: Sequence[int],
        weights: Sequence[Tensor],
    ) -> Tensor:
        """The weighted sum over the priors of some levels; weights (N, A, H, W)."""
        spec = teacher.spec
        if spec.num_bins is None:
            return level_box_loss(self.box_loss, crossed, teacher, levels, weights)

        def of_rows(logits: Tensor, reference: Tensor, weights: Tensor) -> Tensor:
            sides = (x.reshape(-1, spec.box_dim, spec.num_bins) for x in (logits, reference))
            # the sides are averaged, the priors added up
            return self.box_loss(*sides, weight=weights.reshape(-1, 1), avg_factor=spec.box_dim)

        rows = _rows('box_maps', crossed, teacher, levels, weights)
        return eager_gradient(
            of_rows, *rows, modules=[self.box_loss], pieces=pieces_of(rows[0]), overwrite=True
        )


def _rows(
    maps: str,
    crossed: DenseOutputs,
    teacher: DenseOutputs,
    levels: Sequence[int],
    weights: Sequence[Tensor],
) -> list[Tensor]:
    """What both predict for the priors of some levels, twice (N, n, D), and the weights (N, n)."""
    anchors = teacher.spec.num_base_priors
    predicted = (
        [level_rows(getattr(outputs, maps)[level], anchors[level]) for level in levels]
        for outputs in (crossed, teacher)
    )
    columns = *predicted, [w.movedim(1, -1).flatten(1) for w in weights]
    # not copied where there is one level, which may be large
    return [c[0] if len(c) == 1 else torch.cat(c, dim=1) for c in columns]


def _aligned(student: Tensor, teacher: ChannelStatistics) -> Tensor:
    """The student's features of a level with the teacher's statistics."""
    with torch.autocast(student.device.type, enabled=False):  # the teacher's is on
        return with_statistics_of(student, teacher)


def with_statistics_of(student: Tensor, teacher: ChannelStatistics) -> Tensor:
    """Give every channel of the student's features the teacher's mean and standard deviation.

    Both are taken over the images and positions of the batch, the deviation unbiased. A single
    position, or a constant channel of the student's, becomes the teacher's mean.

    Args:
        student: (N, F, H, W), in at least float32.
        teacher: Of as many channels.

    Returns:
        (N, F, H, W).
    """
    return standardized(student.movedim(1, -1), teacher.deviation, teacher.mean).movedim(-1, 1)
