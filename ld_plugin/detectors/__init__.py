"""Distilled detectors, and the frozen teacher beside them."""

from .single_stage import DistilledSingleStageDetector
from .teacher import FrozenTeacher

__all__ = ['DistilledSingleStageDetector', 'FrozenTeacher']
