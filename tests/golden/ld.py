"""Localization distillation: the KL loss, the regions, and the whole head's losses."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from mmdet.models.dense_heads import GFLHead
from mmdet.models.task_modules import ATSSAssigner
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor

from ld_plugin.dense import (
    Assignment,
    DenseOutputs,
    DistillationContext,
    HeadRecorder,
    Positions,
    get_reader,
)
from ld_plugin.dense.outputs import level_rows
from ld_plugin.distillers import (
    ClassificationDistiller,
    Distiller,
    FeatureDistiller,
    LocalizationDistiller,
)
from ld_plugin.losses import DistributionKLLoss, FeatureMSELoss, distribution_kl
from ld_plugin.regions import (
    FineGrainedRegion,
    GIRegion,
    InsideGTRegion,
    MainRegion,
    Region,
    Selection,
    ValuableLocalizationRegion,
)
from ld_plugin.regions.geometry import (
    atss_thresholds,
    centred_overlap,
    fine_grained_region,
    general_instance_scores,
    inside_gt_region,
    select_top_boxes,
    valuable_localization_region,
)

from .case import Case, Row

# ---------------------------------------------------------------------------------- kd_kl


def check_kd_kl(case: Case) -> Iterator[Row]:
    for match in case.names(r'T([^_]+)_pred'):
        prefix = f'T{match[1]}_'
        student = case[f'{prefix}pred'].requires_grad_()
        teacher, weight = case[f'{prefix}soft'], case[f'{prefix}weight']
        temperature, factor = float(match[1]), case[f'{prefix}loss_weight'].item()
        loss = DistributionKLLoss(temperature, factor)
        rows = factor * distribution_kl(student, teacher, temperature)
        mean = loss(student, teacher)
        total = loss(student, teacher, weight, case[f'{prefix}avg_factor'])
        ours = {
            'loss_none': rows,
            'loss_none_weighted': rows * weight,
            'loss_mean': mean,
            'loss_sum': loss(student, teacher, avg_factor=1.0),
            'loss_mean_weighted': loss(student, teacher, weight),
            'loss': total,
            'grad_pred': torch.autograd.grad(total, student)[0],
            'grad_pred_loss_mean': torch.autograd.grad(mean, student)[0],
        }
        yield from case.rows(ours, prefix)


# ------------------------------------------------------------------------------ vlr_region


def check_vlr_region(case: Case) -> Iterator[Row]:
    for image in range(int(case['num_images'])):
        prefix = f'img{image}_'
        for name in ('image_hw', 'feat_sizes'):
            _ = case[prefix + name]  # described by the anchors already
        priors, gts = case[f'{prefix}anchors'], case[f'{prefix}gt_bboxes'].view(-1, 4)
        counts = case[f'{prefix}num_level_anchors'].tolist()
        yield from _check_atss(case, prefix, priors, gts, counts)
        yield from _check_overlaps(case, prefix, priors, gts)
        yield from case.rows({'thr': atss_thresholds(priors, gts, counts)}, prefix)
        region = valuable_localization_region(priors, gts, counts)
        yield from _check_vlr_weights(case, prefix, region)


def _check_atss(
    case: Case, prefix: str, priors: Tensor, gts: Tensor, counts: list[int]
) -> Iterator[Row]:
    """The stock assigner: what the thresholds and the positives of the region stand on."""
    result = ATSSAssigner(topk=9).assign(
        InstanceData(priors=priors),
        counts,
        InstanceData(bboxes=gts, labels=case[f'{prefix}gt_labels']),
    )
    yield from case.rows({'assign_gt_inds': result.gt_inds, 'assign_labels': result.labels}, prefix)
    # -1e8 stands for 'not positive'; at that scale no error of an overlap would be seen
    expected = case[f'{prefix}assign_max_overlaps'].clamp(min=-1)
    yield Row(f'{prefix}assign_max_overlaps', result.max_overlaps.clamp(min=-1), expected)


def _check_overlaps(case: Case, prefix: str, priors: Tensor, gts: Tensor) -> Iterator[Row]:
    every_prior = priors.repeat_interleave(len(gts), dim=0)
    every_gt = gts.repeat(len(priors), 1)
    shape = len(priors), len(gts)
    iou = bbox_overlaps(every_prior, every_gt, is_aligned=True).view(shape)
    diou = centred_overlap(every_prior, every_gt, 'iof').view(shape)
    yield from case.rows({'iou': iou, 'diou': diou}, prefix)


def _check_vlr_weights(case: Case, prefix: str, region: Tensor) -> Iterator[Row]:
    name = f'{prefix}vlr_region'
    if name not in case:
        _ = case[f'{prefix}vlr_is_tensor']
        yield Row(f'{name} (no ground truth: zeros)', region, torch.zeros_like(region))
        return
    yield Row(f'{name} (members)', region > 0, case[name] > 0)
    is_tensor = torch.tensor(isinstance(region, Tensor))
    yield from case.rows({'vlr_region': region, 'vlr_is_tensor': is_tensor}, prefix)


# ------------------------------------------------------------------------------ im_regions


def check_im_regions(case: Case) -> Iterator[Row]:
    for image in range(int(case['num_images'])):
        prefix = f'img{image}_'
        _ = case[f'{prefix}num_level_anchors']
        priors, gts = case[f'{prefix}anchors'], case[f'{prefix}gt_bboxes'].view(-1, 4)
        ours = {
            'im_finegrained': fine_grained_region(priors, gts),
            'im_in_gt': inside_gt_region(priors, gts),
        }
        yield from case.rows(ours, prefix)
    for index in range(int(case['num_gi'])):
        yield from _check_general_instances(case, f'gi{index}_')


def _check_general_instances(case: Case, prefix: str) -> Iterator[Row]:
    stride, images = int(case[f'{prefix}stride']), int(case[f'{prefix}batch'])
    height, width = case[f'{prefix}feat_hw'].tolist()
    student_rows, teacher_rows = case[f'{prefix}cls_score'], case[f'{prefix}soft_label']
    student_boxes, teacher_boxes = case[f'{prefix}bbox_pred'], case[f'{prefix}soft_target']
    anchors = case[f'{prefix}anchors']
    head = make_head(student_rows, student_boxes, 1, [stride], scale=1)
    found = general_instances(
        head, student_rows, teacher_rows, student_boxes, teacher_boxes, anchors, stride
    )
    yield from case.rows(found._asdict(), prefix)

    name = f'{prefix}idx (GIRegion)'
    by_image = anchors.view(images, -1, 4)
    if not by_image.eq(by_image[0]).all():
        yield Row(name, reason='not comparable: the images have different priors')
        return

    def outputs(*rows: Tensor) -> DenseOutputs:
        maps = [r.view(images, height, width, -1).permute(0, 3, 1, 2) for r in rows]
        read = get_reader(head).read(([maps[0]], [maps[1]]), [])
        return replace(read, make_priors=lambda: by_image[0])

    context = DistillationContext(
        student=outputs(student_rows, student_boxes),
        teacher=outputs(teacher_rows, teacher_boxes),
        assignment=background(images, height * width, head.num_classes),
        gt_bboxes=[],
    )
    chosen = context.select(GIRegion(scope='batch')).weights.flatten().nonzero()[:, 0]
    yield Row(name, chosen, case[f'{prefix}idx'].sort().values)


class GeneralInstances(NamedTuple):
    dbg_score: Tensor
    dbg_teacher_wins: Tensor
    dbg_box: Tensor
    idx: Tensor


def general_instances(
    head: GFLHead,
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    anchors: Tensor,
    stride: float,
) -> GeneralInstances:
    """Of the rows (M, ...) of a whole batch's level; boxes in units of the stride.

    Row by row rather than by GIRegion, because the reference lets the priors of the padding take
    part, which it hands over as zeros.
    """
    scores, teacher_wins = general_instance_scores(student_logits, teacher_logits)
    rows = torch.where(teacher_wins[:, None], teacher_boxes, student_boxes)
    strides = torch.full_like(scores, stride)[:, None]
    boxes = get_reader(head).decode(rows, anchors, strides) / stride
    order = select_top_boxes(boxes[None], scores[None], 0.3, 10)[1][0]
    return GeneralInstances(scores, teacher_wins, boxes, order[order >= 0])


# --------------------------------------------------------------------------------- ld_head


class OnLevel(Region):
    """Another region's share of one level, so that a distiller gives that level's loss."""

    def __init__(self, region: Region, level: int) -> None:
        self.region = region
        self.level = level
        self.ld_divisor = region.ld_divisor

    def weights(self, context: DistillationContext) -> Tensor:
        parts = self.region.weights(context).split(context.student.num_level_priors, dim=1)
        return torch.cat([p if i == self.level else p * 0 for i, p in enumerate(parts)], dim=1)

    def position_weight(self, context: DistillationContext, selection: Selection) -> Tensor:
        return self.region.position_weight(context, selection)


class GivenRegion(Region):
    """A region with the weights of a file."""

    def __init__(self, weights: Tensor, ld_divisor: float = 4.0) -> None:
        self.given = weights
        self.ld_divisor = ld_divisor

    def weights(self, context: DistillationContext) -> Tensor:
        return self.given


def check_ld_head(case: Case) -> Iterator[Row]:
    batch = HeadBatch(case)
    yield from batch.check_targets()
    yield from batch.check_stock_losses()
    losses = batch.distillation_losses() | batch.imitation_losses()
    for name, levels in losses.items():
        yield from _check_level_losses(case, batch, name, levels)
    yield from batch.check_whole_pyramid()


def _check_level_losses(
    case: Case, batch: 'HeadBatch', name: str, levels: list[Tensor | None]
) -> Iterator[Row]:
    """``levels`` holds None where the reference raised an error."""
    expected = case[f'out_{name}']
    ran = torch.tensor([loss is not None for loss in levels])
    for level in (~ran).nonzero()[:, 0].tolist():
        yield Row(f'out_{name}[{level}]', reason='not comparable: the reference raised an error')
    values = [loss for loss in levels if loss is not None]
    if values:
        yield Row(f'out_{name}', torch.stack(values).detach(), expected[ran])
        yield from case.gradient_rows(name, sum(values), batch.maps)


class HeadBatch:
    """One ld_head file as the plugin's own objects."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.maps = {
            name: [level.requires_grad_() for level in case.levels(name)]
            for name in ('cls_score', 'bbox_pred', 'x')
            if f'lvl0_{name}' in case
        }
        scores, boxes = self.maps['cls_score'], self.maps['bbox_pred']
        features = self.maps.get('x', scores)  # some files have none, and need none
        self.strides = case['strides'].tolist()
        self.head = make_head(
            level_rows(scores[0], 1)[0],
            level_rows(boxes[0], 1)[0],
            features[0].shape[1],
            self.strides,
            scale=int(case['octave_base_scale']),
        )
        self.num_images = scores[0].shape[0]
        image_of_gt = case['gt_image']
        self.gts = [
            InstanceData(
                bboxes=case['gt_bboxes'][image_of_gt == image],
                labels=case['gt_labels'][image_of_gt == image],
            )
            for image in range(self.num_images)
        ]
        reader = get_reader(self.head)
        label_weights = torch.cat(case.levels('label_weights'), dim=1)
        self.context = DistillationContext(
            student=reader.read((scores, boxes), features),
            teacher=reader.read(
                (case.levels('soft_label'), case.levels('soft_target')),
                case.levels('teacher_x') if 'x' in self.maps else scores,
            ),
            assignment=Assignment(
                labels=torch.cat(case.levels('labels'), dim=1),
                label_weights=label_weights,
                valid=label_weights > 0,
                num_classes=self.head.num_classes,
            ),
            gt_bboxes=[gts.bboxes for gts in self.gts],
        )

    @property
    def has_positives(self) -> list[bool]:
        """Of every level."""
        parts = self.context.assignment.positive.split(self.context.student.num_level_priors, dim=1)
        return [bool(part.any()) for part in parts]

    def check_targets(self) -> Iterator[Row]:
        """The stock assignment through the reader, and our regions on it.

        The reference cannot handle an image without ground truth, so its file's targets are made up
        there; such images are left out.
        """
        case, context = self.case, self.context
        pads = [tuple(pad) for pad in case['pad_hw'].tolist()]
        metas = [
            dict(img_shape=tuple(case['image_hw'].tolist()), pad_shape=pad, scale_factor=1.0)
            for pad in pads
        ]
        with HeadRecorder(self.head, get_reader(self.head).recorded_methods) as record:
            self.head.loss_by_feat(self.maps['cls_score'], self.maps['bbox_pred'], self.gts, metas)
        anchors, _, _, targets, *_ = record.returned['get_targets'][-1]
        ours = get_reader(self.head).assignment(record)
        sizes = [m.shape[-2:] for m in self.maps['cls_score']]
        numbers = [len(gts) for gts in self.gts]
        yield from case.rows({'num_gts': torch.tensor(numbers), 'feat_sizes': torch.tensor(sizes)})
        assigned = DistillationContext(context.student, context.teacher, ours, context.gt_bboxes)
        yield from self._rows_of_labelled_images(
            {
                'anchors': torch.cat(anchors, dim=1),
                'labels': ours.labels,
                'label_weights': ours.label_weights,
                'bbox_targets': torch.cat(targets, dim=1),
                'vlr_region': ValuableLocalizationRegion()(assigned).weights,
                'im_region_finegrained': FineGrainedRegion()(assigned).weights,
                'im_region_in_gt': InsideGTRegion()(assigned).weights,
            }
        )

    def _rows_of_labelled_images(self, ours: dict[str, Tensor]) -> Iterator[Row]:
        labelled = torch.tensor([len(gts) > 0 for gts in self.gts])
        for name, values in ours.items():
            if f'lvl0_{name}' not in self.case:
                continue
            expected = torch.cat(self.case.levels(name), dim=1)
            yield Row(f'lvl*_{name}', values[labelled], expected[labelled])

    def check_stock_losses(self) -> Iterator[Row]:
        """Losses of the stock head on the file's targets: what the distillation is added to."""
        case = self.case
        inputs = zip(
            case.levels('anchors'),
            self.maps['cls_score'],
            self.maps['bbox_pred'],
            case.levels('labels'),
            case.levels('label_weights'),
            case.levels('bbox_targets'),
            self.head.prior_generator.strides,
            strict=True,
        )
        samples = case['num_total_samples'].item()
        levels = [self.head.loss_by_feat_single(*level, avg_factor=samples) for level in inputs]
        cls, bbox, dfl, weights = (torch.stack(values) for values in zip(*levels, strict=True))
        divisor = weights.sum() + 1e-6
        losses = dict(loss_cls=cls, loss_bbox=bbox / divisor, loss_dfl=dfl / divisor)
        raw = dict(loss_bbox_raw=bbox, loss_dfl_raw=dfl, weight_sum=weights, reg_avg_factor=divisor)
        yield from case.rows(losses | raw, 'out_')
        for name, value in losses.items():
            yield from case.gradient_rows(name, value.sum(), self.maps)

    @property
    def _vlr(self) -> Region:
        weights = torch.cat(self.case.levels('vlr_region'), dim=1)
        return GivenRegion(weights, ValuableLocalizationRegion.ld_divisor)

    def distillation_losses(self) -> dict[str, list[Tensor]]:
        return {
            'loss_ld': self.per_level(self._localization, MainRegion()),
            'loss_ld_vlr': self.per_level(self._localization, self._vlr),
            'loss_kd': self.per_level(_classification, MainRegion()),
            'loss_kd_neg': [0 * loss for loss in self.per_level(_classification, self._vlr)],
        }

    def check_whole_pyramid(self) -> Iterator[Row]:
        """A region over all levels gives the sum of the levels' losses."""
        distillers = {
            'loss_ld': self._localization(MainRegion()),
            'loss_ld_vlr': self._localization(self._vlr),
            'loss_kd': _classification(MainRegion()),
        }
        for name, distiller in distillers.items():
            expected = self.case[f'out_{name}'].sum()
            yield Row(f'out_{name} (summed)', distiller(self.context).detach(), expected)

    def imitation_losses(self) -> dict[str, list[Tensor | None]]:
        """Per mode that the file has and level; None where the reference raised an error.

        A level without positives has no imitation loss in the reference, whatever its region is.
        """
        case = self.case
        in_gt, half = (torch.cat(case.levels(f'im_region_{n}'), dim=1) for n in ('in_gt', 'half'))
        regions = {
            'finegrained': torch.cat(case.levels('im_region_finegrained'), dim=1),
            'fitnet': in_gt,
            'gibox': self._general_instances(),
            'decouple': in_gt,
            'decouple_half': half,
        }
        losses = {}
        for mode, region in regions.items():
            if f'out_ran_{mode}' not in case:
                continue
            foreground = self.per_level(_imitation, GivenRegion(region))
            losses[f'loss_im_{mode}'] = [
                self._imitation_loss(mode, level, loss, region)
                if case[f'out_ran_{mode}'][level]
                else None
                for level, loss in enumerate(foreground)
            ]
        return losses

    def _imitation_loss(self, mode: str, level: int, foreground: Tensor, region: Tensor) -> Tensor:
        if not self.has_positives[level]:
            return foreground * 0
        if not mode.startswith('decouple'):
            return foreground
        part = region.split(self.context.student.num_level_priors, dim=1)[level]
        return foreground + self._background_like_foreground(level, part > 0)

    def _background_like_foreground(self, level: int, region: Tensor) -> Tensor:
        """The student's background rows beside the teacher's *foreground* rows, in their order."""
        shape = self.context.student.level_shapes[level : level + 1]
        outside, inside = (Positions.from_mask(mask, shape) for mask in (~region, region))
        return FeatureMSELoss(loss_weight=2 * 2)(
            outside.gather([self.context.student.features[level]]),
            inside.gather([self.context.teacher.features[level]]),
        )

    def _localization(self, region: Region) -> Distiller:
        # the reference's plain sum over the batch: ours at as many images as there are
        loss = DistributionKLLoss(temperature=10, loss_weight=0.25)
        return LocalizationDistiller(region, loss, reference_images=self.num_images)

    def per_level(self, make: Callable[[Region], Distiller], region: Region) -> list[Tensor]:
        levels = range(len(self.strides))
        return [make(OnLevel(region, level))(self.context) for level in levels]

    def _general_instances(self) -> Tensor:
        """(N, P), 1 at the rows that the reference imitates."""
        student, teacher = self.context.student, self.context.teacher
        parts = []
        for level, (anchors, stride) in enumerate(
            zip(self.case.levels('anchors'), self.strides, strict=True)
        ):
            order = general_instances(
                self.head,
                student.level_class_logits(level).detach().flatten(0, 1),
                teacher.level_class_logits(level).flatten(0, 1),
                level_rows(student.box_maps[level], 1).detach().flatten(0, 1),
                level_rows(teacher.box_maps[level], 1).flatten(0, 1),
                anchors.flatten(0, 1),
                stride,
            ).idx
            part = torch.zeros(anchors.shape[:2])
            part.view(-1)[order] = 1
            parts.append(part)
        return torch.cat(parts, dim=1)


