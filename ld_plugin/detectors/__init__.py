"""Distilled detectors, and the frozen teacher beside them."""

from .single_stage import DistilledSingleStageDetector
from .teacher import FrozenTeacher
from .two_stage import DistilledTwoStageDetector

__all__ = ['DistilledSingleStageDetector', 'DistilledTwoStageDetector', 'FrozenTeacher']
