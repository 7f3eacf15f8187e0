import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ld_plugin.errors import ConfigError
from ld_plugin.losses import (
    BinaryKDLoss,
    DistillationLoss,
    DistributionKLLoss,
    FeatureMSELoss,
    PearsonFeatureLoss,
    RankKLLoss,
    distribution_kl,
    feature_squared_error,
    modulated_binary_cross_entropy,
    pearson_feature_error,
    rank_kl,
    standardized,
)
from ld_plugin.losses.functional import at_least_float32
from tests import brute_force

MODULES = [
    pytest.param(BinaryKDLoss(beta=2, loss_weight=0.5), id='BinaryKDLoss'),
    pytest.param(DistributionKLLoss(temperature=3, loss_weight=0.5), id='DistributionKLLoss'),
    pytest.param(FeatureMSELoss(loss_weight=0.5), id='FeatureMSELoss'),
    pytest.param(PearsonFeatureLoss(loss_weight=0.5), id='PearsonFeatureLoss'),
]


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


@settings(deadline=None, max_examples=50)
@given(
    count=st.integers(1, 5),
    bins=st.integers(1, 20),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 10.0]),
    seed=st.integers(0, 10**6),
)
def test_distribution_kl_and_its_gradient_follow_the_formula(count, bins, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(2, count, bins, generator=generator) * 3).unbind()
    student.requires_grad_()
    loss = distribution_kl(student, teacher, temperature)
    loss.sum().backward()
    ours, given_rows = loss.detach().numpy(), (student.detach().numpy(), teacher.numpy())
    np.testing.assert_allclose(ours, brute_force.kl(*given_rows, temperature), atol=2e-5, rtol=1e-4)
    expected = brute_force.kl_gradient(*given_rows, temperature)
    np.testing.assert_allclose(student.grad.numpy(), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize('bins', [8, 17])  # fewer and more than a processor takes at once
@pytest.mark.parametrize('offset', [0.0, 1e4])
def test_distribution_kl_is_that_of_torch(bins, offset):
    student, teacher = rows(5, 4, bins), rows(5, 4, bins).detach()
    found = distribution_kl(student + offset, teacher + offset, 2.0)
    logarithms = ((x + offset).div(2).log_softmax(-1) for x in (student, teacher))
    expected = 4 * F.kl_div(*logarithms, reduction='none', log_target=True).mean(-1)
    torch.testing.assert_close(found, expected)
    upstream = torch.rand(5, 4)
    gradients = (torch.autograd.grad(x, student, upstream)[0] for x in (found, expected))
    torch.testing.assert_close(*gradients)


def test_distribution_kl_of_a_small_example():
    # p_S = (1/2, 1/2), p_T = (3/4, 1/4): 3/4 ln(3/2) + 1/4 ln(1/2), and the mean halves it
    student, teacher = torch.zeros(2), torch.tensor([3.0, 1.0]).log()
    torch.testing.assert_close(distribution_kl(student, teacher, 1.0), torch.tensor(0.1308120 / 2))


def test_feature_squared_error_of_a_small_example():
    error = feature_squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 3.0]]))
    torch.testing.assert_close(error, torch.tensor([2.5]))


@settings(deadline=None, max_examples=50)
@given(
    count=st.integers(1, 5),
    classes=st.integers(1, 20),
    beta=st.sampled_from([1.0, 1.5, 2.0]),
    seed=st.integers(0, 10**6),
)
def test_modulated_binary_cross_entropy_follows_the_formula(count, classes, beta, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(2, count, classes, generator=generator) * 3).unbind()
    student.requires_grad_()
    loss = modulated_binary_cross_entropy(student, teacher, beta)
    loss.sum().backward()
    given_rows = student.detach().numpy(), teacher.numpy(), beta
    expected = brute_force.binary_kl(*given_rows)
    np.testing.assert_allclose(loss.detach().numpy(), expected, atol=1e-6, rtol=1e-4)
    expected = brute_force.binary_kl_gradient(*given_rows)
    np.testing.assert_allclose(student.grad.numpy(), expected, atol=1e-6, rtol=1e-4)


