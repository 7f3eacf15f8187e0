"""Pictures of what detectors see: their detections, where they distil, and their distributions.

Which images and positions are shown follows from the ground truth and the teacher, never from how
well a student does on them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from mmcv.ops import nms
from mmdet.registry import DATASETS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from ld_plugin.dense import DenseOutputs, DistillationContext, Positions, get_reader
from ld_plugin.regions import MainRegion, ValuableLocalizationRegion

GOOD, LOOSE, WRONG = '#2ecc71', '#ffb000', '#ff3355'  # boxes of detections
COLOURS = {'teacher': '#8a8a8a', 'alone': '#e4572e', 'distilled': '#1f77b4'}
MAIN, VLR = '#ff8c00', '#00a6fb'
MIN_SCORE = 0.3
SIDES = ('left', 'top', 'right', 'bottom')


def draw_pictures(
    paths: Mapping[str, Path],
    models: Mapping[str, nn.Module],
    titles: Mapping[str, str],
    cfg: Config,
) -> None:
    """Draw ``detections.png``, ``regions.png`` and ``distributions.png``.

    Args:
        paths: Where each goes.
        models: ``teacher``, ``alone`` and ``distilled``, the last a
            :class:`~ld_plugin.detectors.DistilledSingleStageDetector`, all in eval mode.
        titles: What to write over each model's detections.
        cfg: Names the test images and how they are read.
    """
    items = pick_images(cfg, count=3)
    plt.rcParams.update({'font.size': 9, 'axes.titlesize': 10})
    _save(detections(items, models, titles), paths['detections.png'])
    context, alone = observe(items[0], models)
    image, truth = picture_of(items[0]), context.gt_bboxes[0]
    _save(regions(image, truth, context), paths['regions.png'])
    _save(distributions(image, truth, context, alone), paths['distributions.png'])


def pick_images(cfg: Config, count: int) -> list[dict[str, Any]]:
    """The first test images with at least four objects, or those with most of them."""
    dataset = DATASETS.build({**cfg.test_dataloader.dataset, 'pipeline': cfg.train_pipeline})
    items = [dataset[index] for index in range(min(len(dataset), 50))]
    objects = [min(len(item['data_samples'].gt_instances), 4) for item in items]
    best = sorted(range(len(items)), key=lambda index: -objects[index])[:count]
    return [items[index] for index in best]


def picture_of(item: Mapping[str, Any]) -> np.ndarray:
    """(H, W, 3) uint8 RGB of what a pipeline made."""
    return item['inputs'].permute(1, 2, 0).flip(-1).numpy()


def _save(figure: plt.Figure, path: Path) -> None:
    partial = path.with_suffix('.partial')
    figure.savefig(partial, format='png', dpi=160, bbox_inches='tight', facecolor='white')
    plt.close(figure)
    partial.replace(path)


def _frame(axes: Axes, image: np.ndarray) -> None:
    """Show an image whose pixel i reaches from i to i + 1, as in boxes."""
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0), interpolation='bicubic')
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])


def _box(axes: Axes, box: Sequence[float], colour: str, **style: Any) -> None:
    x0, y0, x1, y1 = box
    style = dict(linewidth=1.6) | style
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, **style))


# --- detections -----------------------------------------------------------------------------------


def detections(
    items: Sequence[Mapping], models: Mapping[str, nn.Module], titles: Mapping[str, str]
) -> plt.Figure:
    """A row per image: ground truth, then the detections of every model.

    Of detections at the same place, of one class or of several, only the best is drawn.
    """
    height, width = items[0]['inputs'].shape[-2:]
    columns = 1 + len(models)
    figure, grid = plt.subplots(
        len(items),
        columns,
        figsize=(2.9 * columns, 2.9 * len(items) * height / width + 0.6),
        squeeze=False,
        layout='compressed',
    )
    for row, item in zip(grid, items, strict=True):
        for axes in row:
            _frame(axes, picture_of(item))
        truth = item['data_samples'].gt_instances
        for box, label in zip(truth.bboxes.tensor.tolist(), truth.labels.tolist(), strict=True):
            _labelled_box(row[0], box, str(label), 'white', text_colour='black')
        for axes, model in zip(row[1:], models.values(), strict=True):
            _draw_detections(axes, model, item)
    for axes, title in zip(grid[0], ['ground truth', *(titles[m] for m in models)], strict=True):
        axes.set_title(title)
    figure.legend(
        handles=[
            Line2D([], [], color=GOOD, label='right digit, IoU at least 0.75'),
            Line2D([], [], color=LOOSE, label='right digit, IoU 0.5 to 0.75'),
            Line2D([], [], color=WRONG, label='wrong digit, wrong place, or found twice'),
            Line2D([], [], color='#999999', linestyle=':', label='not found'),
        ],
        loc='outside lower center',
        ncols=4,
        frameon=False,
    )
    return figure


def _draw_detections(axes: Axes, model: nn.Module, item: Mapping) -> None:
    with torch.no_grad():
        found = model.test_step(pseudo_collate([item]))[0].pred_instances.cpu()
    found = found[found.scores >= MIN_SCORE]
    found = found[nms(found.bboxes, found.scores, iou_threshold=0.6)[1]]
    truth = item['data_samples'].gt_instances
    quality, missed = match(found, truth.bboxes.tensor, truth.labels)
    for box in truth.bboxes.tensor[missed].tolist():
        _box(axes, box, 'white', linestyle=':', linewidth=1.3)
    for box, label, score, iou in zip(
        found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist(), quality, strict=True
    ):
        colour = GOOD if iou >= 0.75 else LOOSE if iou >= 0.5 else WRONG
        _labelled_box(axes, box, f'{label}  {100 * score:.0f}', colour)


def _labelled_box(
    axes: Axes, box: Sequence[float], text: str, colour: str, text_colour: str = 'white'
) -> None:
    _box(axes, box, colour)
    axes.text(
        box[0],
        max(box[1], 8),
        text,
        color=text_colour,
        fontsize=6.5,
        fontweight='bold',
        verticalalignment='bottom',
        bbox=dict(facecolor=colour, edgecolor='none', pad=0.8, alpha=0.85),
        clip_on=True,
    )


def match(found: Any, boxes: Tensor, labels: Tensor) -> tuple[list[float], list[int]]:
    """Give every detection, best score first, a ground truth of its class that is still free.

    Returns:
        The IoU of every detection with its ground truth, 0 without one; the ground truths of which
        no detection reaches an IoU of 0.5.
    """
    free = torch.ones(len(boxes), dtype=torch.bool)
    quality = []
    overlaps = bbox_overlaps(found.bboxes, boxes)
    for overlap, label in zip(overlaps, found.labels, strict=True):
        best, index = (overlap * (free & (labels == label))).max(dim=0)
        if best >= 0.5:
            free[index] = False
        quality.append(float(best) if best >= 0.5 else 0.0)
    return quality, free.nonzero().flatten().tolist()


# --- regions --------------------------------------------------------------------------------------


def observe(
    item: Mapping, models: Mapping[str, nn.Module]
) -> tuple[DistillationContext, DenseOutputs]:
    """What distillation sees on an image, and the outputs of the student that was trained alone."""
    distilled, alone = models['distilled'], models['alone']
    with torch.no_grad():
        data = distilled.data_preprocessor(pseudo_collate([item]), training=True)
        _, context = distilled.observe(data['inputs'], data['data_samples'])
        features = alone.extract_feat(data['inputs'])
        outputs = get_reader(alone.bbox_head).read(alone.bbox_head(features), features)
    return context, outputs


def regions(image: np.ndarray, truth: Tensor, context: DistillationContext) -> plt.Figure:
    """The image, then per level the cells in the main region and in the VLR."""
    main = context.select(MainRegion()).weights > 0
    vlr = context.select(ValuableLocalizationRegion()).weights > 0
    sizes, shapes = context.student.num_level_priors, context.student.level_shapes
    levels = [
        (stride[0], here.view(shape[:2]), near.view(shape[:2]))
        for stride, shape, here, near in zip(
            context.student.spec.strides,
            shapes,
            main[0].split(sizes),
            vlr[0].split(sizes),
            strict=True,
        )
        if (here | near).any()
    ]
    height, width = image.shape[:2]
    figure, row = plt.subplots(
        1,
        1 + len(levels),
        figsize=(3.3 * (1 + len(levels)), 3.3 * height / width + 0.6),
        layout='compressed',
    )
    _frame(row[0], image)
    row[0].set_title('image and ground truth')
    for axes, (stride, here, near) in zip(row[1:], levels, strict=True):
        _frame(axes, (0.6 * image + 0.4 * 255).astype(np.uint8))
        axes.set_title(f'positions of stride {stride:.0f}')
        _draw_cells(axes, stride, here, near)
    for axes in row:
        for box in truth.tolist():
            _box(axes, box, 'white', linewidth=3)
            _box(axes, box, 'black', linewidth=1.2)
    figure.legend(
        handles=[
            Patch(color=MAIN, label='main region: positives of the student'),
            Patch(color=VLR, label='valuable localization region (VLR)'),
            Patch(facecolor=MAIN, edgecolor=VLR, linewidth=2.5, label='both'),
        ],
        loc='outside lower center',
        ncols=3,
        frameon=False,
    )
    return figure


def _draw_cells(axes: Axes, stride: float, main: Tensor, vlr: Tensor) -> None:
    """A square per selected cell, around the centre of its prior, which is the cell's corner."""
    for y, x in (main | vlr).nonzero().tolist():
        side = 0.8 * stride
        corner = (x * stride - side / 2, y * stride - side / 2)
        fill = to_rgba(MAIN if main[y, x] else VLR, 0.6)
        edge = VLR if vlr[y, x] else MAIN
        axes.add_patch(Rectangle(corner, side, side, facecolor=fill, edgecolor=edge, linewidth=1.3))


