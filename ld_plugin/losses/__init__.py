"""HOW a difference is measured: pure functions, and thin registered modules over them."""

from .base import DistillationLoss, WeightedLoss
from .binary import BinaryKDLoss
from .box import BoxLoss
from .decoupled import DecoupledLoss
from .distribution import DistributionKLLoss
from .eager_gradient import eager_gradient, pieces_of
from .feature import FeatureMSELoss, PearsonFeatureLoss
from .functional import (
    ChannelStatistics,
    channel_statistics,
    distribution_kl,
    feature_squared_error,
    modulated_binary_cross_entropy,
    pearson_feature_error,
    rank_kl,
    standardized,
)
from .rank import RankKLLoss

__all__ = [
    'BinaryKDLoss',
    'BoxLoss',
    'ChannelStatistics',
    'DecoupledLoss',
    'DistillationLoss',
    'DistributionKLLoss',
    'FeatureMSELoss',
    'PearsonFeatureLoss',
    'RankKLLoss',
    'WeightedLoss',
    'channel_statistics',
    'distribution_kl',
    'eager_gradient',
    'feature_squared_error',
    'modulated_binary_cross_entropy',
    'pearson_feature_error',
    'pieces_of',
    'rank_kl',
    'standardized',
]