def test_binary_cross_entropy_where_logits_are_zero_or_large():
    # entropy ln 2 and slope 1/2 - y at 0; no overflow far from it
    student = torch.tensor([0.0, 200.0, -200.0], requires_grad=True)
    teacher = torch.tensor([np.log(3), -200.0, 200.0], dtype=torch.float32)
    loss = modulated_binary_cross_entropy(student, teacher, 0.0)
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.tensor([np.log(2), 200.0, 200.0], dtype=torch.float32))
    torch.testing.assert_close(student.grad, torch.tensor([-0.25, 1.0, -1.0]))
    assert modulated_binary_cross_entropy(student, teacher, 1.0).tolist()[1:] == [200.0, 200.0]


def test_gradients_agree_with_finite_differences():
    student, teacher = rows(4, 6, dtype=torch.float64), rows(4, 6, dtype=torch.float64).detach()
    for function in (
        lambda s: distribution_kl(s, teacher, 2.0),
        lambda s: modulated_binary_cross_entropy(s, teacher, 0.0),
        lambda s: modulated_binary_cross_entropy(s, teacher, 1.0),
        lambda s: feature_squared_error(s, teacher),
        lambda s: pearson_feature_error(s, teacher),
    ):
        assert torch.autograd.gradcheck(function, student)


@pytest.mark.parametrize('loss', MODULES)
@pytest.mark.parametrize('weighted', [True, False])
@pytest.mark.parametrize('avg_factor', [None, 2.5])
def test_gradients_of_the_modules_agree_with_finite_differences(loss, weighted, avg_factor):
    student, teacher = rows(4, 3, 6, dtype=torch.float64), rows(4, 3, 6, dtype=torch.float64)
    weight = torch.rand(4, 3, dtype=torch.float64) if weighted else None
    assert torch.autograd.gradcheck(
        lambda s: loss(s, teacher.detach(), weight, avg_factor), student
    )


@pytest.mark.parametrize('loss', MODULES)
def test_reduction_is_that_of_the_stock_losses(loss):
    student, teacher, weight = rows(5, 4), rows(5, 4), torch.rand(5)
    each = 0.5 * loss.elementwise(student, teacher)
    torch.testing.assert_close(loss(student, teacher), each.mean())
    torch.testing.assert_close(loss(student, teacher, weight), (each * weight).mean())
    torch.testing.assert_close(loss(student, teacher, weight, 8.0), (each * weight).sum() / 8)


@pytest.mark.parametrize('loss', [*MODULES, pytest.param(BinaryKDLoss(beta=0), id='entropy')])
def test_the_teacher_receives_no_gradient(loss):
    student, teacher = rows(5, 4), rows(5, 4)
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize('loss', MODULES)
def test_equal_rows_have_no_loss_and_no_gradient(loss):
    student = rows(5, 4)
    value = loss(student, student.detach().clone())
    value.backward()
    assert value == 0
    assert student.grad.abs().max() < 1e-7  # rounding


@pytest.mark.parametrize('loss', MODULES)
def test_no_rows_give_zero_and_a_gradient(loss):
    student = rows(5, 4)
    value = loss(student[:0], student.detach()[:0], torch.ones(0), avg_factor=1.0)
    value.backward()
    assert value == 0
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize('loss', MODULES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    student, teacher = (rows(50, 17).detach() * 5).to(dtype), (rows(50, 17).detach() * 5).to(dtype)
    student.requires_grad_()
    value = loss(student, teacher, avg_factor=1.0)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student.float(), teacher.float(), avg_factor=1.0))
    value.backward()
    assert student.grad.dtype == dtype
    assert student.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_large_half_precision_logits_do_not_overflow(dtype):
    # squared in float16, 300 would be infinite
    student, teacher = (
        torch.full((2, 4), 300.0, dtype=dtype),
        torch.full((2, 4), -300.0, dtype=dtype),
    )
    assert feature_squared_error(student, teacher).tolist() == [360000.0, 360000.0]
    assert distribution_kl(student, teacher, 0.01).tolist() == [0.0, 0.0]


