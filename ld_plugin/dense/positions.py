"""Selected positions of a batch, and how to read values at them.

Shape shorthand as in :mod:`ld_plugin.dense.outputs`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from mmdet.utils import reduce_mean
from torch import Tensor

LevelShape = tuple[int, int, int]


@dataclass(eq=False)  # frozen, Python 3.12 could not compile its cached properties
class Positions:
    """Priors (or cells, with A = 1) of a batch, ordered by level, image, row, column, anchor.

    A region holds a few hundred of tens of thousands of priors. Reading the maps at those alone is
    what keeps distillation cheap: no map is flattened, transposed or soft-maxed as a whole.

    Attributes:
        shapes: (H, W, A) of every level.
        indices: Per level, (K_l, 4): image, row, column, anchor.
        counts: (L,), the number of positions of every level on this process, float32.
    """

    shapes: Sequence[LevelShape]
    indices: Sequence[Tensor]
    counts: Tensor

    @classmethod
    def from_mask(cls, mask: Tensor, shapes: Sequence[LevelShape]) -> 'Positions':
        """Select where ``mask``, (N, P) bool, is set. This waits for the device once per level."""
        levels = [
            part.unflatten(1, shape)
            for part, shape in zip(
                mask.split([h * w * a for h, w, a in shapes], dim=1), shapes, strict=True
            )
        ]
        counts = torch.stack([level.sum() for level in levels]).float()
        return cls(shapes, [level.nonzero() for level in levels], counts)

    @classmethod
    def cells_from_mask(cls, mask: Tensor, shapes: Sequence[LevelShape]) -> 'Positions':
        """Select the cells that hold at least one prior where ``mask``, (N, P) bool, is set."""
        parts = mask.split([h * w * a for h, w, a in shapes], dim=1)
        cells = [
            part.unflatten(1, shape).any(-1).flatten(1)
            for part, shape in zip(parts, shapes, strict=True)
        ]
        return cls.from_mask(torch.cat(cells, dim=1), [(h, w, 1) for h, w, _ in shapes])

    def gather(self, maps: Sequence[Tensor]) -> Tensor:
        """Read maps (N, A * D, H, W) at the positions: (K, D)."""
        return torch.cat(self.gather_levels(maps))

    def gather_levels(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Read maps (N, A * D, H, W) at the positions: per level (K_l, D)."""
        levels = range(len(self.shapes))
        return [self.gather_level(*pair) for pair in zip(levels, maps, strict=True)]

    def gather_level(self, level: int, level_map: Tensor) -> Tensor:
        """Read the map (N, A * D, H, W) of a level at its positions: (K_l, D)."""
        image, row, column, anchor = self.indices[level].unbind(1)
        by_anchor = level_map.unflatten(1, (self.shapes[level][2], -1))
        return by_anchor[image, anchor, :, row, column]

    def take(self, values: Tensor) -> Tensor:
        """Read values (N, P, ...) at the positions: (K, ...)."""
        return values[torch.cat([index[:, 0] for index in self.indices]), self.prior_index]

    @cached_property
    def prior_index(self) -> Tensor:
        """(K,), each position's index in 0..P-1."""
        flat, start = [], 0
        for (height, width, anchors), index in zip(self.shapes, self.indices, strict=True):
            _, row, column, anchor = index.unbind(1)
            flat.append(start + (row * width + column) * anchors + anchor)
            start += height * width * anchors
        return torch.cat(flat)

    @cached_property
    def mean_level_counts(self) -> Tensor:
        """(L,), how many positions every level holds, averaged over the GPUs.

        Dividing every position's loss by it, and averaging gradients over the GPUs as
        DistributedDataParallel does, gives the mean over all positions of the level in the whole
        batch. Every process must ask for it, even one without positions.
        """
        return reduce_mean(self.counts)

    @cached_property
    def mean_level_count(self) -> Tensor:
        """(K,), of every position its level's :attr:`mean_level_counts`."""
        counts = self.mean_level_counts
        return torch.cat(
            [counts[level].expand(index.shape[0]) for level, index in enumerate(self.indices)]
        )


def mean_counts(masks: Sequence[Tensor]) -> Tensor:
    """(number of masks,), how often each is set, averaged over the GPUs; 1 where it never is.

    What a sum is divided by to be a mean over the whole batch. Every process must ask for it.
    """
    counts = reduce_mean(torch.stack([mask.sum() for mask in masks]).float())
    return counts.where(counts > 0, 1)
