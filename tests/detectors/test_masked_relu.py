"""The ReLU of a frozen head: the stock one's numbers, and a byte of memory for each."""

import pytest
import torch
from torch import nn

from ld_plugin.detectors.masked_relu import MaskedReLU


def masked(inplace: bool = True) -> nn.ReLU:
    relu = nn.ReLU(inplace)
    MaskedReLU.convert(relu)
    return relu


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_numbers_are_the_stock_ones(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=dtype)
    x[0, 0, 0, :3] = torch.tensor([0.0, -0.0, torch.inf], dtype=dtype)
    upstream, found = torch.randn_like(x), []
    for relu in (nn.ReLU(), masked()):
        leaf = x.clone().requires_grad_()
        y = relu(leaf.clone())
        found.append((y.detach(), *torch.autograd.grad(y, leaf, upstream)))
    for pair in zip(*found, strict=True):
        assert torch.equal(*pair)


def test_gradcheck() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: masked()(x.clone()), x)
    assert torch.autograd.gradcheck(masked(inplace=False), x)


def test_a_byte_is_kept() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    y = masked()(x.clone())
    (kept,) = y.grad_fn.saved_tensors
    assert kept.dtype == torch.bool
    assert torch.equal(kept, x > 0)


def test_with_a_gradient_it_overwrites_its_input_too() -> None:
    leaf = torch.tensor([-1.0, 2.0, -3.0], requires_grad=True)
    x = leaf.clone()
    assert masked()(x) is x
    assert x.tolist() == [0, 2, 0]
    view = leaf.clone()[1:]  # into which autograd would copy
    assert masked()(view).tolist() == [2, 0]
    assert view.tolist() == [2, -3]


def test_without_a_gradient_it_overwrites_its_input() -> None:
    x = torch.tensor([-1.0, 2.0])
    assert masked()(x) is x
    assert x.tolist() == [0, 2]
    leaf = torch.tensor([-1.0, 2.0], requires_grad=True)
    with torch.no_grad():
        assert masked(inplace=False)(leaf).tolist() == [0, 2]
    assert leaf.tolist() == [-1, 2]


def test_an_infinite_gradient_does_not_pass_where_the_input_was_negative() -> None:
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(masked(inplace=False)(x), x, torch.tensor([torch.inf, 3.0]))
    assert gradient.tolist() == [0, 3]
