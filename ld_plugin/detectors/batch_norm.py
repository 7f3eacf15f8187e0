"""Batch norm as a part of the convolution before it."""

from mmcv.cnn import ConvModule, fuse_conv_bn
from torch import nn

_NORMS = nn.BatchNorm2d, nn.SyncBatchNorm


def fold_batch_norm(module: nn.Module) -> None:
    """Fold each batch norm of ``module`` into the plain convolution that is registered before it.

    All else stays: convolutions that make their weights anew on every call (standardised ones of
    DetectoRS, spectral norm) would undo the scale, and norm layers derived from these may do more.
    """
    conv = None
    in_order = not isinstance(module, ConvModule) or _norm_follows(module)
    for name, child in module.named_children():
        if type(child) in _NORMS:
            if conv is not None and in_order and child.track_running_stats and child.affine:
                fuse_conv_bn(nn.Sequential(conv, child))
                setattr(module, name, nn.Identity())
            conv = None
        elif isinstance(child, nn.Conv2d):
            conv = child if type(child) is nn.Conv2d and not child._forward_pre_hooks else None
        else:
            conv = None
            fold_batch_norm(child)


def _norm_follows(module: ConvModule) -> bool:
    """Whether the norm layer gets what the convolution gives."""
    order = module.order
    return order.index('norm') == order.index('conv') + 1
