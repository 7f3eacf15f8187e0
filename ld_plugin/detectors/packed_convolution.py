"""Convolutions as the processor's kernels want them.

oneDNN, which computes PyTorch's convolutions on a processor, reads weights in blocks. An ordinary
convolution holds them plainly and reorders all of them on every call, which on small images takes
some percent of a teacher's forward pass. And it can add a shortcut and clip at zero while it writes
its output, where separate operators read and write the whole map again each; that saves 3 % of a
ResNet-50's time, and more beside other programs that keep the memory busy.
"""

from functools import partial
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

_DTYPES = torch.float32, torch.bfloat16  # fp16 has no packed kernel


class PackedConv2d(nn.Conv2d):
    """A convolution that is not trained, and keeps its weights reordered.

    The best layout may depend on the size of the input: each size that comes is asked once which
    one it wants, and the weights are reordered if that is another one. They are never held twice.
    On other devices than a processor this is an ordinary convolution, and so it is, from then on,
    where a gradient goes through it.

    Attributes:
        packed: The reordered weights; while there are none, ``weight`` holds the plain ones.
        sizes: Of inputs, for which they are in the best order.
        stays_plain: Whether they are not to be reordered.
    """

    packed: Tensor | None
    sizes: set[torch.Size]
    stays_plain: bool

    @classmethod
    def convert(cls, conv: nn.Conv2d) -> None:
        """Make ``conv`` one of these, if this build of PyTorch has kernels for it."""
        plain = conv.padding_mode == 'zeros' and isinstance(conv.padding, tuple)
        if _has_kernel() and plain and conv.weight.dtype in _DTYPES:
            conv.__class__ = cls
            conv.register_buffer('packed', None, persistent=False)
            conv.sizes = set()
            conv.stays_plain = False

    def forward(self, x: Tensor) -> Tensor:
        if not self._has_kernel_for(x):
            return super().forward(x)
        return torch.ops.mkldnn._convolution_pointwise(*self._arguments(x), 'none', [], '')

    def relu(self, x: Tensor) -> Tensor:
        """ReLU of the convolution."""
        if not self._has_kernel_for(x):
            return super().forward(x).relu_()
        return torch.ops.mkldnn._convolution_pointwise(*self._arguments(x), 'relu', [], '')

    def add_relu(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """ReLU of the convolution of ``x`` plus ``shortcut``, which may be overwritten."""
        if not self._has_kernel_for(x):
            return super().forward(x).add_(shortcut).relu_()
        shortcut = shortcut.to(self.weight.dtype).contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_pointwise_(
            shortcut, *self._arguments(x), 'add', 1.0, 'relu', [], ''
        )

    def _has_kernel_for(self, x: Tensor) -> bool:
        # which has no gradient, and is for processors
        if x.device.type != 'cpu':
            return False
        if x.requires_grad and torch.is_grad_enabled():
            self.unpack()
            self.stays_plain = True
            return False
        return True

    def _arguments(self, x: Tensor) -> tuple[Any, ...]:
        """Input, weights, bias and geometry for the kernel."""
        x = x.to(self.weight.dtype)
        if not (self.stays_plain or (self.packed is not None and x.shape in self.sizes)):
            self._pack(x.shape)
        weight = self.weight if self.packed is None else self.packed
        return x, weight, self.bias, self.padding, self.stride, self.dilation, self.groups

    def unpack(self) -> None:
        """Hold plain weights again, as a move to another device needs."""
        if self.packed is not None:
            plain = self.packed.to_dense().to(self.weight.dtype)
            self.weight.data = plain.contiguous(memory_format=torch.channels_last)
            self.packed = None

    def _pack(self, input_size: torch.Size) -> None:
        held = self.packed
        packed = torch.ops.aten.mkldnn_reorder_conv2d_weight(
            self.weight.to_mkldnn(self.weight.dtype) if held is None else held,
            self.padding,
            self.stride,
            self.dilation,
            self.groups,
            input_size,
        )
        if held is None or not torch.equal(_layout(packed), _layout(held)):
            self.packed = packed
            self.sizes = set()
            self.weight.data = self.weight.new_empty(0)
        self.sizes.add(input_size)

    # whoever copies, pickles or saves it gets plain weights

    def __getstate__(self) -> dict[str, Any]:
        self.unpack()
        return self.__dict__.copy()

    def _save_to_state_dict(self, *args: Any) -> None:
        self.unpack()
        super()._save_to_state_dict(*args)


def _has_kernel() -> bool:
    # those that compiled models run; PyTorch registers them, but does not document them
    names = '_convolution_pointwise', '_get_mkldnn_serialized_md'
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in names
    )


def _layout(packed: Tensor) -> Tensor:
    """In which order its elements are, as bytes that can be compared."""
    return torch.ops.mkldnn._get_mkldnn_serialized_md(packed)


def fuse_activations(model: nn.Module) -> None:
    """Let packed convolutions of ``model`` apply the ReLU that follows them, and add the shortcut.

    Holds for residual blocks and for convolutions with an activation, where nothing is left of
    their norm layers; all else stays as it is.
    """
    for module in model.modules():
        if type(module).forward in (BasicBlock.forward, Bottleneck.forward):
            _fuse_block(module)
        elif type(module).forward is ConvModule.forward:
            _fuse_conv_module(module)


def _fuse_block(block: nn.Module) -> None:
    numbers = [number for number in (1, 2, 3) if hasattr(block, f'conv{number}')]
    convs = [getattr(block, f'conv{number}') for number in numbers]
    norms = [getattr(block, f'norm{number}') for number in numbers]
    if _can_fuse(convs, norms) and not getattr(block, 'with_plugins', False):
        block.forward = partial(_residual, convs, block.downsample)


def _residual(convs: list[PackedConv2d], downsample: nn.Module | None, x: Tensor) -> Tensor:
    # x may be overwritten: it is no other's than the block's before this one
    shortcut = x if downsample is None else downsample(x)
    for conv in convs[:-1]:
        x = conv.relu(x)
    return convs[-1].add_relu(x, shortcut)


def _fuse_conv_module(module: ConvModule) -> None:
    plain = module.order == ('conv', 'norm', 'act') and not module.with_explicit_padding
    is_relu = module.with_activation and type(module.activate) is nn.ReLU
    if plain and is_relu and _can_fuse([module.conv], [module.norm] if module.with_norm else []):
        module.forward = module.conv.relu


def _can_fuse(convs: list[nn.Module], norms: list[nn.Module]) -> bool:
    return all(isinstance(c, PackedConv2d) for c in convs) and all(
        isinstance(norm, nn.Identity) for norm in norms
    )
