"""The arrays of a golden file, and how a value of ours is compared with one of them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-4
ZERO_TOLERANCE = 1e-7


class Row(NamedTuple):
    """One output: ours beside the reference's, or the reason why there is nothing to compare."""

    name: str
    ours: Tensor | None = None
    expected: Tensor | None = None
    reason: str = ''


class Case:
    """The arrays of one file as tensors, and which of them have been used."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays
        self._unused = set(arrays)

    def __getitem__(self, name: str) -> Tensor:
        self._unused.discard(name)
        return torch.from_numpy(np.array(self._arrays[name]))

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def names(self, pattern: str) -> list[re.Match]:
        """Matches of the whole names of all arrays."""
        return [m for m in (re.fullmatch(pattern, name) for name in self._arrays) if m]

    def levels(self, name: str) -> list[Tensor]:
        """``lvl0_<name>``, ``lvl1_<name>``, ..."""
        return [self[f'lvl{level}_{name}'] for level in range(len(self['strides']))]

    def rows(self, ours: dict[str, Tensor], prefix: str = '') -> Iterator[Row]:
        """Those of our values that the file has something to compare with."""
        for name, value in ours.items():
            if prefix + name in self:
                yield Row(prefix + name, value.detach(), self[prefix + name])

    def gradient_rows(
        self, loss_name: str, loss: Tensor, maps: Mapping[str, Sequence[Tensor]]
    ) -> Iterator[Row]:
        """Gradients of a loss in the levels of all maps that the file has one for."""
        for match in self.names(rf'lvl(\d+)_grad_(\w+?)_of_{loss_name}'):
            level_map = maps[match[2]][int(match[1])]
            gradient = torch.autograd.grad(
                loss, level_map, retain_graph=True, materialize_grads=True, allow_unused=True
            )[0]
            yield from self.rows({match[0]: gradient})

    @property
    def unused(self) -> list[str]:
        return sorted(self._unused)


def compare(row: Row) -> tuple[float, float, bool]:
    """Largest absolute difference, the same over the reference's largest value, and agreement."""
    if row.ours.shape != row.expected.shape:
        return float('nan'), float('nan'), False
    if row.expected.numel() == 0:
        return 0.0, 0.0, True
    ours, expected = row.ours.double(), row.expected.double()  # 0 and 1 may be bool or float
    error, scale = (ours - expected).abs().max().item(), expected.abs().max().item()
    limit = TOLERANCE * scale if scale > 0 else ZERO_TOLERANCE
    if not (row.ours.is_floating_point() and row.expected.is_floating_point()):
        limit = 0.0
    relative = error / scale if scale > 0 else error
    return error, relative, error <= limit  # false where either holds NaN