# --- distributions --------------------------------------------------------------------------------


def distributions(
    image: np.ndarray, truth: Tensor, context: DistillationContext, alone: DenseOutputs
) -> plt.Figure:
    """A row per position: where it is, and the distribution of every side by all three models."""
    chosen = pick_positions(context, truth)
    models = {'teacher': context.teacher, 'alone': alone, 'distilled': context.student}
    figure, grid = plt.subplots(
        len(chosen),
        5,
        figsize=(12.5, 2.1 * len(chosen) + 0.5),
        squeeze=False,
        layout='constrained',
        gridspec_kw=dict(width_ratios=[1.45, 1, 1, 1, 1]),
    )
    for row, (where, positions) in zip(grid, chosen, strict=True):
        index = positions.prior_index
        centre = context.student.priors[index].view(2, 2).mean(0)
        stride = float(context.student.prior_strides[index])
        box = truth[_nearest(centre, truth)]
        _frame(row[0], image)
        _box(row[0], box.tolist(), 'white')
        row[0].plot(*centre.tolist(), 'o', color=MAIN if 'main' in where else VLR, mec='white')
        row[0].set_title(f'{where}, stride {stride:.0f}', fontsize=9)
        probability = {
            name: outputs.distribution_logits(positions)[0].softmax(-1).cpu()
            for name, outputs in models.items()
        }
        target = torch.cat([centre - box[:2], box[2:] - centre]) / stride
        _draw_sides(row[1:], probability, target.tolist())
    for axes, side in zip(grid[0, 1:], SIDES, strict=True):
        axes.set_title(side)
    for axes in grid[-1, 1:]:
        axes.set_xlabel('distance in strides')
    figure.legend(
        handles=[
            Patch(facecolor=COLOURS['teacher'], alpha=0.5, label='teacher'),
            Line2D([], [], color=COLOURS['alone'], marker='o', ms=3, label='student alone'),
            Line2D([], [], color=COLOURS['distilled'], marker='o', ms=3, label='distilled student'),
            Line2D([], [], color='black', linestyle='--', linewidth=1, label='ground truth'),
        ],
        loc='outside lower center',
        ncols=4,
        frameon=False,
    )
    return figure


