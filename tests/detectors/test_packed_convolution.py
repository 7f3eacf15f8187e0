"""Packed convolutions: the same numbers, without the plain weights and in fewer passes."""

import copy
import itertools
import pickle

import pytest
import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmdet.models.backbones.res2net import Bottle2neck
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from torch import nn

from ld_plugin.detectors import packed_convolution
from ld_plugin.detectors.packed_convolution import PackedConv2d, fuse_activations
from tests import needs
from tests.operators import Operators

pytestmark = needs.packed_kernels

GEOMETRIES = [
    dict(in_channels=3, out_channels=8, kernel_size=7, stride=2, padding=3, bias=False),
    dict(in_channels=8, out_channels=8, kernel_size=3, padding=2, dilation=2, groups=4),
    dict(in_channels=8, out_channels=5, kernel_size=1),
]

TOLERANCE = {  # of a sum that is rounded once instead of twice
    torch.float32: dict(rtol=1e-5, atol=1e-6),
    torch.bfloat16: dict(rtol=0.02, atol=0.01),
}


def convolutions(geometry: dict, dtype: torch.dtype = torch.float32) -> tuple[nn.Conv2d, nn.Conv2d]:
    """An ordinary convolution, and a packed one with equal weights."""
    torch.manual_seed(0)
    plain = nn.Conv2d(**geometry).requires_grad_(False)
    plain.to(dtype=dtype, memory_format=torch.channels_last)
    packed = copy.deepcopy(plain)
    PackedConv2d.convert(packed)
    assert isinstance(packed, PackedConv2d)
    return plain, packed


def image(channels: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, channels, 13, 18, generator=generator).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_equals_the_ordinary_convolution(geometry: dict, dtype: torch.dtype) -> None:
    plain, packed = convolutions(geometry, dtype)
    x = image(geometry['in_channels'], dtype)
    for _ in range(2):
        torch.testing.assert_close(packed(x), plain(x))
    y = packed(image(geometry['in_channels'])[:1, :, :5, :4].to(dtype))
    torch.testing.assert_close(y, plain(image(geometry['in_channels'])[:1, :, :5, :4].to(dtype)))


def pack(conv: PackedConv2d) -> None:
    conv(image(8, conv.weight.dtype))
    assert conv.packed is not None


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_the_plain_weights_are_given_up_and_come_back(dtype: torch.dtype) -> None:
    plain, packed = convolutions(GEOMETRIES[1], dtype)
    pack(packed)
    assert packed.weight.numel() == 0
    assert packed.packed.numel() == plain.weight.numel()
    packed.unpack()
    assert packed.packed is None
    torch.testing.assert_close(packed.weight, plain.weight, rtol=0, atol=0)
    torch.testing.assert_close(packed(image(8, dtype)), plain(image(8, dtype)))
    assert packed.packed is not None  # for the passes that follow


def test_sizes_that_want_the_same_layout_share_it() -> None:
    plain, packed = convolutions(GEOMETRIES[1])
    pack(packed)
    held = packed.packed
    x = image(8)[:, :, :7]
    for y in (x, image(8), x):
        torch.testing.assert_close(packed(y), plain(y))
    assert packed.packed is held
    assert packed.sizes == {x.shape, image(8).shape}


def test_weights_stay_plain_where_sizes_want_other_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, packed = convolutions(GEOMETRIES[1])
    pack(packed)
    answers = itertools.count()  # never the same
    monkeypatch.setattr(packed_convolution, '_layout', lambda _: torch.tensor(next(answers)))
    x = image(8)[:, :, :7]
    for y in (x, image(8), x):
        torch.testing.assert_close(packed(y), plain(y))
        assert (
            packed.packed is None
        )  # reordering them in every pass would take longer than it saves
    assert next(answers) == 2  # of the held layout and the other one, once
    assert torch.equal(packed.weight, plain.weight)


MIRRORED = [
    dict(in_channels=8, out_channels=5, kernel_size=3, padding=1),
    dict(in_channels=8, out_channels=12, kernel_size=(3, 5), padding=(0, 3), dilation=(2, 1)),
    GEOMETRIES[2],
]
PLAIN = [  # strides, groups, and padding beyond the kernel's reach
    dict(in_channels=8, out_channels=8, kernel_size=3, stride=2, padding=1),
    GEOMETRIES[1],
    dict(in_channels=8, out_channels=5, kernel_size=1, padding=1),
]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('geometry', MIRRORED + PLAIN)
def test_gradient_of_the_input(geometry: dict, dtype: torch.dtype) -> None:
    plain, packed = convolutions(geometry, dtype)
    pack(packed)
    for x in (image(8, dtype), image(8, dtype).contiguous(), image(8, dtype)[:1, :, :7]):
        upstream = torch.randn_like(plain(x))
        x.requires_grad_()
        expected, found = (torch.autograd.grad(c(x), x, upstream)[0] for c in (plain, packed))
        torch.testing.assert_close(found, expected, **TOLERANCE[dtype])
    torch.testing.assert_close(packed(image(8, dtype)), plain(image(8, dtype)))