def test_at_least_float32_leaves_wider_types_alone():
    for given_type, expected in [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        assert at_least_float32(torch.zeros(1, dtype=given_type)).dtype == expected


@pytest.mark.parametrize('temperature', [1e-3, 1e3, 1e6])
def test_extreme_temperatures_stay_finite(temperature):
    student, teacher = (rows(20, 17) * 30), (rows(20, 17) * 30).detach()
    student.retain_grad()
    loss = distribution_kl(student, teacher, temperature)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()


def test_a_hot_divergence_becomes_half_the_variance_of_the_difference():
    # tau^2 KL -> Var(z_S - z_T) / 2 as tau grows, with the variance over the bins
    student, teacher = rows(3, 5, dtype=torch.float64), rows(3, 5, dtype=torch.float64)
    limit = (student - teacher).var(-1, unbiased=False) / 2 / 5
    torch.testing.assert_close(distribution_kl(student, teacher, 1e4), limit, rtol=1e-3, atol=1e-6)


def test_a_bin_without_probability_counts_nothing():
    teacher = torch.tensor([0.0, -1e4])
    student = torch.zeros(2, requires_grad=True)
    loss = distribution_kl(student, teacher, 1.0)
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(np.log(2) / 2, dtype=torch.float32))
    torch.testing.assert_close(student.grad, torch.tensor([-0.25, 0.25]))


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: DistributionKLLoss(temperature=0), 'temperature: found 0'),
        (lambda: DistributionKLLoss(temperature=float('nan')), 'temperature: found nan'),
        (lambda: DistributionKLLoss(loss_weight=float('nan')), 'loss_weight: found nan'),
        (lambda: DistributionKLLoss(temperature=-2), 'temperature: found -2'),
        (lambda: DistributionKLLoss(loss_weight=-1), 'loss_weight: found -1'),
        (lambda: BinaryKDLoss(beta=0.5), 'beta: found 0.5, expected 0 or at least 1'),
        (lambda: BinaryKDLoss(beta=float('nan')), 'beta: found nan'),
        (lambda: RankKLLoss(loss_weight=-3), 'loss_weight: found -3'),
        (lambda: FeatureMSELoss(loss_weight=-0.5), 'loss_weight: found -0.5'),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_defaults_are_the_published_values():
    kl = DistributionKLLoss()
    assert (kl.temperature, kl.loss_weight, kl.class_reduction) == (10, 0.25, 'mean')
    binary = BinaryKDLoss()
    assert (binary.beta, binary.loss_weight) == (1, 1)
    weights = [loss().loss_weight for loss in (FeatureMSELoss, PearsonFeatureLoss, RankKLLoss)]
    assert weights == [2, 6, 4]


@settings(deadline=None, max_examples=30)
@given(count=st.integers(2, 30), channels=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_pearson_error_is_one_minus_the_correlation(count, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, count, channels, generator=generator).double().unbind()
    correlation = [np.corrcoef(s, t)[0, 1] for s, t in zip(student.T, teacher.T, strict=True)]
    expected = (count - 1) / count * (1 - np.mean(correlation))
    ours = pearson_feature_error(student * 7e4 + 3, teacher * 1e4 - 1).mean()
    assert ours.item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    'student',
    [
        pytest.param(torch.randn(1, 3), id='one row'),
        pytest.param(torch.full((4, 3), 1.25), id='constant channels'),
        pytest.param(torch.zeros(1, 1), id='one number'),
        pytest.param(torch.cat([torch.zeros(3, 1), torch.randn(3, 2)], dim=1), id='one constant'),
        pytest.param(torch.full((5, 2), 1e-20), id='tiny'),
        pytest.param(torch.randn(5, 2) * 1e-22, id='variance below the smallest number'),
    ],
)
def test_standardized_features_without_variance_are_finite(student):
    student = student.clone().requires_grad_()
    loss = pearson_feature_error(student, torch.randn(student.shape)).mean()
    loss.backward()
    assert standardized(student.detach()).isfinite().all()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize('value', [0.1, 1 / 3, 12345.678])
