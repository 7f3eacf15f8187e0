"""Readers: one per head family, from its raw outputs to :class:`~ld_plugin.dense.DenseOutputs`."""

from .anchor import AnchorReader
from .atss import ATSSReader
from .base import (
    DenseReader,
    get_reader,
    heads_with_distributions,
    read_instead,
    register_reader,
    registered_heads,
)
from .distribution import (
    DistributionATSSReader,
    DistributionFCOSReader,
    DistributionRetinaReader,
    DistributionRotatedFCOSReader,
    DistributionRotatedRetinaReader,
)
from .fcos import FCOSReader
from .features import FeatureReader
from .gfl import GFLReader
from .paa import PAAReader
from .rotated import (
    AngleBranchRetinaReader,
    OrientedRPNReader,
    RotatedFCOSReader,
    RotatedRTMDetReader,
)
from .rtmdet import RTMDetReader
from .tood import TOODReader
from .vfnet import VFNetReader
from .yolox import YOLOXReader

__all__ = [
    'ATSSReader',
    'AnchorReader',
    'AngleBranchRetinaReader',
    'DenseReader',
    'DistributionATSSReader',
    'DistributionFCOSReader',
    'DistributionRetinaReader',
    'DistributionRotatedFCOSReader',
    'DistributionRotatedRetinaReader',
    'FCOSReader',
    'FeatureReader',
    'GFLReader',
    'OrientedRPNReader',
    'PAAReader',
    'RTMDetReader',
    'RotatedFCOSReader',
    'RotatedRTMDetReader',
    'TOODReader',
    'VFNetReader',
    'YOLOXReader',
    'get_reader',
    'heads_with_distributions',
    'read_instead',
    'register_reader',
    'registered_heads',
]
