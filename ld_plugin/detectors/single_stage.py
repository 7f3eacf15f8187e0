"""Any stock single-stage detector as a student."""

from collections.abc import Mapping
from typing import Any

from mmdet.models.detectors import SingleStageDetector
from mmdet.registry import MODELS

from .distilled import DistilledDetector, check_parts

_ADVICE = (
    'DistilledSingleStageDetector works over configs such as mmdet::gfl/gfl_r50_fpn_1x_coco.py, '
    'DistilledTwoStageDetector over Faster R-CNN, DistilledRefineSingleStageDetector over '
    "MMRotate's R3Det and S2ANet."
)
_SYNCHRONISED = (
    " In place of use_syncbn set sync_bn='torch' in the config itself; mmengine's runner then "
    'synchronises batch norm.'
)


@MODELS.register_module()
class DistilledSingleStageDetector(DistilledDetector, SingleStageDetector):
    """A stock single-stage detector that also learns from a frozen teacher.

    See :class:`~ld_plugin.detectors.distilled.DistilledDetector` for what a training step does.

    Args:
        teacher: Arguments of :class:`~ld_plugin.detectors.FrozenTeacher`: ``config``,
            ``checkpoint``, and its options.
        distillers: Configs of the distillers; each key names a loss.
        backbone, neck, bbox_head, train_cfg, test_cfg, data_preprocessor, init_cfg: As in the stock
            detector.
        unsupported: Anything else that a ``model`` of another kind of detector holds.

    Raises:
        ConfigError: The config cannot work; nothing has been trained.
    """

    dense_head_name = 'bbox_head'

    def __init__(
        self,
        backbone: dict | None = None,
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
        check_parts(
            dict(backbone=backbone, bbox_head=bbox_head),
            unsupported,
            'plain single-stage detector: backbone, neck, bbox_head',
            _ADVICE + (_SYNCHRONISED if 'use_syncbn' in unsupported else ''),
        )
        super().__init__(
            backbone=backbone,
            neck=neck,
            bbox_head=bbox_head,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        self.learn_from(teacher, distillers)
