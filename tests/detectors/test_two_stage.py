"""Detectors of two stages as students and as teachers, horizontal and rotated."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.models.roi_heads import StandardRoIHead, TridentRoIHead
from mmdet.structures.bbox import get_box_tensor
from mmdet.structures.mask import BitmapMasks
from mmengine import ConfigDict
from mmengine.hub import get_config
from mmengine.logging import MessageHub
from torch import Tensor, nn

from ld_plugin.dense import DistillationContext
from ld_plugin.dense.rois import RoIReader, RoIStage
from ld_plugin.detectors import FrozenTeacher
from ld_plugin.distillers import (
    DecoupledRoIClassificationDistiller,
    Distiller,
    RoIClassificationDistiller,
)
from ld_plugin.errors import ConfigError, NonFiniteTeacherError
from ld_plugin.losses import DecoupledLoss, DistributionKLLoss
from ld_plugin.recipes import bckd, defeat_two_stage, imitation_gi, ld_full, pkd
from tests import brute_force, needs
from tests.families import ROTATED_TWO_STAGE, TWO_STAGE, fit_boxes, scope, tiny
from tests.models import batch, build, distillation_loss, losses, tiny_distilled, tiny_gfl

ROI = dict(roi=dict(type='RoIClassificationDistiller'))
MASKS = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
FAMILIES = (*TWO_STAGE, *ROTATED_TWO_STAGE)
every_family = pytest.mark.parametrize('family', FAMILIES)
#: factors of the stages' losses
CASCADES = dict(cascade_rcnn=[1, 0.5, 0.25], roi_trans=[1, 1])


def distilled(
    student: ConfigDict,
    teacher: ConfigDict | Mapping[str, Any],
    distillers: Mapping = defeat_two_stage,
    **options: Any,
) -> ConfigDict:
    """The ``model`` of a distilled two-stage detector."""
    if 'config' not in teacher:
        teacher = dict(config=whole_config(teacher), checkpoint=None)
    model = tiny_distilled(dict(teacher, **options), distillers, student)
    model.type = 'mmdet.DistilledTwoStageDetector'
    return model


def whole_config(model: ConfigDict) -> dict[str, Any]:
    """A config as stock ones are: MMRotate's name their scope wherever it is not theirs."""
    foreign = model.data_preprocessor.type.startswith('mmdet.')
    return dict(model=model, default_scope='mmrotate' if foreign else 'mmdet')


def twins(family: str, distillers: Mapping = defeat_two_stage, **options: Any) -> nn.Module:
    """Of equal structure, with other weights."""
    with scope(family):
        return build(distilled(tiny(family), tiny(family), distillers, **options))


def taught_by(
    stock: nn.Module, family: str, distillers: Mapping, folder: Path, **options: Any
) -> nn.Module:
    """A student of a detector of its own family."""
    checkpoint = save(stock, folder / 't.pth')
    teacher = dict(config=whole_config(tiny(family)), **checkpoint, **options)
    with scope(family):
        return build(distilled(tiny(family), teacher, distillers))


def build_stock(family: str, seed: int = 0) -> nn.Module:
    with scope(family):
        return build(tiny(family), seed)


def data_of(
    family: str,
    shapes: Sequence[tuple[int, int]] = ((64, 64), (48, 64)),
    objects: Sequence[int] = (2, 1),
) -> dict[str, list]:
    data = batch(shapes, objects)
    fit_boxes(family, data)
    return data


def save(model: nn.Module, path: Path) -> dict[str, str]:
    torch.save(dict(state_dict=model.state_dict()), path)
    return dict(checkpoint=str(path))


def seeded_losses(model: nn.Module, family: str) -> dict[str, Any]:
    """Losses with the same samples of the samplers' at every call."""
    torch.manual_seed(5)
    np.random.seed(5)
    return losses(model, data_of(family, ((128, 160), (96, 128)), (5, 3)))


def observed(model: nn.Module, data: Mapping | None = None) -> DistillationContext:
    torch.manual_seed(5)
    np.random.seed(5)
    data = model.data_preprocessor(dict(data or batch()), training=True)
    return model.observe(data['inputs'], data['data_samples'])[1]


def stock_twin(model: nn.Module, family: str) -> nn.Module:
    stock = build_stock(family)
    own = {k: v for k, v in model.state_dict().items() if not k.startswith('distillers.')}
    stock.load_state_dict(own, strict=True)
    return stock


def flat(value: Tensor | list[Tensor]) -> list[Tensor]:
    return value if isinstance(value, list) else [value]


