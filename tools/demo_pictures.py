"""Pictures of what detectors see: their detections, where they distil, and their distributions.

Which images and positions are shown follows from the ground truth and the teacher, never from how
well a student does on them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from matplotlib.patches import Patch, Polygon, Rectangle
from matplotlib.ticker import MaxNLocator
from mmcv.ops import nms, nms_rotated
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from torch import Tensor, nn

from ld_plugin.dense import (
    DenseOutputs,
    DistillationContext,
    HeadSpec,
    Positions,
    boxes,
    get_reader,
)
from ld_plugin.regions import MainRegion, OverlapRegion, Region, ValuableLocalizationRegion

GOOD, LOOSE, WRONG = '#2ecc71', '#ffb000', '#ff3355'  # boxes of detections
COLOURS = {'teacher': '#8a8a8a', 'alone': '#e4572e', 'distilled': '#1f77b4'}
MAIN, AROUND = '#ff8c00', '#00a6fb'
MIN_SCORE = 0.3
LIKELY = 0.03  # bins of less probability may lie outside of a plot


@dataclass(frozen=True)
class BoxKind:
    """What differs between pictures of horizontal and of rotated boxes.

    Attributes:
        nms: Takes boxes (K, E), scores (K,) and an IoU; the second thing that it returns are the
            indices of those that stay.
        near: The region that localization distillation reads, beside the positives or around them.
        near_name: For the legend.
        near_title: Shorter.
        sides: What each distribution is of, and in what its bins are measured.
        target: From head, prior (E,), stride and ground truth (E,), what each distribution should
            say, (E,).
    """

    nms: Callable[..., tuple[Tensor, Tensor]]
    near: Region
    near_name: str
    near_title: str
    sides: Mapping[str, str]
    target: Callable[[nn.Module, Tensor, float, Tensor], Tensor]


def _distances(head: nn.Module, prior: Tensor, stride: float, box: Tensor) -> Tensor:
    centre = boxes.centres(prior)
    return torch.cat([centre - box[:2], box[2:] - centre]) / stride


def _encoded(head: nn.Module, prior: Tensor, stride: float, box: Tensor) -> Tensor:
    from mmrotate.structures import RotatedBoxes  # an optional package

    return head.bbox_coder.encode(RotatedBoxes(prior[None]), RotatedBoxes(box[None]))[0]


KINDS = {  # by the numbers of a box
    4: BoxKind(
        nms=nms,
        near=ValuableLocalizationRegion(),
        near_name='valuable localization region (VLR)',
        near_title='VLR',
        sides=dict.fromkeys(('left', 'top', 'right', 'bottom'), 'distance in strides'),
        target=_distances,
    ),
    5: BoxKind(
        nms=nms_rotated,
        near=OverlapRegion(),
        near_name='region of rotated LD: priors that overlap an object',
        near_title='no positive',
        sides={
            'x': 'in widths of the anchor',
            'y': 'in heights of the anchor',
            'width': "log of times the anchor's",
            'height': "log of times the anchor's",
            'angle': "radians from the anchor's",
        },
        target=_encoded,
    ),
}


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
    image = picture_of(items[0])
    _save(regions(image, context), paths['regions.png'])
    head = models['distilled'].bbox_head
    _save(distributions(image, context, alone, head), paths['distributions.png'])


def pick_images(cfg: Config, count: int) -> list[dict[str, Any]]:
    """The first test images with at least four objects, or those with most of them."""
    dataset = DATASETS.build({**cfg.test_dataloader.dataset, 'pipeline': cfg.train_pipeline})
    # by name: a data set may list its files in whatever order the disk has them
    names = [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]
    items = [dataset[index] for index in np.argsort(names)[:50].tolist()]
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


def _box(axes: Axes, box: Tensor, colour: str, **style: Any) -> None:
    rotated = box if boxes.is_rotated(box) else boxes.upright(box)
    style = dict(linewidth=1.6) | style
    axes.add_patch(Polygon(boxes.corners(rotated[None])[0], fill=False, edgecolor=colour, **style))


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
        for box, label in zip(truth.bboxes.tensor, truth.labels.tolist(), strict=True):
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
    found.bboxes = get_box_tensor(found.bboxes)
    found = found[found.scores >= MIN_SCORE]
    if len(found):  # the rotated one knows no indices of nothing
        suppress = KINDS[found.bboxes.shape[1]].nms
        found = found[suppress(found.bboxes, found.scores, iou_threshold=0.6)[1]]
    truth = item['data_samples'].gt_instances
    quality, missed = match(found, truth.bboxes.tensor, truth.labels)
    for box in truth.bboxes.tensor[missed]:
        _box(axes, box, 'white', linestyle=':', linewidth=1.3)
    for box, label, score, iou in zip(
        found.bboxes, found.labels.tolist(), found.scores.tolist(), quality, strict=True
    ):
        colour = GOOD if iou >= 0.75 else LOOSE if iou >= 0.5 else WRONG
        _labelled_box(axes, box, f'{label}  {100 * score:.0f}', colour)


def _labelled_box(
    axes: Axes, box: Tensor, text: str, colour: str, text_colour: str = 'white'
) -> None:
    _box(axes, box, colour)
    left, top = boxes.bounds(box)[:2].tolist()
    axes.text(
        left,
        max(top, 8),
        text,
        color=text_colour,
        fontsize=6.5,
        fontweight='bold',
        verticalalignment='bottom',
        bbox=dict(facecolor=colour, edgecolor='none', pad=0.8, alpha=0.85),
        clip_on=True,
    )


def match(found: Any, truth: Tensor, labels: Tensor) -> tuple[list[float], list[int]]:
    """Give every detection, best score first, a ground truth of its class that is still free.

    Returns:
        The IoU of every detection with its ground truth, 0 without one; the ground truths of which
        no detection reaches an IoU of 0.5.
    """
    free = torch.ones(len(truth), dtype=torch.bool)
    quality = []
    overlaps = boxes.overlaps_with(
        found.bboxes[:, None], truth.expand(len(found.bboxes), *truth.shape)
    )
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


def regions(image: np.ndarray, context: DistillationContext) -> plt.Figure:
    """The image, then per level the cells with priors in the main region and in the other one."""
    kind = KINDS[context.student.spec.box_dim]
    main = context.select(MainRegion()).weights > 0
    around = context.select(kind.near).weights > 0
    sizes, shapes = context.student.num_level_priors, context.student.level_shapes
    levels = [
        (stride[0], here.view(shape).any(-1), near.view(shape).any(-1))
        for stride, shape, here, near in zip(
            context.student.spec.strides,
            shapes,
            main[0].split(sizes),
            around[0].split(sizes),
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
        for box in context.gt_bboxes[0]:
            _box(axes, box, 'white', linewidth=3)
            _box(axes, box, 'black', linewidth=1.2)
    figure.legend(
        handles=[
            Patch(color=MAIN, label='main region: positives of the student'),
            Patch(color=AROUND, label=kind.near_name),
            Patch(facecolor=MAIN, edgecolor=AROUND, linewidth=2.5, label='both'),
        ],
        loc='outside lower center',
        ncols=3,
        frameon=False,
    )
    return figure


def _draw_cells(axes: Axes, stride: float, main: Tensor, around: Tensor) -> None:
    """A square per selected cell, around the centre of its prior, which is the cell's corner."""
    for y, x in (main | around).nonzero().tolist():
        side = 0.8 * stride
        corner = (x * stride - side / 2, y * stride - side / 2)
        fill = to_rgba(MAIN if main[y, x] else AROUND, 0.6)
        edge = AROUND if around[y, x] else MAIN
        axes.add_patch(Rectangle(corner, side, side, facecolor=fill, edgecolor=edge, linewidth=1.3))


