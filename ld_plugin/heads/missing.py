"""Stand-ins for the rotated heads where MMRotate is not installed: they say so."""

from collections.abc import Callable
from typing import Any, NoReturn

from mmdet.registry import MODELS

from ..errors import ConfigError
from ..packages import how_to_install_mmrotate


def needs_mmrotate(name: str) -> Callable[..., NoReturn]:
    """What is built in place of this head; it raises a ConfigError."""

    def build(**kwargs: Any) -> NoReturn:
        raise ConfigError(
            f'model.bbox_head.type: found {name}, which needs MMRotate, and that is not installed. '
            f'Install it ({how_to_install_mmrotate()}).'
        )

    return build


for name in ('DistributionRotatedFCOSHead', 'DistributionRotatedRetinaHead'):
    MODELS.register_module(name=name, module=needs_mmrotate(name))