def check_against_stock(model: nn.Module, family: str, added: set[str]) -> None:
    """The stock losses and their gradients are the stock detector's to the bit.

    Args:
        model: A distilled detector.
        family: Of its structure.
        added: Names of the losses that the stock detector does not have.
    """
    stock = stock_twin(model, family)
    expected, found = seeded_losses(stock, family), seeded_losses(model, family)
    assert set(found) == {*expected, *added}
    for name, values in expected.items():
        for pair in zip(flat(values), flat(found[name]), strict=True):
            assert torch.equal(*pair), name
    for losses_of in (expected, found):
        names = [name for name in expected if 'loss' in name]
        sum(sum(flat(losses_of[name])) for name in names).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, parameter in stock.named_parameters():
        if parameter.grad is None:
            assert gradients[name] is None
        else:
            assert torch.equal(parameter.grad, gradients[name]), name


def check_predictions(model: nn.Module, family: str) -> None:
    """A stock checkpoint is one of the distilled detector's, which predicts the same to the bit."""
    stock = build_stock(family, seed=3)
    assert list(model.state_dict()) == list(stock.state_dict())
    model.load_state_dict(stock.state_dict(), strict=True)
    results = []
    for detector in (stock, model):
        data = detector.data_preprocessor(data_of(family), training=False)
        with torch.no_grad():
            results.append(detector.eval()(**data, mode='predict'))
    for one, other in zip(*results, strict=True):
        assert len(one.pred_instances) > 0
        boxes = (get_box_tensor(sample.pred_instances.bboxes) for sample in (one, other))
        assert torch.equal(*boxes)
        assert torch.equal(one.pred_instances.scores, other.pred_instances.scores)


# the student is the stock detector


@every_family
def test_stock_losses_and_their_gradients_are_bit_identical(family: str) -> None:
    check_against_stock(twins(family), family, {'loss_defeat_neck', 'loss_defeat_roi'})


@every_family
def test_checkpoint_and_predictions_are_the_stock_ones(family: str) -> None:
    check_predictions(twins(family, ROI), family)


@every_family
def test_nothing_stays_on_the_heads(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = twins(family)
    heads = [m for part in (model.rpn_head, model.roi_head) for m in part.modules()]
    before = [set(vars(head)) for head in heads]
    losses(model, data_of(family))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError('out of memory')

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match='out of memory'):
        patch.setattr(type(model.roi_head), 'bbox_loss', fail)
        losses(model, data_of(family))
    assert [set(vars(head)) for head in heads] == before
    assert not any(head._forward_hooks for head in heads)


# the proposals


@every_family
def test_the_teacher_sees_the_students_proposals(family: str, tmp_path: Path) -> None:
    stock = build_stock(family, seed=3).eval()
    model = taught_by(stock, family, ROI, tmp_path)
    data = data_of(family)
    context = observed(model, data)
    images = model.data_preprocessor(dict(data), training=True)['inputs']
    assert [stage.loss_weight for stage in context.rois] == CASCADES.get(family, [1])
    with torch.no_grad():
        features = stock.extract_feat(images)
    for number, stage in enumerate(context.rois):
        before = (number,) if family in CASCADES else ()
        with torch.no_grad():
            expected = stock.roi_head._bbox_forward(*before, features, stage.rois)['cls_score']
        torch.testing.assert_close(stage.teacher, expected, rtol=1e-3, atol=1e-4)
        assert not stage.teacher.requires_grad
        assert stage.student.requires_grad
        assert stage.student.shape == (len(stage.rois), 4)
        assert stage.labels.shape == stage.label_weights.shape == (len(stage.rois),)
        assert stage.rois.shape[1] == 1 + model.spec.rois.box_dims[number]
        assert 0 < (stage.labels < 3).sum() < len(stage.rois)
        assert set(stage.rois[:, 0].tolist()) == {0, 1}


@every_family
@pytest.mark.parametrize('distillers', [ROI, defeat_two_stage], ids=['plain', 'decoupled'])
def test_a_twin_has_nothing_to_learn_from_proposals(
    family: str, distillers: Mapping, tmp_path: Path
) -> None:
    stock = build_stock(family, seed=3)
    model = taught_by(stock, family, distillers, tmp_path)
    name = 'loss_roi' if distillers is ROI else 'loss_defeat_roi'
    assert losses(model, data_of(family))[name] > 1e-3
    model.load_state_dict(stock.state_dict(), strict=False)
    assert losses(model, data_of(family))[name] < 1e-6


@every_family
def test_gradient_reaches_the_student_alone(family: str) -> None:
    model = twins(family)
    found = seeded_losses(model, family)
    found['loss_defeat_roi'].backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith('backbone') for name in trained)
    assert any('fc_cls' in name for name in trained)
    assert not any('fc_reg' in name or name.startswith('rpn_head') for name in trained)
    assert all(p.grad is None for p in model.teacher._model.parameters())


