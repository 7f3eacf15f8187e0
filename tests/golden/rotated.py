"""Rotated localization distillation: its region, its bins, and the losses of RetinaNet's head."""

import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout

import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import get_box_tensor
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ld_plugin.dense import Assignment, DistillationContext, get_reader
from ld_plugin.dense.boxes import bounds, without_angle
from ld_plugin.dense.outputs import level_rows
from ld_plugin.distillers import (
    ClassificationDistiller,
    Distiller,
    LocalizationDistiller,
    build_distillers,
)
from ld_plugin.losses import DistributionKLLoss
from ld_plugin.packages import is_installed
from ld_plugin.recipes import rotated_ld_gwd
from ld_plugin.regions import FineGrainedRegion, OverlapRegion, Region
from ld_plugin.regions.geometry import atss_thresholds, fine_grained_region, overlap_region

from .case import Case, Row
from .ld import OnLevel

RATIOS = [1.0, 0.5, 2.0]  # of the anchors of a cell
WRONG_CELLS = 'not comparable: the published cells are not those of the selected priors'


def check_rotated_ld(case: Case) -> Iterator[Row]:
    yield from _check_regions(case)
    if not is_installed('mmrotate'):
        yield Row('everything of the head', reason='not comparable: MMRotate is not installed')
        return
    batch = RotatedBatch(case)
    yield from batch.check_bins()
    yield from batch.check_predictions()
    yield from batch.check_stock_losses()
    yield from batch.check_distillation()


def _check_regions(case: Case) -> Iterator[Row]:
    for image in range(int(case['region_num_images'])):
        prefix = f'region{image}_'
        _ = case[f'{prefix}image_hw']
        counts = case[f'{prefix}num_level_anchors'].tolist()
        priors = bounds(case[f'{prefix}anchors'])
        gts = without_angle(case[f'{prefix}gt_bboxes'].view(-1, 5))
        region = overlap_region(priors, gts, counts)
        if case[f'{prefix}ld_region_ran']:
            yield Row(f'{prefix}ld_region_ran', torch.tensor(True), torch.tensor(True))
        else:
            yield Row(f'{prefix}ld_region (no ground truth: zeros)', region, region * 0)
        ours = {
            'ld_region': region,
            'im_region': fine_grained_region(priors, gts).float(),
            'dbg_thr': atss_thresholds(priors, gts, counts),
        }
        yield from case.rows(ours, prefix)


def as_written(gt_bboxes: Tensor) -> Tensor:
    """Ground truths whose angle the region drops without changing width and height first.

    The reference's were in the form of the first quarter before; a file's may have any angle.
    """
    return torch.cat([gt_bboxes[:, :4], torch.ones_like(gt_bboxes[:, 4:])], dim=1)