# --- distributions --------------------------------------------------------------------------------


def distributions(
    image: np.ndarray, context: DistillationContext, alone: DenseOutputs, head: nn.Module
) -> plt.Figure:
    """A row per position: where it is, and the distribution of every side by all three models."""
    chosen = pick_positions(context)
    kind = KINDS[context.student.spec.box_dim]
    models = {'teacher': context.teacher, 'alone': alone, 'distilled': context.student}
    widths = [1.45, *[1] * len(kind.sides)]
    figure, grid = plt.subplots(
        len(chosen),
        len(widths),
        figsize=(2.3 * sum(widths), 2.1 * len(chosen) + 0.5),
        squeeze=False,
        layout='constrained',
        gridspec_kw=dict(width_ratios=widths),
    )
    for row, (where, positions) in zip(grid, chosen, strict=True):
        prior = context.student.priors[positions.prior_index[0]]
        stride = float(context.student.prior_strides[positions.prior_index[0]])
        box = context.gt_bboxes[0][_nearest(prior, context.gt_bboxes[0])]
        _frame(row[0], image)
        _box(row[0], box, 'white')
        colour = MAIN if 'main' in where else AROUND
        row[0].plot(*boxes.centres(prior).tolist(), 'o', color=colour, mec='white')
        row[0].set_title(f'{where}, stride {stride:.0f}', fontsize=9)
        probability = {
            name: outputs.distribution_logits(positions)[0].softmax(-1).cpu()
            for name, outputs in models.items()
        }
        target = kind.target(head, prior, stride, box)
        _draw_sides(row[1:], bin_values(context.student.spec), probability, target.tolist())
    for column, (side, unit) in zip(grid.T[1:], kind.sides.items(), strict=True):
        column[0].set_title(side)
        column[-1].set_xlabel(unit)
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


