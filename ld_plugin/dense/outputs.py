"""What distillers, regions and losses know about a detector: :class:`DenseOutputs`.

Shape shorthand, used in the whole package:

    N  images in the batch           L  pyramid levels
    A  priors per cell               P  priors of one image, all levels: sum over l of H_l * W_l * A
    C  classes                       E  box sides (4: left, top, right, bottom), or box parameters
    B  bins of a side's distribution K  selected positions of the batch, all levels

Priors are ordered by level, row, column, anchor. The channel of class c of anchor a is
``a * C + c``, the channel of bin b of side e of anchor a is ``(a * E + e) * B + b``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .head_features import HeadFeatures
from .positions import Positions
from .rois import RoISpec

BoxDecoder = Callable[[Tensor, Tensor, Tensor], Tensor]
RestOfHead = Callable[[int, HeadFeatures], tuple[Sequence[Tensor], Sequence[Tensor]]]


class OffsetCoding(NamedTuple):
    """How a coder of MMRotate's encodes boxes as offsets from rotated anchors.

    Attributes:
        means, stds, norm_factor, edge_swap, proj_xy: Of the coder.
        angle_version: Of the anchors, which says what of one is its width.
    """

    means: tuple[float, ...]
    stds: tuple[float, ...]
    norm_factor: float | None
    edge_swap: bool
    proj_xy: bool
    angle_version: str | None


@dataclass(frozen=True)
class HeadSpec:
    """What a dense head predicts, known when it is built.

    Attributes:
        name: The head's class, for messages.
        num_classes: C, without background.
        strides: Per level, (x, y) in pixels.
        num_base_priors: A of every level.
        num_bins: B of the box distributions; None where the head predicts boxes directly.
        box_dim: E: 4 of horizontal boxes, 5 of rotated ones (x and y of the centre, width, height,
            angle in radians).
        feature_channels: Channels of the neck's levels.
        extras: What the head offers beyond class logits, boxes and features, in the words of
            :attr:`ld_plugin.distillers.Distiller.reads`: ``'quality'``, ``'head_features'``; and
            ``'matched_gts'`` where :attr:`Assignment.matched_gts` is known.
        quality: What the branch of ``'quality'`` rates: ``'centerness'``, ``'IoU'`` or
            ``'objectness'``; empty where the head has none.
        tower_channels: Widths of what enters the first stacked convolution of each branch, and of
            what leaves each; empty where the head does not offer ``'head_features'``.
        rois: What the second stage classifies, of a detector whose dense head proposes regions;
            None where nothing reads it.
        only_features: Whether nothing else can be compared, because one of the two detectors has a
            second stage and the other has none.
        unread: Why nobody reads what the head predicts, for messages, such as ``'has no reader'``:
            nothing else can be compared either. Empty where it is read.
        angle_version: How MMRotate writes a rotated box, ``'oc'``, ``'le90'`` or ``'le135'``; None
            for horizontal boxes.
        bin_ranges: First and last bin's value of every box parameter, of rotated distributions.
        offset_coding: How the offsets that bins stand for are encoded; None where bins stand for
            something else.
        boxes_have_gradient: Whether a gradient passes through the coder of its boxes.
        rates_objects_alone: Whether a class logit means something only where there is an object,
            as objectness, another branch, tells background.
        centre_offset: Where in its cell the centre of a prior lies, from 0 (the cell's first
            corner) to 1, in strides.
        has_separate_branches: Whether neither class logits nor boxes depend on the other branch's
            stacked convolutions.
    """

    name: str
    num_classes: int
    strides: tuple[tuple[float, float], ...]
    num_base_priors: tuple[int, ...]
    num_bins: int | None
    box_dim: int
    feature_channels: int
    extras: frozenset[str] = frozenset()
    quality: str = ''
    tower_channels: tuple[int, ...] = ()
    rois: RoISpec | None = None
    only_features: bool = False
    unread: str = ''
    angle_version: str | None = None
    bin_ranges: tuple[tuple[float, float], ...] | None = None
    offset_coding: OffsetCoding | None = None
    boxes_have_gradient: bool = True
    rates_objects_alone: bool = False
    centre_offset: float = 0.0
    has_separate_branches: bool = False

    @property
    def offers(self) -> frozenset[str]:
        """What distillers can read."""
        if self.only_features or self.unread:
            return frozenset({'features'})
        distributions = {'distributions'} if self.num_bins is not None else set()
        rois = {'rois'} if self.rois is not None else set()
        return self.extras | {'class_logits', 'boxes', 'features', 'priors'} | distributions | rois


@dataclass(eq=False)  # frozen, Python 3.12 could not compile its cached properties
class DenseOutputs:
    """One model's raw predictions on one batch; nothing is copied until somebody selects positions.

    Attributes:
        spec: What the maps contain.
        class_maps: Per level, class logits (N, A * C, H, W), before the sigmoid; empty of a
            teacher whose class logits nobody reads.
        box_maps: Per level, the regression branch (N, A * D, H, W); D is E * B where the head
            predicts distributions. Of a teacher they are decoded boxes (D is E, and ``decoder``
            leaves them as they are) where D would be more and nobody reads its distributions, and
            empty where nobody reads its boxes.
        features: Per level, the neck's output (N, F, H, W); empty where nobody asked for it.
        make_priors: Gives :attr:`priors`, the same ones again; not called before somebody looks at
            them.
        decoder: Turns rows of the regression branch (K, D), their priors (K, E) and strides (K, 1)
            into boxes (K, E) in pixels.
        quality_maps: Per level, logits (N, A, H, W) of the branch that rates a box, before the
            sigmoid (centerness, IoU or objectness); empty where the head has none.
        head_features: By i, what left the i-th stacked convolutions of the head; those that a
            distiller asked for. A student's must not be modified, as its backward pass needs them.
            Of a teacher each level is its :class:`~ld_plugin.losses.ChannelStatistics` alone, for
            features take memory until the student's forward pass is over.
        rest_of_head: The head behind its i-th stacked convolutions: from i and features, which it
            overwrites, to class maps and regression maps; None where nobody asked for it.
    """

    spec: HeadSpec
    class_maps: Sequence[Tensor]
    box_maps: Sequence[Tensor]
    features: Sequence[Tensor]
    make_priors: Callable[[], Tensor]
    decoder: BoxDecoder
    quality_maps: Sequence[Tensor] = ()
    head_features: Mapping[int, HeadFeatures] = field(default_factory=dict)
    rest_of_head: RestOfHead | None = None

    def cross_head(self, layer: int, features: HeadFeatures) -> 'DenseOutputs':
        """What this model's head predicts from there on, if another model's features enter it.

        Args:
            layer: How many stacked convolutions the features have passed.
            features: Of this head's widths, before the activation, each level an iterable's next
                element; they are overwritten. None for a branch that is not asked for, of a head
                with separate ones: its maps are empty then.
        """
        maps = zip(self.rest_of_head(layer, features), features, strict=True)
        class_maps, box_maps = ([] if asked is None else list(levels) for levels, asked in maps)
        return replace(self, class_maps=class_maps, box_maps=box_maps, quality_maps=())

    @property
    def num_images(self) -> int:
        """N."""
        return self._any_maps[0].shape[0]

    @property
    def level_shapes(self) -> list[tuple[int, int, int]]:
        """(H, W, A) of every level."""
        return [
            (*m.shape[-2:], a)
            for m, a in zip(self._any_maps, self.spec.num_base_priors, strict=True)
        ]

    def _asked_for(self, name: str) -> Sequence[Tensor]:
        maps = getattr(self, name)
        if not maps:
            raise ValueError(
                f'{name} of {self.spec.name}: found none. A teacher keeps what is asked for, so '
                'whatever a distiller or a region looks at stands in the `reads` of its class.'
            )
        return maps

    @property
    def _any_maps(self) -> Sequence[Tensor]:
        return self.class_maps or self.box_maps or self.features

    @property
    def num_level_priors(self) -> list[int]:
        """H * W * A of every level."""
        return [h * w * a for h, w, a in self.level_shapes]

    @property
    def priors(self) -> Tensor:
        """(P, E), pixels of the network's input."""
        return self.make_priors()

    @property
    def device(self) -> torch.device:
        """That of all maps."""
        return self._any_maps[0].device

    @cached_property
    def prior_strides(self) -> Tensor:
        """(P, 1), the stride of every prior along x, in pixels."""
        return torch.cat(
            [
                torch.full((n, 1), stride[0], device=self.device)
                for n, stride in zip(self.num_level_priors, self.spec.strides, strict=True)
            ]
        )

    def class_logits(self, at: Positions) -> Tensor:
        """Class logits at the selected priors, (K, C)."""
        return at.gather(self._asked_for('class_maps'))

    def quality_logits(self, at: Positions) -> Tensor:
        """Quality logits at the selected priors, (K, 1)."""
        return at.gather(self._asked_for('quality_maps'))

    @property
    def class_views(self) -> list[Tensor]:
        """All class logits without a copy: per level a view (N, A, H, W, C)."""
        return [
            anchor_view(level_map, anchors)
            for level_map, anchors in zip(
                self._asked_for('class_maps'), self.spec.num_base_priors, strict=True
            )
        ]

    def distribution_logits(self, at: Positions) -> Tensor:
        """Logits of the box sides' distributions at the selected priors, (K, E, B)."""
        rows = at.gather(self._asked_for('box_maps'))
        return rows.unflatten(-1, (self.spec.box_dim, self.spec.num_bins))

    def boxes(self, at: Positions) -> Tensor:
        """Decoded boxes at the selected priors, (K, E) in pixels, differentiable."""
        index = at.prior_index
        return self.decoder(
            at.gather(self._asked_for('box_maps')).float(),
            self.priors[index],
            self.prior_strides[index],
        )

    def level_class_logits(self, level: int) -> Tensor:
        """All class logits of a level, (N, n_l, C)."""
        return level_rows(self._asked_for('class_maps')[level], self.spec.num_base_priors[level])

    def level_boxes(self, level: int) -> Tensor:
        """All decoded boxes of a level, (N, n_l, E) in pixels."""
        box_map = self._asked_for('box_maps')[level]
        boxes = self.decode_rows(box_map.movedim(1, -1), *self.level_grids(level))
        return boxes.unflatten(0, (box_map.shape[0], -1))

    def level_grids(self, level: int) -> tuple[Tensor, Tensor]:
        """What :meth:`decode_rows` needs: views of a level's priors, (N, H, W, A, E), and strides.

        The strides are (N, H, W, A, 1), in pixels.
        """
        start = sum(self.num_level_priors[:level])
        here = slice(start, start + self.num_level_priors[level])
        shape = self.level_shapes[level]
        return tuple(
            x[here].unflatten(0, shape).expand(self.num_images, *shape, -1)
            for x in (self.priors, self.prior_strides)
        )

    def decode_rows(self, box_map: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        """Boxes (K, E) in pixels of all priors in some rows of a level's cells.

        Args:
            box_map: The regression map with its channels last, (N, h, W, A * D).
            priors: The same rows, h of H, of the first of :meth:`level_grids`.
            strides: And of the second.
        """
        strides = strides.reshape(-1, 1)
        rows = box_map.reshape(len(strides), -1).float()
        return self.decoder(rows, priors.reshape(len(strides), -1), strides)

    def with_decoded_boxes(self) -> 'DenseOutputs':
        """The same, with boxes in place of distributions, which take more memory."""
        box_maps = [
            self.level_boxes(level).reshape(self.num_images, *shape[:2], -1).movedim(-1, 1)
            for level, shape in enumerate(self.level_shapes)
        ]
        return replace(
            self,
            spec=replace(self.spec, num_bins=None),
            box_maps=box_maps,
            decoder=lambda rows, priors, strides: rows,
        )


def prior_views(values: Tensor, level_shapes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """View values of all priors (N, P) as (N, A, H, W) per level, beside the class views."""
    parts = values.split([h * w * a for h, w, a in level_shapes], dim=1)
    return [
        part.unflatten(1, shape).movedim(-1, 1)
        for part, shape in zip(parts, level_shapes, strict=True)
    ]


def anchor_view(level_map: Tensor, num_base_priors: int) -> Tensor:
    """View a map (N, A * D, H, W) as (N, A, H, W, D)."""
    return level_map.unflatten(1, (num_base_priors, -1)).movedim(2, -1)


def level_rows(level_map: Tensor, num_base_priors: int) -> Tensor:
    """Flatten a map (N, A * D, H, W) to rows (N, H * W * A, D)."""
    n = level_map.shape[0]
    return level_map.permute(0, 2, 3, 1).reshape(n, -1, level_map.shape[1] // num_base_priors)