@every_family
@pytest.mark.parametrize(
    ('shapes', 'objects'),
    [([(64, 64)], [1]), ([(64, 64), (48, 64)], [0, 0]), ([(64, 64), (48, 64)], [0, 2])],
    ids=['batch of one', 'no objects', 'one image without'],
)
def test_small_batches(family: str, shapes: list, objects: list) -> None:
    model = twins(family)
    loss = distillation_loss(model, data_of(family, shapes, objects))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize('family', [family for family in FAMILIES if family in CASCADES])
def test_a_cascade_that_stops_early(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = twins(family)
    monkeypatch.setattr(model.roi_head.bbox_head[0], 'refine_bboxes', lambda *args: None)
    stages = observed(model, data_of(family)).rois
    assert [len(stage.rois) > 0 for stage in stages] == [True, *[False] * (len(stages) - 1)]
    for stage, box_dim in list(zip(stages, model.spec.rois.box_dims, strict=True))[1:]:
        assert stage.rois.shape == (0, 1 + box_dim)
        assert stage.student.shape == stage.teacher.shape == (0, 4)
        assert stage.student.requires_grad
    loss = distillation_loss(model, data_of(family))
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize(('precision', 'tolerance'), [('fp32', 1e-6), ('bf16', 0.05)])
@pytest.mark.parametrize('family', [f for f in FAMILIES if f in ('faster_rcnn', 'oriented_rcnn')])
def test_precision_of_the_teacher(family: str, precision: str, tolerance: float) -> None:
    exact = observed(twins(family, ROI), data_of(family)).rois[0]
    found = observed(twins(family, ROI, precision=precision), data_of(family)).rois[0]
    assert torch.equal(found.rois, exact.rois)
    error = (found.teacher - exact.teacher).abs().max() / exact.teacher.abs().max()
    assert error <= tolerance


def test_nan_of_the_teachers_roi_head_stops_the_training() -> None:
    model = twins('cascade_rcnn', ROI)
    model.teacher._model.roi_head.bbox_head[1].fc_cls.bias.data[0] = torch.nan
    what = 'class logits of stage 1 of its RoI head'
    places = rf'{what}, image 0; {what}, image 1 \(counted from 0\)'
    with pytest.raises(NonFiniteTeacherError, match=f'NaN or infinity: {places}'):
        losses(model, data_of('cascade_rcnn'))


@every_family
def test_a_teacher_that_sees_larger_images(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It pools the same boxes, twice as large and no more turned."""
    model = twins(family, ROI | pkd, image_scale=2)
    reader, pooled = model.teacher._roi_reader, []
    classify = reader.classify

    def remember(stage: int, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        pooled.append(rois)
        return classify(stage, features, rois)

    monkeypatch.setattr(reader, 'classify', remember)
    stages = observed(model, data_of(family)).rois
    factors = torch.tensor([1.0, 2, 2, 2, 2, 1])
    for stage, rois in zip(stages, pooled, strict=True):
        torch.testing.assert_close(rois, stage.rois * factors[: rois.shape[1]])
    assert distillation_loss(model, data_of(family)).isfinite()


def test_classes_meet_their_partners(tmp_path: Path) -> None:
    """A teacher with two classes more, in another order, says the same of those it shares."""
    MessageHub.get_current_instance().update_info('dataset_meta', dict(classes=('a', 'b', 'c')))
    stock, more = build(tiny('faster_rcnn'), seed=3), build(tiny('faster_rcnn', 5), seed=3)
    state = more.state_dict()
    state.update({k: v for k, v in stock.state_dict().items() if v.shape == state[k].shape})
    for name in ('weight', 'bias'):
        key = f'roi_head.bbox_head.fc_cls.{name}'
        state[key][[4, 0, 2, 5]] = stock.state_dict()[key]
    more.load_state_dict(state)
    names = ('b', 'x', 'c', 'y', 'a')
    stages = []
    for teacher, count, classes in ((stock, 3, ('a', 'b', 'c')), (more, 5, names)):
        config = dict(model=tiny('faster_rcnn', count))
        cfg = dict(config=config, classes=classes, **save(teacher, tmp_path / f'{count}.pth'))
        stages += observed(build(distilled(tiny('faster_rcnn'), cfg, ROI))).rois
    for name in ('rois', 'student', 'teacher', 'labels', 'label_weights'):
        torch.testing.assert_close(getattr(stages[0], name), getattr(stages[1], name))


def test_classes_without_a_partner_carry_no_loss() -> None:
    MessageHub.get_current_instance().update_info('dataset_meta', dict(classes=('a', 'b', 'c')))
    teacher = dict(config=dict(model=tiny('faster_rcnn', 2)), checkpoint=None, classes=('c', 'a'))
    model = build(distilled(tiny('faster_rcnn'), teacher, ROI))
    with pytest.warns(UserWarning, match=r"not distilled: \['b'\]"):
        (stage,) = observed(model, batch(objects=(9, 9))).rois
    assert stage.student.shape == stage.teacher.shape == (len(stage.rois), 3)
    assert stage.labels.max() == 2
    assert (stage.label_weights == 0).any()
    assert (stage.labels[stage.label_weights == 0] == 2).all()


@pytest.mark.parametrize('names', [dict(classes=('a', 'b', 'c')), dict(class_map={0: 2})])
def test_a_head_of_other_classes_than_the_data_set(names: dict) -> None:
    MessageHub.get_current_instance().update_info('dataset_meta', dict(classes=('a', 'b')))
    teacher = dict(config=dict(model=tiny('faster_rcnn')), checkpoint=None, **names)
    model = build(distilled(tiny('faster_rcnn'), teacher, ROI))
    place = r'^model\.roi_head\.bbox_head\.num_classes: found 3, expected 2, '
    with pytest.raises(ConfigError, match=place):
        losses(model, batch())


def test_other_number_of_names_in_the_checkpoint(tmp_path: Path) -> None:
    state = dict(state_dict=build(tiny('faster_rcnn')).state_dict(), meta=dict(CLASSES=('a', 'b')))
    torch.save(state, tmp_path / 't.pth')
    teacher = dict(config=dict(model=tiny('faster_rcnn')), checkpoint=str(tmp_path / 't.pth'))
    with pytest.raises(ConfigError, match=r"found 2 names, \('a', 'b'\), expected 3"):
        build(distilled(tiny('faster_rcnn'), teacher, ROI))


# the losses


def random_stage(count: int = 12) -> RoIStage:
    weights = torch.ones(count)
    weights[:1] = 2  # as train_cfg.rcnn.pos_weight makes it
    weights[-2:] = 0
    return RoIStage(
        rois=torch.zeros(count, 5),
        student=torch.randn(count, 4, requires_grad=True),
        teacher=torch.randn(count, 4),
        labels=torch.arange(count) % 4,
        label_weights=weights,
        loss_weight=0.5,
    )


def test_values() -> None:
    stage = random_stage()
    logits = stage.student.detach().numpy(), stage.teacher.numpy()
    divergence = brute_force.kl(*logits, temperature=1) * 4  # a mean over the classes
    weights, objects = stage.label_weights.numpy(), stage.labels.numpy() < 3
    labelled = weights > 0
    loss = DistributionKLLoss(temperature=1, loss_weight=3, class_reduction='sum')
    plain = RoIClassificationDistiller(loss).of_stage(stage)
    # as the stock loss of classes
    assert plain.item() == pytest.approx(3 * (weights * divergence)[labelled].mean(), rel=1e-5)
    background = dict(
        type='DistributionKLLoss', temperature=1, loss_weight=5, class_reduction='sum'
    )
    found = DecoupledRoIClassificationDistiller(DecoupledLoss(background=background))
    parts = [divergence[labelled & mask].mean() for mask in (objects, ~objects)]
    expected = 2 * parts[0] + 5 * parts[1]
    assert found.of_stage(stage).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    'distiller',
    [
        RoIClassificationDistiller(DistributionKLLoss(temperature=1)),
        DecoupledRoIClassificationDistiller(DecoupledLoss()),
    ],
    ids=lambda distiller: type(distiller).__name__,
)
def test_proposals_are_averaged_over_the_processes(
    distiller: Distiller, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = random_stage()
    alone = distiller.of_stage(stage).item()
    # as beside a process of three times as many
    monkeypatch.setattr('ld_plugin.dense.positions.reduce_mean', lambda count: 2 * count)
    assert distiller.of_stage(stage).item() == pytest.approx(alone / 2, rel=1e-5)


@pytest.mark.parametrize('count', [0, 1])
def test_few_proposals(count: int) -> None:
    stage = random_stage(count)
    distillers = (
        RoIClassificationDistiller(DistributionKLLoss(temperature=1)),
        DecoupledRoIClassificationDistiller(DecoupledLoss()),
    )
    for distiller in distillers:
        loss = distiller.of_stage(stage)
        loss.backward()
        assert loss.item() == 0
        assert stage.student.grad.shape == (count, 4)


# other pairs of detectors


def test_the_proposal_networks_logits_and_boxes_are_distilled_as_a_dense_head() -> None:
    distillers = dict(
        kd=dict(
            type='ClassificationDistiller',
            region=dict(type='EverywhereRegion'),
            loss=dict(type='BinaryKDLoss'),
            normalizer='positives',
        ),
        box=dict(type='BoxDistiller', region=dict(type='MainRegion')),
    )
    model = twins('faster_rcnn', distillers)
    found = seeded_losses(model, 'faster_rcnn')
    assert found['loss_kd'] > 0
    assert found['loss_box'] > 0
    (found['loss_kd'] + found['loss_box']).backward()
    assert model.rpn_head.rpn_cls.weight.grad.any()
    assert model.rpn_head.rpn_reg.weight.grad.any()


@pytest.mark.parametrize('student', ['retinanet', 'faster_rcnn'])
@pytest.mark.parametrize('teacher', ['gfl', 'faster_rcnn', 'cascade_rcnn'])
def test_features_of_any_detector_teach_any(student: str, teacher: str) -> None:
    config = distilled(tiny(student), tiny(teacher, 5), pkd)
    if student == 'retinanet':
        config.type = 'DistilledSingleStageDetector'
    model = build(config)
    loss = losses(model, batch())['loss_pkd']
    loss.backward()
    assert 0 < loss < 100
    assert any(p.grad is not None and p.grad.any() for p in model.neck.parameters())


def test_classes_of_proposals_do_not_ask_for_levels_of_the_same_size() -> None:
    """HRNet's neck pools its last levels, which rounds their sizes down."""
    teacher = tiny('faster_rcnn')
    teacher.neck.type = 'HRFPN'
    model = build(distilled(tiny('faster_rcnn'), teacher, ROI))
    data = batch(((160, 160), (160, 128)))
    assert 0 < losses(model, data)['loss_roi'] < 100
    message = 'sizes of the maps of stride 64 differ: student 3 x 3.* set .*pad_size_divisor to'
    with pytest.raises(ConfigError, match=message):
        losses(build(distilled(tiny('faster_rcnn'), teacher, defeat_two_stage)), data)


def test_a_neck_whose_levels_begin_elsewhere_is_told_from_rounding() -> None:
    teacher = tiny('faster_rcnn')
    teacher.neck.start_level = 1  # of stride 8, where the head's first has 4
    model = build(distilled(tiny('faster_rcnn'), teacher, defeat_two_stage))
    message = r'stride 4 differ: student 40 x 40, teacher 20 x 20.*start_level'
    with pytest.raises(ConfigError, match=message):
        losses(model, batch(((160, 160), (160, 128))))


def test_a_distilled_student_teaches_in_its_turn() -> None:
    config = distilled(tiny('faster_rcnn'), tiny('faster_rcnn'))
    model = build(distilled(tiny('faster_rcnn'), config, ROI))
    assert type(model.teacher._model).__name__ == 'TwoStageDetector'
    assert losses(model, batch())['loss_roi'] > 0


def single_stage(teacher: ConfigDict, distillers: Mapping) -> ConfigDict:
    return tiny_distilled(dict(config=dict(model=teacher), checkpoint=None), distillers)


def sigmoid_classes() -> ConfigDict:
    model = tiny('faster_rcnn')
    model.roi_head.bbox_head.loss_cls.use_sigmoid = True
    return model


def trident(kind: str | type) -> ConfigDict:
    model = tiny('faster_rcnn')
    model.roi_head.update(type=kind, num_branch=3, test_branch_idx=1)
    return model


def without_second_stage() -> ConfigDict:
    model = tiny('faster_rcnn')
    del model.roi_head
    return model


def dynamic() -> ConfigDict:
    model = tiny('faster_rcnn')
    model.roi_head.type = 'DynamicRoIHead'
    model.roi_head.bbox_head.loss_bbox = dict(type='SmoothL1Loss', beta=1.0)
    model.train_cfg.rcnn.dynamic_rcnn = dict(
        iou_topk=75, beta_topk=10, update_iter_interval=100, initial_iou=0.4, initial_beta=1.0
    )
    return model


def test_roi_head_whose_thresholds_move_is_distilled() -> None:
    model = build(distilled(dynamic(), dynamic(), ROI))
    found = losses(model, data_of('faster_rcnn'))['loss_roi']
    assert found.isfinite()
    assert found > 0
    found.backward()
    assert model.roi_head.bbox_head.fc_cls.weight.grad.abs().sum() > 0


def with_masks(config: str) -> ConfigDict:
    """Faster R-CNN with the mask branch of a stock config."""
    stock, model = get_config(config).model, tiny('faster_rcnn')
    width = model.neck.out_channels
    for name, part in stock.roi_head.items():
        if name == 'type' or 'bbox' not in name:
            model.roi_head[name] = part
    for name in ('mask_head', 'mask_iou_head', 'point_head', 'mask_roi_extractor'):
        if name in model.roi_head:
            part = model.roi_head[name]
            part.update({k: width for k in part if k in ('in_channels', 'out_channels')})
            if 'num_classes' in part:
                part.num_classes = 3
    model.train_cfg.rcnn.update(stock.train_cfg.rcnn, sampler=model.train_cfg.rcnn.sampler)
    return model


@pytest.mark.parametrize(
    ('config', 'kind'),
    [
        (MASKS, 'StandardRoIHead'),
        ('mmdet::ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py', 'MaskScoringRoIHead'),
        ('mmdet::point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py', 'PointRendRoIHead'),
    ],
)
def test_roi_heads_with_masks_are_distilled(config: str, kind: str) -> None:
    model = build(distilled(with_masks(config), with_masks(config), ROI))
    assert type(model.roi_head).__name__ == kind
    data = data_of('faster_rcnn')
    for sample in data['data_samples']:
        objects, (height, width) = sample.gt_instances, sample.img_shape
        masks = np.zeros((len(objects), height, width), np.uint8)
        for mask, box in zip(masks, get_box_tensor(objects.bboxes).int().tolist(), strict=True):
            mask[box[1] : box[3], box[0] : box[2]] = 1
        objects.masks = BitmapMasks(masks, height, width)
    found = losses(model, data)
    assert found['loss_mask'].isfinite()
    assert found['loss_roi'] > 0
    found['loss_roi'].backward()
    assert model.roi_head.bbox_head.fc_cls.weight.grad.abs().sum() > 0


def other_roi_head() -> ConfigDict:
    model = tiny('faster_rcnn')
    model.roi_head.update(type='DoubleHeadRoIHead', reg_roi_scale_factor=1.3)
    return model


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (
            lambda: distilled(tiny('faster_rcnn'), tiny('cascade_rcnn'), ROI),
            r'distillers.roi: stages of the RoI head .* differ: student 1, teacher 3',
        ),
        (
            lambda: distilled(tiny('faster_rcnn'), tiny('faster_rcnn', 5), ROI),
            r'distillers.roi: number of classes .* differ: student 3, teacher 5',
        ),
        (
            lambda: distilled(sigmoid_classes(), tiny('faster_rcnn'), ROI),
            r"distillers.roi: the student's roi_head.bbox_head.loss_cls makes no softmax",
        ),
        (
            lambda: distilled(tiny('faster_rcnn'), sigmoid_classes(), ROI),
            r"distillers.roi: the teacher's roi_head.bbox_head.loss_cls makes no softmax",
        ),
        (
            lambda: distilled(tiny('faster_rcnn'), other_roi_head(), ROI),
            r"distillers.roi: the teacher's head RPNHead has no rois, which this distiller needs. "
            'Expected a detector with a roi_head.type among StandardRoIHead, ',
        ),
        *(
            (
                lambda kind=kind: distilled(trident(kind), tiny('faster_rcnn')),
                "roi_head.type: found 'TridentRoIHead', whose detector has three branches, ",
            )
            for kind in ('TridentRoIHead', 'mmdet.TridentRoIHead', TridentRoIHead)
        ),
        (
            lambda: distilled(tiny('faster_rcnn'), tiny('gfl'), ROI),
            r"distillers.roi: the teacher's head GFLHead of a detector of one stage has no rois.*"
            'It offers features;',
        ),
        (
            lambda: distilled(
                tiny('faster_rcnn'), tiny('retinanet'), dict(x=dict(type='BoxDistiller'))
            ),
            r"distillers.x: the teacher's head RetinaHead of a detector of one stage has no boxes",
        ),
        (
            lambda: single_stage(tiny('faster_rcnn'), ld_full),
            r"distillers.ld: the teacher's head RPNHead of a detector of two stages has no distr",
        ),
        (
            lambda: single_stage(tiny_gfl(), ROI),
            r"distillers.roi: the student's head GFLHead has no rois",
        ),
        (
            lambda: distilled(tiny('faster_rcnn'), tiny('faster_rcnn'), ld_full),
            r"distillers.ld: the student's head RPNHead predicts boxes without distributions",
        ),
        (
            lambda: distilled(without_second_stage(), tiny('faster_rcnn')),
            'found no roi_head; expected the parts of a two-stage detector',
        ),
        (lambda: distilled(tiny_gfl(), tiny_gfl()), r'found no rpn_head, no roi_head, bbox_head;'),
        *(
            (
                lambda name=name: distilled(
                    tiny('faster_rcnn'), tiny('faster_rcnn'), {name: ROI['roi']}
                ),
                rf"distillers.{name}: .* has a loss named 'loss_{name}' of its own",
            )
            for name in ('cls', 'bbox', 'rpn_cls', 'rpn_bbox')
        ),
        (
            lambda: distilled(with_masks(MASKS), tiny('faster_rcnn'), dict(mask=ROI['roi'])),
            "distillers.mask: .* has a loss named 'loss_mask' of its own",
        ),
    ],
)
def test_bad_configs(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=r'^model[.:].*' + message):
        build(make())


