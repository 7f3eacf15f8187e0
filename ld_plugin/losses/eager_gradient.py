"""Compute a loss together with its gradient, so that nothing else is kept for the backward pass."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .functional import at_least_float32


@torch.compiler.disable  # a compiled step cannot compute gradients on its way
def eager_gradient(
    function: Callable[..., Tensor],
    *inputs: Tensor,
    modules: Iterable[nn.Module] = (),
    pieces: int = 1,
    overwrite: bool = False,
) -> Tensor:
    """``function(*inputs)``, whose gradient is computed at once.

    A loss over whole levels makes a dozen temporaries of the level's size, and autograd would keep
    most of them, of all levels, until the backward pass. Here they are freed before the next level
    is looked at; what remains is one gradient per input.

    Args:
        function: Of tensors like the inputs, to a scalar; the inputs and the modules' parameters
            must be all it differentiates.
        inputs: Of any float type; the function sees half precision as float32. Their gradients wait
            in float32, where those of a mean over many positions do not vanish before a scaler of
            mixed precision multiplies them.
        modules: What the function computes with, such as a loss. Parameters that it trains get
            their gradient, too.
        pieces: The inputs are cut into at most as many along dimension 1, and ``function``, which
            must be a sum over it, is computed piece by piece: less memory, more calls.
        overwrite: Write the gradient of the first input over it, unless it is of half precision.
            Only for what nobody reads any more, autograd included, which does not keep what a
            convolution gives, for example.

    Returns:
        The scalar. It can be differentiated once.
    """
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    return _EagerGradient.apply(function, pieces, overwrite, len(inputs), *inputs, *trained)


def pieces_of(level: Tensor, numbers: int = 0, loss: nn.Module | None = None) -> int:
    """In how many pieces along dimension 1 to look at a level.

    In so many that temporaries are as large as :func:`numbers_at_once` says. The logits of nine
    anchors and eighty classes are many times as many.

    Args:
        level: Such as logits (N, A, H, W, C), or features (N, H, W, F) or (N, F, H, W).
        numbers: How many a temporary has, if more than the level.
        loss: What looks at it; in one piece if its rows, or those of a part of it, depend on one
            another.
    """
    if loss is not None and takes_rows_together(loss):
        return 1
    return min(level.shape[1], math.ceil(max(level.numel(), numbers, 1) / numbers_at_once(level)))


def numbers_at_once(x: Tensor) -> int:
    """How many numbers a temporary should have on the device of ``x``.

    Half a million, two megabytes, are what a processor's caches hold; a GPU takes sixteen times as
    many, below which it would wait for its host between the operators.
    """
    return 2**23 if x.is_cuda else 2**19


def levels_at_once(sizes: Sequence[int], at_once: int) -> list[list[int]]:
    """Levels to look at in one go, because an operator on a small one takes as long as on them all.

    Args:
        sizes: Of the levels, in numbers that a temporary has.
        at_once: How many of them there should be, such as :func:`numbers_at_once`.

    Returns:
        Groups of neighbours, of no more numbers than that; what is larger is alone.
    """
    groups: list[list[int]] = []
    total: float = math.inf  # so that the first begins a group
    for level, size in enumerate(sizes):
        total += size
        if total > at_once:
            groups.append([])
            total = size
        groups[-1].append(level)
    return groups


def takes_rows_together(loss: nn.Module) -> bool:
    """Whether a row's loss, or that of a part of the loss, depends on other rows."""
    return not all(getattr(part, 'rows_are_independent', True) for part in loss.modules())


class _EagerGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Tensor],
        pieces: int,
        overwrite: bool,
        number: int,
        *tensors: Tensor,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[4:]
        inputs, trained = tensors[:number], tensors[number:]
        if pieces == 1 and not overwrite:
            value, gradients = _value_and_gradients(function, inputs, wanted[:number], trained)
        else:
            value, gradients = _in_pieces(
                function, inputs, wanted[:number], trained, pieces, overwrite
            )
        ctx.save_for_backward(*gradients)
        ctx.wanted, ctx.like = wanted, [(x.dtype, _layout(x)) for x in tensors]
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        return (
            None,
            None,
            None,
            None,
            *(
                _product(next(saved), upstream, *like) if wanted else None
                for wanted, like in zip(ctx.wanted, ctx.like, strict=True)
            ),
        )


def _layout(x: Tensor) -> torch.memory_format:
    """In which to give the gradient back, which is added to another one of the input's layout."""
    return torch.contiguous_format if x.is_contiguous() else torch.preserve_format


def _product(
    gradient: Tensor, upstream: Tensor, dtype: torch.dtype, layout: torch.memory_format
) -> Tensor:
    """``gradient * upstream`` in ``dtype``, without a copy in a wider one."""
    product = torch.empty_like(gradient, dtype=dtype, memory_format=layout)
    return torch.mul(gradient, upstream, out=product)


def _value_and_gradients(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    wanted: Sequence[bool],
    trained: Sequence[Tensor],
) -> tuple[Tensor, Sequence[Tensor]]:
    """The gradients: of the inputs that want one, in at least float32, then of what is trained."""
    with torch.enable_grad():
        leaves = [
            at_least_float32(x.detach()).requires_grad_(wants)
            for x, wants in zip(inputs, wanted, strict=True)
        ]
        value = function(*leaves)
        needed = [*(leaf for leaf in leaves if leaf.requires_grad), *trained]
        if not needed:
            return value, []
        return value.detach(), torch.autograd.grad(
            value, needed, allow_unused=True, materialize_grads=True
        )


def _in_pieces(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    wanted: Sequence[bool],
    trained: Sequence[Tensor],
    pieces: int,
    overwrite: bool,
) -> tuple[Tensor, Sequence[Tensor]]:
    """The same, the sum over pieces along dimension 1."""
    gradients = [
        x.detach()
        if overwrite and x is inputs[0] and x.element_size() >= 4
        else torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        for x, wants in zip(inputs, wanted, strict=True)
        if wants
    ]
    of_trained = [torch.zeros_like(x) for x in trained]
    cut = [x.chunk(pieces, dim=1) for x in (*inputs, *gradients)]
    total = 0
    for piece in zip(*cut, strict=True):
        value, found = _value_and_gradients(function, piece[: len(inputs)], wanted, trained)
        total = total + value
        for gradient, new in zip(piece[len(inputs) :], found[: len(gradients)], strict=True):
            gradient.copy_(new)
        for gradient, new in zip(of_trained, found[len(gradients) :], strict=True):
            gradient.add_(new)
    return total, [*gradients, *of_trained]
