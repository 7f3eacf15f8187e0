"""Faster R-CNN, Cascade R-CNN and their rotated kin as students."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from mmdet.models.detectors import TwoStageDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor

from ..dense import ClassMatch, DistillationContext, HeadRecorder, HeadSpec
from ..dense.rois import RoIReader, RoIStage, nothing_sampled, sampled
from ..errors import ConfigError
from ..registry import type_name
from .distilled import DistilledDetector, check_parts, loss_names
from .teacher import TeacherOutputs


@MODELS.register_module()
class DistilledTwoStageDetector(DistilledDetector, TwoStageDetector):
    """A stock two-stage detector that also learns from a frozen teacher.

    See :class:`~ld_plugin.detectors.distilled.DistilledDetector` for what a training step does. The
    dense head that distillers and regions see is the region proposal network, whose only class is
    'object'. Besides, distillers of proposals compare the classes of those that the student's
    sampler chose: the teacher's RoI head sees the same boxes, in every stage of a cascade. Boxes
    may be rotated; in MMRotate's configs the type is ``'mmdet.DistilledTwoStageDetector'``.

    A single-stage teacher, or one with another RoI head, can teach its features.

    Args:
        teacher: Arguments of :class:`~ld_plugin.detectors.FrozenTeacher`: ``config``,
            ``checkpoint``, and its options.
        distillers: Configs of the distillers; each key names a loss.
        backbone, neck, rpn_head, roi_head, train_cfg, test_cfg, data_preprocessor, init_cfg: As in
            the stock detector.
        unsupported: Anything else that a ``model`` of another kind of detector holds.

    Raises:
        ConfigError: The config cannot work; nothing has been trained.
    """

    dense_head_name = 'rpn_head'
    has_two_stages = True

    def __init__(
        self,
        backbone: dict | None = None,
        rpn_head: dict | None = None,
        roi_head: dict | None = None,
        teacher: Mapping[str, Any] | None = None,
        distillers: Mapping[str, Mapping[str, Any]] | None = None,
        neck: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
        **unsupported: Any,
    ) -> None:
        check_parts(
            dict(backbone=backbone, rpn_head=rpn_head, roi_head=roi_head),
            unsupported,
            'two-stage detector: backbone, neck, rpn_head, roi_head',
            'DistilledTwoStageDetector works over configs such as '
            'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py.',
        )
        if type_name(roi_head.get('type')) == 'TridentRoIHead':
            raise ConfigError(
                "model.roi_head.type: found 'TridentRoIHead', whose detector has three branches, "
                'expected a head of a plain two-stage detector, such as StandardRoIHead.'
            )
        super().__init__(
            backbone=backbone,
            neck=neck,
            rpn_head=rpn_head,
            roi_head=roi_head,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        self._roi_classes: ClassMatch | None = None
        self.learn_from(teacher, distillers)

    @property
    def spec(self) -> HeadSpec:
        """What this student predicts."""
        reader = RoIReader.find(self.roi_head)
        return replace(super().spec, rois=reader.spec if reader else None)

    def observe(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> tuple[dict[str, Any], DistillationContext]:
        """The stock losses, and what distillers and regions get to see of the same step.

        Args:
            batch_inputs: (N, 3, H, W), normalised and padded.
            batch_data_samples: Ground truth and meta information of every image.

        Raises:
            ConfigError: What only data show does not fit: class names, sizes of levels, a head
                whose predictions have no gradient though it is trained.
            NonFiniteTeacherError: The teacher's output cannot be learned from.
        """
        if 'rois' not in self.teacher.reads:
            return super().observe(batch_inputs, batch_data_samples)
        records = RoIReader(self.roi_head).recorders()
        with ExitStack() as recording:
            for record in records:
                recording.enter_context(record)
            losses, context, teacher = self._observe_dense(batch_inputs, batch_data_samples)
        stages = [self._stage(number, record, teacher) for number, record in enumerate(records)]
        return losses, replace(context, rois=stages)

    def _stage(self, number: int, record: HeadRecorder, teacher: TeacherOutputs) -> RoIStage:
        """Both models' classes of the proposals of a stage."""
        reader = RoIReader(self.roi_head)
        found = sampled(record)
        if found is None:
            found = nothing_sampled(reader.spec, number, teacher.neck[0].device)
        stage = RoIStage(
            **found,
            teacher=self.teacher.classify_rois(teacher, number, found['rois']),
            loss_weight=reader.loss_weights[number],
        )
        return stage if self._roi_classes is None else self._roi_classes.rois(stage)

    @property
    def _own_losses(self) -> set[str]:
        of_proposals = loss_names(self.rpn_head)
        heads = [*RoIReader(self.roi_head).bbox_heads, *self.roi_head.children()]
        return {f'rpn_{name}' for name in of_proposals}.union(*map(loss_names, heads))

    @property
    def _compares_classes(self) -> bool:
        return 'rois' in self.teacher.reads

    def _use_classes(self, names: Sequence[str] | None) -> None:
        # the proposals' only class is the same for all detectors
        count = self.spec.rois.num_classes
        self._roi_classes = self.teacher.match_classes(names, count, 'roi_head.bbox_head')
