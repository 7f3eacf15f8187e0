"""HOW a difference is measured: pure functions, and thin registered modules over them."""

from .base import DistillationLoss
from .distribution import DistributionKLLoss
from .feature import FeatureMSELoss
from .functional import distribution_kl, feature_squared_error

__all__ = [
    'DistillationLoss',
    'DistributionKLLoss',
    'FeatureMSELoss',
    'distribution_kl',
    'feature_squared_error',
]
