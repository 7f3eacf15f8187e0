"""What the GFL reader makes of a stock head, beside what the stock code makes of it."""

import pytest
import torch
from mmdet.models.dense_heads import GFLHead
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import nn

from ld_plugin.dense import (
    DenseOutputs,
    HeadRecorder,
    Positions,
    get_reader,
    heads_with_distributions,
    register_reader,
)
from ld_plugin.dense.readers import GFLReader, base
from ld_plugin.errors import ConfigError
from tests.models import tiny_gfl

#: height and width in pixels; the second image is padded to the size of the first
IMAGES = (96, 128), (64, 96)
BATCH = 96, 128


@pytest.fixture(scope='module')
def head() -> GFLHead:
    model = tiny_gfl(reg_max=12)
    return MODELS.build(
        {**model.bbox_head, 'train_cfg': model.train_cfg, 'test_cfg': model.test_cfg}
    )


@pytest.fixture
def features() -> list[torch.Tensor]:
    return [torch.randn(2, 32, BATCH[0] // s or 1, BATCH[1] // s) for s in (8, 16, 32, 64, 128)]


@pytest.fixture
def metas() -> list[dict]:
    return [dict(img_shape=size, pad_shape=size, scale_factor=(1.0, 1.0)) for size in IMAGES]


def objects(*counts: int) -> list[InstanceData]:
    corner = [torch.rand(n, 2) * 40 for n in counts]
    return [
        InstanceData(
            bboxes=torch.cat([c, c + 10 + 40 * torch.rand_like(c)], dim=1),
            labels=torch.randint(0, 3, (len(c),)),
        )
        for c in corner
    ]


def record_loss(
    head: GFLHead, features: list[torch.Tensor], metas: list[dict], gts: list[InstanceData]
) -> HeadRecorder:
    with HeadRecorder(head, get_reader(head).recorded_methods) as record:
        head.loss_by_feat(*head(features), gts, metas)
    return record


def everything(outputs: DenseOutputs) -> Positions:
    shape = outputs.num_images, sum(outputs.num_level_priors)
    return Positions.from_mask(torch.ones(shape, dtype=torch.bool), outputs.level_shapes)


def test_spec(head):
    spec = get_reader(head).spec
    assert spec.name == 'GFLHead'
    assert spec.strides == ((8, 8), (16, 16), (32, 32), (64, 64), (128, 128))
    assert spec.num_base_priors == (1, 1, 1, 1, 1)
    assert (spec.num_classes, spec.num_bins, spec.box_dim, spec.feature_channels) == (3, 13, 4, 32)


def test_raw_maps_are_passed_on_not_copied(head, features):
    outs = head(features)
    outputs = get_reader(head).read(outs, features)
    for level in range(5):
        assert outputs.class_maps[level] is outs[0][level]
        assert outputs.box_maps[level] is outs[1][level]
        assert outputs.features[level] is features[level]


def test_boxes_and_scores_are_those_of_stock_prediction(head, features, metas):
    outs = head(features)
    # nothing dropped, nothing suppressed, nothing clipped
    settings = ConfigDict(nms_pre=100_000, score_thr=-1, min_bbox_size=-1)
    huge = [meta | dict(img_shape=None) for meta in metas]
    stock = head.predict_by_feat(*outs, None, huge, cfg=settings, rescale=False, with_nms=False)
    outputs = get_reader(head).read(outs, features)
    boxes = torch.cat([outputs.level_boxes(level) for level in range(5)], dim=1)
    scores = torch.cat([outputs.level_class_logits(level) for level in range(5)], dim=1).sigmoid()
    for image, predicted in enumerate(stock):
        # the stock list is ordered by score: every (prior, class) once
        assert len(predicted) == scores[image].numel()
        ours = boxes[image].repeat_interleave(3, dim=0)
        expected = sort_rows(torch.cat([predicted.bboxes, predicted.scores[:, None]], dim=1))
        found = sort_rows(torch.cat([ours, scores[image].reshape(-1, 1)], dim=1))
        torch.testing.assert_close(found, expected)


def sort_rows(rows: torch.Tensor) -> torch.Tensor:
    return rows[rows[:, -1].argsort()].detach()


def test_boxes_at_positions_are_the_same_as_boxes_of_levels(head, features):
    outputs = get_reader(head).read(head(features), features)
    at = everything(outputs)
    rows = torch.cat([outputs.level_boxes(level).flatten(0, 1) for level in range(5)])
    assert torch.equal(outputs.boxes(at), rows)
    rows = torch.cat([outputs.level_class_logits(level).flatten(0, 1) for level in range(5)])
    assert torch.equal(outputs.class_logits(at), rows)


def test_distributions_are_by_side_and_bin(head, features):
    outputs = get_reader(head).read(head(features), features)
    at = everything(outputs)
    logits = outputs.distribution_logits(at)
    assert logits.shape == (at.prior_index.shape[0], 4, 13)
    expected = logits.softmax(-1) @ torch.arange(13.0) * outputs.prior_strides[at.prior_index]
    centre = outputs.priors[at.prior_index].view(-1, 2, 2).mean(1)
    boxes = torch.cat([centre - expected[:, :2], centre + expected[:, 2:]], dim=1)
    torch.testing.assert_close(outputs.boxes(at), boxes)


def test_boxes_carry_a_gradient(head, features):
    outputs = get_reader(head).read(head(features), features)
    head.zero_grad()
    outputs.boxes(everything(outputs)).sum().backward()
    assert head.gfl_reg.weight.grad.any()


def test_boxes_are_decoded_in_float32_under_autocast(head, features):
    outputs = get_reader(head).read(head(features), features)
    expected = outputs.level_boxes(0)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(outputs.level_boxes(0), expected)


@pytest.mark.parametrize('counts', [(3, 2), (2, 0), (0, 0)], ids=str)
def test_assignment_is_what_the_stock_loss_used(head, features, metas, counts):
    record = record_loss(head, features, metas, objects(*counts))
    ours = get_reader(head).assignment(record)
    (stock,) = record.returned['get_targets']
    assert torch.equal(ours.labels, torch.cat(stock[1], dim=1))
    assert torch.equal(ours.label_weights, torch.cat(stock[2], dim=1))
    assert ours.num_classes == 3
    assert ours.positive.any(1).tolist() == [count > 0 for count in counts]
    box_weights = torch.cat(stock[4], dim=1)
    assert torch.equal(ours.positive, box_weights[..., 0] > 0)


def test_priors_of_the_padding_are_not_valid(head, features, metas):
    record = record_loss(head, features, metas, objects(3, 2))
    ours = get_reader(head).assignment(record)
    sizes = [m.shape[-2:] for m in features]
    for image, (height, width) in enumerate(IMAGES):
        expected = torch.cat(
            [
                ((torch.arange(h)[:, None] * s < height) & (torch.arange(w) * s < width)).flatten()
                for (h, w), s in zip(sizes, (8, 16, 32, 64, 128), strict=True)
            ]
        )
        assert torch.equal(ours.valid[image], expected)
    assert ours.valid[0].all()
    assert not ours.valid[1].all()


def test_recording_leaves_the_head_as_it_was(head, features, metas):
    attributes = set(vars(head))
    record = record_loss(head, features, metas, objects(1, 1))
    assert set(vars(head)) == attributes
    assert head.get_targets.__func__ is GFLHead.get_targets
    assert not head._forward_hooks
    assert record.inputs is features
    with pytest.raises(RuntimeError), HeadRecorder(head, ('get_targets',)):
        raise RuntimeError
    assert set(vars(head)) == attributes


def test_a_head_finds_its_reader_through_inheritance(head):
    class MyGFLHead(GFLHead):
        pass

    class MyOtherHead(GFLHead):
        pass

    try:

        @register_reader('MyOtherHead')
        class MyReader(GFLReader):
            pass

        mine = MyGFLHead.__new__(MyGFLHead), MyOtherHead.__new__(MyOtherHead)
        assert [type(get_reader(h)) for h in mine] == [GFLReader, MyReader]
        assert 'MyOtherHead' in heads_with_distributions()
    finally:
        del base._READERS['MyOtherHead']


def test_a_head_without_a_reader_is_refused():
    class Unheard(nn.Module):
        pass

    with pytest.raises(ConfigError, match=r'model\.bbox_head: found Unheard, expected .* GFLHead'):
        get_reader(Unheard())
