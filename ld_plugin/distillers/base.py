"""The interface of a distiller, and how a config becomes distillers."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from mmengine.registry import Registry
from torch import Tensor, nn

from ..dense import DistillationContext, HeadSpec
from ..dense.readers import heads_with_distributions, read_instead
from ..dense.rois import ROI_HEADS
from ..errors import ConfigError
from ..losses import DistillationLoss, DistributionKLLoss
from ..losses.eager_gradient import takes_rows_together
from ..losses.functional import at_least_float32
from ..regions import MainRegion, Region
from ..registry import DISTILLERS, LOSSES, REGIONS, SCHEDULES, build
from .schedules import ConstantSchedule, Schedule

#: of boxes, by E
KINDS = {4: 'horizontal', 5: 'rotated'}


class Distiller(nn.Module, ABC):
    """Compares one quantity of student and teacher over a region.

    A subclass gathers that quantity at the region's positions, then calls its loss.

    Args:
        region: Where; None for a distiller that knows its positions itself.
        loss: How.
        schedule: A factor over training; constantly 1 if None.

    Raises:
        ConfigError: The loss compares something else.

    Attributes:
        reads: Which outputs of both models it needs: ``'class_logits'``, ``'distributions'``,
            ``'boxes'``, ``'features'``, ``'quality'`` (the branch that rates a box),
            ``'head_features'`` (what the head's stacked convolutions pass on), ``'rois'`` (classes
            of a two-stage detector's proposals).
        reads_of_student: What it needs of the student besides: ``'matched_gts'`` (each positive's
            ground truth). Without a region it is taken to need ``'priors'`` (the head's own, and
            what they are assigned to), too.
        compares_maps: Whether its loss may take the rows of a level together, as
            ``PearsonFeatureLoss`` does.
        head_layers: After how many stacked convolutions it reads ``'head_features'``.
        looks_at_predictions: Whether it, or its region, looks at the student's own predictions.
        loss_registry: Where ``loss`` is looked up.
        loss_base: What ``loss`` has to be derived from.
        loss_compares_classes: Whether its loss takes the class logits of a position together, if it
            reads them.
        loss_of_scores: A loss that compares every class by itself, for messages.
        defaults: Configs of the parts that a user leaves out.
    """

    reads: ClassVar[frozenset[str]]
    reads_of_student: ClassVar[frozenset[str]] = frozenset()
    head_layers: frozenset[int] = frozenset()
    looks_at_predictions: ClassVar[bool] = True
    loss_registry: ClassVar[Registry] = LOSSES
    loss_base: ClassVar[type[nn.Module]] = DistillationLoss
    loss_compares_classes: ClassVar[bool] = True
    loss_of_scores: ClassVar[str] = "dict(type='BinaryKDLoss')"
    compares_maps: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(
        self, region: Region | None, loss: nn.Module, schedule: Schedule | None = None
    ) -> None:
        super().__init__()
        if not isinstance(loss, self.loss_base):
            raise ConfigError(
                f'loss: found {type(loss).__name__}, which does not compare what '
                f'{type(self).__name__} reads, expected one derived from '
                f'{self.loss_base.__name__}. Registered: {", ".join(self._fitting_losses())}.'
            )
        if takes_rows_together(loss) and not self.compares_maps:
            raise ConfigError(
                f'loss: found {type(loss).__name__}, which compares whole maps, but '
                f'{type(self).__name__} weights every position by itself. Expected a loss of '
                'single rows; FeatureDistiller takes either.'
            )
        self.region = region
        self.loss = loss
        self.schedule = schedule or ConstantSchedule()

    @classmethod
    def _fitting_losses(cls) -> list[str]:
        known = cls.loss_registry.module_dict.items()
        return sorted(name for name, loss in known if issubclass(loss, cls.loss_base))

    @abstractmethod
    def distill(self, context: DistillationContext) -> Tensor:
        """The loss before the schedule, a scalar; 0 with a defined gradient on an empty region."""

    def forward(self, context: DistillationContext) -> Tensor:
        return self.distill(context) * self.schedule.factor()

    @property
    def reads_of_teacher(self) -> frozenset[str]:
        """What the teacher has to provide, the region's needs included."""
        return self.reads | (self.region.reads if self.region else frozenset())

    @property
    def has_softmax(self) -> bool:
        """Whether its loss, or a part of it, compares the softmax over a row."""
        return any(isinstance(part, DistributionKLLoss) for part in self.loss.modules())

    @property
    def looks_at_positives_alone(self) -> bool:
        """Whether nothing is compared at priors that are assigned to no ground truth."""
        return isinstance(self.region, MainRegion)

    def prepare(self, student: HeadSpec, teacher: HeadSpec, key: str) -> None:
        """Check that both heads offer what is compared, and make trainable parts.

        Args:
            student: What the student's head predicts.
            teacher: What the teacher's head predicts.
            key: The distiller's place in the config, for messages.

        Raises:
            ConfigError: A head lacks what is compared, or the two predict it differently.
        """
        reads = self.reads_of_teacher
        of_student = self.region.reads_of_student if self.region else frozenset({'priors'})
        check_offers(key, 'student', student, reads | self.reads_of_student | of_student)
        check_offers(key, 'teacher', teacher, reads)
        if 'boxes' in self.reads and not student.boxes_have_gradient:
            raise ConfigError(
                f"{key}: the boxes of the student's head {student.name} pass no gradient on, so "
                'they cannot learn from others. Choose a distiller that reads no boxes, or another '
                'head.'
            )
        check_equal(
            key,
            'strides of the levels',
            student.strides,
            teacher.strides,
            'Positions correspond level by level; choose a teacher with the same strides, and a '
            'power of two for model.teacher.image_scale.',
        )
        if reads != {'features'}:
            self._check_predictions(student, teacher, key)

    def _check_predictions(self, student: HeadSpec, teacher: HeadSpec, key: str) -> None:
        """Check that what both predict at a prior corresponds; see :meth:`prepare`."""
        reads = self.reads_of_teacher
        check_equal(
            key,
            'kinds of boxes',
            KINDS[student.box_dim],
            KINDS[teacher.box_dim],
            'Of a teacher of the other kind, features alone (FeatureDistiller) can be distilled.',
        )
        check_equal(
            key,
            'priors per cell (num_base_priors)',
            student.num_base_priors,
            teacher.num_base_priors,
            "Set the same anchor_generator in the student's head as in the teacher's.",
        )
        check_equal(
            key,
            'number of classes (bbox_head.num_classes)',
            student.num_classes,
            teacher.num_classes,
            "The names of the teacher's classes are not known: give them in model.teacher.classes, "
            "or choose a teacher that was trained on the student's; features alone "
            '(FeatureDistiller) can be distilled from any.',
        )
        if 'class_logits' in reads and not self.looks_at_positives_alone:
            _check_background(key, student, teacher)
        self.check_several_classes(student.num_classes, f'of {student.name}', key)
        if reads & {'boxes', 'distributions'}:
            check_equal(
                key,
                'angle versions (bbox_head.bbox_coder.angle_version)',
                student.angle_version,
                teacher.angle_version,
                "Set angle_version to the teacher's wherever the student's config has it.",
            )
        if 'distributions' in reads:
            _check_distributions(key, student, teacher)

    def check_several_classes(self, num_classes: int, of: str, key: str) -> None:
        """Check that there are classes to compare with one another, if the loss does.

        A softmax over one class is 1 whatever its logit, and a loss on it always 0.

        Args:
            num_classes: How many classes are compared.
            of: Whose they are, for the message.
            key: The distiller's place in the config, for messages.

        Raises:
            ConfigError: The loss compares classes of which there is one.
        """
        of_classes = self.loss_compares_classes and 'class_logits' in self.reads
        if of_classes and num_classes == 1 and self.has_softmax:
            raise ConfigError(
                f'{key}.loss: found DistributionKLLoss over the one class {of}, expected a loss of '
                f"the class's own score. Set loss={self.loss_of_scores}, or leave this distiller "
                f'out ({key}=None). In place of an inherited loss it needs _delete_=True beside '
                'its type.'
            )


def _check_distributions(key: str, student: HeadSpec, teacher: HeadSpec) -> None:
    """The same bin must mean the same box."""
    check_equal(
        key,
        'bins per box side (bbox_head.reg_max + 1)',
        student.num_bins,
        teacher.num_bins,
        "Set model.bbox_head.reg_max to the teacher's.",
    )
    check_equal(
        key,
        'first and last bins (bbox_head.delta_range, bbox_head.angle_range)',
        student.bin_ranges,
        teacher.bin_ranges,
        "Set model.bbox_head's ranges to the teacher's.",
    )
    check_equal(
        key,
        'codings of the offsets (bbox_head.bbox_coder, bbox_head.anchor_generator.angle_version)',
        student.offset_coding,
        teacher.offset_coding,
        "The same bins mean other boxes. Set model.bbox_head.bbox_coder and the anchors' "
        "angle_version to the teacher's; boxes (BoxDistiller) can be distilled nevertheless.",
    )
    check_equal(
        key,
        "places of the priors' centres in their cells (center_offset of anchors, offset of points)",
        student.centre_offset,
        teacher.centre_offset,
        "The sides' distances count from there. Choose a teacher whose head has the student's; its "
        'class scores and boxes can be distilled nevertheless.',
    )


def _check_background(key: str, student: HeadSpec, teacher: HeadSpec) -> None:
    """The student's own losses must not ask for a background that the teacher has not learnt."""
    if teacher.rates_objects_alone and not student.rates_objects_alone:
        raise ConfigError(
            f'{key}: the class scores of {teacher.name} say nothing where there is no object, for '
            f"background is told by another branch; {student.name}'s are compared there, too. "
            "Expected region=dict(type='MainRegion'), features alone (FeatureDistiller), or a "
            'teacher of another kind.'
        )


def adapted(adapter: nn.Module, features: Tensor) -> Tensor:
    """The student's features behind a trainable adapter, in at least float32.

    Under mixed precision the adapter's weights are float32 and the features are not. A student that
    was converted as a whole, as by ``bfloat16()``, took the adapter along.

    Args:
        adapter: A convolution, or ``nn.Identity`` where the widths are equal.
        features: (N, F, H, W).
    """
    weight = next(adapter.parameters(), features)
    return at_least_float32(adapter(features.to(weight.dtype)))


#: what a config of mmengine's pure Python style leaves of an object that it imports
_NAME_ALONE = (
    ' A pure Python config imports recipes inside of `with read_base():`, or they are written out '
    'by their name.'
)


def build_distillers(
    cfg: Mapping[str, Mapping[str, Any]], student: HeadSpec, teacher: HeadSpec
) -> nn.ModuleDict:
    """Build ``model.distillers``; the keys name the losses.

    A config that inherits distillers takes one of them out with None in its place. Equal region
    configs give one object, so that a region is computed once per batch.

    Args:
        cfg: By key, the config of a distiller, or None.
        student: What the student's head predicts.
        teacher: What the teacher's head predicts.

    Raises:
        ConfigError: An unknown name, a bad value, or heads that do not fit.
    """
    if not isinstance(cfg, Mapping) or all(distiller is None for distiller in cfg.values()):
        raise ConfigError(
            f'model.distillers: found {cfg!r}, expected a dict with at least one distiller, for '
            'example ld_plugin.recipes.ld_full.' + (_NAME_ALONE if isinstance(cfg, str) else '')
        )
    regions: list[tuple[Mapping, Region]] = []
    distillers = nn.ModuleDict()
    for name, distiller_cfg in cfg.items():
        if distiller_cfg is None:
            continue
        key = f'model.distillers.{name}'
        if str(name).startswith('loss_'):
            raise ConfigError(
                f'{key}: its loss would be logged as loss_{name}, expected a name without loss_, '
                f'such as {str(name).removeprefix("loss_") or "ld"!r}.'
            )
        if not str(name).isidentifier() or hasattr(distillers, name):
            raise ConfigError(
                f'{key}: {name!r} cannot name a distiller; choose a plain word that is no method '
                "of a dict, such as 'ld'."
            )
        if isinstance(distiller_cfg, Mapping) and 'type' not in distiller_cfg:
            raise ConfigError(_without_type(str(name), cfg))
        distiller = _build_distiller(distiller_cfg, key, regions)
        distiller.prepare(student, teacher, key)
        distillers[name] = distiller
    return distillers


def _without_type(name: str, cfg: Mapping[str, Any]) -> str:
    """Message for what is no distiller, such as an option of one whose name is misspelt."""
    others = [
        str(other) for other, value in cfg.items() if isinstance(value, Mapping) and 'type' in value
    ]
    close = difflib.get_close_matches(name, others, n=1)
    hint = f' Did you mean {close[0]!r}?' if close else ''
    return (
        f"model.distillers.{name}: expected a dict with a 'type', found {cfg[name]!r}.{hint} There "
        f'are: {", ".join(others) or "none"}.'
    )


def _build_distiller(
    cfg: Mapping[str, Any], key: str, regions: list[tuple[Mapping, Region]]
) -> Distiller:
    parts = {}
    if isinstance(cfg, Mapping) and 'type' in cfg:
        cls = DISTILLERS.get(cfg['type']) if isinstance(cfg['type'], str) else cfg['type']
        defaults = getattr(cls, 'defaults', {})
        cfg = {**defaults, **cfg}
        losses = getattr(cls, 'loss_registry', LOSSES)
        if cfg.get('schedule') is None:  # as in a config that takes an inherited one back
            cfg.pop('schedule', None)
        for part, registry in (('loss', losses), ('schedule', SCHEDULES)):
            if part in cfg:
                parts[part] = build(registry, cfg.pop(part), f'{key}.{part}')
        if 'region' in cfg:
            parts['region'] = _shared_region(cfg.pop('region'), f'{key}.region', regions)
    return build(DISTILLERS, cfg, key, **parts)


def _shared_region(
    cfg: Mapping[str, Any], key: str, regions: list[tuple[Mapping, Region]]
) -> Region:
    for known, region in regions:
        if known == cfg:
            return region
    region = build(REGIONS, cfg, key)
    regions.append((cfg, region))
    return region


def check_offers(key: str, owner: str, spec: HeadSpec, reads: frozenset[str]) -> None:
    """Check that the head of the owner, ``'student'`` or ``'teacher'``, offers what is read.

    Raises:
        ConfigError: It does not.
    """
    missing = reads - spec.offers
    if missing and spec.unread:
        raise ConfigError(
            f"{key}: the {owner}'s head {spec.name} {spec.unread}, so this distiller or its region "
            f'finds no {_in_words(missing)}. Expected one of features alone (FeatureDistiller, '
            'DecoupledFeatureDistiller) whose region looks at ground truths or nothing '
            f'(EverywhereRegion, InsideGTRegion, GTCellsRegion), or {read_instead(spec)}'
        )
    if 'distributions' in reads and spec.num_bins is None and not spec.only_features:
        raise ConfigError(
            f"{key}: the {owner}'s head {spec.name} predicts boxes without distributions, "
            'which localization distillation needs. Heads that have them: '
            f'{", ".join(heads_with_distributions())}.'
        )
    if missing == {'rois'} and not spec.only_features:
        raise ConfigError(
            f"{key}: the {owner}'s head {spec.name} has no rois, which this distiller needs. "
            f'Expected a detector with a roi_head.type among {", ".join(ROI_HEADS)}.'
        )
    if missing:
        raise ConfigError(
            f"{key}: the {owner}'s head {spec.name} has no {_in_words(missing)}, which this "
            f'distiller or its region needs. It offers {_in_words(spec.offers)}; choose a '
            'distiller that reads those, or another head.'
        )


def _in_words(reads: frozenset[str]) -> str:
    return ', '.join(word.replace('_', ' ') for word in sorted(reads))


def check_equal(key: str, what: str, student: Any, teacher: Any, advice: str) -> None:
    """Check that student and teacher have the same of something.

    Raises:
        ConfigError: They do not; the message ends with the advice.
    """
    if student != teacher:
        raise ConfigError(
            f'{key}: {what} differ: student {student}, teacher {teacher}, expected the same. '
            f'{advice}'
        )
