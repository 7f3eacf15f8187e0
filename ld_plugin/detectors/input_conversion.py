"""From images normalised for one model to images normalised for another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_IDENTITY = ((1.0,) * 3, (0.0,) * 3)


@dataclass(frozen=True)
class InputConversion:
    """An affine map of every channel, after an exchange of the first and the last one.

    Padding is added after normalisation, so it is converted to the target's own padding value.

    Attributes:
        flips_channels: Whether RGB becomes BGR or the reverse.
        scale: Factor of every target channel.
        shift: What is added to it.
        padding: Value of the target's padding, in its normalised units.
        changes_padding: Whether that differs from the source's.
    """

    flips_channels: bool
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    padding: float
    changes_padding: bool

    @classmethod
    def between(cls, source: nn.Module, target: nn.Module) -> 'InputConversion':
        """Compare two ``DetDataPreprocessor``s."""
        source_mean, source_std = _normalisation(source)
        target_mean, target_std = _normalisation(target)
        flips = _flips(source) != _flips(target)
        if flips:
            source_mean, source_std = source_mean.flip(0), source_std.flip(0)
        scale = source_std / target_std
        shift = (source_mean - target_mean) / target_std
        source_padding, target_padding = (
            float(getattr(p, 'pad_value', 0)) for p in (source, target)
        )
        return cls(
            flips_channels=flips,
            scale=tuple(scale.tolist()),
            shift=tuple(shift.tolist()),
            padding=target_padding,
            changes_padding=source_padding != target_padding,
        )

    def __call__(self, images: Tensor, image_shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Convert images (N, 3, H, W), whose unpadded (height, width) are ``image_shapes``."""
        if self.flips_channels:
            images = images.flip(1)
        elif (self.scale, self.shift) == _IDENTITY and not self.changes_padding:
            return images
        scale, shift = (images.new_tensor(v)[:, None, None] for v in (self.scale, self.shift))
        converted = images * scale + shift
        for image, (height, width) in zip(converted, image_shapes, strict=True):
            image[:, height:] = self.padding
            image[:, :, width:] = self.padding
        return converted


def _flips(preprocessor: nn.Module) -> bool:
    return getattr(preprocessor, '_channel_conversion', False)


def _normalisation(preprocessor: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in the channel order after the flip, (3,) each, float64."""
    if not getattr(preprocessor, '_enable_normalize', False):
        return torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    return tuple(
        getattr(preprocessor, name).detach().cpu().double().flatten() for name in ('mean', 'std')
    )
