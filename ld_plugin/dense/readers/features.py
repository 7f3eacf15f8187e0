"""Any head of MMDetection's, of which the neck's features alone are compared."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from mmdet.models.task_modules import MlvlPointGenerator
from torch import Tensor

from ...errors import ConfigError
from ..context import Assignment
from ..outputs import HeadSpec
from ..recorder import HeadRecorder
from .base import ANY_HEAD, NO_READER, DenseReader, a_reader, register_reader, valid_flags

#: attributes of heads that know the strides of the levels
_GENERATORS = 'prior_generator', 'square_anchor_generator'


@register_reader(ANY_HEAD)
class FeatureReader(DenseReader):
    """Reads no predictions, so it fits whatever a head predicts and however it learns.

    Its priors are the cells of the levels, squares as wide as the stride, and it assigns none to a
    ground truth.
    """

    recorded_methods: ClassVar[tuple[str, ...]] = ('loss', 'loss_and_predict')
    decode = None  # there are no boxes
    #: as in :class:`HeadSpec`
    unread: str = NO_READER

    @property
    def spec(self) -> HeadSpec:
        head = self.head
        generator = next((getattr(head, x) for x in _GENERATORS if hasattr(head, x)), None)
        width = getattr(head, 'in_channels', None)
        if generator is None or not isinstance(width, int):
            raise ConfigError(
                f'{self.key}: found {type(head).__name__}, which does not tell the strides and the '
                f'one width of its levels, expected {a_reader(type(head).__name__)}'
            )
        strides = tuple(tuple(stride) for stride in generator.strides)
        return HeadSpec(
            name=type(head).__name__,
            num_classes=getattr(head, 'num_classes', 0),
            strides=strides,
            num_base_priors=(1,) * len(strides),
            num_bins=None,
            box_dim=4,
            feature_channels=width,
            unread=self.unread,
        )

    def maps(self, outs: Any) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return (), ()

    def assignment(self, record: HeadRecorder) -> Assignment:
        call = (record.arguments['loss'] or record.arguments['loss_and_predict'])[-1]
        spec, images = self.spec, call['batch_data_samples']
        levels = record.inputs[: len(spec.strides)]
        valid = valid_flags(self._cells, levels, [image.metainfo for image in images])
        return Assignment(
            labels=torch.full_like(valid, spec.num_classes, dtype=torch.int64),
            label_weights=valid.float(),
            valid=valid,
            num_classes=spec.num_classes,
        )

    def priors(self, sizes: Sequence[Any], device: torch.device) -> Tensor:
        levels = self._cells.grid_priors(sizes, device=device, with_stride=True)
        middles, strides = torch.cat(levels).split(2, dim=1)
        return torch.cat([middles - strides / 2, middles + strides / 2], dim=1)

    @property
    def _cells(self) -> MlvlPointGenerator:
        """Of their middles."""
        return MlvlPointGenerator(self.spec.strides, offset=0.5)