def test_a_constant_channel_of_many_rows_is_exactly_standardized_to_zero(value):
    # whose mean would be rounded, and the rest divided by the small eps
    rows = torch.full((2, 57, 31, 3), value)
    rows[..., 1] = torch.randn(2, 57, 31)
    found = standardized(rows)
    assert found[..., [0, 2]].eq(0).all()
    assert found[..., 1].std().item() == pytest.approx(1, abs=1e-4)


def test_standardized_features_far_from_zero():
    rows = torch.randn(4000, 2) + 1000
    exact = rows.double()
    exact = (exact - exact.mean(0)) / exact.std(0)
    torch.testing.assert_close(standardized(rows), exact.float(), atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=50)
@given(count=st.integers(0, 12), groups=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_rank_kl_follows_the_formula_in_ragged_groups(count, groups, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(2, count, generator=generator) * 5).double().unbind()
    group = torch.randint(groups, (count,), generator=generator)
    ours = rank_kl(student, teacher, group, groups)
    expected = brute_force.rank_kl(student.numpy(), teacher.numpy(), group.numpy(), groups)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-9)
    order = torch.randperm(count, generator=generator)
    again = rank_kl(student[order], teacher[order], group[order], groups)
    torch.testing.assert_close(again, ours)


def test_rank_kl_gradients_agree_with_finite_differences():
    student, teacher = rows(7, dtype=torch.float64), rows(7, dtype=torch.float64).detach()
    group = torch.tensor([2, 0, 2, 4, 0, 2, 2])  # groups 1 and 3 are empty, group 4 has one member
    assert torch.autograd.gradcheck(lambda s: rank_kl(s, teacher, group, 5), student)
    teacher.requires_grad_()
    rank_kl(student, teacher, group, 5).sum().backward()
    assert student.grad[3] == 0
    assert teacher.grad is None


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_rank_kl_of_large_half_precision_logits(dtype):
    student = torch.tensor([200.0, -200.0, 0.0], dtype=dtype, requires_grad=True)
    loss = RankKLLoss(2.0)(student, -student.detach(), torch.tensor([0, 0, 1]), 2, avg_factor=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(800)
    assert student.grad.tolist() == [2, -2, 0]


def test_no_positives_have_no_rank_and_a_gradient():
    student = rows(3)
    loss = RankKLLoss()(student[:0], student.detach()[:0], torch.zeros(0).long(), 2, avg_factor=1)
    loss.backward()
    assert loss == 0
    assert not student.grad.any()


class OfElements(DistillationLoss):
    """Of a user: it does not put the elements of a row together."""

    def elementwise(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return (student - teacher).abs()


class OfRows(OfElements):
    """Of a user: as it should be."""

    def elementwise(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return super().elementwise(student, teacher).sum(-1)


def test_a_loss_of_ones_own_is_the_mean_of_its_rows() -> None:
    student, teacher = rows(4, 3), rows(4, 3)
    expected = (student - teacher).abs().sum() / 4
    torch.testing.assert_close(OfRows()(student, teacher), expected)
    torch.testing.assert_close(OfRows(loss_weight=3)(student, teacher), 3 * expected)


class OfAllRows(OfElements):
    """Of a user: it puts the rows together, too."""

    def elementwise(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return super().elementwise(student, teacher).mean()


class OfOneRow(OfElements):
    """Of a user: one number for all rows, which would be repeated for each."""

    def elementwise(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return super().elementwise(student, teacher).mean().reshape(1)


@pytest.mark.parametrize(
    ('kind', 'found'),
    [(OfElements, r'\(4, 4\)'), (OfAllRows, r'\(\)'), (OfOneRow, r'\(1,\)')],
)
@pytest.mark.parametrize('weight', [None, torch.ones(4)], ids=['unweighted', 'weighted'])
def test_loss_of_anything_but_rows_is_refused(kind, found, weight):
    message = rf'^{kind.__name__}\.elementwise: found the shape {found} for .*, expected \(4,\): '
    with pytest.raises(ValueError, match=message):
        kind()(rows(4, 4), rows(4, 4), weight, avg_factor=4.0)
