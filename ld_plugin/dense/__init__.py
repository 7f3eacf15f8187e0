"""One representation of dense detectors, and the readers that produce it."""

from .context import Assignment, DistillationContext
from .matching import ClassMatch, LevelMatch, TeacherMatch
from .outputs import DenseOutputs, HeadSpec
from .positions import Positions
from .readers import (
    DenseReader,
    get_reader,
    heads_with_distributions,
    register_reader,
    registered_heads,
)
from .recorder import HeadRecorder

__all__ = [
    'Assignment',
    'ClassMatch',
    'DenseOutputs',
    'DenseReader',
    'DistillationContext',
    'HeadRecorder',
    'HeadSpec',
    'LevelMatch',
    'Positions',
    'TeacherMatch',
    'get_reader',
    'heads_with_distributions',
    'register_reader',
    'registered_heads',
]
