"""Checks of the heads' arguments."""

from typing import Any

from ..checks import is_count
from ..errors import ConfigError


def check_whole(name: str, value: Any, meaning: str) -> None:
    """Refuse anything but a whole number of at least 1.

    Raises:
        ConfigError: ``value`` is something else.
    """
    if not is_count(value, 1):
        raise ConfigError(
            f'model.bbox_head.{name}: found {value!r}, expected a whole number of at least 1: '
            f'{meaning}.'
        )


def check_range(name: str, value: Any) -> None:
    """Refuse anything but two numbers of which the second is larger.

    Raises:
        ConfigError: ``value`` is something else.
    """
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    if not (is_pair and all(isinstance(x, int | float) for x in value) and value[0] < value[1]):
        raise ConfigError(
            f'model.bbox_head.{name}: found {value!r}, expected two numbers, the smaller one '
            'first: the values of the first and the last bin.'
        )
