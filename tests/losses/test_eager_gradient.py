import pytest
import torch
from torch import Tensor, nn

from ld_plugin.losses import (
    DecoupledLoss,
    FeatureMSELoss,
    PearsonFeatureLoss,
    eager_gradient,
    feature_squared_error,
    modulated_binary_cross_entropy,
    pieces_of,
)
from ld_plugin.losses.eager_gradient import levels_at_once
from tests import needs


@pytest.mark.parametrize(
    ('loss', 'pieces'),
    [
        (FeatureMSELoss(), 4),
        (PearsonFeatureLoss(), 1),
        (DecoupledLoss(), 4),
        (DecoupledLoss(background=dict(type='PearsonFeatureLoss')), 1),
    ],
)
def test_rows_that_depend_on_one_another_stay_together(loss: nn.Module, pieces: int):
    level = torch.zeros(2, 4, 2**18)
    assert pieces_of(level, loss=loss) == pieces
    assert pieces_of(level) == 4


def product(x: Tensor, y: Tensor) -> Tensor:
    return (x.sigmoid() * y.square()).sum()


def test_value_and_gradients_are_those_of_the_plain_function():
    plain = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    eager = [x.detach().clone().requires_grad_() for x in plain]
    value = 3 * eager_gradient(product, *eager)
    torch.testing.assert_close(value, 3 * product(*plain))
    value.backward()
    (3 * product(*plain)).backward()
    for ours, expected in zip(eager, plain, strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)
    assert torch.autograd.gradcheck(lambda x, y: eager_gradient(product, x, y), eager)


@pytest.mark.parametrize('beta', [0, 1, 2.5])
def test_gradcheck_of_a_distillation_loss(beta: float):
    student = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: eager_gradient(
            lambda x: modulated_binary_cross_entropy(x, teacher, beta).sum(), s
        ),
        student,
    )


@pytest.mark.parametrize(('pieces', 'overwrite'), [(1, False), (1, True), (3, False)])
@pytest.mark.parametrize('wants', [True, False])
def test_parameters_of_modules_get_their_gradient(pieces: int, overwrite: bool, wants: bool):
    trained, frozen = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)

    def function(x: Tensor) -> Tensor:
        return frozen(trained(x).sigmoid()).square().sum()

    leaf = torch.randn(2, 6, 4, requires_grad=wants)
    expected = torch.autograd.grad(3 * function(leaf), [*trained.parameters(), *[leaf] * wants])
    value = eager_gradient(
        function,
        2 * (leaf / 2),
        modules=[trained, frozen],
        pieces=pieces,
        overwrite=overwrite,
    )
    (3 * value).backward()
    found = [*(p.grad for p in trained.parameters()), *[leaf.grad] * wants]
    for pair in zip(found, expected, strict=True):
        torch.testing.assert_close(*pair)
    assert all(p.grad is None for p in frozen.parameters())


def test_views_and_inputs_without_gradient():
    level_map = torch.randn(2, 6, 4, 5, requires_grad=True)
    view = level_map.unflatten(1, (2, 3)).movedim(2, -1)
    other = torch.randn(view.shape)
    eager_gradient(product, view, other).backward()
    assert other.grad is None
    expected = level_map.detach().requires_grad_()
    product(expected.unflatten(1, (2, 3)).movedim(2, -1), other).backward()
    torch.testing.assert_close(level_map.grad, expected.grad)


@pytest.mark.parametrize('pieces', [1, 3])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_the_first_inputs_memory_may_take_its_gradient(pieces: int, dtype: torch.dtype):
    found = []
    for overwrite in (False, True):
        leaf, other = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
        leaf.requires_grad_()
        level = 2 * leaf  # keeps its factors, as a convolution does, and not what it makes
        value = eager_gradient(product, level, other, pieces=pieces, overwrite=overwrite)
        (kept,) = value.grad_fn.saved_tensors
        takes = overwrite and dtype != torch.bfloat16  # the gradient waits in float32
        assert (kept.data_ptr() == level.data_ptr()) == takes
        assert torch.equal(level, 2 * leaf) != takes
        value.backward()
        found.append((value.detach(), leaf.grad))
    for pair in zip(*found, strict=True):
        torch.testing.assert_close(*pair)


@pytest.mark.parametrize('pieces', [1, 3])
def test_no_other_inputs_memory_takes_a_gradient(pieces: int):
    first, second = (torch.randn(2, 4, requires_grad=True) for _ in range(2))
    other = 2 * second
    eager_gradient(product, 2 * first, other, pieces=pieces, overwrite=True)
    assert torch.equal(other, 2 * second)