def _draw_sides(
    row: Sequence[Axes], probability: Mapping[str, Tensor], target: Sequence[float]
) -> None:
    likely = torch.stack(list(probability.values())).amax(dim=(0, 1)) > 0.03
    last = int(likely.nonzero().max()) + 1
    bins = np.arange(len(likely))
    for side, axes in enumerate(row):
        axes.bar(bins, probability['teacher'][side], 0.9, color=COLOURS['teacher'], alpha=0.5)
        for name in ('alone', 'distilled'):
            axes.plot(bins, probability[name][side], '-o', ms=3, lw=1.5, color=COLOURS[name])
        axes.axvline(target[side], color='black', linestyle='--', linewidth=1)
        axes.set(xlim=(-0.6, last + 0.6), ylim=(0, 1), xticks=range(0, last + 1, 1 + last // 8))
        axes.tick_params(labelleft=side == 0, labelsize=7.5)
        axes.spines[['top', 'right']].set_visible(False)


def _nearest(centre: Tensor, truth: Tensor) -> int:
    return int(((truth[:, :2] + truth[:, 2:]) / 2 - centre).norm(dim=1).argmin())


def pick_positions(context: DistillationContext, truth: Tensor) -> list[tuple[str, Positions]]:
    """Two positions of the main region, each on an object of its own, and one of the VLR alone.

    The largest objects that have positives are taken, there the position on which the teacher is
    surest; and in the VLR without the main region the position of largest weight.
    """
    positive = context.assignment.positive
    everywhere = Positions.from_mask(torch.ones_like(positive), context.student.level_shapes)
    confidence = torch.zeros_like(positive, dtype=torch.float)
    scores = context.teacher.class_logits(everywhere).float().sigmoid().amax(-1)
    confidence[:, everywhere.prior_index] = scores
    centres = context.student.priors.view(-1, 2, 2).mean(1)
    distance = torch.cdist(centres, (truth[:, :2] + truth[:, 2:]) / 2)
    owner = distance.argmin(1)
    size = (truth[:, 2:] - truth[:, :2]).prod(1)
    chosen = []
    for gt in size.argsort(descending=True).tolist():
        candidates = confidence.masked_fill(~(positive & (owner == gt)), 0)
        if candidates.any() and len(chosen) < 2:
            chosen.append(('main region', _at(candidates, context)))
    vlr = context.select(ValuableLocalizationRegion(exclude_positives=True)).weights
    if vlr.any():
        chosen.append(('VLR', _at(vlr, context)))
    return chosen


def _at(values: Tensor, context: DistillationContext) -> Positions:
    """The position of the largest value, (1, P)."""
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[0, values[0].argmax()] = True
    return Positions.from_mask(mask, context.student.level_shapes)
