"""What every distilled detector does beside its stock self."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from mmdet.structures import SampleList
from mmengine.logging import MessageHub
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ..dense import (
    DenseReader,
    DistillationContext,
    HeadRecorder,
    HeadSpec,
    TeacherMatch,
    get_reader,
)
from ..dense.boxes import plain
from ..distillers import build_distillers
from ..errors import ConfigError
from .checkpoint import classes_of
from .teacher import FrozenTeacher, TeacherOutputs


class DistilledDetector:
    """Mixin before a stock detector, which then also learns from a frozen teacher.

    One training step:

    1. the teacher's forward pass, without autograd, before the student's activations take memory;
    2. the student's stock forward pass, label assignment and losses, while its raw outputs and its
       assignment are recorded;
    3. the losses of the distillers, in float32, each called ``loss_<key>``.

    Inference is the stock detector's, and so are the keys of ``state_dict()``, except for trainable
    parts of distillers under ``distillers.``.

    Attributes:
        dense_head_name: Of the attribute that holds the dense head.
        has_two_stages: Whether a RoI head follows it.
    """

    dense_head_name: ClassVar[str]
    has_two_stages: ClassVar[bool] = False

    def learn_from(
        self, teacher: Mapping[str, Any] | None, distillers: Mapping[str, Mapping[str, Any]] | None
    ) -> None:
        """Build the teacher and the distillers; the last part of the constructor.

        Args:
            teacher: Arguments of :class:`~ld_plugin.detectors.FrozenTeacher`: ``config``,
                ``checkpoint``, and its options.
            distillers: Configs of the distillers; each key names a loss.

        Raises:
            ConfigError: The config cannot work; nothing has been trained.
        """
        spec = self.spec
        # what they draw leaves the generator as it was: the student's weights, which a runner draws
        # next, are those of the stock detector with the same seed
        with torch.random.fork_rng(devices=[]):
            # not a torch module, hence neither in parameters() nor in state_dict()
            self.teacher = FrozenTeacher.from_config(teacher)
            self._match = TeacherMatch(spec, self.teacher.spec_for(spec, self.has_two_stages))
            self.distillers = build_distillers(distillers, *self._match.specs)
        self._check_levels()
        self._check_priors()
        self._check_loss_names(self._own_losses)
        self.teacher.match_inputs(self.data_preprocessor)
        self.teacher.reads = frozenset().union(
            *(distiller.reads_of_teacher for distiller in self.distillers.values())
        )
        self.teacher.head_layers = frozenset().union(
            *(distiller.head_layers for distiller in self.distillers.values())
        )
        if self._compares_classes:
            self.teacher.check_names()
        elif self.teacher.class_map is not None:
            warnings.warn(
                'model.teacher.class_map: has no effect, as no distiller compares classes.',
                stacklevel=2,
            )
        self._student_classes: tuple[str, ...] | None = ()  # not told yet
        self._knows_data_set = False

    @property
    def reader(self) -> DenseReader:
        """Of the dense head."""
        name = self.dense_head_name
        return get_reader(getattr(self, name), f'model.{name}')

    @property
    def spec(self) -> HeadSpec:
        """What this student predicts."""
        return self.reader.spec

    def match_classes(self, names: Sequence[str] | None) -> None:
        """Pair the student's classes with the teacher's by name.

        :class:`~ld_plugin.runner.DistillationRunner` does so when the model is built, with the
        names that the config tells; the first step after :meth:`train`, under any runner, with
        those of the data set itself.

        Args:
            names: Of the student's classes; None if unknown.

        Raises:
            ConfigError: No class has a partner, names are needed and not known, the student has
                more or fewer classes than names, or these are a text.
        """
        if isinstance(names, str):
            raise ConfigError(
                f'train_dataloader.dataset.metainfo.classes: found the text {names!r}, expected a '
                f'tuple of names, in which one alone takes a comma: ({names!r},).'
            )
        names = names and tuple(names)
        if names != self._student_classes and self._compares_classes:
            self._use_classes(names)
        self._student_classes = names

    def train(self, mode: bool = True) -> 'DistilledDetector':
        """As of the stock detector; another runner may train it on a data set of other classes."""
        self._knows_data_set = False
        return super().train(mode)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Any]:
        """The stock losses, plus one ``loss_<key>`` per distiller.

        Args:
            batch_inputs: (N, 3, H, W), normalised and padded.
            batch_data_samples: Ground truth and meta information of every image.

        Raises:
            ConfigError: A distiller's loss has the name of a stock one, or what only data show does
                not fit: class names, sizes of levels, a head whose predictions have no gradient
                though it is trained.
            NonFiniteTeacherError: The teacher's output cannot be learned from.
        """
        losses, context = self.observe(batch_inputs, batch_data_samples)
        self._check_loss_names(
            name.removeprefix('loss_') for name in losses if name.startswith('loss_')
        )
        if not any(distiller.looks_at_predictions for distiller in self.distillers.values()):
            student = replace(context.student, class_maps=(), box_maps=(), quality_maps=())
            context = replace(context, student=student)  # gives their memory back
        losses.update(self._distillation_losses(context))
        return losses

    def observe(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> tuple[dict[str, Any], DistillationContext]:
        """The stock losses, and what distillers and regions get to see of the same step.

        Without a loss to compute it is for looking: which priors a region selects, or what both
        models predict there.

        Args:
            batch_inputs: (N, 3, H, W), normalised and padded.
            batch_data_samples: Ground truth and meta information of every image.

        Raises:
            ConfigError: What only data show does not fit: class names, sizes of levels, a head
                whose predictions have no gradient though it is trained.
            NonFiniteTeacherError: The teacher's output cannot be learned from.
        """
        losses, context, _ = self._observe_dense(batch_inputs, batch_data_samples)
        return losses, context

    def _observe_dense(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> tuple[dict[str, Any], DistillationContext, TeacherOutputs]:
        """As :meth:`observe`, of the dense head alone, and all that the teacher said."""
        if not self._knows_data_set:
            meta = MessageHub.get_current_instance().get_info('dataset_meta')
            self.match_classes(classes_of(meta) or self._student_classes or None)
            self._knows_data_set = True
        teacher = self.teacher(batch_inputs, [s.img_shape[:2] for s in batch_data_samples])
        reader, layers = self.reader, self.teacher.head_layers
        watched = reader.watched(layers)
        with HeadRecorder(reader.head, reader.recorded_methods, watched) as record:
            losses = super().loss(batch_inputs, batch_data_samples)
        teacher.check_finite()  # here, where the stock loss has waited for the device anyway
        outputs = reader.read(record.outs, record.inputs)
        _check_gradient(reader.head, record.outs)
        context = self._match.context(
            student=replace(outputs, head_features=reader.head_features(record, layers)),
            teacher=teacher.outputs,
            assignment=reader.assignment(record),
            gt_bboxes=[plain(s.gt_instances.bboxes) for s in batch_data_samples],
            gt_labels=[s.gt_instances.labels for s in batch_data_samples],
        )
        if self.teacher.reads != {'rois'}:
            _check_sizes(context)
        return losses, context, teacher

    def _distillation_losses(self, context: DistillationContext) -> dict[str, Tensor]:
        with torch.autocast(context.device.type, enabled=False):
            return {
                f'loss_{name}': distiller(context) for name, distiller in self.distillers.items()
            }

    def _apply(self, *args: Any, **kwargs: Any) -> 'DistilledDetector':
        """Every move of a module (``to``, ``cuda``, ``cpu``) comes through here."""
        super()._apply(*args, **kwargs)
        self.teacher.to(next(self.parameters()).device)
        return self

    @property
    def _own_losses(self) -> set[str]:
        """Names of the stock losses, after ``loss_``, that attributes of the head tell."""
        return loss_names(self.reader.head)

    def _check_loss_names(self, own_losses: Iterable[str]) -> None:
        """Stop where a key would replace one of these, named by what follows ``loss_``."""
        for name in own_losses:
            if name in self.distillers:
                raise ConfigError(
                    f"model.distillers.{name}: the student has a loss named 'loss_{name}' of its "
                    'own. Choose another key.'
                )

    def _check_priors(self) -> None:
        """Outputs of several anchors are compared one by one, and so are offsets from anchors."""
        mine, theirs = self.reader.prior_shapes, self.teacher.prior_shapes
        if not mine or not theirs:
            return
        levels = self._match.levels
        for name, distiller in self.distillers.items():
            reads = distiller.reads_of_teacher
            if reads <= {'features', 'rois'}:
                continue
            is_relative = 'distributions' in reads and self.spec.bin_ranges is not None
            for level, partner in zip(levels.student, levels.teacher, strict=True):
                here, there = mine[level], theirs[partner]
                matters = is_relative or len(here) > 1
                if matters and not torch.allclose(here, there, rtol=1e-3):
                    raise ConfigError(
                        f'model.distillers.{name}: anchors differ on the level of stride '
                        f'{self.spec.strides[level][0]}: widths and heights in strides are '
                        f'{_rounded(here)} of the student, {_rounded(there)} of the teacher, '
                        'expected the same in the same order. Set the same anchor_generator in '
                        "the student's head as in the teacher's."
                    )

    def _check_levels(self) -> None:
        if self._match.levels.covers_student or self.teacher.image_scale != 1:
            return
        for name, distiller in self.distillers.items():
            if not distiller.reads_of_teacher <= {'features', 'rois'}:
                raise ConfigError(
                    f'model.distillers.{name}: strides of the levels differ: student '
                    f'{self.spec.strides}, teacher {self.teacher.spec.strides}, expected a level '
                    "of the teacher for each of the student's. Choose such a teacher, or distil "
                    'features alone (FeatureDistiller).'
                )

    @property
    def _compares_classes(self) -> bool:
        return any(d.reads_of_teacher != {'features'} for d in self.distillers.values())

    def _use_classes(self, names: Sequence[str] | None) -> None:
        match = self.teacher.match_classes(names, self.spec.num_classes, self.dense_head_name)
        shared = self.spec.num_classes if match is None else len(match.student)
        for name, distiller in self.distillers.items():
            distiller.check_several_classes(
                shared, 'that both models know', f'model.distillers.{name}'
            )
        self._match.classes = match


def _check_gradient(head: nn.Module, outs: tuple) -> None:
    """Refuse what would train by the losses of features alone, where stock training would stop."""
    maps = [leaf for leaf in tree_flatten(outs)[0] if isinstance(leaf, Tensor)]
    is_trained = torch.is_grad_enabled() and any(p.requires_grad for p in head.parameters())
    if is_trained and not any(level.requires_grad for level in maps):
        raise ConfigError(
            f'activation_checkpointing: what {type(head).__name__} predicts has no gradient, as '
            'where this names the head: mmengine computes none from a list of features. Leave it '
            'out.'
        )


def _check_sizes(context: DistillationContext) -> None:
    """Refuse levels of one stride and other sizes (H, W), as where one model's neck pools them."""
    student, teacher = context.student, context.teacher
    strides = [stride for stride, _ in student.spec.strides]
    for stride, mine, theirs in zip(
        strides, student.level_shapes, teacher.level_shapes, strict=True
    ):
        if mine[:2] != theirs[:2]:
            is_rounding = all(abs(a - b) <= 1 for a, b in zip(mine[:2], theirs[:2], strict=True))
            advice = (
                'One model rounds parts of a cell up, the other one down: set '
                'model.data_preprocessor.pad_size_divisor to the largest stride, '
                f'{max(strides):g}, so that there are none, or choose another teacher.'
                if is_rounding
                else "The levels of one model's neck (start_level, num_outs) do not have the "
                'strides that its head says; correct that config.'
            )
            raise ConfigError(
                f'model.teacher.config: sizes of the maps of stride {stride:g} differ: student '
                f'{mine[0]} x {mine[1]}, teacher {theirs[0]} x {theirs[1]}, expected the same. '
                f'{advice}'
            )


def _rounded(shapes: Tensor) -> list[list[float]]:
    return [[round(side, 2) for side in shape] for shape in shapes.tolist()]


def check_parts(
    parts: Mapping[str, dict | None], others: Mapping[str, Any], expected: str, advice: str
) -> None:
    """Stop where a ``model`` lacks a part, or has one that its detector does not take.

    Args:
        parts: By their keys, those without which there is no detector.
        others: What the ``model`` has besides.
        expected: The detector with the keys of all its parts, for the message.
        advice: What to do, for its end.

    Raises:
        ConfigError: A part is None, or there are others.
    """
    missing = [f'no {name}' for name, part in parts.items() if part is None]
    if missing or others:
        found = ', '.join([*missing, *sorted(others)])
        raise ConfigError(
            f'model: found {found}; expected the parts of a {expected}, and beside them teacher '
            f'and distillers. {advice}'
        )


def loss_names(head: nn.Module) -> set[str]:
    """What follows ``loss_`` in the names of a head's losses."""
    return {name.removeprefix('loss_') for name in dir(head) if name.startswith('loss_')}
