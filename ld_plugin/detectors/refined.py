"""R3Det and S2ANet, whose heads refine the boxes of a first one, as students."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.registry import MODELS
from mmrotate.models.detectors import RefineSingleStageDetector

from .distilled import DistilledDetector, check_parts, loss_names


@MODELS.register_module()
class DistilledRefineSingleStageDetector(DistilledDetector, RefineSingleStageDetector):
    """A stock R3Det or S2ANet of MMRotate's that also learns from a frozen teacher.

    See :class:`~ld_plugin.detectors.distilled.DistilledDetector` for what a training step does. The
    dense head that distillers and regions see is the first one, a rotated RetinaNet's: those that
    follow take its boxes for priors, which differ between student and teacher, and are left to
    their labels. In MMRotate's configs the type is ``'mmdet.DistilledRefineSingleStageDetector'``.

    Args:
        teacher: Arguments of :class:`~ld_plugin.detectors.FrozenTeacher`: ``config``,
            ``checkpoint``, and its options.
        distillers: Configs of the distillers; each key names a loss.
        backbone, neck, bbox_head_init, bbox_head_refine, train_cfg, test_cfg, data_preprocessor,
            init_cfg: As in the stock detector.
        unsupported: Anything else that a ``model`` of another kind of detector holds.

    Raises:
        ConfigError: The config cannot work; nothing has been trained.
    """

    dense_head_name = 'bbox_head_init'

    def __init__(
        self,
        backbone: dict | None = None,
        bbox_head_init: dict | None = None,
        bbox_head_refine: Sequence[dict] | None = None,
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
            dict(
                backbone=backbone,
                bbox_head_init=bbox_head_init,
                bbox_head_refine=bbox_head_refine,
            ),
            unsupported,
            'detector whose heads refine boxes: backbone, neck, bbox_head_init, bbox_head_refine',
            'DistilledRefineSingleStageDetector works over configs such as '
            'mmrotate::s2anet/s2anet-le135_r50_fpn_1x_dota.py.',
        )
        super().__init__(
            backbone=backbone,
            neck=neck,
            bbox_head_init=bbox_head_init,
            bbox_head_refine=bbox_head_refine,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        self.learn_from(teacher, distillers)

    @property
    def _own_losses(self) -> set[str]:
        stages = enumerate(self.bbox_head_refine)
        named = {'init': self.bbox_head_init} | {f'refine_{i}': head for i, head in stages}
        return {f'{name}_{stage}' for stage, head in named.items() for name in loss_names(head)}
