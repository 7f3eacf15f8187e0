"""Packed convolutions: the same numbers, without the plain weights."""

import copy
import pickle

import pytest
import torch
from torch import nn

from ld_plugin.detectors.packed_convolution import PackedConv2d

GEOMETRIES = [
    dict(in_channels=3, out_channels=8, kernel_size=7, stride=2, padding=3, bias=False),
    dict(in_channels=8, out_channels=8, kernel_size=3, padding=2, dilation=2, groups=4),
    dict(in_channels=8, out_channels=5, kernel_size=1),
]


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
    for _ in range(3):  # the second call packs
        torch.testing.assert_close(packed(x), plain(x))
    y = packed(image(geometry['in_channels'])[:1, :, :5, :4].to(dtype))
    torch.testing.assert_close(y, plain(image(geometry['in_channels'])[:1, :, :5, :4].to(dtype)))


def pack(conv: PackedConv2d) -> None:
    for _ in range(2):
        conv(image(8))
    assert conv.packed is not None


def test_the_plain_weights_are_given_up_and_come_back() -> None:
    plain, packed = convolutions(GEOMETRIES[1])
    pack(packed)
    assert packed.weight.numel() == 0
    assert packed.packed.numel() == plain.weight.numel()
    packed.unpack()
    assert packed.packed is None
    torch.testing.assert_close(packed.weight, plain.weight, rtol=0, atol=0)
    torch.testing.assert_close(packed(image(8)), plain(image(8)))


def test_another_size_unpacks() -> None:
    plain, packed = convolutions(GEOMETRIES[1])
    pack(packed)
    x = image(8)[:, :, :7]
    torch.testing.assert_close(packed(x), plain(x))
    assert packed.packed is None


def test_gradient_goes_through_plain_weights() -> None:
    plain, packed = convolutions(GEOMETRIES[1])
    pack(packed)
    x = image(8).requires_grad_()
    expected, found = (torch.autograd.grad(c(x).square().sum(), x)[0] for c in (plain, packed))
    torch.testing.assert_close(found, expected)


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
