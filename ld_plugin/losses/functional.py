"""Losses as pure functions of logits and features.

Shape shorthand: K selected positions, B bins (or classes), C feature channels, G groups of
positions, ``...`` any leading dimensions. Targets carry no gradient. Half-precision inputs are
computed in float32.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def distribution_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    r"""KL divergence between two softened distributions, averaged over the bins.

    .. math:: \frac{\tau^2}{B} \sum_b p_{T,b} (\log p_{T,b} - \log p_{S,b}),
              \quad p = \mathrm{softmax}(z / \tau)

    Localization distillation (Zheng et al., CVPR 2022, eq. 3-4) applies it to the B logits of a box
    side, classification distillation to the C class logits of a position. The published
    implementation averages over the bins, so its value is 1/B of the divergence, and so is ours.

    Args:
        student: Logits, (..., B).
        teacher: Logits, (..., B).
        temperature: tau > 0.

    Returns:
        (...), not below 0 up to rounding; its gradient in ``student`` is ``tau / B * (p_S - p_T)``.
        It can be differentiated once.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher.detach())
    return _SoftenedDivergence.apply(student, teacher, temperature)


class _SoftenedDivergence(torch.autograd.Function):
    """With its slope in closed form: autograd's own steps take five times as long."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        log_student, log_teacher = (_log_softmax(x / temperature) for x in (student, teacher))
        target = log_teacher.exp()
        each = log_teacher.sub_(log_student).mul_(target)
        if ctx.needs_input_grad[0]:
            slope = log_student.exp_().sub_(target)
            ctx.save_for_backward(slope.mul_(temperature / student.shape[-1]))
        return each.mean(dim=-1).mul_(temperature**2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return upstream.unsqueeze(-1) * slope, None, None


def _log_softmax(logits: Tensor) -> Tensor:
    """Over the last dimension. A processor's own kernel is slow below a register's width."""
    if logits.device.type != 'cpu' or logits.shape[-1] >= 16:
        return F.log_softmax(logits, dim=-1)
    shifted = logits - logits.amax(-1, keepdim=True)
    return shifted.sub_(shifted.exp().sum(-1, keepdim=True).log_())


def modulated_binary_cross_entropy(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    r"""Binary cross entropy of every class, weighted by how much the scores differ.

    .. math:: |s_T - s_S|^\beta \, \mathrm{BCE}(s_S, s_T), \quad s = \mathrm{sigmoid}(z)

    BCKD (Yang et al., ICCV 2023) and, as the quality focal loss against the teacher's score,
    CrossKD (Wang et al., CVPR 2024) compare the scores of sigmoid classifiers with it. The factor
    in front carries a gradient, too.

    Args:
        student: Logits, (..., C).
        teacher: Logits, (..., C).
        beta: Exponent, 0 or at least 1; with 0 it is plain binary cross entropy.

    Returns:
        (..., C). Where the scores are equal, value (unless ``beta`` is 0) and gradient are 0.
    """
    student = at_least_float32(student)
    # laid out in memory as the student's, for passes over both of them together are faster then
    target = torch.empty_like(student).copy_(teacher.detach()).sigmoid_()
    if beta == 0:
        return F.binary_cross_entropy_with_logits(student, target, reduction='none')
    return _ModulatedEntropy.apply(student, target, beta)


class _ModulatedEntropy(torch.autograd.Function):
    r"""With its slope in closed form, which takes half as many passes over the logits.

    With :math:`d = s_S - s_T` and the entropy H it is
    :math:`\mathrm{sign}(d) |d|^{\beta - 1} (d^2 + \beta H s_S (1 - s_S))`.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, beta: float) -> Tensor:
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction='none')
        score = logits.sigmoid()
        difference = score - target
        distance = difference.abs()
        if ctx.needs_input_grad[0]:
            spread = score.mul_(1 - score).mul_(entropy)
            slope = spread.mul_(beta).addcmul_(difference, difference)
            slope.mul_(difference.sign_())
            ctx.save_for_backward(slope if beta == 1 else slope.mul_(distance.pow(beta - 1)))
        return entropy.mul_(distance if beta == 1 else distance.pow(beta))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return upstream * slope, None, None


def feature_squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference averaged over the channels: (..., C) and (..., C) to (...)."""
    difference = at_least_float32(student) - at_least_float32(teacher.detach())
    return difference.square().mean(dim=-1)


def rank_kl(student: Tensor, teacher: Tensor, group: Tensor, num_groups: int) -> Tensor:
    r"""KL divergence between two rankings of the members of every group.

    .. math:: \sum_j r_{T,j} (\log r_{T,j} - \log r_{S,j}), \quad r = \mathrm{softmax}_j(x)

    over the members j of a group. In rank mimicking (Li et al., AAAI 2022) a group is the
    positives of one ground truth. The j-th entry of both models is the same position.

    Args:
        student: (K,), what is ranked.
        teacher: (K,).
        group: (K,) int64 in 0..G-1, the group of every position, in any order.
        num_groups: G.

    Returns:
        (G,), not below 0 up to rounding; 0 for groups of one member or none.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher.detach())
    log_student, log_teacher = (
        _group_log_softmax(x, group, num_groups) for x in (student, teacher)
    )
    each = log_teacher.exp() * (log_teacher - log_student)
    return each.new_zeros(num_groups).index_add(0, group, each)


