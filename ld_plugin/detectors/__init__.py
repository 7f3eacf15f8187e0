"""Distilled detectors, and the frozen teacher beside them."""

from ..packages import is_installed
from .single_stage import DistilledSingleStageDetector
from .teacher import FrozenTeacher
from .two_stage import DistilledTwoStageDetector

__all__ = ['DistilledSingleStageDetector', 'DistilledTwoStageDetector', 'FrozenTeacher']

if is_installed('mmrotate'):
    from mmrotate.registry import MODELS

    from .refined import DistilledRefineSingleStageDetector

    __all__ += ['DistilledRefineSingleStageDetector']

    # under both names, with and without 'mmdet.', as the rotated heads
    for detector in (
        DistilledRefineSingleStageDetector,
        DistilledSingleStageDetector,
        DistilledTwoStageDetector,
    ):
        MODELS.register_module(module=detector)
