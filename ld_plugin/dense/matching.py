"""Which levels and classes of a teacher correspond to which of the student's.

Distillers compare maps of equal shape. Where a teacher has further levels, sees the images larger,
or knows other classes or another order of them, both models' outputs and the student's assignment
are brought down to what they share before any distiller sees them. Shape shorthand as in
:mod:`ld_plugin.dense.outputs`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor

from ..errors import ConfigError
from .context import Assignment, DistillationContext, OnDemand
from .head_features import HeadFeatures, nothing
from .outputs import DenseOutputs, HeadSpec, RestOfHead
from .rois import RoIStage

ClassName = str | int


@dataclass(frozen=True)
class LevelMatch:
    """Pairs of levels with equal strides.

    Attributes:
        student: Indices of the student's levels.
        teacher: Index of each one's partner.
        num_student_levels: L of the student.
        num_teacher_levels: L of the teacher.
    """

    student: tuple[int, ...]
    teacher: tuple[int, ...]
    num_student_levels: int
    num_teacher_levels: int

    @classmethod
    def between(cls, student: HeadSpec, teacher: HeadSpec) -> 'LevelMatch':
        """Pair levels by stride; all in order where none are equal, for the checks to refuse."""
        partners = {stride: level for level, stride in enumerate(teacher.strides)}
        shared = [level for level, stride in enumerate(student.strides) if stride in partners]
        counts = len(student.strides), len(teacher.strides)
        if not shared:
            return cls(tuple(range(counts[0])), tuple(range(counts[1])), *counts)
        return cls(tuple(shared), tuple(partners[student.strides[i]] for i in shared), *counts)

    @property
    def covers_student(self) -> bool:
        """Whether every level of the student's has a partner."""
        return len(self.student) == self.num_student_levels

    def student_outputs(self, outputs: DenseOutputs) -> DenseOutputs:
        """The student's, of the paired levels."""
        return outputs if self.covers_student else take_levels(outputs, self.student)

    def teacher_outputs(self, outputs: DenseOutputs) -> DenseOutputs:
        """The teacher's, of the paired levels in the student's order."""
        if self.teacher == tuple(range(self.num_teacher_levels)):
            return outputs
        return take_levels(outputs, self.teacher)

    def assignment(self, assignment: Assignment, num_level_priors: Sequence[int]) -> Assignment:
        """The student's assignment on the paired levels.

        Args:
            assignment: On all levels.
            num_level_priors: Of all levels.
        """
        if self.covers_student:
            return assignment

        def take(values: Tensor) -> Tensor:
            levels = values.split(list(num_level_priors), dim=1)
            return torch.cat([levels[level] for level in self.student], dim=1)

        kept = assignment.positive & take_mask(self.student, num_level_priors, assignment.labels)
        return replace(
            assignment,
            labels=take(assignment.labels),
            label_weights=take(assignment.label_weights),
            valid=take(assignment.valid),
            positive_gts=_kept_gts(assignment, kept),
            all_positives=assignment.num_positives,
        )


def take_mask(levels: Sequence[int], num_level_priors: Sequence[int], like: Tensor) -> Tensor:
    """(1, P) bool, True for priors of these levels."""
    parts = [
        torch.full((1, count), level in levels, device=like.device)
        for level, count in enumerate(num_level_priors)
    ]
    return torch.cat(parts, dim=1)


def take_levels(outputs: DenseOutputs, levels: Sequence[int]) -> DenseOutputs:
    """Outputs with these levels only, in this order."""
    spec = outputs.spec
    taken = {
        name: [maps[level] for level in levels] if (maps := getattr(outputs, name)) else ()
        for name in ('class_maps', 'box_maps', 'features', 'quality_maps')
    }

    def priors() -> Tensor:
        parts = outputs.priors.split(outputs.num_level_priors)
        return torch.cat([parts[level] for level in levels])

    return replace(
        outputs,
        spec=take_spec_levels(spec, levels),
        make_priors=cache(priors),
        head_features={
            layer: HeadFeatures(*([branch[level] for level in levels] for branch in features))
            for layer, features in outputs.head_features.items()
        },
        rest_of_head=outputs.rest_of_head and _rest_of_levels(outputs, levels),
        **taken,
    )


