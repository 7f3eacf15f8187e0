"""Measure what one training step with a teacher costs, in time and memory.

    python tools/benchmark_speed.py [--recipes ld_full] [--rounds 15] [--json speed.json]

One process builds every way to train the same student on the same images and runs them in turn, in
another order each round. Every ratio is taken within a round, so that what disturbs the machine for
a while disturbs both sides of it; the tables show medians over the rounds. A step is the forward
pass, the losses and the backward pass. The ways are:

    student alone       the stock detector
    teacher, ...        its forward pass: the stock detector in eager fp32, and the plugin's
    floor               the stock teacher's forward pass, then the student's step; where there is a
                        RoI head, the teacher's sees as many boxes as the student's learns from
    mmdet LDHead        the distilled detector of mmdet, which does main LD only; for GFL
    ld_full, fp32 ...   each recipe of `ld_plugin.recipes` with each teacher

The peak memory of a step is that of the weights and of everything allocated during the step. It is
compared with the sum of the student's peak and the teacher's weights. GMAC are the billions of
multiplications in a step's convolutions and matrix products, whatever the machine: no more than
the floor's, unless a method has layers of its own or goes through the teacher's a second time.

On a machine that is busy with other things, go by processor time, with OMP_WAIT_POLICY=PASSIVE in
the environment, so that threads which wait for each other do not count as work.
"""

import argparse
import json
import math
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from command_line import Distinct, positive, result_file
from mmcv.ops import RoIAlignRotated
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import BaseBoxes, bbox2roi, bbox_overlaps
from mmengine import ConfigDict
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from recipe_names import RECIPES
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ld_plugin.dense.boxes import upright
from ld_plugin.errors import ConfigError
from ld_plugin.packages import how_to_install_mmrotate, is_installed
from ld_plugin.regions.geometry import valuable_localization_region


@dataclass(frozen=True)
class Detector:
    """A detector with a ResNet to distil.

    Attributes:
        config: Its stock config.
        head: What differs from the stock dense head.
    """

    config: str
    head: Mapping[str, Any] = field(default_factory=dict)
    sizes: ClassVar[tuple[str, ...]] = ('18', '34', '50', '101')
    default_teacher: ClassVar[str] = '50'
    default_student: ClassVar[str] = '18'
    default_channels: ClassVar[int | None] = 256

    @property
    def scope(self) -> str:
        """The package of its config, which is the registry's scope too."""
        return self.config.split('::')[0]

    def model(self, size: str, channels: int | None) -> ConfigDict:
        """The ``model`` of the stock config in another size, without pretrained weights.

        Args:
            size: One of ``sizes``.
            channels: Of neck and heads; None where the size says it.
        """
        model = get_config(self.config).model
        widths = [64, 128, 256, 512] if int(size) < 50 else [256, 512, 1024, 2048]
        model.backbone.update(depth=int(size), init_cfg=None)
        model.neck.update(in_channels=widths, out_channels=channels)
        dense = model.get('bbox_head') or model.rpn_head
        dense.update(in_channels=channels, feat_channels=channels)
        if 'roi_head' in model:
            for extractor in stages(model.roi_head.bbox_roi_extractor):
                extractor.out_channels = channels
            for head in stages(model.roi_head.bbox_head):
                head.in_channels = channels
        self._replace(dense)
        return model

    def _replace(self, head: ConfigDict) -> None:
        for name, value in self.head.items():
            head[name] = value  # update() would merge it with the stock value


class RTMDet(Detector):
    """Of which every size has a config of its own, which stands in ``config`` as ``{size}``."""

    sizes = ('tiny', 's', 'm', 'l')
    default_teacher = 'l'
    default_student = 's'
    default_channels = None

    def model(self, size: str, channels: int | None) -> ConfigDict:
        model = get_config(self.config.format(size=size)).model
        model.backbone.init_cfg = None
        for part in (model.backbone, model.neck, model.bbox_head):
            part.norm_cfg.type = 'BN'  # synchronised batch norm runs on GPUs alone
        self._replace(model.bbox_head)
        return model


