"""WHAT is mimicked: each distiller reads one quantity of both models and hands it to a loss."""

from .base import Distiller, build_distillers
from .box import BoxDistiller
from .classification import ClassificationDistiller
from .crosshead import CrossHeadDistiller
from .feature import FeatureDistiller
from .localization import LocalizationDistiller
from .prediction_guided import PredictionGuidedFeatureDistiller
from .rank import RankDistiller
from .schedules import ConstantSchedule, LinearDecaySchedule, LinearWarmupSchedule

__all__ = [
    'BoxDistiller',
    'ClassificationDistiller',
    'ConstantSchedule',
    'CrossHeadDistiller',
    'Distiller',
    'FeatureDistiller',
    'LinearDecaySchedule',
    'LinearWarmupSchedule',
    'LocalizationDistiller',
    'PredictionGuidedFeatureDistiller',
    'RankDistiller',
    'build_distillers',
]
