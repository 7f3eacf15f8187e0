"""GFL v2: the joint score by the paper's formula, everything else GFL's."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmdet.models.losses import QualityFocalLoss
from torch import Tensor

from ld_plugin import ConfigError
from ld_plugin.heads.gflv2 import GFLV2Head, distribution_statistics, joint_logits
from ld_plugin.recipes import ld_full
from tests import needs
from tests.dense.heads import build_head, metas, objects, random_features
from tests.families import tiny
from tests.models import batch, build, losses, tiny_distilled


def test_joint_logit_is_the_logit_of_the_product() -> None:
    classes = torch.randn(2, 3, 4, 5, dtype=torch.float64) * 4
    quality = torch.randn(2, 1, 4, 5, dtype=torch.float64) * 4
    expected = (classes.sigmoid() * quality.sigmoid()).logit()
    torch.testing.assert_close(joint_logits(classes, quality), expected)


def test_gradient_of_the_joint_logit() -> None:
    classes = torch.randn(1, 2, 2, 1, dtype=torch.float64, requires_grad=True)
    quality = torch.randn(1, 1, 2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(joint_logits, (classes, quality))


@given(st.floats(-1000, 1000), st.floats(-1000, 1000))
def test_joint_logit_of_extreme_logits(a: float, b: float) -> None:
    x, y = (torch.tensor([[[[value]]]], requires_grad=True) for value in (a, b))
    found = joint_logits(x, y)
    assert found.isfinite()
    assert found.item() <= min(a, b) + 1e-4 * max(abs(a), abs(b), 1)  # a product of scores
    for gradient in torch.autograd.grad(found, (x, y)):
        assert -1e-6 <= gradient.item() <= 1 + 1e-5


def test_statistics_are_the_largest_probabilities_and_their_mean() -> None:
    logits = torch.randn(2, 4 * 7, 3, 5)
    found = distribution_statistics(logits, reg_max=6, topk=4).unflatten(1, (4, 5))
    for image, side, row, column in [(0, 0, 0, 0), (1, 3, 2, 4), (1, 1, 0, 3)]:
        probabilities = logits[image, side * 7 : side * 7 + 7, row, column].softmax(0)
        largest = sorted(probabilities.tolist(), reverse=True)[:4]
        expected = [*largest, sum(largest) / 4]
        assert found[image, side, :, row, column].tolist() == pytest.approx(expected)


def test_all_of_a_sides_probabilities_may_be_looked_at() -> None:
    head = build_head('gflv2', reg_max=4, reg_topk=5)
    assert head.reg_conf[0].in_channels == 4 * (5 + 1)


def test_head_is_the_formula_of_the_paper() -> None:
    head = build_head('gflv2')
    features = random_features(head)
    plain = build_head('gfl')
    plain.load_state_dict(head.state_dict(), strict=False)
    class_maps, box_maps = plain(features)
    joint, boxes = head(features)
    for level in range(5):
        assert torch.equal(boxes[level], box_maps[level])
        statistics = distribution_statistics(boxes[level], 16, 4)
        quality = head.reg_conf(statistics).sigmoid()
        torch.testing.assert_close(joint[level].sigmoid(), class_maps[level].sigmoid() * quality)


def test_quality_focal_loss_of_the_logit_is_that_of_the_probability() -> None:
    logits = torch.randn(50, 3)
    labels, scores = torch.randint(0, 4, (50,)), torch.rand(50)
    on_logits = QualityFocalLoss(activated=False)(logits, (labels, scores))
    on_probabilities = QualityFocalLoss(activated=True)(logits.sigmoid(), (labels, scores))
    torch.testing.assert_close(on_logits, on_probabilities)


def test_state_dict_is_that_of_the_authors_code() -> None:
    own, stock = build_head('gflv2').state_dict(), build_head('gfl').state_dict()
    added = {name: tuple(own[name].shape) for name in set(own) - set(stock)}
    assert not set(stock) - set(own)
    assert added == {
        'reg_conf.0.weight': (64, 20, 1, 1),
        'reg_conf.0.bias': (64,),
        'reg_conf.2.weight': (1, 64, 1, 1),
        'reg_conf.2.bias': (1,),
    }


@pytest.mark.parametrize('counts', [(2, 1), (0, 0)], ids=str)
def test_it_trains_alone(counts: tuple) -> None:
    model = build(tiny('gflv2'))
    found = losses(model, batch(objects=counts))
    assert set(found) == {'loss_cls', 'loss_bbox', 'loss_dfl'}
    sum(map(sum, found.values())).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    assert model.bbox_head.reg_conf[0].weight.grad.any()


def test_quality_reaches_the_distributions() -> None:
    head = build_head('gflv2')
    joint, _ = head(random_features(head))
    sum(level.sum() for level in joint).backward()
    assert head.gfl_reg.weight.grad.any()


def test_losses_fall() -> None:
    head = build_head('gflv2')
    features, gts = random_features(head), objects(head, 3, 2)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.01, momentum=0.9)
    values = []
    for _ in range(20):
        loss = sum(map(sum, head.loss_by_feat(*head(features), gts, metas()).values()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert sum(b < a for a, b in pairwise(values)) > 12
    assert values[-1] < 0.8 * values[0]


def test_autocast_changes_little() -> None:
    model = build(tiny('gflv2'))
    expected = sum(map(sum, losses(model, batch()).values()))
    with torch.autocast('cpu', torch.bfloat16):
        found = sum(map(sum, losses(model, batch()).values()))
    assert found.item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize(
    'dtype',
    [pytest.param(torch.float16, marks=needs.half_on_processors), torch.bfloat16, torch.float64],
)
def test_head_that_is_converted_predicts_the_same(dtype: torch.dtype) -> None:
    head = build_head('gflv2')
    features = random_features(head)
    expected = head(features)
    found = head.to(dtype)([level.to(dtype) for level in features])
    for ours, theirs in zip(found, expected, strict=True):
        for level, reference in zip(ours, theirs, strict=True):
            torch.testing.assert_close(level.float(), reference, rtol=0.1, atol=0.1)
            assert level.dtype == torch.float32  # in which nearly certain scores differ


@pytest.mark.parametrize('teacher', ['gfl', 'gflv2'])
def test_it_is_distilled_as_gfl_is(teacher: str) -> None:
    source = dict(config=dict(model=tiny(teacher)), checkpoint=None)
    model = build(tiny_distilled(source, ld_full, tiny('gflv2')), seed=1)
    found = losses(model, batch())
    values: list[Tensor] = [found[f'loss_{name}'] for name in ld_full]
    assert all(value.isfinite() for value in values)
    sum(values).backward()
    assert model.bbox_head.reg_conf[0].weight.grad.any()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            dict(reg_max=0),
            r'^model\.bbox_head\.reg_max: found 0, expected a whole number of',
        ),
        (dict(reg_topk=0), r'^model\.bbox_head\.reg_topk: found 0'),
        (dict(reg_topk=6, reg_max=4), r'^model\.bbox_head\.reg_topk: found 6, .* reg_max \+ 1 = 5'),
        (dict(reg_channels=1.5), r'^model\.bbox_head\.reg_channels: found 1\.5'),
        (
            dict(loss_cls=dict(type='QualityFocalLoss', activated=True)),
            r'^model\.bbox_head\.loss_cls\.activated: found True, expected False',
        ),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GFLV2Head(3, 32, **arguments)
