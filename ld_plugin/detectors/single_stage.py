"""Any stock single-stage detector as a student."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from mmdet.models.detectors import SingleStageDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import get_box_tensor
from mmengine.logging import MessageHub
from torch import Tensor

from ..dense import DistillationContext, HeadRecorder, TeacherMatch, get_reader
from ..distillers import build_distillers
from ..errors import ConfigError
from .teacher import FrozenTeacher


@MODELS.register_module()
class DistilledSingleStageDetector(SingleStageDetector):
    """A stock single-stage detector that also learns from a frozen teacher.

    One training step:

    1. the teacher's forward pass, without autograd, before the student's activations take memory;
    2. the student's stock forward pass, label assignment and losses, while its raw outputs and its
       assignment are recorded;
    3. the losses of the distillers, in float32, each called ``loss_<key>``.

    Inference is the stock detector's, and so are the keys of ``state_dict()``, except for trainable
    parts of distillers under ``distillers.``.

    Args:
        teacher: Arguments of :class:`~ld_plugin.detectors.FrozenTeacher`: ``config``,
            ``checkpoint``, optionally ``precision`` and ``classes``.
        distillers: Configs of the distillers; each key names a loss.
        backbone, neck, bbox_head, train_cfg, test_cfg, data_preprocessor, init_cfg: As in the stock
            detector.
        unsupported: Anything else that a ``model`` of another kind of detector holds.

    Raises:
        ConfigError: The config cannot work; nothing has been trained.
    """

    def __init__(
        self,
        backbone: dict,
        bbox_head: dict | None = None,
        teacher: Mapping[str, Any] | None = None,
        distillers: Mapping[str, Mapping[str, Any]] | None = None,
        neck: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
        **unsupported: Any,
    ) -> None:
        _check_parts(bbox_head, unsupported)
        super().__init__(
            backbone=backbone,
            neck=neck,
            bbox_head=bbox_head,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        reader = get_reader(self.bbox_head)
        # not a torch module, hence neither in parameters() nor in state_dict()
        self.teacher = FrozenTeacher.from_config(teacher)
        self._match = TeacherMatch(reader.spec, self.teacher.spec_for(reader.spec))
        self.distillers = build_distillers(distillers, *self._match.specs)
        self._check_levels()
        self._check_loss_names()
        self.teacher.match_inputs(self.data_preprocessor)
        self.teacher.reads = frozenset().union(
            *(distiller.reads_of_teacher for distiller in self.distillers.values())
        )
        self.teacher.head_layers = frozenset().union(
            *(distiller.head_layers for distiller in self.distillers.values())
        )
        self._classes_matched = False

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Any]:
        """The stock losses, plus one ``loss_<key>`` per distiller.

        Args:
            batch_inputs: (N, 3, H, W), normalised and padded.
            batch_data_samples: Ground truth and meta information of every image.
        """
        losses, context = self.observe(batch_inputs, batch_data_samples)
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
        """
        self._match_classes()
        teacher = self.teacher(batch_inputs, [s.img_shape for s in batch_data_samples])
        reader = get_reader(self.bbox_head)
        layers = self.teacher.head_layers
        watched = reader.watched(layers)
        with HeadRecorder(self.bbox_head, reader.recorded_methods, watched) as record:
            losses = super().loss(batch_inputs, batch_data_samples)
        teacher.check_finite()  # here, where the stock loss has waited for the device anyway
        context = self._match.context(
            student=replace(
                reader.read(record.outs, record.inputs),
                head_features=reader.head_features(record, layers),
            ),
            teacher=teacher.outputs,
            assignment=reader.assignment(record),
            gt_bboxes=[get_box_tensor(s.gt_instances.bboxes) for s in batch_data_samples],
            gt_labels=[s.gt_instances.labels for s in batch_data_samples],
        )
        return losses, context

    def _distillation_losses(self, context: DistillationContext) -> dict[str, Tensor]:
        with torch.autocast(context.device.type, enabled=False):
            return {
                f'loss_{name}': distiller(context) for name, distiller in self.distillers.items()
            }

    def _apply(self, *args: Any, **kwargs: Any) -> 'DistilledSingleStageDetector':
        """Every move of a module (``to``, ``cuda``, ``cpu``) comes through here."""
        super()._apply(*args, **kwargs)
        self.teacher.to(next(self.parameters()).device)
        return self

    def _check_loss_names(self) -> None:
        taken = [name for name in self.distillers if hasattr(self.bbox_head, f'loss_{name}')]
        if taken:
            raise ConfigError(
                f'model.distillers.{taken[0]}: the head {type(self.bbox_head).__name__} has a loss '
                f"named 'loss_{taken[0]}' of its own. Choose another key."
            )

    def _check_levels(self) -> None:
        if self._match.levels.covers_student or self.teacher.image_scale != 1:
            return
        for name, distiller in self.distillers.items():
            if distiller.reads_of_teacher != {'features'}:
                raise ConfigError(
                    f'model.distillers.{name}: strides of the levels differ: student '
                    f'{get_reader(self.bbox_head).spec.strides}, teacher '
                    f'{self.teacher.spec.strides}, expected a level of the teacher for each of the '
                    "student's. Choose such a teacher, or distil features alone (FeatureDistiller)."
                )

    def _match_classes(self) -> None:
        """Pair the classes by name; the data set's names are known once a runner trains."""
        if self._classes_matched:
            return
        self._classes_matched = True
        if all(d.reads_of_teacher == {'features'} for d in self.distillers.values()):
            return
        meta = MessageHub.get_current_instance().get_info('dataset_meta') or {}
        self._match.classes = self.teacher.match_classes(
            meta.get('classes'), get_reader(self.bbox_head).spec.num_classes
        )


def _check_parts(bbox_head: dict | None, unsupported: Mapping[str, Any]) -> None:
    if bbox_head is None or unsupported:
        found = f'found {", ".join(sorted(unsupported))}' if unsupported else 'found no bbox_head'
        raise ConfigError(
            f'model: {found}; expected the parts of a plain single-stage detector: backbone, neck, '
            'bbox_head. DistilledSingleStageDetector works over configs such as '
            'mmdet::gfl/gfl_r50_fpn_1x_coco.py.'
        )