def _rest_of_levels(outputs: DenseOutputs, levels: Sequence[int]) -> RestOfHead:
    """The rest of the head for features of these levels; the others get a few zeros."""

    def rest(layer: int, features: HeadFeatures) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        channels = outputs.spec.tower_channels[layer]

        def all_levels(branch: Iterable[Tensor]) -> Iterator[Tensor]:
            # none is asked for before the head asks, nor held any longer
            order, entering, taken = iter(levels), iter(branch), {}
            for level in range(len(outputs.spec.strides)):
                while level in levels and level not in taken:
                    taken[next(order)] = next(entering)
                if level in taken:
                    yield taken.pop(level)
                else:
                    yield nothing(outputs.class_maps[0], 1, channels)

        branches = HeadFeatures(*(branch and all_levels(branch) for branch in features))
        maps = outputs.rest_of_head(layer, branches)
        return tuple([branch[level] for level in levels] for branch in maps)

    return rest


def take_spec_levels(spec: HeadSpec, levels: Sequence[int]) -> HeadSpec:
    """``spec`` with these levels only."""
    return replace(
        spec,
        strides=tuple(spec.strides[level] for level in levels),
        num_base_priors=tuple(spec.num_base_priors[level] for level in levels),
    )


@dataclass(frozen=True)
class ClassMatch:
    """Pairs of classes.

    Attributes:
        student: Indices of the student's classes that have a partner.
        teacher: Index of each one's partner.
        num_student_classes: C of the student.
        num_teacher_classes: C of the teacher.
    """

    student: tuple[int, ...]
    teacher: tuple[int, ...]
    num_student_classes: int
    num_teacher_classes: int
    _indices: dict[tuple[tuple[int, ...], torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def by_name(cls, student: Sequence[str], teacher: Sequence[str]) -> 'ClassMatch':
        """Pair classes of equal name."""
        partners = {name: index for index, name in enumerate(teacher)}
        shared = [index for index, name in enumerate(student) if name in partners]
        return cls(
            tuple(shared),
            tuple(partners[student[index]] for index in shared),
            len(student),
            len(teacher),
        )

    @classmethod
    def in_order(cls, num_student_classes: int, num_teacher_classes: int) -> 'ClassMatch':
        """Pair equally many classes one by one; none where the numbers differ."""
        same = num_student_classes == num_teacher_classes
        shared = tuple(range(num_student_classes)) if same else ()
        return cls(shared, shared, num_student_classes, num_teacher_classes)

    @classmethod
    def by_map(
        cls,
        class_map: Mapping[ClassName, ClassName],
        student: Sequence[str] | int,
        teacher: Sequence[str] | int,
    ) -> 'ClassMatch':
        """Pair classes as the user says, and by equal name those that he says nothing of.

        Args:
            class_map: The student's class to the teacher's, each a name or an index; None in place
                of the teacher's leaves a class without a partner.
            student: The student's class names, or their number where names are not known.
            teacher: Likewise the teacher's.

        Raises:
            ConfigError: A name or an index that does not exist, or a student's class twice.
        """
        said = {
            _class_index(mine, student, "student's"): (
                None if other is None else _class_index(other, teacher, "teacher's")
            )
            for mine, other in class_map.items()
        }
        if len(said) < len(class_map):
            raise ConfigError(
                f'model.teacher.class_map: found {dict(class_map)}, which has a class of the '
                "student's twice, by name and by index. Expected it once."
            )
        if not isinstance(student, int) and not isinstance(teacher, int):
            by_name = cls.by_name(student, teacher)
            said = dict(zip(by_name.student, by_name.teacher, strict=True)) | said
        pairs = sorted((mine, other) for mine, other in said.items() if other is not None)
        counts = (n if isinstance(n, int) else len(n) for n in (student, teacher))
        return cls(tuple(s for s, _ in pairs), tuple(t for _, t in pairs), *counts)

    @property
    def covers_student(self) -> bool:
        """Whether every class of the student's has a partner."""
        return self.student == tuple(range(self.num_student_classes))

    @property
    def is_identity(self) -> bool:
        """Whether both models have the same classes in the same order."""
        return (
            self.covers_student
            and self.teacher == self.student
            and self.num_teacher_classes == self.num_student_classes
        )

    def student_outputs(self, outputs: DenseOutputs) -> DenseOutputs:
        """The student's, with the classes that have a partner."""
        return outputs if self.covers_student else self._take(outputs, self.student)

    def teacher_outputs(self, outputs: DenseOutputs) -> DenseOutputs:
        """The teacher's, with the partners in the student's order."""
        return outputs if self.is_identity else self._take(outputs, self.teacher)

    def assignment(self, assignment: Assignment) -> Assignment:
        """Labels count the pairs; positives without a partner become ``unknown`` background."""
        if self.covers_student:
            return assignment
        count = len(self.student)
        labels = self._partners(assignment.labels)
        lost = assignment.positive & (labels == count)
        return replace(
            assignment,
            labels=labels,
            label_weights=assignment.label_weights.masked_fill(lost, 0),
            num_classes=count,
            positive_gts=_kept_gts(assignment, assignment.positive & ~lost),
            unknown=lost,
            all_positives=assignment.num_positives,
        )

    def rois(self, stage: RoIStage) -> RoIStage:
        """Logits and labels of the pairs and background; what has no partner has weight 0."""
        device = stage.labels.device
        student = self._index((*self.student, self.num_student_classes), device)
        teacher = self._index((*self.teacher, self.num_teacher_classes), device)
        labels = self._partners(stage.labels)
        lost = (stage.labels < self.num_student_classes) & (labels == len(self.student))
        return replace(
            stage,
            student=stage.student[:, student],
            teacher=stage.teacher[:, teacher],
            labels=labels,
            label_weights=stage.label_weights.masked_fill(lost, 0),
        )

    def _partners(self, labels: Tensor) -> Tensor:
        """Labels of the student's, 0..C, as numbers of pairs; their number where there is none."""
        count = len(self.student)
        partners = labels.new_full((self.num_student_classes + 1,), count)
        index = self._index(self.student, partners.device)
        partners[index] = torch.arange(count, device=partners.device)
        return partners[labels]

    def with_partner(self, labels: Tensor) -> Tensor:
        """Which of these labels (G,) of the student's have a partner, (G,) bool."""
        return torch.isin(labels, self._index(self.student, labels.device))

    def _take(self, outputs: DenseOutputs, classes: tuple[int, ...]) -> DenseOutputs:
        if not outputs.class_maps:
            return outputs
        return _take_classes(outputs, self._index(classes, outputs.class_maps[0].device))

    def _index(self, classes: tuple[int, ...], device: torch.device) -> Tensor:
        """Indices as a tensor, which is made once: to copy one to a device is to wait for it."""
        key = classes, device
        if key not in self._indices:
            with torch.inference_mode(False):  # lest it be of no use in a training step
                self._indices[key] = torch.tensor(classes, device=device)
        return self._indices[key]


def take_class_maps(
    maps: Sequence[Tensor], num_base_priors: Sequence[int], classes: Tensor
) -> list[Tensor]:
    """Class maps (N, A * C, H, W) with the channels of these classes, (c,), in this order."""
    return [
        level_map.unflatten(1, (anchors, -1))[:, :, classes].flatten(1, 2)
        for level_map, anchors in zip(maps, num_base_priors, strict=True)
    ]


def _take_classes(outputs: DenseOutputs, classes: Tensor) -> DenseOutputs:
    anchors = outputs.spec.num_base_priors

    def rest(layer: int, features: HeadFeatures) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        class_maps, box_maps = outputs.rest_of_head(layer, features)
        return take_class_maps(class_maps, anchors, classes), box_maps

    return replace(
        outputs,
        spec=replace(outputs.spec, num_classes=len(classes)),
        class_maps=take_class_maps(outputs.class_maps, anchors, classes),
        rest_of_head=outputs.rest_of_head and rest,
    )


def _kept_gts(assignment: Assignment, kept: Tensor) -> Sequence[Tensor] | None:
    """``positive_gts`` of the positives that ``kept``, (N, P) bool, leaves."""
    if assignment.positive_gts is None:
        return None
    return OnDemand(
        lambda: [gts[mask] for gts, mask in zip(assignment.matched_gts, kept, strict=True)]
    )


def _class_index(name: ClassName, classes: Sequence[str] | int, whose: str) -> int:
    key = 'model.teacher.class_map'
    count = classes if isinstance(classes, int) else len(classes)
    is_known = not isinstance(classes, int) and name in classes
    if isinstance(name, str) and name.isdecimal() and not is_known:
        name = int(name)  # the command line and JSON have no other keys than text
    if isinstance(name, int):
        if not 0 <= name < count:
            raise ConfigError(f'{key}: the {whose} class {name} is not in 0..{count - 1}.')
        return name
    if isinstance(classes, int):
        raise ConfigError(
            f'{key}: found the name {name!r}, but the names of the {whose} classes are not known; '
            'give their indices, or set model.teacher.classes and metainfo.classes.'
        )
    if name not in classes:
        raise ConfigError(
            f'{key}: {name!r} is none of the {whose} classes {tuple(classes)}; correct the name.'
        )
    return list(classes).index(name)


def rescaled(outputs: DenseOutputs, scale: float) -> DenseOutputs:
    """Outputs on images that were enlarged by ``scale``, in pixels of the images before."""
    if scale == 1:
        return outputs
    decode = outputs.decoder

    def priors() -> Tensor:
        return outputs.priors / box_scale(outputs.priors, scale)

    def in_original_pixels(rows: Tensor, priors: Tensor, strides: Tensor) -> Tensor:
        # horizontal priors may have rotated boxes
        boxes = decode(rows, priors * box_scale(priors, scale), strides * scale)
        return boxes / box_scale(boxes, scale)

    return replace(
        outputs,
        spec=rescaled_spec(outputs.spec, scale),
        make_priors=cache(priors),
        decoder=in_original_pixels,
    )


def rescaled_spec(spec: HeadSpec, scale: float) -> HeadSpec:
    """``spec`` with strides in pixels of images before they are enlarged by ``scale``."""
    if scale == 1:
        return spec
    return replace(spec, strides=tuple((x / scale, y / scale) for x, y in spec.strides))


def box_scale(boxes: Tensor, scale: float) -> Tensor:
    """Factor of every box parameter (E,); an angle, the fifth, stays."""
    factor = boxes.new_full((boxes.shape[1],), scale)
    factor[4:] = 1
    return factor


class TeacherMatch:
    """Brings a student's and a teacher's outputs down to the levels and classes that they share.

    Args:
        student: What the student's head predicts.
        teacher: What the teacher's head predicts.
        classes: The classes of both; None while all of them correspond in order.

    Attributes:
        levels: The pairs of levels.
    """

    def __init__(
        self, student: HeadSpec, teacher: HeadSpec, classes: ClassMatch | None = None
    ) -> None:
        self._specs = student, teacher
        self.levels = LevelMatch.between(student, teacher)
        self.classes = classes

    @property
    def specs(self) -> tuple[HeadSpec, HeadSpec]:
        """What is compared of student and teacher: the paired levels of their heads."""
        student, teacher = self._specs
        return (
            take_spec_levels(student, self.levels.student),
            take_spec_levels(teacher, self.levels.teacher),
        )

    def context(
        self,
        student: DenseOutputs,
        teacher: DenseOutputs,
        assignment: Assignment,
        gt_bboxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
    ) -> DistillationContext:
        """One training step on what both share.

        Ground truths whose class has no partner are left out: the teacher does not know them.

        Args:
            student: All that the student predicted.
            teacher: All that the teacher predicted.
            assignment: The student's.
            gt_bboxes: Per image, (G, E).
            gt_labels: Per image, (G,).
        """
        assignment = self.levels.assignment(assignment, student.num_level_priors)
        student = self.levels.student_outputs(student)
        teacher = self.levels.teacher_outputs(teacher)
        if self.classes is not None:
            student = self.classes.student_outputs(student)
            teacher = self.classes.teacher_outputs(teacher)
            assignment = self.classes.assignment(assignment)
            if not self.classes.covers_student:
                kept = [self.classes.with_partner(labels) for labels in gt_labels]
                assignment = _renumbered(assignment, kept)
                gt_bboxes = [boxes[k] for boxes, k in zip(gt_bboxes, kept, strict=True)]
        return DistillationContext(student, teacher, assignment, gt_bboxes)


def _renumbered(assignment: Assignment, kept: Sequence[Tensor]) -> Assignment:
    """Count only the ground truths that ``kept``, (G,) bool per image, leaves."""
    if assignment.positive_gts is None:
        return assignment

    def numbers() -> list[Tensor]:
        images = zip(kept, assignment.positive_gts, strict=True)
        return [(k.cumsum(0) - 1)[gts] for k, gts in images]

    return replace(assignment, positive_gts=OnDemand(numbers))