def test_an_input_that_its_maker_keeps_is_not_overwritten_unnoticed():
    leaf = torch.randn(2, 3, requires_grad=True)
    value = eager_gradient(product, leaf.exp(), torch.ones(2, 3), overwrite=True)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        value.backward()


def test_an_unused_input_has_no_gradient():
    used, unused = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    eager_gradient(lambda x, _: x.sum(), used, unused).backward()
    assert used.grad.tolist() == [1, 1]
    assert not unused.grad.any()


def test_without_autograd_it_is_the_value():
    x = torch.randn(3, requires_grad=True)
    with torch.no_grad():
        value = eager_gradient(lambda y: y.square().sum(), x)
    assert not value.requires_grad
    torch.testing.assert_close(value, x.detach().square().sum())


@pytest.mark.parametrize('pieces', [1, 3])
def test_small_gradients_of_half_precision_survive_until_they_are_scaled(pieces: int):
    # 1e-9 is 0 in float16; a gradient scaler multiplies the loss by about this
    scale, student = 2.0**16, torch.ones(1, 4, dtype=torch.float16, requires_grad=True)
    (scale * eager_gradient(lambda x: 1e-9 * x.sum(), student, pieces=pieces)).backward()
    assert student.grad.dtype == torch.float16
    expected = torch.full((1, 4), 6.55e-5)
    torch.testing.assert_close(student.grad.float(), expected, rtol=1e-2, atol=0)


def test_nothing_but_the_gradient_is_kept():
    student, teacher = torch.randn(50, 8, requires_grad=True), torch.randn(50, 8)
    value = eager_gradient(lambda x: feature_squared_error(x, teacher).mean(), student)
    assert [x.shape for x in value.grad_fn.saved_tensors] == [student.shape]


@pytest.mark.parametrize('pieces', [2, 3, 7])
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_in_pieces_it_is_the_same(pieces: int, dtype: torch.dtype):
    level_map, teacher = torch.randn(2, 2, 5 * 3, 4, 6, dtype=dtype)
    weight = torch.rand(2, 4, 6, 5, dtype=dtype).movedim(-1, 1)
    results = []
    for number in (1, pieces):
        leaf = level_map.clone().requires_grad_()
        views = [x.unflatten(1, (5, 3)).movedim(2, -1) for x in (leaf, teacher)]
        value = eager_gradient(
            lambda x, y, w: (w * modulated_binary_cross_entropy(x, y, 1).sum(-1)).sum(),
            *views,
            weight,
            pieces=number,
        )
        value.backward()
        results.append((value, leaf.grad))
    torch.testing.assert_close(*results)
    assert results[1][1].any()


def test_large_levels_are_looked_at_in_pieces():
    assert pieces_of(torch.empty(2, 9, 100, 167, 80, device='meta')) == 9
    assert pieces_of(torch.empty(2, 9, 40, 40, 80, device='meta')) == 5
    assert pieces_of(torch.empty(2, 9, 10, 10, 80, device='meta')) == 1
    assert pieces_of(torch.empty(2, 9, 0, 10, 80, device='meta')) == 1
    assert pieces_of(torch.empty(64, 1, 100, 167, 80, device='meta')) == 1
    assert pieces_of(torch.empty(2, 9, 10, 10, 80, device='meta'), numbers=2**21) == 4
    with needs.fake_gpu():  # a GPU would wait for its host between small ones
        assert pieces_of(torch.empty(2, 9, 100, 167, 80, device='cuda')) == 3
        assert pieces_of(torch.empty(2, 100, 167, 256, device='cuda')) == 2


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_of_half_precision_are_multiplied_in_float32(dtype: torch.dtype):
    # the gradient of a mean is too small for half precision before a scaler multiplies it
    x = torch.full((4,), 2.0, dtype=dtype, requires_grad=True)
    (eager_gradient(lambda x: x.square().sum() * 2**-30, x) * 2.0**26).backward()
    assert x.grad.dtype == dtype
    assert x.grad.tolist() == [0.25] * 4


def test_small_levels_are_looked_at_together():
    assert levels_at_once([7, 1, 4, 2, 3, 3], 5) == [[0], [1, 2], [3, 4], [5]]
    assert levels_at_once([0, 0], 5) == [[0, 1]]
    assert levels_at_once([], 5) == []


def test_the_gradient_is_laid_out_as_the_input():
    """Not as the function computes it, for it is added to other gradients of the input."""

    def channels_last(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last).square().sum()

    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    (plain,) = torch.autograd.grad(channels_last(x), x)
    (found,) = torch.autograd.grad(eager_gradient(channels_last, x), x)
    assert not plain.is_contiguous()
    assert found.is_contiguous()
    torch.testing.assert_close(found, plain)
    x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    (found,) = torch.autograd.grad(eager_gradient(channels_last, x), x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, plain)