#: for heads whose stock loss, of rotated IoU, has no operator for a processor
_GAUSSIAN = dict(loss_bbox=dict(type='GDLoss_v1', loss_type='kld', fun='log1p', tau=1))
_ROTATED_FCOS = 'mmrotate::rotated_fcos/rotated-fcos-le90_r50_fpn_kld_1x_dota.py'
DETECTORS = {
    'gfl': Detector('mmdet::gfl/gfl_r50_fpn_1x_coco.py'),
    'retinanet': Detector('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'),
    'atss': Detector('mmdet::atss/atss_r50_fpn_1x_coco.py'),
    'fcos': Detector('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'),
    'dist-retinanet': Detector(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        dict(type='DistributionRetinaHead', loss_bbox=dict(type='GIoULoss', loss_weight=2.0)),
    ),
    'dist-atss': Detector('mmdet::atss/atss_r50_fpn_1x_coco.py', dict(type='DistributionATSSHead')),
    'dist-fcos': Detector(
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', dict(type='DistributionFCOSHead')
    ),
    'faster-rcnn': Detector('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'),
    'cascade-rcnn': Detector('mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py'),
    'rotated-retinanet': Detector(
        'mmrotate::kld/rotated-retinanet-rbox-le90_r50_fpn_kld_1x_dota.py',
        dict(type='mmdet.DistributionRotatedRetinaHead'),
    ),
    'rotated-atss': Detector(
        'mmrotate::rotated_atss/rotated-atss-le90_r50_fpn_1x_dota.py', _GAUSSIAN
    ),
    'rotated-fcos': Detector(_ROTATED_FCOS),
    'dist-rotated-fcos': Detector(_ROTATED_FCOS, dict(type='mmdet.DistributionRotatedFCOSHead')),
    'rotated-rtmdet': RTMDet(
        'mmrotate::rotated_rtmdet/rotated_rtmdet_{size}-3x-dota.py', _GAUSSIAN
    ),
    'oriented-rcnn': Detector('mmrotate::oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py'),
    'roi-transformer': Detector('mmrotate::roi_trans/roi-trans-le90_r50_fpn_1x_dota.py'),
}
STOCK_LD = 'mmdet::ld/ld_r18-gflv1-r101_fpn_1x_coco.py'
PRECISIONS = ('fp32', 'bf16')
ALONE, FLOOR, LD_HEAD = 'student alone', 'floor', 'mmdet LDHead'
MEGABYTE = 1e6
CLOCKS = {'wall': time.perf_counter, 'processor': time.process_time}
_PROGRESS = dict(console=Console(stderr=True))


@dataclass
class Case:
    """One way to train, or a part of it.

    Attributes:
        name: Its row in the table.
        model: Whose gradients a step leaves behind.
        run: One step.
        weights: Bytes of the weights it keeps by then, those of the teacher included.
        teacher_weights: Bytes of the teacher's among them.
        seconds: Per round, on each of the CLOCKS.
        peak: Bytes at the peak of a step.
        multiplications: In a step's convolutions and matrix products.
    """

    name: str
    model: nn.Module
    run: Callable[[], Any]
    weights: Callable[[], int]
    teacher_weights: int = 0
    seconds: list[tuple[float, ...]] = field(default_factory=list)
    peak: int = 0
    multiplications: int = 0


@dataclass(frozen=True)
class Batch:
    """Normalised images (N, 3, H, W), and samples with ground truth."""

    images: Tensor
    samples: list[DetDataSample]

    @classmethod
    def random(
        cls, args: argparse.Namespace, device: torch.device, classes: int, rotated: bool
    ) -> 'Batch':
        """Noise with objects between a tenth and six tenths of the image's side."""
        generator = torch.Generator().manual_seed(0)
        size, objects, samples = args.size, args.objects, []
        for _ in range(args.batch):
            extent = size * 0.1 * 6 ** torch.rand(objects, 2, generator=generator)
            corner = torch.rand(objects, 2, generator=generator) * (size - extent)
            sample = DetDataSample(
                metainfo=dict(
                    img_shape=(size, size), pad_shape=(size, size), batch_input_shape=(size, size)
                )
            )
            boxes = torch.cat([corner, corner + extent], dim=1)
            labels = torch.randint(0, classes, (objects,), generator=generator)
            sample.gt_instances = InstanceData(
                bboxes=_turned(boxes, generator) if rotated else boxes, labels=labels
            )
            samples.append(sample.to(device))
        images = torch.randn(args.batch, 3, size, size, generator=generator)
        return cls(images.to(device), samples)


def _turned(boxes: Tensor, generator: torch.Generator) -> BaseBoxes:
    """Horizontal boxes (K, 4), turned by any angle."""
    from mmrotate.structures import RotatedBoxes  # an optional package

    rotated = upright(boxes)
    rotated[:, 4] = (torch.rand(len(boxes), generator=generator) - 0.5) * math.pi
    return RotatedBoxes(rotated)


