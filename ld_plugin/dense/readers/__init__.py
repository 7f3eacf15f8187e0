"""Readers: one per head family, from its raw outputs to :class:`~ld_plugin.dense.DenseOutputs`."""

from .base import DenseReader, get_reader, heads_with_distributions, register_reader
from .gfl import GFLReader

__all__ = [
    'DenseReader',
    'GFLReader',
    'get_reader',
    'heads_with_distributions',
    'register_reader',
]
