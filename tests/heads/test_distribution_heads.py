"""Stock heads with distributions: trainable alone, and everything stock but the boxes' form."""

from typing import Any

import pytest
import torch
from mmdet.models.losses import L1Loss
from mmdet.registry import MODELS
from mmengine import ConfigDict
from torch import Tensor, nn

from ld_plugin import ConfigError
from ld_plugin.detectors import FrozenTeacher
from ld_plugin.recipes import ld_full
from tests.dense.heads import build_head, head_config, metas, objects, random_features
from tests.families import OWN_HEADS, OWN_ROTATED, tiny
from tests.models import batch, build, losses, tiny_distilled

FAMILIES = sorted(name for name in OWN_HEADS if name.startswith('distribution'))
BINS = 17


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def total(found: dict[str, Any]) -> Tensor:
    """The sum of all losses."""
    values = [sum(v) if isinstance(v, list) else v for k, v in found.items() if 'loss' in k]
    return sum(values)


def expected_bin(logits: Tensor) -> float:
    """Of one side, one term at a time."""
    weights = [float(torch.exp(z)) for z in logits.double()]
    return sum(step * w for step, w in enumerate(weights)) / sum(weights)


def test_distances_are_the_expected_bins_in_strides(family: str) -> None:
    head = build_head(family).eval()
    anchors = head.prior_generator.num_base_priors[1]
    maps = [torch.randn(2, anchors * 4 * BINS, 2, 3) for _ in head.prior_generator.strides]
    distances = head.expectations(maps)
    for image, anchor, side, row, column in [(0, 0, 0, 0, 0), (1, anchors - 1, 2, 1, 2)]:
        channel = (anchor * 4 + side) * BINS
        logits = maps[1][image, channel : channel + BINS, row, column]
        found = distances[1][image, anchor * 4 + side, row, column].item()
        assert found == pytest.approx(expected_bin(logits) * 16, rel=1e-5)


def test_one_hot_distributions_give_the_box(family: str) -> None:
    head = build_head(family).eval()
    features = random_features(head)
    outs = head(features)
    box_maps = []
    for level in outs[1]:
        sides = torch.full_like(level, -100).unflatten(1, (-1, 4, BINS))
        for side, found in enumerate((3, 5, 7, 9)):
            sides[:, :, side, found] = 100
        box_maps.append(sides.flatten(1, 3))
    settings = ConfigDict(nms_pre=100_000, score_thr=-1)
    huge = [meta | dict(img_shape=None) for meta in metas()]
    outs = (outs[0], box_maps, *outs[2:])
    for predicted in head.predict_by_feat(
        *outs, batch_img_metas=huge, cfg=settings, with_nms=False
    ):
        width, height = (predicted.bboxes[:, 2:] - predicted.bboxes[:, :2]).T
        assert {round(w) for w in (width / 10).tolist()} == {8, 16, 32, 64, 128}
        torch.testing.assert_close(height / 14, width / 10)


def test_losses_are_the_stock_losses_of_the_distances(family: str) -> None:
    head = build_head(family)
    outs, gts = head(random_features(head)), objects(head, 3, 2)
    found = head.loss_by_feat(*outs, gts, metas())
    stock_loss = type(head).loss_by_feat.__wrapped__
    distances = [level.detach() for level in head.expectations(outs[1])]
    expected = stock_loss(head, outs[0], distances, *outs[2:], gts, metas())
    assert set(found) == set(expected) == set(head_losses(family))
    torch.testing.assert_close(total(found), total(expected))


def head_losses(family: str) -> list[str]:
    quality = [] if 'retinanet' in family else ['loss_centerness']
    return ['loss_cls', 'loss_bbox', *quality]


def test_only_the_regression_layer_differs_from_the_stock_head(family: str) -> None:
    own = build_head(family).state_dict()
    stock = build_head(OWN_HEADS[family][0]).state_dict()
    assert set(own) - set(stock) == {'integral.project'}
    assert not set(stock) - set(own)
    wider = {name for name in stock if stock[name].shape != own[name].shape}
    layer = {'retinanet': 'retina_reg', 'atss': 'atss_reg'}.get(family.split('_')[1], 'conv_reg')
    assert wider == {f'{layer}.weight', f'{layer}.bias'}
    assert all(len(own[name]) == BINS * len(stock[name]) for name in wider)


def test_the_stock_heads_coder_need_not_be_named(family: str) -> None:
    config = head_config(family)
    config.pop('bbox_coder', None)
    assert type(MODELS.build(config).bbox_coder) is type(build_head(family).bbox_coder)


def test_it_learns_alone(family: str) -> None:
    model = build(tiny(family))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    values = []
    for _ in range(25):
        found = losses(model, batch())
        optimizer.zero_grad()
        total(found).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        values.append((total(found).item(), total(dict(loss=found['loss_bbox'])).item()))
    assert values[-1][0] < 0.8 * values[0][0]
    assert values[-1][1] < values[0][1]


