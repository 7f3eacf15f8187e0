"""A region of one's own: priors near the centre of an object."""

import torch
from torch import Tensor

from ld_plugin.dense import DistillationContext
from ld_plugin.errors import ConfigError
from ld_plugin.regions import Region
from ld_plugin.registry import REGIONS


@REGIONS.register_module()
class CentreRegion(Region):
    """Priors whose centre lies in the middle of a ground truth: ``dict(type='CentreRegion')``.

    Args:
        share: Of the ground truth's width and height that counts as its middle; in (0, 1].
    """

    def __init__(self, share: float = 0.5) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f'share: found {share}, expected a number in (0, 1].')
        self.share = share

    def weights(self, context: DistillationContext) -> Tensor:
        priors = context.student.priors
        centres = (priors[:, None, :2] + priors[:, None, 2:]) / 2  # (P, 1, 2)
        images = []
        for gts, valid in self.per_image(context):  # (G, 4), (P,)
            offset = (centres - (gts[:, :2] + gts[:, 2:]) / 2).abs()  # (P, G, 2)
            middle = self.share * (gts[:, 2:] - gts[:, :2]) / 2
            images.append((offset < middle).all(-1).any(-1) & valid)
        return torch.stack(images)  # (N, P), True inside
