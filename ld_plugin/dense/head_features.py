"""Features inside a head: what its stacked convolutions pass on, and the rest of it from there."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from mmcv.cnn import ConvModule
from torch import Tensor, nn


class HeadFeatures(NamedTuple):
    """What comes out of the i-th stacked convolution of both branches, before its activation.

    Attributes:
        classes: Level after level, of the classification branch, (N, F, H, W), or what is kept of
            it; None where nobody asks for the branch.
        boxes: Level after level, of the regression branch, likewise.
    """

    classes: Iterable[Any] | None = None
    boxes: Iterable[Any] | None = None


def is_large(features: Tensor) -> bool:
    """Whether a level is worth some time to save memory: more than 8 MB in float32.

    Args:
        features: (N, F, H, W).
    """
    return features.numel() > 2**21


def nothing(like: Tensor, images: int, channels: int) -> Tensor:
    """Zeros in place of a level that nobody looks at, (images, channels, 2, 2).

    A single cell would ask a processor's convolutions for other weights than larger maps do.
    """
    return like.new_zeros(images, channels, 2, 2)


class Tower:
    """The stacked convolutions of one branch of a head.

    The levels share them, or each level has its own.

    Args:
        head: The head.
        name: Of its attribute that holds the convolutions: a list, or a list of them per level.
    """

    def __init__(self, head: nn.Module, name: str) -> None:
        self.head = head
        self.name = name

    @property
    def channels(self) -> tuple[int, ...]:
        """Widths of what enters the first convolution, and of what leaves each.

        Empty if there is none, or one of them is no convolution with an activation.
        """
        layers = [layer for stack in self._stacks for layer in stack]
        if not layers or not all(isinstance(x, ConvModule) and x.with_activation for x in layers):
            return ()
        first = self._stacks[0]
        return (first[0].in_channels, *(layer.out_channels for layer in first))

    def activations(self, layer: int) -> list[nn.Module]:
        """The modules that the features after ``layer`` convolutions enter, level after level."""
        return [stack[layer - 1].activate for stack in self._stacks]

    @property
    def keeps_width(self) -> bool:
        """Whether what leaves the convolutions has the width of what enters them."""
        return bool(self.channels) and self.channels[0] == self.channels[-1]

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Let the head's forward do without the convolutions; what follows gets what they would."""
        with self._replaced([nn.Sequential() for _ in self._stacks]):
            yield

    @contextmanager
    def skipping(self, layer: int, features: Iterable[Tensor]) -> Iterator[None]:
        """Let the head's forward begin after ``layer`` convolutions, with these features.

        Args:
            layer: How many convolutions are skipped; the activation of the last one is not.
            features: Per level, (N, F, H, W), each asked for in its turn; activations overwrite
                them.
        """
        levels = iter(features)
        rests = [
            nn.Sequential(
                _HandOut(levels),
                *([stack[layer - 1].activate] if layer else []),
                *list(stack)[layer:],
            )
            for stack in self._stacks
        ]
        with self._replaced(rests):
            yield

    @contextmanager
    def _replaced(self, stacks: Sequence[nn.Module]) -> Iterator[None]:
        """Let the head have other layers, as many stacks of them as it has."""
        complete = getattr(self.head, self.name)
        setattr(self.head, self.name, stacks[0] if self._is_shared else nn.ModuleList(stacks))
        try:
            yield
        finally:
            setattr(self.head, self.name, complete)

    @property
    def _stacks(self) -> list[Sequence[nn.Module]]:
        """The layers of every level, or those that all levels share."""
        layers = getattr(self.head, self.name)
        return [layers] if self._is_shared else list(layers)

    @property
    def _is_shared(self) -> bool:
        layers = getattr(self.head, self.name)
        return not any(isinstance(layer, nn.ModuleList | nn.Sequential) for layer in layers)


class _HandOut(nn.Module):
    """Stands in a tower for its first layers: gives the features of one level after the other."""

    def __init__(self, levels: Iterator[Tensor]) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        return next(self.levels)