def test_gradient_in_another_precision_is_converted() -> None:
    plain, packed = convolutions(MIRRORED[0], torch.bfloat16)
    x = image(8).requires_grad_()
    (found,) = torch.autograd.grad(packed(x).float().square().sum(), x)
    (expected,) = torch.autograd.grad(plain(x.bfloat16()).float().square().sum(), x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, **TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize('geometry', MIRRORED)
def test_gradient_through_packed_weights_keeps_no_input(geometry: dict) -> None:
    _, packed = convolutions(geometry)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        packed(image(8).requires_grad_())
    assert not kept


def test_what_makes_the_gradient_goes_with_the_packed_weights() -> None:
    plain, packed = convolutions(MIRRORED[0])
    x = image(8).requires_grad_()
    packed(x).sum().backward()
    assert packed.packed is not None and packed.mirrored.packed is not None
    mirrored = packed.mirrored
    packed(x).sum().backward()
    assert packed.mirrored is mirrored  # made once for all steps
    assert list(packed.state_dict()) == list(plain.state_dict())
    assert packed.mirrored is None  # a move to another device finds plain weights alone
    expected, found = (torch.autograd.grad(c(x).sum(), x)[0] for c in (plain, packed))
    torch.testing.assert_close(found, expected)


def test_gradient_goes_through_plain_weights_where_there_are_groups() -> None:
    plain, packed = convolutions(GEOMETRIES[1])
    pack(packed)
    x = image(8).requires_grad_()
    expected, found = (torch.autograd.grad(c(x).square().sum(), x)[0] for c in (plain, packed))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(packed(image(8)), plain(image(8)))
    assert packed.packed is None  # it need not be reordered back in every step


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles_of_a_packed_one(copied) -> None:
    plain, packed = convolutions(GEOMETRIES[1])
    pack(packed)
    torch.testing.assert_close(copied(packed)(image(8)), plain(image(8)))
    torch.testing.assert_close(packed(image(8)), plain(image(8)))


def test_state_dict_of_a_packed_one() -> None:
    plain, packed = convolutions(GEOMETRIES[1])
    pack(packed)
    assert list(packed.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(packed.state_dict()['weight'], plain.weight, rtol=0, atol=0)


def test_input_in_another_precision_is_converted() -> None:
    plain, packed = convolutions(GEOMETRIES[2], torch.bfloat16)
    x = image(8)
    torch.testing.assert_close(packed(x), plain(x.bfloat16()))


def test_what_has_no_packed_kernel_stays_as_it_is() -> None:
    for conv in (
        nn.Conv2d(8, 4, 3, padding=1, padding_mode='reflect'),
        nn.Conv2d(8, 4, 3, padding='same'),
        nn.Conv2d(8, 4, 3).half(),
    ):
        PackedConv2d.convert(conv)
        assert type(conv) is nn.Conv2d


def test_processors_without_a_kernel_for_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: False)
    for dtype, expected in ((torch.bfloat16, nn.Conv2d), (torch.float32, PackedConv2d)):
        conv = nn.Conv2d(8, 4, 3).to(dtype)
        PackedConv2d.convert(conv)
        assert type(conv) is expected


# --- with what follows them -----------------------------------------------------------------------


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_relu_and_shortcut_in_the_same_pass(dtype: torch.dtype) -> None:
    plain, packed = convolutions(GEOMETRIES[2], dtype)
    x = image(8, dtype)
    shortcut = torch.randn_like(plain(x))
    for _ in range(3):
        torch.testing.assert_close(packed.relu(x), plain(x).relu())
        # of either memory format, and of another precision
        for other in (shortcut.clone(), shortcut.contiguous(), shortcut.clone().float()):
            torch.testing.assert_close(
                packed.add_relu(x, other), (plain(x) + shortcut).relu(), **TOLERANCE[dtype]
            )


@pytest.mark.parametrize('geometry', [GEOMETRIES[1], GEOMETRIES[2]], ids=['plain', 'packed'])
def test_relu_and_shortcut_have_a_gradient(geometry: dict) -> None:
    plain, packed = convolutions(geometry)
    x = image(8).requires_grad_()
    shortcut = torch.randn_like(plain(x))
    found = packed.relu(x).sum() + packed.add_relu(x, shortcut).sum()
    expected = plain(x).relu().sum() + (plain(x) + shortcut).relu().sum()
    torch.testing.assert_close(*(torch.autograd.grad(total, x)[0] for total in (found, expected)))


def for_inference(module: nn.Module) -> nn.Module:
    """With norm layers folded away and packed convolutions, as in a teacher."""
    module = fuse_conv_bn(copy.deepcopy(module).eval()).requires_grad_(False)
    for conv in [m for m in module.modules() if type(m) is nn.Conv2d]:
        PackedConv2d.convert(conv)
    fuse_activations(module)
    return module


def blocks() -> list[nn.Module]:
    shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16))
    return [
        BasicBlock(8, 8),
        BasicBlock(8, 16, downsample=shortcut),
        Bottleneck(8, 2),
        Bottleneck(8, 4, downsample=shortcut, style='caffe'),
        ConvModule(8, 16, 3, padding=1, norm_cfg=dict(type='BN')),
    ]


