"""Stock heads of every family on random features, for the tests of their readers."""

from math import ceil

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.registry import MODELS
from mmdet.structures.bbox import BaseBoxes
from mmengine.structures import InstanceData
from torch import Tensor

from ld_plugin.dense import DenseOutputs, HeadRecorder, Positions, get_reader
from ld_plugin.dense.boxes import upright
from tests.families import dense_head_name, scope, tiny

#: height and width in pixels; the second image is padded to the size of the first
IMAGES = (96, 128), (64, 96)
BATCH = 96, 128


def head_config(family: str, **head: object) -> dict:
    """The config of a tiny model's dense head, with what the detector would add."""
    model = tiny(family, **head)
    key = dense_head_name(model)
    part = dict(rpn_head='rpn', bbox_head_init='init').get(key)
    settings = {
        name: model[name].get(part, model[name]) if model.get(name) else None
        for name in ('train_cfg', 'test_cfg')
    }
    return {**model[key], **settings}


def build_head(family: str, **head: object) -> BaseDenseHead:
    """The dense head of a tiny model, in training mode."""
    with scope(family):
        return MODELS.build(head_config(family, **head)).train()


def random_features(head: BaseDenseHead, images: int = 2) -> list[Tensor]:
    """What a neck hands to the head for a batch of images."""
    return [
        torch.randn(images, head.in_channels, ceil(BATCH[0] / y), ceil(BATCH[1] / x))
        for x, y in head.prior_generator.strides
    ]


def metas() -> list[dict]:
    """Of two images, the second padded."""
    return [dict(img_shape=size, pad_shape=size, scale_factor=(1.0, 1.0)) for size in IMAGES]


def objects(head: BaseDenseHead, *counts: int) -> list[InstanceData]:
    """Random ground truth of as many images as there are counts, inside the second image."""
    gts = []
    for count in counts:
        corner = torch.rand(count, 2) * 40
        size = 10 + torch.rand(count, 2) * torch.tensor([45.0, 14.0])
        labels = torch.randint(0, head.num_classes, (count,))
        boxes = torch.cat([corner, corner + size], dim=1)
        if get_reader(head).box_dim == 5:
            boxes = rotated(upright(boxes) + torch.rand(count, 1) * torch.tensor([0, 0, 0, 0, 3]))
        gts.append(InstanceData(bboxes=boxes, labels=labels))
    return gts


def rotated(boxes: Tensor) -> BaseBoxes:
    """Boxes (K, 5) as MMRotate's type."""
    from mmrotate.structures import RotatedBoxes  # an optional package

    return RotatedBoxes(boxes)


def record_loss(
    head: BaseDenseHead, features: list[Tensor], gts: list[InstanceData]
) -> HeadRecorder:
    """Run the stock loss on the two images of :func:`metas`."""
    with HeadRecorder(head, get_reader(head).recorded_methods) as record:
        head.loss_by_feat(*head(features), gts, metas())
    return record


def everything(outputs: DenseOutputs) -> Positions:
    """All priors of all images."""
    shape = outputs.num_images, sum(outputs.num_level_priors)
    return Positions.from_mask(torch.ones(shape, dtype=torch.bool), outputs.level_shapes)


def all_boxes(outputs: DenseOutputs) -> Tensor:
    """(N, P, E)."""
    levels = range(len(outputs.level_shapes))
    return torch.cat([outputs.level_boxes(level) for level in levels], dim=1)


def all_logits(outputs: DenseOutputs) -> Tensor:
    """(N, P, C)."""
    levels = range(len(outputs.level_shapes))
    return torch.cat([outputs.level_class_logits(level) for level in levels], dim=1)
