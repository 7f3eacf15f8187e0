"""Compute a loss together with its gradient, so that nothing else is kept for the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .functional import at_least_float32


def eager_gradient(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)``, whose gradient is computed at once.

    A loss over whole levels makes a dozen temporaries of the level's size, and autograd would keep
    most of them, of all levels, until the backward pass. Here they are freed before the next level
    is looked at; what remains is one gradient per input.

    Args:
        function: Of tensors like the inputs, to a scalar; the inputs must be all it differentiates.
        inputs: Of any float type; the function sees half precision as float32. Their gradients wait
            in float32, where those of a mean over many positions do not vanish before a scaler of
            mixed precision multiplies them.

    Returns:
        The scalar. It can be differentiated once.
    """
    return _EagerGradient.apply(function, *inputs)


class _EagerGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[1:]
        with torch.enable_grad():
            leaves = [
                at_least_float32(x.detach()).requires_grad_(needed)
                for x, needed in zip(inputs, wanted, strict=True)
            ]
            value = function(*leaves)
            if any(wanted):
                needed = [x for x, wants in zip(leaves, wanted, strict=True) if wants]
                ctx.save_for_backward(
                    *torch.autograd.grad(value, needed, allow_unused=True, materialize_grads=True)
                )
        ctx.wanted, ctx.dtypes = wanted, [x.dtype for x in inputs]
        return value.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        return None, *(
            (next(saved) * upstream).to(dtype) if wanted else None
            for wanted, dtype in zip(ctx.wanted, ctx.dtypes, strict=True)
        )