class Bench:
    """Builds the cases. They share the student, so its weights are there only once.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device(args.device)
        self.which = DETECTORS[args.detector]
        student = self.which.model(args.student, args.channels)
        self.has_two_stages = 'roi_head' in student
        classifier = stages(student.get('roi_head', student).bbox_head)[0]
        self.batch = Batch.random(
            args, self.device, classifier.num_classes, self.which.scope == 'mmrotate'
        )
        self.student = self._build(student)
        self.eager = self._build(self.which.model(args.teacher, args.channels)).eval()
        self.rois = self._rois() if self.has_two_stages else []

    def cases(self) -> Iterator[Case]:
        """All cases, each built when it is asked for."""
        student, teacher = num_bytes(self.student), num_bytes(self.eager)
        both = student + teacher
        yield Case(ALONE, self.student, lambda: self._step(self.student), lambda: student)
        yield Case('teacher, eager fp32', self.eager, self._look, lambda: teacher, teacher)
        yield Case(FLOOR, self.student, self._look_and_step, lambda: both, teacher)
        if self.args.detector == 'gfl':
            ld_head = self._ld_head()
            yield Case(LD_HEAD, ld_head, lambda: self._step(ld_head), lambda: both, teacher)
        for precision in PRECISIONS:
            for index, name in enumerate(self.args.recipes):
                model = self._distilled(RECIPES[name], precision)
                if index == 0:
                    yield self._plugin_teacher(model, precision)
                yield Case(
                    f'{name}, {precision}',
                    model,
                    lambda model=model: self._step(model),
                    # the teacher makes more where gradients pass through it
                    lambda model=model: num_bytes(model) + model.teacher.num_bytes,
                    model.teacher.num_bytes,
                )

    def _rois(self) -> list[Tensor]:
        """Per stage (R, 1 + E), the objects, repeated to as many an image as the student samples.

        That is what the eager RoI head pools.
        """
        pools, cfgs = (
            stages(part)
            for part in (self.eager.roi_head.bbox_roi_extractor, self.eager.roi_head.train_cfg)
        )
        return [
            bbox2roi([_repeated(boxes, cfg.sampler.num) for boxes in self._objects(pool)])
            for pool, cfg in zip(pools, cfgs, strict=True)
        ]

    def _objects(self, pool: nn.Module) -> list[Tensor | BaseBoxes]:
        """The objects of every image, as boxes of the kind that ``pool`` looks at."""
        boxes = [sample.gt_instances.bboxes for sample in self.batch.samples]
        if self.which.scope == 'mmrotate' and not isinstance(pool.roi_layers[0], RoIAlignRotated):
            return [rotated.convert_to('hbox') for rotated in boxes]
        return boxes

    def _plugin_teacher(self, model: nn.Module, precision: str) -> Case:
        teacher, shapes = model.teacher, [sample.img_shape for sample in self.batch.samples]
        return Case(
            f'teacher, {precision}',
            model,
            lambda: teacher(self.batch.images, shapes),
            lambda: teacher.num_bytes,
            teacher.num_bytes,
        )

    def _build(self, model: Mapping[str, Any]) -> nn.Module:
        torch.manual_seed(0)
        built = MODELS.build(model).to(self.device)
        built.train()  # mmdet's LD detector returns None here
        return built

    def _ld_head(self) -> nn.Module:
        model = Detector(STOCK_LD).model(self.args.student, self.args.channels)
        teacher = self.which.model(self.args.teacher, self.args.channels)
        model.update(teacher_config=dict(model=teacher), teacher_ckpt=None)
        built = self._build(model)
        built.teacher_model = self.eager
        return built

    def _distilled(self, distillers: Mapping[str, Any], precision: str) -> nn.Module:
        model = self.which.model(self.args.student, self.args.channels)
        teacher = self.which.model(self.args.teacher, self.args.channels)
        config = dict(model=teacher, default_scope=self.which.scope)
        stages = 'TwoStage' if self.has_two_stages else 'SingleStage'
        model.update(
            type=f'mmdet.Distilled{stages}Detector',
            teacher=dict(config=config, checkpoint=None, precision=precision),
            distillers=distillers,
        )
        built = self._build(model)
        for part, module in self.student.named_children():
            setattr(built, part, module)
        return built

    @torch.no_grad()
    def _look(self) -> tuple:
        teacher = self.eager
        features = teacher.extract_feat(self.batch.images)
        if not self.has_two_stages:
            return teacher.bbox_head(features)
        outs = list(teacher.rpn_head(features))
        pools, heads = (
            stages(part)
            for part in (teacher.roi_head.bbox_roi_extractor, teacher.roi_head.bbox_head)
        )
        for pool, head, rois in zip(pools, heads, self.rois, strict=True):
            outs += head(pool(features[: pool.num_inputs], rois))
        return tuple(outs)

    def _look_and_step(self) -> None:
        seen = self._look()
        self._step(self.student)
        del seen  # a step that learns from it keeps it until here

    def _step(self, model: nn.Module) -> None:
        losses = model.loss(self.batch.images, self.batch.samples)
        model.parse_losses(losses)[0].backward()


def stages(part: Any) -> Sequence[Any]:
    """A part of a RoI head, of every stage, where a head of a single one has no sequence of it."""
    return part if isinstance(part, list | nn.ModuleList) else [part]


def _repeated(boxes: Tensor | BaseBoxes, number: int) -> Tensor | BaseBoxes:
    return boxes.repeat(-(-number // len(boxes)), 1)[:number]


def num_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def peak_of(run: Callable[[], Any], device: torch.device) -> int:
    """Most bytes that were allocated at once during ``run`` in addition to those before."""
    if device.type == 'cuda':
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'trace.json')
        profile.export_chrome_trace(str(path))
        trace = json.loads(path.read_text())['traceEvents']
    events = sorted((e for e in trace if e['name'] == '[memory]'), key=lambda e: e['ts'])
    allocated = peak = 0
    for event in events:
        allocated += event['args']['Bytes']
        peak = max(peak, allocated)
    return peak


class Multiplications(TorchDispatchMode):
    """Counts those in the convolutions and matrix products that run within it.

    PyTorch's own counter does not know the packed convolutions of processors, and stops at a
    gradient that is computed within a forward pass.

    Attributes:
        number: So far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operator = func.overloadpacket
        if operator in _FLOPS:
            flops = _flops(operator, args, kwargs, result)
        elif '_convolution_pointwise' in str(operator):
            # one that ends with an underscore adds to its first argument
            image, weight = args[str(operator).endswith('_') :][:2]
            flops = flop_counter.conv_flop_count(image.shape, weight.shape, result.shape)
        else:
            flops = 0
        self.number += flops // 2  # an addition goes with each
        return result