def test_a_roi_head_without_a_head_of_boxes_is_not_read() -> None:
    assert RoIReader.find(StandardRoIHead()) is None


# rotated pairs


def rotated_pair(student: str, teacher: str | ConfigDict, distillers: Mapping) -> nn.Module:
    """A rotated student, and a teacher of any family."""
    if isinstance(teacher, str):
        teacher = tiny(teacher)
    with scope(student):
        return build(distilled(tiny(student), teacher, distillers))


@needs.mmrotate
@pytest.mark.parametrize('teacher', ['rotated_retinanet', 'faster_rcnn', 'gfl', 'roi_trans'])
def test_features_of_any_detector_teach_a_rotated_one(teacher: str) -> None:
    model = rotated_pair('oriented_rcnn', teacher, pkd)
    assert 0 < losses(model, data_of('oriented_rcnn'))['loss_pkd'] < 100


@needs.mmrotate
def test_horizontal_proposals_are_those_of_a_horizontal_teacher() -> None:
    """Rotated Faster R-CNN turns boxes after it has pooled them."""
    model = rotated_pair('rotated_faster_rcnn', 'faster_rcnn', ROI)
    assert losses(model, data_of('rotated_faster_rcnn'))['loss_roi'] > 0


@needs.mmrotate
def test_angles_that_no_proposal_has_may_be_written_otherwise() -> None:
    other = tiny('rotated_faster_rcnn')
    other.roi_head.bbox_head.bbox_coder.angle_version = 'oc'
    model = rotated_pair('rotated_faster_rcnn', other, defeat_two_stage)
    assert distillation_loss(model, data_of('rotated_faster_rcnn')).isfinite()


