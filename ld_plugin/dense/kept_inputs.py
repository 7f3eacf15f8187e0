"""Let an activation's input be kept for the backward pass, and not its output."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .head_features import is_large


@contextmanager
def kept_inputs(head: nn.Module, activations: Iterable[nn.Module]) -> Iterator[None]:
    """Let autograd keep what enters some activations instead of what leaves them.

    A stock activation overwrites its input, so whoever wants to look at that later needs a second
    map of its size. In here the activations do not overwrite it, and where any level is large their
    outputs, which autograd would keep for them and for the layer that follows, are computed again
    in the backward pass. So there is still one map. Where all levels are small, that is not worth
    its time, and there are two. The gradients are the same to the last bit.

    Args:
        head: Whose forward pass takes the feature levels, each (N, F, H, W), and goes through the
            activations.
        activations: The modules. ``nn.RReLU``, which would draw other slopes the second time, has
            its outputs kept as usual.
    """
    activations, passes = set(activations), _Passes()
    with ExitStack() as stack:
        forward = stack.enter_context(ExitStack())
        stack.callback(passes.outputs.clear)
        for module in activations:
            stack.enter_context(_not_overwriting(module))
        again = [module for module in activations if not isinstance(module, nn.RReLU)]

        def begin(head: nn.Module, args: tuple) -> None:
            if torch.is_grad_enabled() and again and any(map(is_large, args[0])):
                for module in again:
                    forward.callback(module.register_forward_pre_hook(passes.enter).remove)
                    forward.callback(module.register_forward_hook(passes.leave).remove)
                hooks = torch.autograd.graph.saved_tensors_hooks(passes.pack, _unpack)
                forward.enter_context(hooks)

        def end(head: nn.Module, args: tuple, outputs: Any) -> None:
            forward.close()

        stack.callback(head.register_forward_pre_hook(begin).remove)
        stack.callback(head.register_forward_hook(end).remove)
        yield


class _Passes:
    """Through every activation the last one, by which its output is known again."""

    def __init__(self) -> None:
        self.outputs: dict[nn.Module, tuple[Tensor, int, _Pass]] = {}
        self._saved_by_activation: list[_Saved] | None = None

    def enter(self, module: nn.Module, args: tuple) -> None:
        self._saved_by_activation = []

    def leave(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        # while it is held here, no other tensor can have its memory
        self.outputs[module] = output, output._version, _Pass(module, args[0], args[0]._version)
        for saved in self._saved_by_activation:
            saved.value = self._or_pass(saved.value)
        self._saved_by_activation = None

    def pack(self, tensor: Tensor) -> '_Saved':
        # an output would keep the graph it is part of, for good where no backward pass comes
        saved = _Saved(tensor.detach(), tensor._version)
        if self._saved_by_activation is None:
            saved.value = self._or_pass(saved.value)
        else:  # until its output is known
            self._saved_by_activation.append(saved)
        return saved

    def _or_pass(self, tensor: Tensor) -> 'Tensor | _Pass':
        """The pass through an activation that the tensor comes of; else itself."""
        for output, version, one in self.outputs.values():
            # what somebody has changed since is no longer what the activation made
            if output._version == version and _same_memory(tensor, output):
                one.awaited += 1
                return one
        return tensor


@dataclass
class _Saved:
    """What autograd holds in place of a tensor, whose version it no longer checks."""

    value: 'Tensor | _Pass'
    version: int


@dataclass
class _Pass:
    """One through an activation.

    Attributes:
        awaited: How often its output will be asked for in a backward pass: by the activation, and
            by the layers that follow. One after the other, so it is held from the first time to
            the last.
    """

    activation: nn.Module
    entered: Tensor
    version: int
    awaited: int = 0
    _left: Tensor | None = None

    @torch.no_grad()
    def again(self) -> Tensor:
        """What left the activation."""
        name = type(self.activation).__name__
        _check_version(self.entered, self.version, f'The features that entered {name}')
        left = self._left
        if left is None:
            with _not_overwriting(self.activation):
                left = self.activation(self.entered)
        self.awaited -= 1
        self._left = left if self.awaited > 0 else None
        return left


@torch.compiler.disable  # a compiled backward pass sees other versions
def _unpack(saved: _Saved) -> Tensor:
    if isinstance(saved.value, _Pass):
        return saved.value.again()
    _check_version(saved.value, saved.version, 'Features inside a head')
    return saved.value


def _check_version(tensor: Tensor, version: int, what: str) -> None:
    if tensor._version != version:
        raise RuntimeError(f'{what} have been modified in place; the gradient needs them.')


@contextmanager
def _not_overwriting(module: nn.Module) -> Iterator[None]:
    overwrites = getattr(module, 'inplace', False)
    if not overwrites:
        yield
        return
    module.inplace = False
    try:
        yield
    finally:
        module.inplace = True


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return (
        a.untyped_storage()._cdata == b.untyped_storage()._cdata
        and a.storage_offset() == b.storage_offset()
        and a.shape == b.shape
        and a.stride() == b.stride()
    )
