"""Batch norm is folded where that changes nothing but rounding, and left alone elsewhere."""

from collections import OrderedDict
from copy import deepcopy

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from torch import Tensor, nn

from ld_plugin.detectors.batch_norm import fold_batch_norm


class NormWithActivation(nn.BatchNorm2d):
    """As some libraries have it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 1), nn.SyncBatchNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))


def conv_and_norm(conv: nn.Module, norm: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=conv, bn=norm or nn.BatchNorm2d(8)))


def conv_module(*order: str, groups: int = 1) -> ConvModule:
    module = ConvModule(8 * groups, 8, 1, groups=groups, norm_cfg=dict(type='BN'), order=order)
    assert module.norm.num_features == (8 * groups if order[0] == 'norm' else 8)
    return module


FOLDED = {
    'convolution and batch norm': lambda: conv_and_norm(nn.Conv2d(8, 8, 3)),
    'residual block': Residual,
    'module in the usual order': lambda: conv_module('conv', 'norm', 'act'),
    'activation first': lambda: conv_module('act', 'conv', 'norm'),
}
LEFT_ALONE = {
    'standardised weights': lambda: conv_and_norm(build_conv_layer(dict(type='ConvAWS'), 8, 8, 3)),
    'spectral norm': lambda: conv_and_norm(nn.utils.spectral_norm(nn.Conv2d(8, 8, 3))),
    'norm that does more': lambda: conv_and_norm(nn.Conv2d(8, 8, 3), NormWithActivation(8)),
    'something between': lambda: nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)),
    'no statistics': lambda: conv_and_norm(
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)
    ),
    'no scale': lambda: conv_and_norm(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, affine=False)),
    'norm before the convolution': lambda: conv_module('norm', 'act', 'conv'),
    'norm before a narrower convolution': lambda: conv_module('norm', 'act', 'conv', groups=2),
}


def with_statistics(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for name, value in module.state_dict().items():
        if name.endswith('running_var'):
            value.uniform_(0.5, 1.5)
        elif value.ndim == 1 and value.is_floating_point():
            value.normal_(1, 0.3)
    return module.eval()


def norms(module: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d | nn.SyncBatchNorm) for m in module.modules())


@pytest.mark.parametrize(
    ('make', 'is_folded'),
    [*((make, True) for make in FOLDED.values()), *((make, False) for make in LEFT_ALONE.values())],
    ids=[*FOLDED, *LEFT_ALONE],
)
@torch.no_grad()
def test_folding_keeps_what_the_module_computes(make, is_folded: bool) -> None:
    stock = with_statistics(make())
    folded = nn.Sequential(deepcopy(stock))
    fold_batch_norm(folded)
    width = next(m for m in stock.modules() if isinstance(m, nn.Conv2d)).in_channels
    x = torch.randn(2, width, 5, 6)
    torch.testing.assert_close(folded(x), stock(x), rtol=1e-4, atol=1e-5)
    assert norms(folded) == (0 if is_folded else norms(stock))
    assert norms(stock) > 0