@needs.mmrotate
def test_quadrilaterals_teach_as_the_rotated_boxes_around_them() -> None:
    data = data_of('gliding_vertex')
    found = observed(twins('gliding_vertex', ROI), data).gt_bboxes
    for boxes, sample in zip(found, data['data_samples'], strict=True):
        assert torch.equal(boxes, sample.gt_instances.bboxes.convert_to('rbox').tensor)


def other_angles(family: str) -> ConfigDict:
    model = tiny(family)
    stages = model.roi_head.bbox_head
    for part in [model.rpn_head, *(stages if isinstance(stages, list) else [stages])]:
        if 'angle_version' in part.bbox_coder:
            part.bbox_coder.angle_version = 'oc'
    return model


@needs.mmrotate
@pytest.mark.parametrize(
    ('student', 'teacher', 'distillers', 'message'),
    [
        (
            'oriented_rcnn',
            lambda: other_angles('oriented_rcnn'),
            defeat_two_stage,
            r'distillers.defeat_roi: angle versions of the proposals .* differ: student le90, '
            r'teacher oc, expected the same. .* Set angle_version',
        ),
        (
            'roi_trans',
            lambda: other_angles('roi_trans'),
            ROI,
            r'distillers.roi: angle versions of the proposals .* student le90, teacher oc',
        ),
        (
            'oriented_rcnn',
            lambda: tiny('faster_rcnn'),
            ROI,
            r"distillers.roi: kinds of proposals, stage by stage .* student \['rotated'\], teacher "
            r"\['horizontal'\], expected the same. .*Features alone can be distilled from any",
        ),
        (
            'roi_trans',
            lambda: tiny('oriented_rcnn'),
            ROI,
            r'distillers.roi: stages of the RoI head .* differ: student 2, teacher 1',
        ),
        (
            'oriented_rcnn',
            lambda: tiny('faster_rcnn'),
            dict(kd=dict(type='ClassificationDistiller', loss=dict(type='BinaryKDLoss'))),
            r'distillers.kd: kinds of boxes differ: student rotated, teacher horizontal.*features',
        ),
        (
            'oriented_rcnn',
            lambda: tiny('rotated_retinanet'),
            ROI,
            r"distillers.roi: the teacher's head RetinaHead of a detector of one stage has no rois",
        ),
        (
            'oriented_rcnn',
            lambda: tiny('oriented_rcnn'),
            bckd,
            r"distillers.bckd_box: the boxes of the student's head OrientedRPNHead pass no",
        ),
    ],
)
def test_bad_rotated_configs(student: str, teacher: Any, distillers: Mapping, message: str) -> None:
    with pytest.raises(ConfigError, match=r'^model.' + message):
        rotated_pair(student, teacher(), distillers)