def called(module: nn.Module) -> list[str]:
    """Names of the types of the modules in it that run."""
    names = []
    for part in module.modules():
        part.register_forward_hook(lambda m, args, out: names.append(type(m).__name__))
    module(image(8))
    return names


@pytest.mark.parametrize('number', range(5))
def test_fused_blocks_equal_the_stock_ones(number: int) -> None:
    torch.manual_seed(0)
    block = blocks()[number].eval()
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    fused = for_inference(block)
    for _ in range(2):
        torch.testing.assert_close(fused(image(8)), block(image(8)), rtol=1e-4, atol=1e-5)
    assert 'ReLU' in called(block)
    assert 'ReLU' not in called(fused)
    x = image(8)
    with Operators() as counted:
        fused(x)
    # a block whose shortcut is what entered it must not overwrite that
    assert counted.names.count('aten.clone.default') == (number in (0, 2))


class Branches(nn.Module):
    """Two residual blocks that read the same map, as in an hourglass."""

    def __init__(self, *first: nn.Module) -> None:
        super().__init__()
        self.up = nn.Sequential(*first, BasicBlock(8, 8), BasicBlock(8, 8))
        self.low = BasicBlock(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(x) + 2 * self.low(x)


@pytest.mark.parametrize('first', [[], [nn.Identity()]], ids=['block', 'identity'])
def test_a_map_that_others_read_is_not_overwritten(first: list[nn.Module]) -> None:
    torch.manual_seed(0)
    model = Branches(*first).eval()
    fused, x = for_inference(model), image(8)
    for _ in range(2):
        found = fused(x)
        torch.testing.assert_close(found, model(image(8)), rtol=1e-4, atol=1e-5)
        assert torch.equal(x, image(8))
    with Operators() as counted:
        fused(x)
    assert counted.names.count('aten.clone.default') == 2  # not before the second block of a stage


def with_reflection(block: nn.Module) -> nn.Module:
    """A block of which one convolution has no packed kernel."""
    block.conv2.padding_mode = 'reflect'
    return block


def with_group_norm(block: nn.Module) -> nn.Module:
    """A block of which one norm layer cannot be folded."""
    setattr(block, block.norm2_name, nn.GroupNorm(1, block.conv2.out_channels))
    return block


class Twice(ConvModule):
    """Of a user, with a forward pass of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class ReLUOfTwice(nn.ReLU):
    """Likewise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def with_own_relu(module: ConvModule) -> ConvModule:
    module.activate = ReLUOfTwice()
    return module


@pytest.mark.parametrize(
    'block',
    [
        with_reflection(Bottleneck(8, 2)),
        with_group_norm(Bottleneck(8, 2)),
        Bottleneck(
            8, 2, plugins=[dict(cfg=dict(type='ContextBlock', ratio=0.5), position='after_conv3')]
        ),
        ConvModule(8, 16, 3, norm_cfg=dict(type='GN', num_groups=4)),
        ConvModule(8, 16, 3, act_cfg=dict(type='SiLU')),
        ConvModule(8, 16, 3, padding=1, padding_mode='reflect'),
        ConvModule(8, 8, 3, order=('act', 'conv', 'norm')),
        ConvModule(8, 16, 3, norm_cfg=dict(type='BN'), act_cfg=None),
        with_own_relu(ConvModule(8, 16, 3)),
        Twice(8, 16, 3),
        Bottle2neck(8, 2, base_width=104, stride=1),
    ],
    ids=[
        'one reflection',
        'one group norm',
        'plugins',
        'group norm',
        'SiLU',
        'reflection',
        'pre-activation',
        'no activation',
        'own ReLU',
        'own forward',
        'Res2Net',
    ],
)
def test_what_cannot_be_fused_stays_as_it_is(block: nn.Module) -> None:
    block = block.eval()
    fused = for_inference(block)
    torch.testing.assert_close(fused(image(8)), block(image(8)), rtol=1e-4, atol=1e-5)
    assert called(fused)[-1] == type(block).__name__
    assert len(called(fused)) > 2
