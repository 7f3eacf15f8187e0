"""Stand-ins for the rotated heads where MMRotate is not installed: they say so."""

from collections.abc import Callable
from typing import Any, NoReturn

from mmdet.registry import MODELS

from ..errors import ConfigError


def needs_mmrotate(name: str) -> Callable[..., NoReturn]:
    """What is built in place of this head; it raises a ConfigError."""

    def build(**kwargs: Any) -> NoReturn:
        raise ConfigError(
            f'model.bbox_head.type: found {name}, which needs MMRotate, and that is not installed. '
            "Install it (pip install 'mmdet-ld-plugin[rotated]')."
        )

    return build


for name in ('DistributionRotatedFCOSHead', 'DistributionRotatedRetinaHead'):
    MODELS.register_module(name=name, module=needs_mmrotate(name))