@needs.mmrotate
def test_regions_look_at_boxes_that_pass_no_gradient() -> None:
    model = rotated_pair('oriented_rcnn', 'oriented_rcnn', imitation_gi)
    model.rpn_head.rpn_cls.weight.data.normal_()  # so that both models differ somewhere
    loss = losses(model, data_of('oriented_rcnn'))['loss_im']
    loss.backward()
    assert loss > 0
    assert any(p.grad is not None and p.grad.any() for p in model.neck.parameters())


def test_classes_with_an_objectness_of_their_own_are_refused() -> None:
    student, teacher = tiny('faster_rcnn'), tiny('faster_rcnn')
    for model in (student, teacher):
        model.roi_head.bbox_head.loss_cls = dict(type='SeesawLoss', num_classes=3)
    with pytest.raises(ConfigError, match='makes no softmax over the classes and background'):
        build(distilled(student, teacher, ROI))


def test_names_of_classes_that_no_reader_counts() -> None:
    """The only number that is known is that of the RPN, which has one class."""
    cfg = dict(checkpoint=None, classes=('a', 'b', 'c'))
    teacher = FrozenTeacher.from_config(dict(config=dict(model=other_roi_head()), **cfg))
    assert teacher.classes == ('a', 'b', 'c')
    with pytest.raises(
        ConfigError, match=r'^model\.teacher\.classes: found 3 names, .* expected 5'
    ):
        FrozenTeacher.from_config(dict(config=dict(model=tiny('faster_rcnn', 5)), **cfg))


