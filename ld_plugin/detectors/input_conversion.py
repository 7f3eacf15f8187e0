"""From images normalised for one model to images normalised for another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class InputConversion:
    """An affine map of every channel, after an exchange of the first and the last one.

    Padding is added after normalisation, so it is converted to the target's own padding value.

    Attributes:
        flips_channels: Whether RGB becomes BGR or the reverse.
        scale: Factor of every target channel; a single one is that of all.
        shift: What is added to it, likewise.
        padding: Value of the target's padding, in its normalised units.
        source_padding: Value of the source's.
    """

    flips_channels: bool
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    padding: float
    source_padding: float

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
            source_padding=source_padding,
        )

    def __call__(self, images: Tensor, image_shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Convert images (N, C, H, W), whose unpadded (height, width) are ``image_shapes``."""
        if self.flips_channels:
            images = images.flip(1)
        elif self._changes_nothing:
            return images
        # channel by channel: to copy numbers to a device is to wait for it
        scales, shifts = (_each(x, images.shape[1]) for x in (self.scale, self.shift))
        channels = zip(images.unbind(1), scales, shifts, strict=True)
        converted = torch.stack([image * scale + shift for image, scale, shift in channels], dim=1)
        return _pad(converted, image_shapes, self.padding)

    @property
    def _changes_nothing(self) -> bool:
        is_identity = set(self.scale) == {1.0} and set(self.shift) == {0.0}
        return is_identity and self.padding == self.source_padding

    def resize(
        self, images: Tensor, image_shapes: Sequence[tuple[int, int]], factor: float
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """Source images (N, C, H, W) enlarged by ``factor``, and their unpadded shapes then."""
        if factor == 1:
            return images, list(image_shapes)
        size, *shapes = (
            (math.ceil(height * factor), math.ceil(width * factor))
            for height, width in (images.shape[-2:], *image_shapes)
        )
        resized = F.interpolate(images, size, mode='bilinear', antialias=factor < 1)
        # the border has been mixed with the padding
        return _pad(resized, shapes, self.source_padding), shapes


def _each(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values


def _pad(images: Tensor, image_shapes: Sequence[tuple[int, int]], value: float) -> Tensor:
    for image, (height, width) in zip(images, image_shapes, strict=True):
        image[:, height:] = value
        image[:, :, width:] = value
    return images


def _flips(preprocessor: nn.Module) -> bool:
    return getattr(preprocessor, '_channel_conversion', False)


def _normalisation(preprocessor: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in the channel order after the flip, float64.

    (C,) each, or (1,) for all channels.
    """
    if not getattr(preprocessor, '_enable_normalize', False):
        return torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    return tuple(
        getattr(preprocessor, name).detach().cpu().double().flatten() for name in ('mean', 'std')
    )
