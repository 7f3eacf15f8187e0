"""What GFL's reader does beyond what every reader does, and how a head finds its reader."""

import pytest
import torch
from mmdet.models.dense_heads import GFLHead
from torch import nn

from ld_plugin.dense import get_reader, heads_with_distributions, register_reader
from ld_plugin.dense.readers import GFLReader, base
from ld_plugin.errors import ConfigError
from tests.dense.heads import build_head, everything, random_features, record_loss
from tests.families import tiny


@pytest.fixture(scope='module')
def head() -> GFLHead:
    return build_head('gfl', reg_max=12)


def test_raw_maps_are_passed_on_not_copied(head):
    features = random_features(head)
    outs = head(features)
    outputs = get_reader(head).read(outs, features)
    for level in range(5):
        assert outputs.class_maps[level] is outs[0][level]
        assert outputs.box_maps[level] is outs[1][level]
        assert outputs.features[level] is features[level]


def test_distributions_are_by_side_and_bin(head):
    features = random_features(head)
    outputs = get_reader(head).read(head(features), features)
    at = everything(outputs)
    logits = outputs.distribution_logits(at)
    assert logits.shape == (at.prior_index.shape[0], 4, 13)
    expected = logits.softmax(-1) @ torch.arange(13.0) * outputs.prior_strides[at.prior_index]
    centre = outputs.priors[at.prior_index].view(-1, 2, 2).mean(1)
    boxes = torch.cat([centre - expected[:, :2], centre + expected[:, 2:]], dim=1)
    torch.testing.assert_close(outputs.boxes(at), boxes)


def test_bins_are_strides_along_x():
    generator = tiny('distribution_retinanet').bbox_head.anchor_generator
    strides = [(s, s // 2) for s in (8, 16, 32, 64, 128)]
    head = build_head('distribution_retinanet', anchor_generator=generator | dict(strides=strides))
    features = random_features(head)
    outputs = get_reader(head).read(head(features), features)
    levels = outputs.prior_strides[:, 0].split(outputs.num_level_priors)
    assert [level.unique().tolist() for level in levels] == [[unit] for unit in head.units]


def test_an_error_in_the_loss_leaves_the_head_as_it_was(head):
    attributes = set(vars(head))
    features = random_features(head)
    with pytest.raises(AttributeError):
        record_loss(head, features, [None, None])
    assert set(vars(head)) == attributes
    assert head.get_targets.__func__ is GFLHead.get_targets
    assert not head._forward_hooks


def test_a_head_finds_its_reader_through_inheritance():
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