def test_classes_of_a_student_whose_proposals_no_reader_knows() -> None:
    cfg = dict(config=dict(model=tiny('faster_rcnn')), checkpoint=None, classes=('a', 'b', 'c'))
    model = build(distilled(other_roi_head(), cfg, pkd))
    assert model.spec.rois is None and model.teacher.spec.rois is not None


def test_proposals_do_not_ask_for_equal_anchors() -> None:
    other = tiny('faster_rcnn')
    other.rpn_head.anchor_generator.scales = [4]
    model = build(distilled(tiny('faster_rcnn'), other, ROI))
    assert seeded_losses(model, 'faster_rcnn')['loss_roi'].isfinite()


def test_stages_count_with_the_factors_of_their_stock_losses() -> None:
    stages = [
        RoIStage(
            rois=torch.zeros(6, 5),
            student=torch.randn(6, 4),
            teacher=torch.randn(6, 4),
            labels=torch.arange(6) % 4,
            label_weights=torch.ones(6),
            loss_weight=weight,
        )
        for weight in (1.0, 0.5, 0.25)
    ]
    distiller = RoIClassificationDistiller(DistributionKLLoss(temperature=1))
    first, second, third = (distiller.of_stage(stage).item() for stage in stages)
    found = distiller(SimpleNamespace(rois=stages)).item()
    assert found == pytest.approx(first + second / 2 + third / 4, rel=1e-5)


