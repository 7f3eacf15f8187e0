"""Checks of the values that a config gives to losses, regions, distillers and schedules."""

import math
from collections.abc import Callable
from typing import Any

from .errors import ConfigError


def check_above_zero(**values: Any) -> None:
    """Refuse anything but finite numbers above 0.

    Raises:
        ConfigError: A value is something else; the message starts with its name.
    """
    _check(values, lambda x: _is_number(x) and x > 0, 'a finite number above 0')


def check_not_negative(**values: Any) -> None:
    """Refuse anything but finite numbers of at least 0.

    Raises:
        ConfigError: A value is something else; the message starts with its name.
    """
    _check(values, lambda x: _is_number(x) and x >= 0, 'a finite number of at least 0')


def check_share(**values: Any) -> None:
    """Refuse anything but numbers between 0 and 1, both excluded.

    Raises:
        ConfigError: A value is something else; the message starts with its name.
    """
    _check(values, lambda x: _is_number(x) and 0 < x < 1, 'a number between 0 and 1')


def check_count(lowest: int, **values: Any) -> None:
    """Refuse anything but whole numbers of at least ``lowest``.

    Raises:
        ConfigError: A value is something else; the message starts with its name.
    """
    _check(values, lambda x: is_count(x, lowest), f'an integer of at least {lowest}')


def check_flag(**values: Any) -> None:
    """Refuse anything but True and False; a command line's ``no`` is text, which counts as True.

    Raises:
        ConfigError: A value is something else; the message starts with its name.
    """
    _check(values, lambda x: isinstance(x, bool), 'True or False')


def is_count(value: Any, lowest: int) -> bool:
    """Whether it is a whole number of at least ``lowest``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _check(values: dict[str, Any], fits: Callable[[Any], bool], expected: str) -> None:
    for name, value in values.items():
        if not fits(value):
            raise ConfigError(f'{name}: found {value!r}, expected {expected}.')
