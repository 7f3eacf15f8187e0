"""WHERE something is mimicked: each region selects priors and may weight them."""

from .background import BackgroundRegion
from .base import Region, Selection
from .everywhere import EverywhereRegion
from .fine_grained import FineGrainedRegion
from .general_instance import GIRegion
from .gt_cells import GTCellsRegion
from .inside_gt import InsideGTRegion
from .main import MainRegion
from .overlap import OverlapRegion
from .vlr import ValuableLocalizationRegion

__all__ = [
    'BackgroundRegion',
    'EverywhereRegion',
    'FineGrainedRegion',
    'GIRegion',
    'GTCellsRegion',
    'InsideGTRegion',
    'MainRegion',
    'OverlapRegion',
    'Region',
    'Selection',
    'ValuableLocalizationRegion',
]