class RotatedBatch:
    """The file's maps, read as a head's own."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.maps = {
            name: [level.requires_grad_() for level in case.levels(name)]
            for name in ('cls_score', 'bbox_pred')
        }
        self.head = make_head(case, num_classes=self._num_classes)
        reader = get_reader(self.head)
        image_of_gt, images = case['gt_image'], len(self.maps['cls_score'][0])
        self.context = DistillationContext(
            student=reader.read(tuple(self.maps.values()), case.levels('x')),
            teacher=reader.read(
                (case.levels('soft_label'), case.levels('soft_target')), case.levels('teacher_x')
            ),
            assignment=Assignment(
                labels=torch.cat(case.levels('labels'), dim=1),
                label_weights=torch.cat(case.levels('label_weights'), dim=1),
                valid=self._valid(),
                num_classes=self.head.num_classes,
            ),
            gt_bboxes=[
                as_written(case['gt_bboxes'].view(-1, 5)[image_of_gt == i]) for i in range(images)
            ],
        )
        for name in ('image_hw', 'gt_labels', 'const_weight_im'):
            _ = case[name]  # said by the assignment, or of what cannot be compared

    @property
    def _num_classes(self) -> int:
        return self.maps['cls_score'][0].shape[1] // int(self.case['const_num_anchors'])

    def _valid(self) -> Tensor:
        sizes = self.case['feat_sizes'].tolist()
        flags = self.head.prior_generator.valid_flags
        pads = self.case['pad_hw'].tolist()
        return torch.stack([torch.cat(flags(sizes, tuple(pad), device='cpu')) for pad in pads])

    def check_bins(self) -> Iterator[Row]:
        """The values of the bins, and expectations over them."""
        case, ranges = self.case, self.head.bin_ranges
        one_hot = 1000 * torch.eye(self.head.reg_max + 1)
        offsets = self.head.expected_offsets(one_hot.repeat(1, len(ranges)))
        yield from case.rows(
            {'integral_project': offsets[:, 0], 'integral_angle_project': offsets[:, 4]}
        )
        logits, angles = case['integral_in'].requires_grad_(), case['integral_angle_in']
        angles.requires_grad_()
        rows = torch.cat([logits.view(-1, 4, logits.shape[1]), angles[:, None]], dim=1).flatten(1)
        found = self.head.expected_offsets(rows)
        deltas, angle = found[:, :4], found[:, 4]
        ours = {
            'integral_out': deltas,
            'integral_angle_out': angle,
            'integral_grad_of_sum': torch.autograd.grad(deltas.sum(), logits, retain_graph=True)[0],
            'integral_angle_grad_of_sum': torch.autograd.grad(angle.sum(), angles)[0],
        }
        yield from case.rows(ours)

    def check_predictions(self) -> Iterator[Row]:
        """Offsets and boxes of every prior; the reference's priors of the padding are zeros."""
        priors = self.context.student.priors.split(self.context.student.num_level_priors)
        for level, anchors in enumerate(self.case.levels('anchors')):
            here = anchors[..., 2] > 0
            expected = priors[level].expand_as(anchors)[here]
            yield Row(f'lvl{level}_anchors', expected, anchors[here])
            rows = level_rows(self.maps['bbox_pred'][level], self._anchors_per_cell)
            offsets = self.head.expected_offsets(rows.flatten(0, 1))
            boxes = get_box_tensor(self.head.bbox_coder.decode(anchors.flatten(0, 1), offsets))
            ours = {'decoded_delta': offsets, 'decoded_box': boxes}
            yield from self.case.rows(ours, f'lvl{level}_')

    @property
    def _anchors_per_cell(self) -> int:
        return self.head.num_base_priors

    def check_stock_losses(self) -> Iterator[Row]:
        """The stock head's own, on the file's targets."""
        case = self.case
        names = ('anchors', 'labels', 'label_weights', 'bbox_targets', 'bbox_weights')
        levels = zip(
            self.maps['cls_score'],
            self.head.expectations(self.maps['bbox_pred']),
            *map(case.levels, names),
            strict=True,
        )
        found = [
            self.head.loss_by_feat_single(*level, avg_factor=case['num_total_samples'].item())
            for level in levels
        ]
        classes, boxes = (torch.stack([x.sum() for x in part]) for part in zip(*found, strict=True))
        yield from case.rows({'out_loss_cls': classes, 'out_loss_bbox': boxes})

    def check_distillation(self) -> Iterator[Row]:
        case, context = self.case, self.context
        region = OverlapRegion()
        priors = context.student.num_level_priors
        selection = context.select(region)
        imitated = context.select(FineGrainedRegion()).weights.float()
        for name, weights in (('ld_region', selection.weights), ('im_region', imitated)):
            for level, part in enumerate(weights.split(priors, dim=1)):
                yield from case.rows({f'lvl{level}_{name}': part})
        for level, count in enumerate(selection.priors.mean_level_counts):
            yield from case.rows({f'lvl{level}_ld_num': count.clamp(min=1)})
        makers = {'loss_ld': self._localization, 'loss_kd': self._classification}
        for name, make in makers.items():
            levels = self._per_level(make, region)
            yield from case.rows({f'out_{name}': torch.stack(levels)})
            yield from case.gradient_rows(name, sum(levels), self.maps)
        yield from self._check_recipe()
        for name in ('out_loss_im', *(m[0] for m in case.names(r'lvl\d+_grad_x_of_loss_im'))):
            _ = case[name]
            yield Row(name, reason=WRONG_CELLS)

    def _localization(self, region: Region) -> Distiller:
        loss = DistributionKLLoss(*(self.case[f'const_{n}_ld'].item() for n in ('T', 'weight')))
        return LocalizationDistiller(region, loss, normalizer='level_positions')

    def _classification(self, region: Region) -> Distiller:
        loss = DistributionKLLoss(*(self.case[f'const_{n}_kd'].item() for n in ('T', 'weight')))
        return ClassificationDistiller(region, loss, weights='region')

    def _per_level(self, make: Callable[[Region], Distiller], region: Region) -> list[Tensor]:
        levels = range(len(self.case['strides']))
        return [make(OnLevel(region, level))(self.context) for level in levels]

    def _check_recipe(self) -> Iterator[Row]:
        """The recipe as configs import it."""
        spec = self.context.student.spec
        for name, cfg in rotated_ld_gwd.items():
            row, loss = f'out_loss_{name} (recipe)', cfg['loss']
            settings = [self.case[f'const_{n}_{name}'].item() for n in ('T', 'weight')]
            if settings != [loss['temperature'], loss['loss_weight']]:
                yield Row(row, reason='not comparable: the file has other settings than the recipe')
            elif name == 'kd' and spec.num_classes == 1:
                yield Row(row, reason='not comparable: ours refuses a softmax over one class')
            else:
                distiller = build_distillers({name: cfg}, spec, spec)[name]
                expected = self.case[f'out_loss_{name}'].sum()
                yield Row(row, distiller(self.context).detach(), expected)


def make_head(case: Case, num_classes: int) -> nn.Module:
    """The distribution head over the published settings; its convolutions are never used."""
    cfg = dict(
        type='mmdet.DistributionRotatedRetinaHead',
        num_classes=num_classes,
        in_channels=case['lvl0_x'].shape[1],
        feat_channels=1,
        stacked_convs=0,
        reg_max=int(case['const_reg_max']),
        anchor_generator=dict(
            type='FakeRotatedAnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=int(case['const_num_anchors']) // len(RATIOS),
            ratios=RATIOS,
            strides=case['strides'].tolist(),
        ),
        bbox_coder=dict(type='DeltaXYWHTRBBoxCoder', angle_version='oc'),
        reg_decoded_bbox=True,
        loss_cls=dict(type='mmdet.FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25),
        loss_bbox=dict(type='GDLoss', loss_type='gwd', loss_weight=5.0),
    )
    # MMRotate prints while it is imported; what is printed here is read line by line
    with DefaultScope.overwrite_default_scope('mmrotate'), redirect_stdout(sys.stderr):
        return MODELS.build(cfg)