#: by operator, what counts its operations; under its first name until PyTorch 2.1
_FLOPS = getattr(flop_counter, 'flop_registry', None) or flop_counter.flop_mapping


def _flops(operator: Any, args: tuple, kwargs: dict, result: Any) -> int:
    if hasattr(flop_counter, 'flop_registry'):
        return _FLOPS[operator](*args, **kwargs, out_val=result)
    args, kwargs, shape = tree_map(flop_counter.get_shape, (args, kwargs, result))
    return _FLOPS[operator](*args, **kwargs, out_shape=shape)


def multiplications_in(run: Callable[[], Any]) -> int:
    """How many there are in the convolutions and matrix products of ``run``."""
    with Multiplications() as counted:
        run()
    return counted.number


def timed(run: Callable[[], Any], device: torch.device) -> tuple[float, ...]:
    """Seconds that ``run`` takes on each of the CLOCKS."""
    _synchronize(device)
    start = [clock() for clock in CLOCKS.values()]
    run()
    _synchronize(device)
    return tuple(clock() - before for clock, before in zip(CLOCKS.values(), start, strict=True))


def measure(cases: Sequence[Case], device: torch.device, rounds: int) -> None:
    """Fill in all about the cases that runs tell; teachers pack their weights in two of them."""
    for case in track(cases, 'memory', **_PROGRESS):
        for _ in range(2):
            case.run()
            case.model.zero_grad()
        case.peak = case.weights() + peak_of(case.run, device)
        case.model.zero_grad()
        case.multiplications = multiplications_in(case.run)
        case.model.zero_grad()
    order = random.Random(0)
    for _ in track(range(rounds), 'rounds', **_PROGRESS):
        for case in order.sample(cases, len(cases)):
            case.seconds.append(timed(case.run, device))
            case.model.zero_grad()


def medians(rounds: np.ndarray) -> dict[str, float]:
    """Median over the rounds, (rounds, clocks), for each of the CLOCKS."""
    return dict(zip(CLOCKS, np.median(rounds, axis=0).tolist(), strict=True))


