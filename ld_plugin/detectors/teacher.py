"""The frozen teacher: a stock detector as an inference engine."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ..checks import check_above_zero
from ..dense import ClassMatch, DenseOutputs, HeadRecorder, HeadSpec, get_reader
from ..dense.head_features import HeadFeatures
from ..dense.matching import box_scale, rescaled, rescaled_spec
from ..dense.rois import RoIReader
from ..errors import ConfigError, NonFiniteTeacherError
from ..losses import channel_statistics
from .batch_norm import fold_batch_norm
from .checkpoint import class_names, load_checkpoint_file, load_weights
from .input_conversion import InputConversion
from .masked_relu import MaskedReLU
from .model_config import published_checkpoint, read_config, student_model
from .packed_convolution import PackedConv2d, fuse_activations

PRECISIONS = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}

_OPTIONS = ('precision', 'image_scale', 'class_map')
_NO_COMMON_CLASS = (
    'model.teacher.checkpoint: the teacher was trained on other classes than '
    'train_dataloader.dataset has: teacher {teacher}, student {student}. Choose another teacher, '
    "say which are the same: model.teacher.class_map = {{'student name': 'teacher name'}}, or "
    'distil features alone (FeatureDistiller), which have no classes.'
)


@dataclass(frozen=True)
class TeacherOutputs:
    """What the teacher said about one batch.

    Attributes:
        outputs: Its dense outputs.
        maps: What each of its M maps was, for messages.
        sums: (M, N), the float32 sum of every map for every image; not finite where an element is
            not.
        neck: The neck's levels, for its RoI head.
    """

    outputs: DenseOutputs
    maps: Sequence[str]
    sums: Tensor
    neck: Sequence[Tensor]

    def check_finite(self) -> None:
        """Stop where the teacher's outputs cannot be learned from.

        Raises:
            NonFiniteTeacherError: An output is NaN or infinite.
        """
        if not self.sums.isfinite().all():
            raise NonFiniteTeacherError(self._where())

    def _where(self) -> str:
        found = [
            f'{name}, image {image}'
            for name, images in zip(self.maps, self.sums.isfinite().tolist(), strict=True)
            for image, is_finite in enumerate(images)
            if not is_finite
        ]
        return _non_finite(found)


def _non_finite(places: Iterable[str]) -> str:
    return (
        f'The teacher produced NaN or infinity: {"; ".join(places)} (counted from 0). Check '
        "model.teacher.checkpoint, and with model.teacher.precision='fp16' use 'bf16' or 'fp32'."
    )


class FrozenTeacher:
    """Runs a detector's dense head on the student's batches, and never learns.

    It is no torch module: it appears in no ``parameters()``, ``modules()`` or ``state_dict()``, no
    ``train()`` reaches it, and copies of the student (mmengine's EMA hook makes one) share it. The
    student moves it along to other devices.

    Batch norm is folded into convolutions, these run channels-last (on a processor with their
    weights in its kernels' own layout), and the inputs are converted to the normalisation the
    teacher was trained with. Its assigner and losses never run.

    Args:
        model: A detector with ``backbone``, ``neck``, ``data_preprocessor`` and ``bbox_head`` (or
            ``bbox_head_init``, whose boxes other heads refine), or of two stages, with ``rpn_head``
            and ``roi_head``; it is changed in place.
        precision: ``'fp32'``, ``'bf16'`` or ``'fp16'`` for convolutions and matrix products.
        classes: Names of the classes, in the order of its outputs; None if unknown.
        image_scale: The images are enlarged by this factor for the teacher; its outputs are in
            pixels of the student's images nevertheless. Levels are matched by their strides: where
            these are powers of two, as usual, it must be one, too.
        class_map: The student's classes to the teacher's, names or indices, where equal names do
            not say it; None in place of the teacher's for a class without a partner. Classes that
            have none carry no loss.

    Raises:
        ConfigError: A value is out of its range, the model has no dense head, or no reader knows
            the one that it has.

    Attributes:
        classes, image_scale, class_map: As given.
        is_two_stage: Whether the dense head is a region proposal network.
        reads: Which of its outputs are asked for, in the words of
            :attr:`ld_plugin.distillers.Distiller.reads`; by default class logits, distributions,
            boxes and features. Features are kept only if they are asked for, and the head runs only
            if anything else is.
        head_layers: Of how many stacked convolutions the features inside the head are asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: str = 'fp32',
        classes: Sequence[str] | None = None,
        image_scale: float = 1,
        class_map: Mapping[str | int, str | int] | None = None,
    ) -> None:
        if precision not in list(PRECISIONS):
            raise ConfigError(
                f'model.teacher.precision: found {precision!r}, expected one of {list(PRECISIONS)}.'
            )
        check_above_zero(**{'model.teacher.image_scale': image_scale})
        if not isinstance(class_map, Mapping | None):
            raise ConfigError(
                f'model.teacher.class_map: found {class_map!r}, expected a dict from classes of '
                "the student's to classes of the teacher's."
            )
        names = ['rpn_head'] if hasattr(model, 'roi_head') else ['bbox_head_init', 'bbox_head']
        name = next((name for name in names if hasattr(model, name)), None)
        if name is None:
            raise ConfigError(
                f'model.teacher.config: {type(model).__name__} has no {names[-1]}, expected a '
                'single-stage detector (bbox_head), or one of two stages (rpn_head, roi_head).'
            )
        self.classes = classes
        self._source_of_names = 'model.teacher.classes'
        self.image_scale = image_scale
        self.class_map = class_map
        self.reads = frozenset({'class_logits', 'distributions', 'boxes', 'features'})
        self.head_layers: frozenset[int] = frozenset()
        self._dtype = PRECISIONS[precision]
        self._reader = get_reader(
            getattr(model, name), f'model.teacher.config: {name}', teaches=True
        )
        self.is_two_stage = name == 'rpn_head'
        self._roi_reader = RoIReader.find(model.roi_head) if self.is_two_stage else None
        self._model = _for_inference(model, self._dtype)
        for method in self._reader.float32_methods:
            _feed_plainly(self._reader.head, method)
        self._conversion = InputConversion.between(model.data_preprocessor, model.data_preprocessor)

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> 'FrozenTeacher':
        """Build and load what ``model.teacher`` describes.

        Args:
            cfg: ``config``: a stock name (``'mmdet::gfl/...'``), one of this package
                (``'ld_plugin::bccd/...'``), a path, or a dict. ``checkpoint``: a path, a URL,
                ``'auto'`` for the one published with a stock config, or None for random weights.
                Optional: ``classes`` (names, if not those in the checkpoint), and ``precision``,
                ``image_scale`` and ``class_map`` as above.

        Raises:
            ConfigError: A key is missing or unknown, nothing is found, or the weights do not fit.
        """
        cfg = _checked(cfg)
        config = read_config(cfg['config'])
        model_cfg = student_model(config)
        with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmdet')):
            model = _build(model_cfg)
        checkpoint, named = cfg['checkpoint'], None
        if checkpoint is None:
            warnings.warn(
                'model.teacher.checkpoint is None: the teacher has random weights.', stacklevel=2
            )
        else:
            if checkpoint == 'auto':
                checkpoint = published_checkpoint(cfg['config'])
            loaded = load_checkpoint_file(checkpoint, trained_by=cfg['config'])
            load_weights(model, loaded, str(checkpoint))
            named = class_names(loaded)
        options = {key: cfg[key] for key in _OPTIONS if key in cfg}
        given = cfg.get('classes')
        teacher = cls(model, classes=given or named, **options)
        if given is None:  # checked where they matter
            teacher._source_of_names = f'model.teacher.checkpoint: {checkpoint}'
        else:
            teacher.check_names()
        return teacher

    @property
    def spec(self) -> HeadSpec:
        """What the teacher's head predicts, with strides in pixels of the student's images."""
        rois = self._roi_reader.spec if self._roi_reader else None
        return replace(rescaled_spec(self._reader.spec, self.image_scale), rois=rois)

    @property
    def num_classes(self) -> int:
        """C, of the second stage if it has one that can be read."""
        return (self._roi_reader or self._reader).spec.num_classes

    def check_names(self) -> None:
        """Raise :class:`ConfigError` if it has more or fewer classes than names.

        Of a second stage that cannot be read the number is not known.
        """
        is_known = self._roi_reader or not self.is_two_stage
        count = len(self.classes or ())
        if count and is_known and count != self.num_classes:
            raise ConfigError(
                f'{self._source_of_names}: found {count} names, {tuple(self.classes)}, expected '
                f"{self.num_classes}, one for each class of the teacher's head. Correct "
                'num_classes in model.teacher.config, or name all in model.teacher.classes.'
            )

    @property
    def prior_shapes(self) -> list[Tensor]:
        """As in :class:`~ld_plugin.dense.DenseReader`."""
        return self._reader.prior_shapes

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self._model.parameters()).device

    @property
    def num_bytes(self) -> int:
        """Memory of its weights and buffers."""
        tensors = (*self._model.parameters(), *self._model.buffers())
        return sum(t.numel() * t.element_size() for t in tensors)

    def to(self, device: torch.device) -> 'FrozenTeacher':
        """Move to ``device``; the precision stays. Shapes alone (``'meta'``) teach nobody."""
        if self.device != device and device.type != 'meta':  # where copies of the student share it
            for module in self._model.modules():
                if isinstance(module, PackedConv2d):
                    module.unpack()
            self._model.to(device)
            generator = getattr(self._reader.head, 'prior_generator', None)
            if hasattr(generator, 'base_anchors'):  # which would be copied there in every step
                generator.base_anchors = [anchors.to(device) for anchors in generator.base_anchors]
        return self

    def match_inputs(self, student_preprocessor: nn.Module) -> None:
        """Convert from now on images that were normalised by ``student_preprocessor``."""
        self._conversion = InputConversion.between(
            student_preprocessor, self._model.data_preprocessor
        )

    def spec_for(self, student: HeadSpec, two_stages: bool) -> HeadSpec:
        """What distillers see of it: the student's classes, where classes can be matched.

        Args:
            student: What the student predicts.
            two_stages: Whether the student has a second stage. Where only one of both has, their
                predictions mean different things, and features alone can be compared.
        """
        spec = self.spec
        if two_stages != self.is_two_stage:
            stages = 'two stages' if self.is_two_stage else 'one stage'
            return replace(spec, name=f'{spec.name} of a detector of {stages}', only_features=True)
        if self.classes is None and self.class_map is None:
            return spec
        if two_stages:
            both = spec.rois and student.rois
            rois = replace(spec.rois, num_classes=student.rois.num_classes) if both else spec.rois
            return replace(spec, rois=rois)
        return replace(spec, num_classes=student.num_classes)

    def match_classes(
        self, student_classes: Sequence[str] | None, num_student_classes: int, head: str
    ) -> ClassMatch | None:
        """Pair the student's classes with the teacher's; None if all correspond in order.

        Args:
            student_classes: Names; None if unknown.
            num_student_classes: Their number.
            head: The student's that says this number, for messages.

        Raises:
            ConfigError: No class has a partner, names are needed and not known, or the student has
                more or fewer classes than names.
        """
        count = self.num_classes
        mine, theirs = student_classes or num_student_classes, self.classes or count
        by_name = self.classes or self.class_map
        if student_classes and by_name and len(mine) != num_student_classes:
            raise ConfigError(
                f'model.{head}.num_classes: found {num_student_classes}, expected {len(mine)}, as '
                f'train_dataloader.dataset has the classes {tuple(mine)}. Correct it, or '
                'metainfo.classes of the data set.'
            )
        if self.class_map is not None:
            match = ClassMatch.by_map(self.class_map, mine, theirs)
        elif isinstance(mine, int) or isinstance(theirs, int):
            match = ClassMatch.in_order(num_student_classes, count)
        else:
            match = ClassMatch.by_name(mine, theirs)
        if not match.student:
            raise ConfigError(_NO_COMMON_CLASS.format(teacher=theirs, student=mine))
        if student_classes is None and self.classes and self.class_map is None:
            warnings.warn(
                "The names of the student's classes are not known, so they are taken for the "
                f"teacher's in order: {tuple(self.classes)}. An mmengine Runner tells them, from "
                'metainfo.classes of its data set, if no other was made after it.',
                stacklevel=2,
            )
        if not match.covers_student:
            alone = [
                c if isinstance(mine, int) else mine[c]
                for c in range(num_student_classes)
                if c not in match.student
            ]
            warnings.warn(
                'The teacher does not know these classes of the student, so they are not '
                f'distilled: {alone}. Where only the spelling differs, set '
                'model.teacher.class_map.',
                stacklevel=2,
            )
        return None if match.is_identity else match

    @torch.no_grad()
    def __call__(self, images: Tensor, image_shapes: Sequence[tuple[int, int]]) -> TeacherOutputs:
        """Look at a batch of the student's.

        Args:
            images: (N, 3, H, W), as the student's preprocessor made them.
            image_shapes: (height, width) of every image without padding.

        Raises:
            ConfigError: Its neck cannot take images of this size.
        """
        self.to(images.device)  # where copies of the student share it, another may have moved it
        images = self._conversion(*self._conversion.resize(images, image_shapes, self.image_scale))
        images = images.contiguous(memory_format=torch.channels_last)
        watched = self._reader.watched(self.head_layers)
        record = HeadRecorder(self._reader.head, watched=watched, keep=channel_statistics)
        with self._precision(), record:
            images = images if self._is_low_precision else images.float()
            features = self._extract_feat(images)
            outs = self._run_head(features)
        wanted = outs is None or 'features' in self.reads
        outputs = self._reader.read(outs, features if wanted else ())
        if self._unread_branch is not None:
            unread = 'class_maps' if self._unread_branch == 'classes' else 'box_maps'
            outputs = replace(outputs, **{unread: ()}, quality_maps=())
        if self.head_layers:
            head_features = self._reader.head_features(record, self.head_layers)
            outputs = replace(outputs, head_features=head_features, rest_of_head=self._rest_of_head)
        kinds = dict(
            class_logits=outputs.class_maps,
            box_logits=outputs.box_maps,
            quality_logits=outputs.quality_maps,
            features=outputs.features,
        )
        maps = {f'{kind} of level {i}': m for kind, ms in kinds.items() for i, m in enumerate(ms)}
        sums = torch.stack([m.sum((1, 2, 3), dtype=torch.float32) for m in maps.values()])
        outputs = self._with_boxes_as_read(rescaled(outputs, self.image_scale))
        return TeacherOutputs(outputs, tuple(maps), sums, features if 'rois' in self.reads else ())

    @torch.no_grad()
    def classify_rois(self, outputs: TeacherOutputs, stage: int, rois: Tensor) -> Tensor:
        """Class logits (R, C + 1) of the student's proposals, the last of background.

        Args:
            outputs: What it said about the same batch.
            stage: Of its RoI head, counted from 0.
            rois: (R, 1 + E), index of the image, and box in pixels of the student's images.

        Raises:
            NonFiniteTeacherError: A logit is NaN or infinite.
        """
        index, boxes = rois.float().tensor_split([1], dim=1)
        rois = torch.cat([index, boxes * box_scale(boxes, self.image_scale)], dim=1)
        features = [level.float() for level in outputs.neck]  # pooling knows no other precision
        with self._precision():
            logits = self._roi_reader.classify(stage, features, rois)
        finite = logits.isfinite().all(1)
        if not finite.all():
            what = f'class logits of stage {stage} of its RoI head'
            images = rois[~finite, 0].int().unique().tolist()
            raise NonFiniteTeacherError(_non_finite(f'{what}, image {i}' for i in images))
        return logits

    def _with_boxes_as_read(self, outputs: DenseOutputs) -> DenseOutputs:
        """Without what takes memory until the student's forward pass is over, and nobody reads."""
        if 'distributions' in self.reads or self.head_layers or not outputs.box_maps:
            return outputs
        if 'boxes' not in self.reads:
            return replace(outputs, box_maps=())
        if outputs.box_maps[0].shape[1] == outputs.spec.num_base_priors[0] * outputs.spec.box_dim:
            return outputs  # boxes would take as much
        with torch.autocast(self.device.type, enabled=False):
            return outputs.with_decoded_boxes()

    def _extract_feat(self, images: Tensor) -> Sequence[Tensor]:
        """The neck's levels."""
        try:
            return self._model.extract_feat(images)
        except RuntimeError as error:
            stride = max(map(max, self._reader.spec.strides))
            height, width = images.shape[-2:]
            # levels to be added or joined, one of which is not half of the other
            if 'must match' not in str(error) or height % stride == width % stride == 0:
                raise
            raise ConfigError(
                f'model.data_preprocessor.pad_size_divisor: the teacher gets images of {height} x '
                f'{width} pixels, no multiples of its largest stride, {stride:g}, and cannot take '
                f'them ({error}). Expected {stride / self.image_scale:g}, that stride over '
                'model.teacher.image_scale, or a multiple of it.'
            ) from error

    def _run_head(self, features: Sequence[Tensor]) -> tuple | None:
        """The head's forward, as far as its outputs are read; None if they are not."""
        if self.reads <= {'features', 'rois'}:
            return None
        with self._reader.without_branch(self._unread_branch):
            return self._reader.head(features)

    @property
    def _unread_branch(self) -> str | None:
        """The branch of the head of which nothing is read, ``'classes'`` or ``'boxes'``."""
        if self.head_layers or 'quality' in self.reads:
            return None
        if 'class_logits' not in self.reads:
            return 'classes'
        return None if self.reads & {'boxes', 'distributions'} else 'boxes'

    @property
    def _is_low_precision(self) -> bool:
        return self._dtype != torch.float32

    def _precision(self) -> torch.autocast:
        # switched off explicitly for fp32: the student's own autocast surrounds the teacher's
        low = self._is_low_precision
        return torch.autocast(self.device.type, self._dtype if low else None, enabled=low)

    def _rest_of_head(
        self, layer: int, features: HeadFeatures
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """As :meth:`~ld_plugin.dense.DenseReader.rest_of_head`, with gradients to the features."""
        # the teacher's weights are no more precise, whatever the student's are
        features = HeadFeatures(*(levels and map(Tensor.float, levels) for levels in features))
        with self._precision():
            return self._reader.rest_of_head(layer, features)

    def __deepcopy__(self, memo: dict) -> 'FrozenTeacher':
        return self  # it never changes, so copies of the student need none of their own


def _checked(cfg: Any) -> Mapping[str, Any]:
    known = ('config', 'checkpoint', 'classes', *_OPTIONS)
    if not isinstance(cfg, Mapping):
        raise ConfigError(f'model.teacher: found {cfg!r}, expected a dict with {known}.')
    for key in ('config', 'checkpoint'):
        if key not in cfg:
            raise ConfigError(
                f'model.teacher.{key}: missing. Give config and checkpoint; checkpoint=None stands '
                'for random weights.'
            )
    for key in cfg:
        if key not in known:
            raise ConfigError(f'model.teacher.{key}: unknown key, expected one of {known}.')
    config, checkpoint, classes = cfg['config'], cfg['checkpoint'], cfg.get('classes')
    if not isinstance(config, str | os.PathLike | Mapping):
        raise ConfigError(
            f'model.teacher.config: found a {type(config).__name__}, expected a stock name such as '
            "'mmdet::gfl/...', a path, or a dict with a 'model'."
        )
    if not isinstance(checkpoint, str | os.PathLike | None):
        raise ConfigError(
            f"model.teacher.checkpoint: found {checkpoint!r}, expected a path, a URL, 'auto', or "
            'None for random weights.'
        )
    is_list = isinstance(classes, list | tuple) and all(isinstance(c, str) for c in classes)
    if classes is not None and not (is_list and classes):
        raise ConfigError(f'model.teacher.classes: found {classes!r}, expected a list of names.')
    return cfg


def _build(model_cfg: Mapping[str, Any]) -> nn.Module:
    try:
        return MODELS.build(model_cfg)
    except ConfigError as error:  # of one of the plugin's own heads
        raise ConfigError(f'model.teacher.config: {error}') from error
    # as of a misspelt name or argument, which stand in the student's config as well
    except (
        AssertionError,
        AttributeError,
        ImportError,
        KeyError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ConfigError(
            f'model.teacher.config: its model cannot be built ({type(error).__name__}: {error}). '
            "Correct it. A dict of MMRotate's models needs default_scope='mmrotate' beside model; "
            "modules of one's own are named in custom_imports of the student's config."
        ) from error


def _for_inference(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    model.eval()
    # not in the head: some heads share one convolution between several norm layers
    names = [part for part in ('backbone', 'neck') if getattr(model, part, None) is not None]
    for name in names:
        fold_batch_norm(getattr(model, name))
    operators = [m for m in model.modules() if type(m).__module__.startswith('mmcv.ops.')]
    inside = {id(part) for operator in operators for part in operator.modules()}
    for module in model.modules():
        if type(module) is nn.Conv2d and id(module) not in inside:
            module.to(dtype=dtype, memory_format=torch.channels_last)
            PackedConv2d.convert(module)
    # not in the head either: the activations' inputs are what some methods compare
    for name in names:
        fuse_activations(getattr(model, name))
    for module in model.modules():
        if type(module) is nn.ReLU:
            MaskedReLU.convert(module)
    for operator in operators:
        _feed_plainly(operator, 'forward')
    return model.requires_grad_(False)


def _feed_plainly(module: nn.Module, name: str) -> None:
    """Let a method that is an operator of mmcv's, or calls one, run in contiguous float32.

    They refuse channels-last memory, and most of them bfloat16.
    """
    # a partial of this module's own function, and no closure, which could not be pickled
    setattr(module, name, partial(_call_plainly, module, name))


def _call_plainly(module: nn.Module, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call the method of a module's class in contiguous float32."""
    args = [a.float().contiguous() if isinstance(a, Tensor) else a for a in args]
    with torch.autocast(args[0].device.type, enabled=False):
        return getattr(type(module), name)(module, *args, **kwargs)
