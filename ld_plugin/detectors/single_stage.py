"""Any stock single-stage detector as a student."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from mmdet.models.detectors import SingleStageDetector
from mmdet.registry import MODELS
from torch import nn

from ..dense import registered_heads
from ..errors import ConfigError
from .distilled import DistilledDetector, check_parts

_ADVICE = (
    'DistilledSingleStageDetector works over configs such as mmdet::gfl/gfl_r50_fpn_1x_coco.py, '
    'DistilledTwoStageDetector over Faster R-CNN, DistilledRefineSingleStageDetector over '
    "MMRotate's R3Det and S2ANet."
)
#: what to do about a part that the stock detector's subclasses take
_INSTEAD = dict(
    use_syncbn=(
        " In place of use_syncbn set sync_bn='torch' in the config itself; mmengine's runner then "
        'synchronises batch norm.'
    ),
    teacher_config=(
        " MMDetection's own distillation is said otherwise here: "
        'teacher=dict(config=teacher_config, checkpoint=teacher_ckpt).'
    ),
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
            _ADVICE + ''.join(_INSTEAD[part] for part in _INSTEAD if part in unsupported),
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
        _check_loss(self.bbox_head)
        self.learn_from(teacher, distillers)


def _check_loss(head: nn.Module) -> None:
    """Refuse heads, such as ``LDHead``, to which a detector of their own gives something more."""
    given = signature(head.loss).parameters.values()
    needed = [p.name for p in given if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(needed) > 2:  # features and samples
        names = [cls.__name__ for cls in type(head).__mro__]
        base = next((name for name in names if name in registered_heads()), 'GFLHead')
        raise ConfigError(
            f'model.bbox_head.type: found {names[0]}, whose loss takes {", ".join(needed)}, which '
            f'its own detector gives it. Expected a head of a plain single-stage detector: {base}.'
        )
