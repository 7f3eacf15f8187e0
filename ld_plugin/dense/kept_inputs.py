"""Let an activation's input be kept for the backward pass, and not its output."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@contextmanager
def kept_inputs(activations: Iterable[nn.Module]) -> Iterator[None]:
    """Let autograd keep what enters some activations instead of what leaves them.

    A stock activation overwrites its input, so whoever wants to look at that later needs a second
    map of its size. In here the activations do not overwrite it, and their outputs, which autograd
    would keep for them and for the layer that follows, are computed again in the backward pass. So
    there is still one map. The gradients are the same to the last bit.

    Args:
        activations: The modules. ``nn.RReLU``, which would draw other slopes the second time, has
            its outputs kept as usual.
    """
    activations, passes = set(activations), _Passes()
    with ExitStack() as stack:
        stack.callback(passes.outputs.clear)
        for module in activations:
            stack.enter_context(_not_overwriting(module))
            if torch.is_grad_enabled() and not isinstance(module, nn.RReLU):
                stack.callback(module.register_forward_pre_hook(passes.enter).remove)
                stack.callback(module.register_forward_hook(passes.leave).remove)
        if activations:
            hooks = torch.autograd.graph.saved_tensors_hooks(passes.pack, _unpack)
            stack.enter_context(hooks)
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
        saved = _Saved(self._or_pass(tensor))
        if self._saved_by_activation is not None:  # its output is not known yet
            self._saved_by_activation.append(saved)
        return saved

    def _or_pass(self, tensor: Tensor) -> 'Tensor | _Pass':
        """The pass through an activation that the tensor comes of; else itself."""
        for output, version, one in self.outputs.values():
            # what somebody has changed since is no longer what the activation made
            if output._version == version and _same_memory(tensor, output):
                return one
        return tensor


@dataclass
class _Saved:
    """What autograd holds in place of a tensor."""

    value: 'Tensor | _Pass'


@dataclass
class _Pass:
    """One through an activation."""

    activation: nn.Module
    entered: Tensor
    version: int

    @torch.no_grad()
    def again(self) -> Tensor:
        """What left the activation."""
        if self.entered._version != self.version:  # as autograd says it of what it keeps itself
            raise RuntimeError(
                f'The features that entered {type(self.activation).__name__} have been modified in '
                'place; the gradient needs them.'
            )
        with _not_overwriting(self.activation):
            return self.activation(self.entered)


def _unpack(saved: _Saved) -> Tensor:
    return saved.value.again() if isinstance(saved.value, _Pass) else saved.value


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
