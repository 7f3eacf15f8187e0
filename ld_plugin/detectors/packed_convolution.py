"""Convolutions as the processor's kernels want them.

oneDNN, which computes PyTorch's convolutions on a processor, reads weights in blocks. An ordinary
convolution holds them plainly and reorders all of them on every call, which on small images takes
some percent of a teacher's forward pass. And it can add a shortcut and clip at zero while it writes
its output, where separate operators read and write the whole map again each; that saves 3 % of a
ResNet-50's time, and more beside other programs that keep the memory busy.
"""

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_DTYPES = torch.float32, torch.bfloat16  # fp16 has no packed kernel


class PackedConv2d(nn.Conv2d):
    """A convolution that is not trained, and keeps its weights reordered.

    The best layout may depend on the size of the input: each size that comes is asked once which
    one it wants. Where two of them disagree, the weights are plain again and stay so: from one
    packed layout to another they would be reordered thirty times as slowly as from the plain one,
    and a head asks for both in every pass over its levels. On other devices than a processor this
    is an ordinary convolution.

    The gradient of its input is another convolution, of the output's gradient. It is made and
    packed when it is first asked for, and holds the weights a second time. Where there is a stride
    or there are groups this is not so: from then on it is an ordinary convolution.

    Attributes:
        packed: The reordered weights; while there are none, ``weight`` holds the plain ones.
        sizes: Of inputs that want this order.
        stays_plain: Whether they are not to be reordered.
        mirrored: What makes the input's gradient; None before one is asked for.
    """

    packed: Tensor | None
    sizes: set[torch.Size]
    stays_plain: bool
    mirrored: 'PackedConv2d | None'

    @classmethod
    def convert(cls, conv: nn.Conv2d) -> None:
        """Make ``conv`` one of these, if this build of PyTorch has kernels for it."""
        plain = conv.padding_mode == 'zeros' and isinstance(conv.padding, tuple)
        if plain and _has_kernel(conv.weight.dtype):
            conv.__class__ = cls
            conv.register_buffer('packed', None, persistent=False)
            conv.sizes = set()
            conv.stays_plain = False
            conv.mirrored = None

    def forward(self, x: Tensor) -> Tensor:
        if not self._has_kernel_for(x):
            return super().forward(x)
        return _WithInputGradient.apply(x, self) if _wants_gradient(x) else self.pointwise(x)

    def pointwise(self, x: Tensor, function: str = 'none') -> Tensor:
        """The kernel's convolution, which autograd does not see, and then ``function``.

        Args:
            x: (N, in_channels, H, W).
            function: ``'none'`` or ``'relu'``.

        Returns:
            (N, out_channels, H', W'), in the weights' precision.
        """
        return torch.ops.mkldnn._convolution_pointwise(*self._arguments(x), function, [], '')

    def input_gradient(self, upstream: Tensor) -> Tensor:
        """Gradient of the input (N, in_channels, H, W), from that of the output."""
        if self.mirrored is None:
            self.mirrored = self._mirror()
        return self.mirrored.pointwise(upstream)

    def relu(self, x: Tensor) -> Tensor:
        """ReLU of the convolution."""
        if _wants_gradient(x) or not self._has_kernel_for(x):
            return self(x).relu_()
        return self.pointwise(x, 'relu')

    def add_relu(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """ReLU of the convolution of ``x`` plus ``shortcut``, which may be overwritten.

        Args:
            x: (N, in_channels, H, W).
            shortcut: (N, out_channels, H', W').
        """
        if _wants_gradient(x) or not self._has_kernel_for(x):
            return self(x).add_(shortcut).relu_()
        shortcut = shortcut.to(self.weight.dtype).contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_pointwise_(
            shortcut, *self._arguments(x), 'add', 1.0, 'relu', [], ''
        )

    def _has_kernel_for(self, x: Tensor) -> bool:
        # which is for processors
        if x.device.type != 'cpu':
            return False
        if _wants_gradient(x) and not self._can_mirror:
            self._stay_plain()
            return False
        return True

    def _stay_plain(self) -> None:
        self.unpack()
        self.stays_plain = True

    @property
    def _can_mirror(self) -> bool:
        return self.stride == (1, 1) and self.groups == 1 and min(self._mirrored_padding) >= 0

    @property
    def _mirrored_padding(self) -> tuple[int, ...]:
        axes = zip(self.dilation, self.kernel_size, self.padding, strict=True)
        return tuple(dilation * (size - 1) - padding for dilation, size, padding in axes)

    def _mirror(self) -> 'PackedConv2d':
        """Inputs and outputs change places, and the kernel is turned by half a turn."""
        weight = self.weight if self.packed is None else self._plain_weight()
        conv = nn.Conv2d(
            self.out_channels,
            self.in_channels,
            self.kernel_size,
            padding=self._mirrored_padding,
            dilation=self.dilation,
            bias=False,
            device='meta',  # its weights come next
        )
        turned = weight.flip(2, 3).transpose(0, 1).contiguous()
        conv.weight = nn.Parameter(turned, requires_grad=False)
        self.convert(conv)
        return conv

    def _arguments(self, x: Tensor) -> tuple[Any, ...]:
        """Input, weights, bias and geometry for the kernel."""
        x = x.to(self.weight.dtype)
        if not self.stays_plain and x.shape not in self.sizes:
            self._pack(x.shape)
        weight = self.weight if self.packed is None else self.packed
        return x, weight, self.bias, self.padding, self.stride, self.dilation, self.groups

    def unpack(self) -> None:
        """Hold plain weights again, as a move to another device needs."""
        self.mirrored = None
        if self.packed is not None:
            plain = self._plain_weight()
            self.weight.data = plain.contiguous(memory_format=torch.channels_last)
            self.packed = None
            self.sizes = set()

    def _plain_weight(self) -> Tensor:
        return self.packed.to_dense().to(self.weight.dtype)

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
        if held is None:
            self.packed = packed
            self.weight.data = self.weight.new_empty(0)
        elif not torch.equal(_layout(packed), _layout(held)):
            self._stay_plain()
            return
        self.sizes.add(input_size)

    # whoever copies, pickles or saves it gets plain weights

    def __getstate__(self) -> dict[str, Any]:
        self.unpack()
        return self.__dict__.copy()

    def _save_to_state_dict(self, *args: Any) -> None:
        self.unpack()
        super()._save_to_state_dict(*args)


class _WithInputGradient(torch.autograd.Function):
    """A convolution of whose operands only the input is learnt, so that it need not be kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: PackedConv2d) -> Tensor:
        ctx.conv, ctx.dtype = conv, x.dtype
        return conv.pointwise(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.conv.input_gradient(upstream).to(ctx.dtype), None


def _wants_gradient(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def _has_kernel(dtype: torch.dtype) -> bool:
    # those that compiled models run; PyTorch registers them, but does not document them
    names = '_convolution_pointwise', '_get_mkldnn_serialized_md'
    known = torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in names
    )
    if dtype == torch.bfloat16:  # which not every processor has one for
        return known and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return known and dtype in _DTYPES


def _layout(packed: Tensor) -> Tensor:
    """In which order its elements are, as bytes that can be compared."""
    return torch.ops.mkldnn._get_mkldnn_serialized_md(packed)


def fuse_activations(model: nn.Module) -> None:
    """Let packed convolutions of ``model`` apply the ReLU that follows them, and add the shortcut.

    Holds for residual blocks and for convolutions with an activation, where nothing is left of
    their norm layers; all else stays as it is.
    """
    following = {
        block
        for stage in model.modules()
        if isinstance(stage, nn.Sequential)
        for before, block in pairwise(stage)
        if _is_residual(before)
    }
    for module in model.modules():
        if _is_residual(module):
            _fuse_block(module, follows_another=module in following)
        elif type(module).forward is ConvModule.forward:
            _fuse_conv_module(module)


def _is_residual(module: nn.Module) -> bool:
    return type(module).forward in (BasicBlock.forward, Bottleneck.forward)


def _fuse_block(block: nn.Module, follows_another: bool) -> None:
    numbers = [number for number in (1, 2, 3) if hasattr(block, f'conv{number}')]
    convs = [getattr(block, f'conv{number}') for number in numbers]
    norms = [getattr(block, f'norm{number}') for number in numbers]
    if _can_fuse(convs, norms) and not getattr(block, 'with_plugins', False):
        block.forward = partial(_residual, convs, block.downsample, follows_another)


def _residual(
    convs: list[PackedConv2d], downsample: nn.Module | None, follows_another: bool, x: Tensor
) -> Tensor:
    # which is overwritten: x itself only where a block made it for this one and nobody else
    own = x if follows_another or downsample is not None else x.clone()
    shortcut = own if downsample is None else downsample(x)
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
