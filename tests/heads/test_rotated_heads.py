"""Rotated heads with distributions: trainable alone, and everything stock but the boxes' form."""

import pytest
import torch
from mmdet.structures.bbox import get_box_tensor
from torch import nn

from ld_plugin import ConfigError
from ld_plugin.dense import get_reader
from tests.dense.heads import build_head, metas, objects, random_features
from tests.families import OWN_ROTATED, scope, tiny
from tests.heads.test_distribution_heads import total
from tests.models import batch, build, losses, rotate

pytest.importorskip('mmrotate')

FAMILIES = sorted(OWN_ROTATED)
RETINA = 'distribution_rotated_retinanet'


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def model_of(family: str) -> nn.Module:
    with scope(family):
        return build(tiny(family))


def data(objects: tuple[int, int] = (2, 1)) -> dict[str, list]:
    found = batch(objects=objects)
    rotate(found)
    return found


def test_offsets_are_expectations_over_the_published_bins() -> None:
    head = build_head(RETINA)
    maps = [torch.randn(1, 9 * 5 * 9, 2, 3)]
    (offsets,) = head.expectations(maps)
    assert offsets.shape == (1, 9 * 5, 2, 3)
    for anchor, offset, first, last in [(0, 0, -2, 2), (4, 3, -2, 2), (8, 4, -5, 2)]:
        start = (anchor * 5 + offset) * 9
        chances = maps[0][0, start : start + 9, 1, 2].softmax(0).tolist()
        expected = sum(p * (first + (last - first) * b / 8) for b, p in enumerate(chances))
        assert offsets[0, anchor * 5 + offset, 1, 2].item() == pytest.approx(expected, abs=1e-5)


def test_ranges_of_ones_own() -> None:
    head = build_head(RETINA, reg_max=4, delta_range=(-1, 1), angle_range=(-3, 3))
    assert head.retina_reg.out_channels == 9 * 5 * 5
    last = torch.tensor([0, 0, 0, 0, 1000.0]).repeat(5)
    assert head.expected_offsets(last).tolist() == [1, 1, 1, 1, 3]


def test_logits_of_half_precision_are_averaged_in_float32() -> None:
    head = build_head(RETINA)
    logits = torch.randn(6, 9 * 5 * 9).bfloat16()
    assert torch.equal(head.expected_offsets(logits), head.expected_offsets(logits.float()))


def test_head_that_is_converted_gives_boxes_in_float32() -> None:
    head = build_head('distribution_rotated_fcos').bfloat16()
    _, *boxes_and_angles, _ = head([level.bfloat16() for level in random_features(head)])
    for levels in boxes_and_angles:
        assert {level.dtype for level in levels} == {torch.float32}


def test_one_hot_distributions_give_the_box() -> None:
    head = build_head('distribution_rotated_fcos').eval()
    outs = head(random_features(head))
    boxes = torch.zeros(1, 4, 17)
    for side, found in enumerate((3, 5, 7, 9)):
        boxes[0, side, found] = 1000
    angle = torch.zeros(17)
    angle[9] = 1000  # pi / 8
    rows = torch.cat([boxes.flatten(), angle])
    reader = get_reader(head)
    dense = reader.read(outs, [])
    (box,) = reader.decode(rows[None], dense.priors[:1], dense.prior_strides[:1])
    assert box[2:].tolist() == pytest.approx([80, 112, torch.pi / 8], rel=1e-5)
    assert reader.spec.bin_ranges == (*[(0, 16)] * 4, (-torch.pi, torch.pi))


def test_losses_are_the_stock_losses_of_the_expectations(family: str) -> None:
    head = build_head(family)
    outs, gts = head(random_features(head)), objects(head, 3, 2)
    found = head.loss_by_feat(*outs, gts, metas())
    stock_loss = type(head).loss_by_feat.__wrapped__
    expected = stock_loss(head, outs[0], head.expectations(outs[1]), *outs[2:], gts, metas())
    assert set(found) == set(expected)
    torch.testing.assert_close(total(found).sum(), total(expected).sum())


def test_only_the_layers_of_the_boxes_differ_from_the_stock_head(family: str) -> None:
    own = build_head(family).state_dict()
    stock = build_head(OWN_ROTATED[family][0]).state_dict()
    assert set(own) - set(stock) <= {'integral.project'}
    assert not set(stock) - set(own)
    wider = {name.split('.')[0] for name in stock if stock[name].shape != own[name].shape}
    assert wider == ({'conv_reg', 'conv_angle'} if 'fcos' in family else {'retina_reg'})


def test_it_learns_alone(family: str) -> None:
    model = model_of(family)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    values = []
    for _ in range(25):
        found = losses(model, data())
        loss, _ = model.parse_losses(found)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.8 * values[0]


def test_it_predicts(family: str) -> None:
    model = model_of(family).eval()
    inputs = model.data_preprocessor(data(), training=False)
    with torch.no_grad():
        samples = model(**inputs, mode='predict')
    assert get_box_tensor(samples[0].pred_instances.bboxes).shape[1] == 5


def test_a_batch_without_objects(family: str) -> None:
    model = model_of(family)
    loss, _ = model.parse_losses(losses(model, data((0, 0))))
    assert loss.isfinite()
    loss.backward()


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize('value', [0, -1, 2.5, True, '16'])
def test_bad_reg_max(family: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r'^model\.bbox_head\.reg_max: found .* at least 1'):
        build_head(family, reg_max=value)


@pytest.mark.parametrize('value', [(2, -2), (1, 1), 3, (0, 1, 2), ('a', 'b')], ids=str)
def test_bad_range(family: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r'^model\.bbox_head\.angle_range: found .* two numbers'):
        build_head(family, angle_range=value)


def test_bad_range_of_the_offsets() -> None:
    with pytest.raises(ConfigError, match=r'^model\.bbox_head\.delta_range: found \(2, -2\), exp'):
        build_head(RETINA, delta_range=(2, -2))


def test_horizontal_boxes() -> None:
    with pytest.raises(ConfigError, match=r'^model\.bbox_head\.bbox_coder: found DeltaXYWHB'):
        build_head('retinanet', type='DistributionRotatedRetinaHead')


def test_angles_that_learn_apart() -> None:
    loss = dict(type='mmdet.L1Loss')
    for wrong in (dict(use_hbbox_loss=True), dict(loss_angle=loss)):
        with pytest.raises(ConfigError, match=rf'bbox_head\.{next(iter(wrong))}: found'):
            build_head('distribution_rotated_fcos', **wrong)


@pytest.mark.parametrize('family', [f for f in OWN_ROTATED if f.endswith('fcos')])
def test_the_angle_has_a_scale(family: str) -> None:
    """As in the stock head; unused, it would stop training on several GPUs."""
    head = build_head(family, scale_angle=True).eval()
    features = random_features(head)
    before = head(features)[2]
    head.scale_angle.scale.data.mul_(2)
    for maps in zip(head(features)[2], before, strict=True):
        torch.testing.assert_close(maps[0], 2 * maps[1])