def _classification(region: Region) -> Distiller:
    return ClassificationDistiller(region, DistributionKLLoss(temperature=2, loss_weight=10))


def _imitation(region: Region) -> Distiller:
    distiller = FeatureDistiller(region, FeatureMSELoss(loss_weight=2))
    distiller.adapter = torch.nn.Identity()
    return distiller


def make_head(
    class_rows: Tensor, box_rows: Tensor, channels: int, strides: list[int], scale: int
) -> GFLHead:
    """A stock head that predicts rows (M, C) and (M, 4 * B); its convolutions are never used."""
    return GFLHead(
        num_classes=class_rows.shape[1],
        in_channels=channels,
        feat_channels=1,
        stacked_convs=0,
        reg_max=box_rows.shape[1] // 4 - 1,
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            octave_base_scale=scale,
            scales_per_octave=1,
            strides=strides,
        ),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_dfl=dict(type='DistributionFocalLoss', loss_weight=0.25),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        train_cfg=dict(
            assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1
        ),
    )


def background(images: int, priors: int, num_classes: int) -> Assignment:
    """All priors are inside the image, none is positive."""
    return Assignment(
        labels=torch.full((images, priors), num_classes),
        label_weights=torch.ones(images, priors),
        valid=torch.ones(images, priors, dtype=torch.bool),
        num_classes=num_classes,
    )
