"""Heads that predict distributions, for detectors that have none and for GFL v2."""

from ..packages import is_installed
from .distribution import DistributionATSSHead, DistributionFCOSHead, DistributionRetinaHead
from .gflv2 import GFLV2Head

__all__ = [
    'DistributionATSSHead',
    'DistributionFCOSHead',
    'DistributionRetinaHead',
    'GFLV2Head',
]

if is_installed('mmrotate'):
    from .rotated import DistributionRotatedFCOSHead, DistributionRotatedRetinaHead

    __all__ += ['DistributionRotatedFCOSHead', 'DistributionRotatedRetinaHead']
else:
    from . import missing  # noqa: F401  (says so where a config names them)