def _group_log_softmax(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Logarithm of the softmax over the members of every group, (K,)."""
    peak = values.new_full((num_groups,), -torch.inf)
    shifted = values - peak.scatter_reduce(0, group, values.detach(), 'amax')[group]
    total = values.new_zeros(num_groups).index_add(0, group, shifted.exp())
    # a group's largest member adds 1, so this keeps the logarithm from groups without members alone
    return shifted - total.clamp(min=1).log()[group]


def standardized(
    rows: Tensor, deviation: Tensor | None = None, mean: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """Every channel less its mean over the rows, divided by its standard deviation plus ``eps``.

    The deviation is unbiased, as in PKD (Cao et al., NeurIPS 2022). A constant channel becomes 0,
    and so does a single row; the slope of the deviation there is taken as 0, so that gradients are
    finite. It can be differentiated once.

    Args:
        rows: (..., C), in at least float32.
        deviation: What the channels are multiplied by afterwards, (..., C) with every other
            dimension 1; carries no gradient. 1 if None.
        mean: What is added to them then, likewise; 0 if None.
        eps: Added to the standard deviation.

    Returns:
        (..., C), contiguous.
    """
    if rows.numel() == 0:
        return rows
    return _Standardized.apply(rows, deviation, mean, eps)


class _Standardized(torch.autograd.Function):
    """See :func:`standardized`; autograd's own steps would go over the rows far more often.

    With the rows less their mean c, their deviation s over K rows, and the new deviation D, the
    gradient g becomes ``D / (s + eps) * (g - mean(g) - c * sum(g c) / ((K - 1) s (s + eps)))``.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, deviation: Tensor | None, mean: Tensor | None, eps: float
    ) -> Tensor:
        centred, centre, own = centred_moments(rows)
        divisor = own + eps
        factor = divisor.reciprocal() if deviation is None else deviation / divisor
        # how far the divisor follows a row's distance from the centre
        slope = (max(rows.shape[:-1].numel() - 1, 1) * own * divisor).reciprocal()
        ctx.save_for_backward(rows, centre, factor, slope.where(own > 0, 0))
        if mean is None:
            return centred.mul_(factor)
        return torch.addcmul(mean, centred, factor, out=centred)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        rows, centre, factor, slope = ctx.saved_tensors
        over, number = tuple(range(rows.dim() - 1)), rows.shape[:-1].numel()
        centred = torch.sub(rows, centre, out=rows.new_empty(rows.shape))
        product = upstream * centred
        pull = product.sum(over, keepdim=True) * slope
        shift = upstream.sum(over, keepdim=True) / number
        result = torch.addcmul(-shift * factor, upstream, factor, out=product)
        return result.addcmul_(centred, -pull * factor), None, None, None


def centred_moments(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every channel less its mean, the mean, and the unbiased standard deviation.

    In steps that a processor is quick at: ``torch.var_mean`` takes ten times as long there. The
    first row is subtracted before anything is added up, so that a constant channel is exactly 0.

    Args:
        rows: (..., C), in at least float32.

    Returns:
        (..., C), contiguous, and two of (1, ..., 1, C); the deviation of a single row is 0.
    """
    over, number = tuple(range(rows.dim() - 1)), rows.shape[:-1].numel()
    first = rows[(slice(1),) * len(over)]
    centred = torch.sub(rows, first, out=rows.new_empty(rows.shape))
    rest = centred.mean(over, keepdim=True)
    variance = centred.sub_(rest).square().sum(over, keepdim=True) / max(number - 1, 1)
    return centred, first + rest, variance.sqrt()


class ChannelStatistics(NamedTuple):
    """Of features (N, F, H, W), over the images and positions of the batch.

    Attributes:
        mean: (1, 1, 1, F).
        deviation: (1, 1, 1, F), the unbiased standard deviation; 0 of a single position.
    """

    mean: Tensor
    deviation: Tensor


def channel_statistics(features: Tensor) -> ChannelStatistics:
    """Mean and deviation of every channel, in at least float32, of features (N, F, H, W)."""
    _, *moments = centred_moments(at_least_float32(features.detach()).movedim(1, -1))
    return ChannelStatistics(*moments)


def pearson_feature_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the squared difference of standardized features, averaged over the channels.

    Its mean over the rows is ``(K - 1) / K * (1 - r)``, with the Pearson correlation r of every
    channel, averaged over the channels (Cao et al., NeurIPS 2022).

    Args:
        student: (..., C); the statistics are taken over all leading dimensions.
        teacher: (..., C).

    Returns:
        (...).
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher.detach())
    return feature_squared_error(standardized(student), standardized(teacher)) / 2


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is where it is float32 or float64 already."""
    return x.float() if x.element_size() < 4 else x
