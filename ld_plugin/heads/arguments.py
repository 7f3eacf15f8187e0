"""Checks of the heads' arguments."""

from typing import Any

from ..errors import ConfigError


def check_count(name: str, value: Any, meaning: str) -> None:
    """Refuse anything but a whole number of at least 1.

    Raises:
        ConfigError: ``value`` is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(
            f'bbox_head.{name}: found {value!r}, expected a whole number of at least 1: {meaning}.'
        )