def summary(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """One row per case: times, ratios, work and memory; None where a row has no such thing."""
    seconds = {case.name: np.array(case.seconds) for case in cases}
    alone = next(case for case in cases if case.name == ALONE)
    return [
        dict(
            name=case.name,
            milliseconds=medians(1e3 * seconds[case.name]),
            to_floor=medians(seconds[case.name] / seconds[FLOOR]),
            to_ld_head=(
                medians(seconds[case.name] / seconds[LD_HEAD]) if LD_HEAD in seconds else None
            ),
            billion_multiplications=case.multiplications / 1e9,
            peak_megabytes=case.peak / MEGABYTE,
            teacher_megabytes=case.teacher_weights / MEGABYTE,
            peak_to_budget=(
                None
                if case.name.startswith('teacher')
                else case.peak / (alone.peak + case.teacher_weights)
            ),
        )
        for case in cases
    ]


def region_by_sorting(priors: Tensor, gt_bboxes: Tensor, num_level_priors: Sequence[int]) -> Tensor:
    """The valuable localization region from sorted levels and all P x G overlaps.

    What :func:`ld_plugin.regions.geometry.valuable_localization_region` is compared with: the same
    result, computed in the direct way.
    """
    iou = bbox_overlaps(priors, gt_bboxes)
    covered = bbox_overlaps(priors, gt_bboxes, mode='iof')
    centre = (priors[:, None, :2] + priors[:, None, 2:] - gt_bboxes[:, :2] - gt_bboxes[:, 2:]) / 2
    distance = centre.square().sum(-1)
    nearest, start = [], 0
    for level in distance.split(list(num_level_priors)):
        nearest.append(level.sort(dim=0).indices[:9] + start)
        start += level.shape[0]
    candidates = iou.gather(0, torch.cat(nearest))
    threshold = candidates.mean(0) + candidates.std(0)
    corner = torch.maximum(priors[:, None, 2:], gt_bboxes[:, 2:])
    diagonal = corner - torch.minimum(priors[:, None, :2], gt_bboxes[:, :2])
    overlap = covered - distance / diagonal.square().sum(-1)
    inside = (overlap >= 0.25 * threshold) & (overlap < threshold)
    return iou.where(inside, 0).max(dim=1).values


def region_inputs(device: torch.device) -> tuple[Tensor, Tensor, list[int]]:
    """22 400 priors (P, 4) of 800 x 1344 pixels, 50 ground truths (G, 4), priors per level."""
    generator = torch.Generator().manual_seed(0)
    extent = 12 * 30 ** torch.rand(50, 2, generator=generator)
    centre = torch.rand(50, 2, generator=generator) * torch.tensor([1344, 800])
    gt_bboxes = torch.cat([centre - extent / 2, centre + extent / 2], dim=1).to(device)
    anchors = AnchorGenerator(
        strides=[8, 16, 32, 64, 128], ratios=[1.0], octave_base_scale=8, scales_per_octave=1
    )
    levels = anchors.grid_priors([(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)], device=device)
    return torch.cat(levels), gt_bboxes, [len(level) for level in levels]


def measure_region(device: torch.device, rounds: int) -> dict[str, Any]:
    """Time the valuable localization region of one image.

    Raises:
        AssertionError: The two ways disagree.
    """
    inputs = region_inputs(device)
    functions = (valuable_localization_region, region_by_sorting)
    torch.testing.assert_close(*(function(*inputs) for function in functions))
    seconds = [
        [timed(lambda function=function: function(*inputs), device) for function in functions]
        for _ in track(range(rounds), 'region', **_PROGRESS)
    ]
    ours, sorting = np.array(seconds).swapaxes(0, 1)
    return dict(
        priors=inputs[0].shape[0],
        ground_truths=inputs[1].shape[0],
        milliseconds=medians(1e3 * ours),
        sorting_milliseconds=medians(1e3 * sorting),
        speedup=medians(sorting / ours),
    )


def table(rows: Sequence[Mapping[str, Any]], region: Mapping[str, Any]) -> str:
    """The results as text."""
    clock_titles = ''.join(f'{"ms":>10}{"x floor":>9}{"x LDHead":>9}' for _ in CLOCKS)
    lines = [
        ' ' * 28
        + ''.join(f'{name + " time":>28}' for name in CLOCKS)
        + f'{"work":>9}{"peak memory, MB":>30}',
        ' ' * 28 + clock_titles + f'{"GMAC":>9}{"step":>12}{"teacher":>9}{"x sum":>9}',
    ]
    for row in rows:
        times = ''.join(
            f'{row["milliseconds"][c]:10.1f}{row["to_floor"][c]:9.3f}'
            + (f'{row["to_ld_head"][c]:9.3f}' if row['to_ld_head'] else f'{"":9}')
            for c in CLOCKS
        )
        share = '' if row['peak_to_budget'] is None else f'{row["peak_to_budget"]:.3f}'
        lines.append(
            f'{row["name"]:28}{times}{row["billion_multiplications"]:9.1f}{row["peak_megabytes"]:12.1f}'
            f'{row["teacher_megabytes"]:9.1f}{share:>9}'
        )
    found = ', '.join(
        f'{region["milliseconds"][c]:.1f} ms of {c} time, by sorting '
        f'{region["sorting_milliseconds"][c]:.1f} ms ({region["speedup"][c]:.1f} x)'
        for c in CLOCKS
    )
    return '\n'.join(lines) + (
        f"\n\nx sum: over the peak of the student alone plus the teacher's weights\n"
        f'valuable localization region, {region["priors"]} priors x {region["ground_truths"]} '
        f'ground truths: {found}'
    )


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--detector', default='gfl', choices=list(DETECTORS), help='default: %(default)s')
    sizes = (
        f"{', '.join(Detector.sizes)}, the depth of a ResNet; RTMDet's {', '.join(RTMDet.sizes)}"
    )
    add('--teacher', metavar='SIZE', help=f'{sizes} (default: 50; l)')
    add('--student', metavar='SIZE', help='likewise (default: 18; s)')
    add(
        '--channels',
        type=positive,
        help='of neck and heads (default: 256); those of RTMDet go with its size',
    )
    add('--size', type=positive, default=320, help='height and width in pixels (default: 320)')
    add('--batch', type=positive, default=2, help='images per step (default: 2)')
    add('--objects', type=positive, default=8, help='per image (default: 8)')
    add('--rounds', type=positive, default=15, help='(default: 15)')
    add('--device', default='cpu', help='cpu, cuda, cuda:1 ... (default: cpu)')
    add('--threads', type=positive, default=2, help='of the processor (default: 2)')
    add(
        '--recipes',
        nargs='+',
        action=Distinct,
        default=[name for name in RECIPES if 'two_stage' not in name],
        choices=list(RECIPES),
        metavar='NAME',
        help=f'of {", ".join(RECIPES)} (default: all for one stage); LD needs a head with '
        'distributions',
    )
    add('--json', type=result_file, metavar='OUT', help='also write the results here')
    options = parser.parse_args(args)
    which = DETECTORS[options.detector]
    if not is_installed(which.scope):
        how = how_to_install_mmrotate('.')
        parser.error(f'--detector {options.detector} needs MMRotate: {how}')
    for role, default in (('teacher', which.default_teacher), ('student', which.default_student)):
        size = getattr(options, role) or default
        if size not in which.sizes:
            parser.error(f'--{role}: {size!r} is no size of {options.detector}: {which.sizes}')
        setattr(options, role, size)
    if which.default_channels is None and options.channels is not None:
        parser.error(f'--channels: those of {options.detector} go with its size')
    options.channels = options.channels or which.default_channels
    return options


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parse_args(args)
    torch.set_num_threads(options.threads)
    init_default_scope(DETECTORS[options.detector].scope)
    warnings.filterwarnings('ignore', message='model.teacher.checkpoint is None')
    load = os.getloadavg()
    bench = Bench(options)
    number = (4 if options.detector == 'gfl' else 3) + len(PRECISIONS) * (len(options.recipes) + 1)
    try:
        cases = list(track(bench.cases(), 'building', number, **_PROGRESS))
    except ConfigError as error:  # of a recipe that is none for these heads
        sys.exit(f'--recipes: {error}')
    measure(cases, bench.device, options.rounds)
    results = dict(
        settings={key: value for key, value in vars(options).items() if key != 'json'},
        load=dict(before=load, after=os.getloadavg()),
        torch=torch.__version__,
        steps=summary(cases),
        region=measure_region(bench.device, options.rounds),
    )
    print(table(results['steps'], results['region']))
    print(f'load of the machine (running processes): {load[0]:.1f} to {os.getloadavg()[0]:.1f}')
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2))
    return 0


if __name__ == '__main__':
    sys.exit(main())
