"""One training step, as distillers and regions see it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING

import torch
from mmdet.utils import reduce_mean
from torch import Tensor

from .outputs import DenseOutputs
from .positions import Positions
from .rois import RoIStage

if TYPE_CHECKING:
    from ..regions import Region, Selection


class OnDemand(Sequence[Tensor]):
    """Tensors that are computed together when somebody first looks at one of them."""

    def __init__(self, compute: Callable[[], Sequence[Tensor]]) -> None:
        self._compute = cache(compute)

    def __getitem__(self, index: int) -> Tensor:
        return self._compute()[index]

    def __len__(self) -> int:
        return len(self._compute())


@dataclass(eq=False)  # frozen, Python 3.12 could not compile its cached properties
class Assignment:
    """The student's own label assignment, recorded while its stock loss ran.

    Attributes:
        labels: (N, P), 0..C-1 for positives, C for everything else.
        label_weights: (N, P), 0 where the classification loss ignores the prior.
        valid: (N, P) bool, False for priors in the padding that a larger image of the batch causes;
            what is padded up to ``pad_size_divisor`` counts as image, as in the stock heads.
        num_classes: C.
        positive_gts: Per image, (number of its positives,): the index of each positive's ground
            truth in that image, positives in the order of priors; None if the reader cannot tell.
            :class:`OnDemand` where it has to search, and few look.
        unknown: (N, P) bool, True for the student's positives of classes that the teacher does not
            know, which count as background in ``labels``; None if it knows all classes.
        all_positives: (N,), the positives of every image, those of classes or on levels that the
            teacher does not have included; None if there are no others than these.
    """

    labels: Tensor
    label_weights: Tensor
    valid: Tensor
    num_classes: int
    positive_gts: Sequence[Tensor] | None = None
    unknown: Tensor | None = None
    all_positives: Tensor | None = None

    def where_known(self, weights: Tensor) -> Tensor:
        """``weights`` (N, P), but 0 where the teacher does not know the prior's class."""
        return weights if self.unknown is None else weights.masked_fill(self.unknown, 0)

    @cached_property
    def positive(self) -> Tensor:
        """(N, P) bool."""
        foreground = (self.labels >= 0) & (self.labels < self.num_classes)
        return foreground & (self.label_weights > 0)

    @property
    def num_positives(self) -> Tensor:
        """(N,), of every image, whether or not the teacher has their class and level."""
        return self.positive.sum(1) if self.all_positives is None else self.all_positives

    @cached_property
    def matched_gts(self) -> Tensor:
        """(N, P) int64, the index in its image of each positive's ground truth; -1 elsewhere."""
        matched = torch.full_like(self.labels, -1, dtype=torch.int64)
        matched[self.positive] = torch.cat(list(self.positive_gts))
        return matched


@dataclass(eq=False)  # frozen, Python 3.12 could not compile its cached properties
class DistillationContext:
    """Both models' outputs on one batch, its ground truth, and the regions computed so far.

    Attributes:
        student: Outputs with gradient.
        teacher: Outputs without.
        assignment: Labels of the student's priors.
        gt_bboxes: Per image, (G, E) in pixels of the network's input; G may be 0. Rotated ones stay
            rotated where the dense head proposes horizontal boxes.
        rois: Per stage of a two-stage detector, the classes of the student's sampled proposals;
            empty where no distiller reads them.
    """

    student: DenseOutputs
    teacher: DenseOutputs
    assignment: Assignment
    gt_bboxes: Sequence[Tensor]
    rois: Sequence[RoIStage] = ()
    _selections: dict['Region', 'Selection'] = field(default_factory=dict, init=False, repr=False)

    def select(self, region: 'Region') -> 'Selection':
        """The positions of ``region``, computed once however many distillers read them."""
        if region not in self._selections:
            self._selections[region] = region(self)
        return self._selections[region]

    @cached_property
    def positives(self) -> Positions:
        """The student's positives."""
        return Positions.from_mask(self.assignment.positive, self.student.level_shapes)

    @cached_property
    def mean_num_images(self) -> Tensor:
        """Images per GPU in this batch, averaged over the GPUs; a scalar."""
        return reduce_mean(torch.full((), float(self.student.num_images), device=self.device))

    @cached_property
    def mean_num_positives(self) -> Tensor:
        """Positives per GPU in this batch, averaged over the GPUs; a scalar.

        Those that cannot be distilled count as well, so that what can be keeps its weight. An image
        without any counts as one, as in the stock losses, so that a loss over the background does
        not grow with the number of such images.
        """
        return reduce_mean(self.assignment.num_positives.clamp(min=1).sum().float())

    @property
    def device(self) -> torch.device:
        """That of both models' outputs."""
        return self.student.device
