"""The interface of a reader, and the table that finds one for a head."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any, ClassVar

import torch
from mmdet.structures.bbox import cat_boxes, get_box_tensor
from torch import Tensor, nn

from ...errors import ConfigError
from ..context import Assignment
from ..head_features import HeadFeatures, Tower, nothing
from ..outputs import DenseOutputs, HeadSpec
from ..recorder import HeadRecorder

#: what the loss of a head with an assigner calls, for :attr:`DenseReader.recorded_methods`
ASSIGNER_METHODS = ('loss_by_feat', 'get_targets', 'sampler.sample')

#: heads that predict otherwise than the class that they derive from
UNLIKE_THEIR_BASE = frozenset(
    {
        'ATSSVLFusionHead',
        'AutoAssignHead',
        'CondInstBboxHead',
        'FSAFHead',
        'H2RBoxHead',
        'H2RBoxV2Head',
        'R3RefineHead',
        'RTMDetInsHead',
        'S2ARefineHead',
        'StageCascadeRPNHead',
    }
)

#: heads that predict as the class that they derive from and learn otherwise, so they can only teach
LEARNING_OTHERWISE = frozenset({'FreeAnchorRetinaHead', 'LADHead', 'LDHead', 'PISARetinaHead'})

#: heads, but not those derived from them, of which neither class logits nor boxes depend on the
#: stacked convolutions of the other branch
WITH_SEPARATE_BRANCHES = frozenset(
    {
        'ATSSHead',
        'AngleBranchRetinaHead',
        'DistributionATSSHead',
        'DistributionFCOSHead',
        'DistributionRetinaHead',
        'DistributionRotatedFCOSHead',
        'DistributionRotatedRetinaHead',
        'FCOSHead',
        'GFLHead',
        'PAAHead',
        'R3Head',
        'RetinaHead',
        'RotatedATSSHead',
        'RotatedFCOSHead',
        'RotatedRetinaHead',
        'S2AHead',
        'YOLOXHead',
    }
)

#: what every dense head of MMDetection's is derived from
ANY_HEAD = 'BaseDenseHead'
#: why a head's predictions are not read, as in :class:`HeadSpec`
NO_READER = 'has no reader'
SOFTMAX = 'has a softmax over its classes and a background (loss_cls.use_sigmoid=False)'

_READERS: dict[str, type['DenseReader']] = {}


def register_reader(*head_names: str) -> Callable[[type['DenseReader']], type['DenseReader']]:
    """Register a reader for heads of these class names and for classes derived from them.

    Names, not classes: a reader for an optional package's head needs no import of that package.
    """

    def register(reader: type[DenseReader]) -> type[DenseReader]:
        _READERS.update(dict.fromkeys(head_names, reader))
        return reader

    return register


def get_reader(
    head: nn.Module, key: str = 'model.bbox_head', teaches: bool = False
) -> 'DenseReader':
    """The reader of the nearest class in ``head``'s inheritance that has one.

    Where none has, or one that comes before it predicts otherwise, or learns otherwise though it is
    to be taught, or where the classes share a softmax with background, it is the reader of any
    stock head, which knows its features alone.

    Args:
        head: Of student or teacher.
        key: Its place in the config, for messages.
        teaches: Whether it is the teacher's, of which only predictions are read.

    Raises:
        ConfigError: There is no reader, and the head is not derived from MMDetection's.
    """
    refused = UNLIKE_THEIR_BASE if teaches else UNLIKE_THEIR_BASE | LEARNING_OTHERWISE
    names = [cls.__name__ for cls in type(head).__mro__]
    name = next((name for name in names if name in refused or name in _READERS), None)
    if name is None:
        raise ConfigError(f'{key}: found {names[0]}, expected {a_reader(names[0])}')
    if name in refused:
        name = ANY_HEAD
    reader = _READERS[name](head)
    if name != ANY_HEAD and reader.unread:
        unread = reader.unread
        reader = _READERS[ANY_HEAD](head)
        reader.unread = unread
    reader.key = key
    return reader


def a_reader(head_name: str) -> str:
    """In place of a head without a reader, for messages."""
    return (
        f'a head that has a reader: {", ".join(registered_heads())}. To add one, subclass '
        f"ld_plugin.dense.DenseReader, decorate it with @register_reader('{head_name}') and name "
        'its module in custom_imports.'
    )


def read_instead(spec: HeadSpec) -> str:
    """In place of a head whose predictions are not read, for messages."""
    if spec.unread == SOFTMAX:
        return 'a head whose classes have a score each (loss_cls.use_sigmoid=True).'
    return a_reader(spec.name)


def registered_heads() -> list[str]:
    """Class names of the heads that have a reader; the classes derived from them share it."""
    return sorted(set(_READERS) - {ANY_HEAD})


def heads_with_distributions() -> list[str]:
    """Class names of the heads whose boxes are distributions, for messages."""
    return sorted(name for name, reader in _READERS.items() if reader.has_distributions)


class DenseReader(ABC):
    """Reads one head.

    Args:
        head: The head, on any device, of student or teacher.
    """

    #: the head's place in the config, for messages
    key: str = 'bbox_head'
    #: whether the head predicts a distribution over bins for every box side
    has_distributions: ClassVar[bool] = False
    #: methods of the head whose return values :meth:`assignment` needs
    recorded_methods: ClassVar[tuple[str, ...]] = ('get_targets',)
    #: attributes of the head that hold the stacked convolutions of its classification and of its
    #: regression branch
    tower_names: ClassVar[tuple[str, ...]] = ()
    #: what the head's quality branch rates, if it has one, as in :class:`HeadSpec`
    rated_quality: ClassVar[str] = ''
    #: E of the head's boxes
    box_dim: int = 4
    #: methods of the head that a teacher runs in float32 whatever its precision is, because they
    #: call an operator that has no other
    float32_methods: ClassVar[tuple[str, ...]] = ()

    def __init__(self, head: nn.Module) -> None:
        self.head = head

    @property
    def unread(self) -> str:
        """Why the predictions of this very head are not read, as in :class:`HeadSpec`.

        Override it in a reader whose maps have a logit for every class but none of background,
        though the head has one.
        """
        classes = getattr(self.head, 'num_classes', None)
        return SOFTMAX if getattr(self.head, 'cls_out_channels', classes) != classes else ''

    @property
    @abstractmethod
    def spec(self) -> HeadSpec:
        """What the head predicts."""

    @abstractmethod
    def maps(self, outs: tuple) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Class logit maps and regression maps, level by level, out of the head's forward."""

    def quality(self, outs: tuple) -> Sequence[Tensor]:
        """Quality logit maps (N, A, H, W), level by level; empty if the head has no such branch."""
        return ()

    @abstractmethod
    def decode(self, rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        """Boxes (K, E) in pixels from regression rows (K, D), priors (K, E) and strides (K, 1)."""

    @abstractmethod
    def assignment(self, record: HeadRecorder) -> Assignment:
        """The label assignment out of what was recorded."""

    def read(self, outs: tuple | None, features: Sequence[Tensor]) -> DenseOutputs:
        """Wrap the head's raw outputs; nothing is computed.

        Args:
            outs: What the head's forward returned; None if it did not run, for the features alone.
            features: The neck's levels; may be empty if the head ran. Those that the head does not
                look at, after its own, are left out.
        """
        spec = self.spec
        class_maps, box_maps = ((), ()) if outs is None else self.maps(outs)
        features = features[: len(spec.strides)]
        levels = class_maps or features
        sizes = [level.shape[-2:] for level in levels]
        return DenseOutputs(
            spec=spec,
            class_maps=class_maps,
            box_maps=box_maps,
            features=features,
            make_priors=cache(partial(self.priors, sizes, levels[0].device)),
            decoder=self._decode_in_float32,
            quality_maps=() if outs is None else self.quality(outs),
        )

    def describe(self, num_bins: int | None = None, extras: Collection[str] = ()) -> HeadSpec:
        """The spec of a head, out of what all stock heads have.

        Args:
            num_bins: B, of a head that predicts distributions.
            extras: As in :class:`HeadSpec`.

        """
        head = self.head
        generator, rotated = head.prior_generator, self.box_dim == 5
        return HeadSpec(
            name=type(head).__name__,
            num_classes=head.num_classes,
            strides=tuple(tuple(stride) for stride in generator.strides),
            num_base_priors=tuple(generator.num_base_priors),
            num_bins=num_bins,
            box_dim=self.box_dim,
            feature_channels=head.in_channels,
            extras=frozenset(extras) | ({'head_features'} if self.tower_channels else set()),
            quality=self.rated_quality if 'quality' in extras else '',
            tower_channels=self.tower_channels,
            angle_version=getattr(head.bbox_coder, 'angle_version', None) if rotated else None,
            centre_offset=_centre_offset(generator),
            has_separate_branches=self.has_separate_branches,
        )

    @property
    def prior_shapes(self) -> list[Tensor]:
        """Width and height of the anchors of a cell, in strides: per level (A, 2); none of points.

        Where a head has several, its outputs are told apart by nothing but their order.
        """
        generator = getattr(self.head, 'prior_generator', None)
        if not hasattr(generator, 'base_anchors'):
            return []
        return [
            (anchors[:, 2:4] - anchors[:, :2]) / anchors.new_tensor(stride)
            for anchors, stride in zip(generator.base_anchors, generator.strides, strict=True)
        ]

    @property
    def towers(self) -> list[Tower]:
        """The stacked convolutions of both branches; empty if the head has none."""
        return [Tower(self.head, name) for name in self.tower_names if hasattr(self.head, name)]

    @property
    def tower_channels(self) -> tuple[int, ...]:
        """As in :class:`HeadSpec`."""
        widths = {tower.channels for tower in self.towers}
        return widths.pop() if len(widths) == 1 else ()

    @property
    def has_separate_branches(self) -> bool:
        """As in :class:`HeadSpec`."""
        return type(self.head).__name__ in WITH_SEPARATE_BRANCHES

    @contextmanager
    def without_branch(self, branch: str | None) -> Iterator[None]:
        """Let the head's forward leave out a branch's stacked convolutions, if no other needs them.

        Args:
            branch: ``'classes'`` or ``'boxes'``; nothing is to be read of it, nor of the quality.
                None leaves nothing out.
        """
        with ExitStack() as left_out:
            if branch is not None and self.has_separate_branches:
                tower = self.towers[HeadFeatures._fields.index(branch)]
                if tower.keeps_width:
                    left_out.enter_context(tower.left_out())
            yield

    def watched(self, layers: Collection[int]) -> dict[tuple[int, str], list[nn.Module]]:
        """The modules to record for the features after so many stacked convolutions."""
        return {
            (layer, tower.name): tower.activations(layer)
            for layer in layers
            if layer > 0
            for tower in self.towers
        }

    def head_features(
        self, record: HeadRecorder, layers: Collection[int]
    ) -> dict[int, HeadFeatures]:
        """What was kept of features by the number of stacked convolutions they had passed."""

        def kept(layer: int, tower: Tower) -> list[Any]:
            if layer == 0:
                return [record.kept(level) for level in record.inputs[: len(self.spec.strides)]]
            return record.entered[layer, tower.name]

        return {layer: HeadFeatures(*(kept(layer, t) for t in self.towers)) for layer in layers}

    def rest_of_head(
        self, layer: int, features: HeadFeatures
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Class logit maps and regression maps from features that passed some convolutions.

        The head's own forward runs, whatever it does behind the stacked convolutions.

        Args:
            layer: How many of the stacked convolutions they passed.
            features: Before the activation, which overwrites them; each is asked for when the head
                comes to its level and branch. None for a branch that is not asked for, of a head
                with separate ones: what its maps are then says nothing.
        """
        # of what the towers begin with; a branch that is not asked for predicts from it
        instead = nothing(next(self.head.parameters()), 1, self.tower_channels[-1])
        with ExitStack() as skipped:
            for tower, levels in zip(self.towers, features, strict=True):
                rest = tower.left_out() if levels is None else tower.skipping(layer, levels)
                skipped.enter_context(rest)
            return self.maps(self.head([instead] * len(self.spec.strides)))

    def assigned(
        self,
        record: HeadRecorder,
        labels: Sequence[Tensor],
        label_weights: Sequence[Tensor],
        positive_gts: Sequence[Tensor] | None = None,
    ) -> Assignment:
        """The assignment, with padding from the images' metas.

        Args:
            record: Of a loss whose ``loss_by_feat`` was recorded.
            labels: Per level, (N, n_l) or flattened.
            label_weights: Per level, likewise.
            positive_gts: As in :class:`Assignment`; by default out of the recorded
                ``sampler.sample``, which every head with an assigner calls once per image.
        """
        valid = self.valid_priors(record)
        if positive_gts is None:
            samples = record.returned['sampler.sample']
            positive_gts = [sample.pos_assigned_gt_inds for sample in samples]
        return Assignment(
            labels=by_image(labels, len(valid)),
            label_weights=by_image(label_weights, len(valid)),
            valid=valid,
            num_classes=self.head.num_classes,
            positive_gts=positive_gts,
        )

    def valid_priors(self, record: HeadRecorder) -> Tensor:
        """(N, P) bool, False in the padding, whatever the head's own loss does there."""
        call = record.arguments['loss_by_feat'][-1]
        return valid_flags(self.head.prior_generator, call['cls_scores'], call['batch_img_metas'])

    def priors(self, sizes: Sequence[Any], device: torch.device) -> Tensor:
        """All priors of one image, (P, E), from the head's own generator."""
        levels = self.head.prior_generator.grid_priors(sizes, device=device)
        return get_box_tensor(cat_boxes(levels))

    def _decode_in_float32(self, rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        # the expectation over bins is a matrix product, which autocast would round to half a bin
        with torch.autocast(rows.device.type, enabled=False):
            return self.decode(rows.float(), priors, strides)


def _centre_offset(generator: Any) -> float:
    """As in :class:`HeadSpec`, of the first level; generators of anchors have three ways to say it.

    In plain numbers, because to ask the anchors themselves is to wait for their device.
    """
    if not hasattr(generator, 'base_sizes'):  # of points
        return float(getattr(generator, 'offset', 0.0))
    x = generator.center_offset * generator.base_sizes[0]
    if generator.centers is not None:
        x = generator.centers[0][0]
    return float(x / generator.strides[0][0])


def valid_flags(
    generator: Any, maps: Sequence[Tensor], metas: Sequence[Mapping[str, Any]]
) -> Tensor:
    """(N, P) bool, False in the padding that a larger image of the batch causes.

    Args:
        generator: Of the priors.
        maps: Per level, (N, ..., H, W).
        metas: Of every image, with ``pad_shape``.
    """
    shapes = [tuple(meta['pad_shape'][:2]) for meta in metas]
    sizes = [level.shape[-2:] for level in maps]
    flags = {
        shape: torch.cat(generator.valid_flags(sizes, shape, device=maps[0].device))
        for shape in set(shapes)
    }
    return torch.stack([flags[shape] for shape in shapes])


def by_image(levels: Sequence[Tensor], num_images: int) -> Tensor:
    """Join values of the priors, per level (N, n_l) or (N * n_l,), image after image: (N, P)."""
    return torch.cat([level.reshape(num_images, -1) for level in levels], dim=1)
