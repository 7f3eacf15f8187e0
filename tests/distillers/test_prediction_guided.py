"""Prediction-guided feature imitation on contexts: cell by cell."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from ld_plugin.dense import DistillationContext
from ld_plugin.errors import ConfigError
from tests import contexts
from tests.contexts import context

make = partial(contexts.make, type='PredictionGuidedFeatureDistiller')


def expected_loss(step: DistillationContext, on: str = 'logit') -> torch.Tensor:
    """With plain autograd, the mean over the valid cells of every level."""
    levels = []
    valid = step.assignment.valid.split(step.student.num_level_priors, dim=1)
    for level, (h, w, a) in enumerate(step.student.level_shapes):
        p = [dense.class_maps[level] for dense in (step.student, step.teacher)]
        p = [x.sigmoid() if on == 'score' else x for x in p]
        f = [dense.features[level] for dense in (step.student, step.teacher)]
        each = (p[0] - p[1]).square().mean(1) * (f[0] - f[1]).square().mean(1)
        levels.append(each[valid[level].view(-1, h, w, a).any(-1)].mean())
    return 1.5 * torch.stack(levels).mean()


@pytest.mark.parametrize('on', ['logit', 'score'])
@pytest.mark.parametrize('anchors', [1, 9])
def test_every_valid_cell_counts_once(anchors: int, on: str) -> None:
    step = context(images=3, priors_per_cell=anchors)
    maps = [*step.student.class_maps, *step.student.features]
    loss, expected = make(step, on=on)(step), expected_loss(step, on)
    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(loss, maps), torch.autograd.grad(expected, maps)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('on', ['logit', 'score'])
def test_predictions_of_half_precision_are_compared_in_float32(on: str) -> None:
    step = context(images=3)

    def loss_and_gradients(dtype: torch.dtype) -> list[torch.Tensor]:
        student, teacher = (
            replace(dense, class_maps=[x.detach().bfloat16().to(dtype) for x in dense.class_maps])
            for dense in (step.student, step.teacher)
        )
        loss = make(step, on=on)(replace(step, student=student, teacher=teacher))
        return [loss, *torch.autograd.grad(loss, student.features)]

    found, expected = (loss_and_gradients(kind) for kind in (torch.bfloat16, torch.float32))
    torch.testing.assert_close(found, expected)


def test_other_widths_pass_an_adapter() -> None:
    step = context(images=2)
    features = [torch.randn(2, 5, *level.shape[2:]) for level in step.teacher.features]
    spec = replace(step.teacher.spec, feature_channels=5)
    step = replace(step, teacher=replace(step.teacher, spec=spec, features=features))
    distiller = make(step)
    distiller(step).backward()
    weight, bias = distiller.adapter.parameters()  # which reach any mean of a channel
    assert weight.shape == (5, 2, 1, 1) and bias.shape == (5,)
    assert weight.grad.abs().sum() > 0 and bias.grad.abs().sum() > 0
    assert all(level.grad.abs().sum() > 0 for level in step.student.features)


def test_bad_config() -> None:
    with pytest.raises(ConfigError, match=r"^model\.distillers\.x\.on: found 'probability', expec"):
        make(context(), on='probability')
