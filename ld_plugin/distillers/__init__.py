"""WHAT is mimicked: each distiller reads one quantity of both models and hands it to a loss."""

from .base import Distiller, build_distillers
from .box import BoxDistiller
from .classification import ClassificationDistiller
from .crosshead import CrossHeadDistiller
from .decoupled import DecoupledClassificationDistiller, DecoupledFeatureDistiller
from .feature import FeatureDistiller
from .localization import LocalizationDistiller
from .prediction_guided import PredictionGuidedFeatureDistiller
from .quality import QualityDistiller
from .rank import RankDistiller
from .roi import DecoupledRoIClassificationDistiller, RoIClassificationDistiller
from .schedules import ConstantSchedule, LinearDecaySchedule, LinearWarmupSchedule

__all__ = [
    'BoxDistiller',
    'ClassificationDistiller',
    'ConstantSchedule',
    'CrossHeadDistiller',
    'DecoupledClassificationDistiller',
    'DecoupledFeatureDistiller',
    'DecoupledRoIClassificationDistiller',
    'Distiller',
    'FeatureDistiller',
    'LinearDecaySchedule',
    'LinearWarmupSchedule',
    'LocalizationDistiller',
    'PredictionGuidedFeatureDistiller',
    'QualityDistiller',
    'RankDistiller',
    'RoIClassificationDistiller',
    'build_distillers',
]
