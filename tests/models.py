"""Small detectors and batches that the tests share.

Everything is built over a stock config, so the tests see what users have: a GFL of 8 backbone
and 32 head channels learns nothing useful, but has the stock structure and takes milliseconds.
"""

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine import ConfigDict
from mmengine.hub import get_config
from mmengine.runner import Runner
from mmengine.runner._flexible_runner import FlexibleRunner
from mmengine.structures import InstanceData
from torch import nn
from torch.utils.data import Dataset

import ld_plugin  # noqa: F401  (registers the plugin's types)
from ld_plugin.dense.boxes import upright
from ld_plugin.recipes import ld_full

GFL = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'


def tiny_gfl(num_classes: int = 3, depth: int = 18, channels: int = 32, **head: Any) -> ConfigDict:
    """The ``model`` of a stock GFL, made narrow.

    Args:
        num_classes: C.
        depth: Of the ResNet: 18, 34, 50 or 101.
        channels: Of neck and head; a multiple of 32, because the head has 32 groups.
        head: Other arguments of the head, such as ``reg_max``.
    """
    model = deepcopy(_stock_model())
    widths = [8, 16, 32, 64] if depth < 50 else [32, 64, 128, 256]
    model.backbone.update(depth=depth, base_channels=8, stem_channels=8, init_cfg=None)
    model.neck.update(in_channels=widths, out_channels=channels)
    model.bbox_head.update(
        num_classes=num_classes, in_channels=channels, feat_channels=channels, stacked_convs=1
    )
    model.bbox_head.update(head)
    return model


@cache
def _stock_model() -> ConfigDict:
    return get_config(GFL).model


def tiny_distilled(
    teacher: Mapping[str, Any] | None = None,
    distillers: Mapping[str, Any] = ld_full,
    student: ConfigDict | None = None,
) -> ConfigDict:
    """The ``model`` of a distilled tiny GFL.

    Args:
        teacher: ``model.teacher``; by default a tiny GFL with random weights.
        distillers: ``model.distillers``; by default the full recipe.
        student: ``model`` of the stock detector; by default a tiny GFL.
    """
    model = (student or tiny_gfl()).copy()
    model.type = 'DistilledSingleStageDetector'
    model.teacher = teacher or dict(config=dict(model=tiny_gfl()), checkpoint=None)
    model.distillers = distillers
    return model


def build(model: ConfigDict, seed: int = 0) -> nn.Module:
    """Build a model in training mode; equal seeds give equal weights.

    The layers keep torch's own initial weights: with the stock ones every box distribution would be
    nearly uniform, and student and teacher nearly equal.
    """
    torch.manual_seed(seed)
    return MODELS.build(model).train()


def batch(
    shapes: Sequence[tuple[int, int]] = ((64, 64), (48, 64)),
    objects: Sequence[int] = (2, 1),
    num_classes: int = 3,
    seed: int = 0,
) -> dict[str, list]:
    """A batch as a data loader gives it: images, and samples with ground truth.

    Args:
        shapes: (height, width) of every image in pixels.
        objects: Ground truths of every image; may be 0.
        num_classes: Labels are in 0..num_classes-1.
        seed: Of the noise in the images and of the boxes.
    """
    generator = torch.Generator().manual_seed(seed)
    images, samples = [], []
    for index, ((height, width), count) in enumerate(zip(shapes, objects, strict=True)):
        images.append(
            torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        )
        size = torch.tensor([width, height])
        corner = torch.rand(count, 2, generator=generator) * size * 0.5
        extent = (0.2 + 0.3 * torch.rand(count, 2, generator=generator)) * size
        sample = DetDataSample(
            metainfo=dict(
                img_id=index,
                img_shape=(height, width),
                ori_shape=(height, width),
                scale_factor=(1.0, 1.0),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corner, corner + extent], dim=1),
            labels=torch.randint(0, num_classes, (count,), generator=generator),
        )
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


def rotate(data: Mapping[str, list], seed: int = 0) -> None:
    """Turn the ground truth of a batch by any angles, and give it MMRotate's type."""
    from mmrotate.structures import RotatedBoxes  # an optional package

    generator = torch.Generator().manual_seed(seed)
    for sample in data['data_samples']:
        boxes = upright(sample.gt_instances.bboxes)
        boxes[:, 4] = torch.rand(len(boxes), generator=generator) * 3 - 1.5
        sample.gt_instances.bboxes = RotatedBoxes(boxes)


def losses(model: nn.Module, data: Mapping[str, list]) -> dict[str, Any]:
    """One training forward pass through the model's own preprocessor."""
    return model(**model.data_preprocessor(dict(data), training=True), mode='loss')


def distillation_loss(model: nn.Module, data: Mapping[str, list]) -> torch.Tensor:
    """The sum of the distillers' losses on a batch."""
    found = losses(model, data)
    return sum(found[f'loss_{name}'] for name in model.distillers)


class TinyDataset(Dataset):
    """Four images with two to four objects each, always the same, and class names."""

    METAINFO = dict(classes=('circle', 'square', 'star'))

    def __init__(self, num_images: int = 4, size: int = 64) -> None:
        self.metainfo = dict(self.METAINFO)
        self.items = [batch([(size, size)], [2 + i % 3], seed=i) for i in range(num_images)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        return dict(inputs=item['inputs'][0], data_samples=deepcopy(item['data_samples'][0]))


def tiny_runner(
    model: nn.Module | Mapping[str, Any],
    work_dir: Path,
    epochs: int = 2,
    size: int = 64,
    shuffle: bool = True,
    runner: type[Runner] | type[FlexibleRunner] = Runner,
    **overrides: Any,
) -> Runner | FlexibleRunner:
    """An mmengine runner that trains on :class:`TinyDataset` and keeps every epoch's checkpoint."""
    settings = dict(
        train_dataloader=dict(
            dataset=TinyDataset(size=size),
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=shuffle),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.01, momentum=0.9), clip_grad=dict(max_norm=35)
        ),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        default_scope='mmdet',
        randomness=dict(seed=0),
        experiment_name=f'tiny_{time.time_ns()}',
        log_level='WARNING',
    )
    return runner(model=model, work_dir=str(work_dir), **(settings | overrides))
