"""Convolutions whose weights are kept in the layout that the processor's kernels read.

oneDNN, which computes PyTorch's convolutions on a processor, reads weights in blocks. An ordinary
convolution holds them plainly and reorders all of them on every call: a tenth of a teacher's
forward pass on small images, and on the small levels of a pyramid more than the convolution takes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.mkldnn import MkldnnConv2d

_DTYPES = torch.float32, torch.bfloat16  # fp16 has no packed kernel


class PackedConv2d(nn.Conv2d):
    """A convolution that is not trained, and reorders its weights once, when it is first called.

    The plain weights are given up then, so the memory stays the same; :meth:`unpack` brings them
    back. On other devices than a processor, and for inputs that need a gradient, it is an ordinary
    convolution.
    """

    packed: Tensor | None

    @classmethod
    def convert(cls, conv: nn.Conv2d) -> None:
        """Make ``conv`` one of these, if this build of PyTorch has kernels for it."""
        plain = conv.padding_mode == 'zeros' and isinstance(conv.padding, tuple)
        if _has_kernel() and plain and conv.weight.dtype in _DTYPES:
            conv.__class__ = cls
            conv.register_buffer('packed', None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != 'cpu':
            return super().forward(x)
        if self.packed is None:
            self._pack()
        x = x.to(self.weight.dtype)
        if torch.is_grad_enabled() and x.requires_grad:  # the packed kernel has no gradient
            geometry = self.stride, self.padding, self.dilation, self.groups
            return F.conv2d(x, self._plain_weight(), self.bias, *geometry)
        geometry = self.padding, self.stride, self.dilation, self.groups
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.packed, self.bias, *geometry, 'none', [], ''
        )

    def unpack(self) -> None:
        """Hold plain weights again, as a move to another device needs."""
        if self.packed is not None:
            self.weight.data = self._plain_weight()
            self.packed = None

    def _plain_weight(self) -> Tensor:
        plain = self.packed.to_dense().to(self.weight.dtype)
        return plain.contiguous(memory_format=torch.channels_last)

    def _pack(self) -> None:
        self.packed = MkldnnConv2d(self, self.weight.dtype).weight
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