def test_roi_head_whose_features_pass_a_layer_that_stages_share() -> None:
    stock = build_stock('faster_rcnn').eval()
    channels = stock.neck.out_channels
    stock.roi_head.shared_head = nn.Conv2d(channels, channels, 3, padding=1)
    neck = [torch.randn(1, channels, 64 // 2**i, 64 // 2**i) for i in range(5)]
    rois = torch.tensor([[0, 3.0, 3, 40, 60]])
    with torch.no_grad():
        found = RoIReader(stock.roi_head).classify(0, neck, rois)
        expected = stock.roi_head._bbox_forward(neck, rois)['cls_score']
    torch.testing.assert_close(found, expected)


def test_fp32_teacher_classifies_without_the_students_autocast() -> None:
    teacher = FrozenTeacher(build_stock('faster_rcnn'))
    teacher.reads = frozenset({'rois'})
    images, rois = torch.randn(1, 3, 64, 64), torch.tensor([[0, 3.0, 3, 40, 60]])

    def classes() -> Tensor:
        return teacher.classify_rois(teacher(images, [(64, 64)]), 0, rois)

    expected = classes()
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(classes(), expected)


def test_the_teachers_own_proposals_are_not_computed_where_nobody_reads_them() -> None:
    model, ran = twins('faster_rcnn', ROI), []
    model.teacher._reader.head.register_forward_hook(lambda *_: ran.append(True))
    assert losses(model, data_of('faster_rcnn'))['loss_roi'] > 0
    assert not ran
