"""Knowledge distillation for MMDetection and MMRotate: any stock config becomes a distilled one."""

from . import detectors, distillers, heads, losses, regions, runner
from .errors import ConfigError, NonFiniteTeacherError
from .version import __version__

__all__ = [
    'ConfigError',
    'NonFiniteTeacherError',
    '__version__',
    'detectors',
    'distillers',
    'heads',
    'losses',
    'regions',
    'runner',
]