def bin_values(spec: HeadSpec) -> np.ndarray:
    """What every bin stands for, (E, B): strides, if the head has no ranges of its own."""
    ranges = spec.bin_ranges or [(0, spec.num_bins - 1)] * spec.box_dim
    return np.array([np.linspace(first, last, spec.num_bins) for first, last in ranges])


def _draw_sides(
    row: Sequence[Axes],
    values: np.ndarray,
    probability: Mapping[str, Tensor],
    target: Sequence[float],
) -> None:
    likely = torch.stack(list(probability.values())).amax(dim=(0, 1)) > LIKELY
    last = int(likely.nonzero().max())
    for side, (axes, bins) in enumerate(zip(row, values, strict=True)):
        step = bins[1] - bins[0]
        axes.bar(
            bins, probability['teacher'][side], 0.9 * step, color=COLOURS['teacher'], alpha=0.5
        )
        for name in ('alone', 'distilled'):
            axes.plot(bins, probability[name][side], '-o', ms=3, lw=1.5, color=COLOURS[name])
        axes.axvline(target[side], color='black', linestyle='--', linewidth=1)
        axes.set(xlim=(bins[0] - 0.6 * step, bins[last] + 0.6 * step), ylim=(0, 1))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.tick_params(labelleft=side == 0, labelsize=7.5)
        axes.spines[['top', 'right']].set_visible(False)


def _nearest(prior: Tensor, truth: Tensor) -> int:
    return int((boxes.centres(truth) - boxes.centres(prior)).norm(dim=1).argmin())


def pick_positions(context: DistillationContext) -> list[tuple[str, Positions]]:
    """Two positions of the main region, each on an object of its own, and one outside of it.

    The largest objects that have positives are taken, there the position on which the teacher is
    surest; and in the other region without the main region the position of largest weight.
    """
    kind, truth = KINDS[context.student.spec.box_dim], context.gt_bboxes[0]
    positive = context.assignment.positive
    everywhere = Positions.from_mask(torch.ones_like(positive), context.student.level_shapes)
    confidence = torch.zeros_like(positive, dtype=torch.float)
    scores = context.teacher.class_logits(everywhere).float().sigmoid().amax(-1)
    confidence[:, everywhere.prior_index] = scores
    distance = torch.cdist(boxes.centres(context.student.priors), boxes.centres(truth))
    owner = distance.argmin(1)
    size = boxes.sides(truth).prod(1)
    chosen = []
    for gt in size.argsort(descending=True).tolist():
        candidates = confidence.masked_fill(~(positive & (owner == gt)), 0)
        if candidates.any() and len(chosen) < 2:
            chosen.append(('main region', _at(candidates, context)))
    around = context.select(kind.near).weights.masked_fill(positive, 0)
    if around.any():
        chosen.append((kind.near_title, _at(around, context)))
    return chosen


def _at(values: Tensor, context: DistillationContext) -> Positions:
    """The position of the largest value, (1, P)."""
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[0, values[0].argmax()] = True
    return Positions.from_mask(mask, context.student.level_shapes)