def test_it_predicts(family: str) -> None:
    model = build(tiny(family)).eval()
    data = model.data_preprocessor(batch(), training=False)
    with torch.no_grad():
        samples = model(**data, mode='predict')
    boxes = samples[0].pred_instances.bboxes
    assert len(boxes) > 0
    assert boxes.min() >= 0 and boxes.max() <= 64


@pytest.mark.parametrize('counts', [(2, 1), (0, 0)], ids=str)
def test_every_parameter_gets_a_gradient(family: str, counts: tuple) -> None:
    # DistributedDataParallel waits for all of them
    model = build(tiny(family))
    loss = total(losses(model, batch(objects=counts)))
    assert loss.isfinite()
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


def test_autocast_changes_little(family: str) -> None:
    model = build(tiny(family))
    expected = total(losses(model, batch()))
    with torch.autocast('cpu', torch.bfloat16):
        found = total(losses(model, batch()))
    assert found.item() == pytest.approx(expected.item(), rel=0.05)


def test_localization_distillation_runs_on_it(family: str) -> None:
    student = tiny(family)
    teacher = dict(config=dict(model=tiny(family)), checkpoint=None)
    model = build(tiny_distilled(teacher, ld_full, student), seed=1)
    found = losses(model, batch())
    for name in ld_full:
        assert found[f'loss_{name}'].isfinite()
    assert found['loss_ld'] > 0
    found['loss_ld'].backward()
    assert getattr(model.bbox_head, model.bbox_head.regression_layer).weight.grad.any()


def test_a_teacher_equal_to_the_student_teaches_nothing(family: str) -> None:
    teacher = dict(config=dict(model=tiny(family)), checkpoint=None)
    model = build(tiny_distilled(teacher, ld_full, tiny(family)))
    twin = build(tiny(family))
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if 'distillers' not in k})
    model.teacher = FrozenTeacher(twin)
    model.eval()  # the backbone's batch norm is the teacher's
    model.bbox_head.train()
    found = losses(model, batch())
    for name in ld_full:
        assert found[f'loss_{name}'].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize('value', [0, -1, 2.5, True, '16'])
def test_bad_reg_max(family: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r'^model\.bbox_head\.reg_max: found .* at least 1'):
        build_head(family, reg_max=value)


@pytest.mark.parametrize('loss', ['L1Loss', 'mmdet.SmoothL1Loss', 'GHMR', L1Loss])
def test_a_loss_of_coordinates_is_refused(family: str, loss: str | type) -> None:
    with pytest.raises(ConfigError, match=r'^model\.bbox_head\.loss_bbox: found \w+, .* IoU loss'):
        build_head(family, loss_bbox=dict(type=loss))


def test_two_lines_over_the_stock_retinanet_name_what_is_missing() -> None:
    model = tiny('retinanet')
    model.bbox_head.type = 'DistributionRetinaHead'
    with pytest.raises(ConfigError, match=r'found L1Loss.*GIoULoss'):
        MODELS.build(model)


POINT_HEADS = {
    own: stock
    for own, stock in (
        ('distribution_fcos', 'fcos'),
        ('distribution_rotated_fcos', 'rotated_fcos'),
    )
    if own in (*OWN_HEADS, *OWN_ROTATED)
}


@pytest.mark.parametrize('on_reg', [False, True])
@pytest.mark.parametrize('own', POINT_HEADS)
def test_classes_and_centerness_are_the_stock_heads(own: str, on_reg: bool) -> None:
    mine, theirs = (
        build_head(family, centerness_on_reg=on_reg).eval() for family in (own, POINT_HEADS[own])
    )
    weights = mine.state_dict()
    for name, weight in theirs.state_dict().items():
        if weights[name].shape == weight.shape:
            weights[name] = weight
    mine.load_state_dict(weights)
    features = random_features(mine)
    found, expected = mine(features), theirs(features)
    for index in (0, -1):
        for maps in zip(found[index], expected[index], strict=True):
            assert torch.equal(*maps)


@pytest.mark.parametrize('family', [f for f in OWN_HEADS if f != 'gflv2'])
def test_mixed_precision_does_not_round_distances(family: str) -> None:
    head = build_head(family).eval()
    channels = head.prior_generator.num_base_priors[0] * 4 * (head.reg_max + 1)
    maps = [5 * torch.randn(1, channels, 3, 3) for _ in head.prior_generator.strides]
    expected = head.expectations(maps)
    with torch.autocast('cpu', torch.bfloat16):
        found = head.expectations(maps)
    for pair in zip(found, expected, strict=True):
        assert torch.equal(*pair)
