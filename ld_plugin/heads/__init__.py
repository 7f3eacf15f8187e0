"""Heads that predict distributions, for detectors that have none and for GFL v2."""

from .distribution import DistributionATSSHead, DistributionFCOSHead, DistributionRetinaHead
from .gflv2 import GFLV2Head

__all__ = [
    'DistributionATSSHead',
    'DistributionFCOSHead',
    'DistributionRetinaHead',
    'GFLV2Head',
]
