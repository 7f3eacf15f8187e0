"""The region proposal network of Oriented R-CNN: rotated boxes out of upright anchors."""

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from torch import nn

from ld_plugin.dense import get_reader
from ld_plugin.dense.boxes import without_angle
from ld_plugin.dense.outputs import level_rows
from tests.dense.heads import objects, random_features, record_loss

pytest.importorskip('mmrotate')


@pytest.fixture
def head() -> nn.Module:
    model = get_config('mmrotate::oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py').model
    cfg = dict(model.rpn_head, in_channels=32, feat_channels=32)
    settings = dict(train_cfg=model.train_cfg.rpn, test_cfg=model.test_cfg.rpn)
    with DefaultScope.overwrite_default_scope('mmrotate'):
        return MODELS.build({**cfg, **settings}).train()


def test_boxes_are_what_the_coder_makes_of_the_anchors(head: nn.Module) -> None:
    features = random_features(head)
    outs = head(features)
    outputs = get_reader(head).read(outs, features)
    assert outputs.spec.box_dim == outputs.priors.shape[1] == 5
    assert not outputs.spec.boxes_have_gradient
    rows = level_rows(outs[1][0], 3)[1].detach()
    anchors = HorizontalBoxes(without_angle(outputs.priors[: len(rows)]))
    expected = head.bbox_coder.decode(anchors, rows).tensor
    torch.testing.assert_close(outputs.level_boxes(0)[1], expected)


def test_assignment(head: nn.Module) -> None:
    record = record_loss(head, random_features(head), objects(head, 3, 0))
    ours = get_reader(head).assignment(record)
    assert ours.positive.any(1).tolist() == [True, False]
    assert torch.equal(ours.matched_gts >= 0, ours.positive)
