"""Convolutions whose weights are kept in the layout that the processor's kernels read.

oneDNN, which computes PyTorch's convolutions on a processor, reads weights in blocks. An ordinary
convolution holds them plainly and reorders all of them on every call, which on small images takes
some percent of a teacher's forward pass.
"""

from typing import Any

import torch
from torch import Tensor, nn

_DTYPES = torch.float32, torch.bfloat16  # fp16 has no packed kernel


class PackedConv2d(nn.Conv2d):
    """A convolution that is not trained, and keeps its weights reordered while that pays.

    The best layout depends on the size of the input, and another one is slower than none. So the
    weights are packed when a size comes a second time in succession, as it does where all images
    are of one size, and are plain again when another one comes, as in a head that is called with
    one level after the other. They are never held twice. On other devices than a processor, and
    where a gradient goes through it, this is an ordinary convolution.
    """

    packed: Tensor | None
    last_size: torch.Size | None

    @classmethod
    def convert(cls, conv: nn.Conv2d) -> None:
        """Make ``conv`` one of these, if this build of PyTorch has kernels for it."""
        plain = conv.padding_mode == 'zeros' and isinstance(conv.padding, tuple)
        if _has_kernel() and plain and conv.weight.dtype in _DTYPES:
            conv.__class__ = cls
            conv.register_buffer('packed', None, persistent=False)
            conv.last_size = None

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != 'cpu':
            return super().forward(x)
        x = x.to(self.weight.dtype)
        if x.requires_grad and torch.is_grad_enabled():  # the packed kernel has no gradient
            self.unpack()
            return super().forward(x)
        if x.shape != self.last_size:
            self.unpack()
            self.last_size = x.shape
            return super().forward(x)
        if self.packed is None:
            self._pack(x.shape)
        geometry = self.padding, self.stride, self.dilation, self.groups
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.packed, self.bias, *geometry, 'none', [], ''
        )

    def unpack(self) -> None:
        """Hold plain weights again, as a move to another device needs."""
        if self.packed is not None:
            plain = self.packed.to_dense().to(self.weight.dtype)
            self.weight.data = plain.contiguous(memory_format=torch.channels_last)
            self.packed = None

    def _pack(self, input_size: torch.Size) -> None:
        self.packed = torch.ops.aten.mkldnn_reorder_conv2d_weight(
            self.weight.to_mkldnn(self.weight.dtype),
            self.padding,
            self.stride,
            self.dilation,
            self.groups,
            input_size,
        )
        self.weight.data = self.weight.new_empty(0)

    # whoever copies, pickles or saves it gets plain weights

    def __getstate__(self) -> dict[str, Any]:
        self.unpack()
        return self.__dict__.copy()

    def _save_to_state_dict(self, *args: Any) -> None:
        self.unpack()
        super()._save_to_state_dict(*args)


def _has_kernel() -> bool:
    # the one that compiled models run; PyTorch registers it, but does not document it
    return torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, '_convolution_pointwise'
    )
