"""What every family's reader makes of a stock head, beside what the stock code makes of it."""

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from mmdet.models import dense_heads
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.task_modules import MlvlPointGenerator
from mmdet.registry import MODELS
from mmdet.structures.bbox import BaseBoxes, distance2bbox, get_box_tensor
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from torch import Tensor

from ld_plugin.dense import (
    Assignment,
    ClassMatch,
    DenseOutputs,
    DistillationContext,
    HeadRecorder,
    LevelMatch,
    get_reader,
)
from ld_plugin.dense.outputs import level_rows
from ld_plugin.dense.readers import AnchorReader, FeatureReader, register_reader
from ld_plugin.dense.readers.base import _READERS, LEARNING_OTHERWISE, UNLIKE_THEIR_BASE
from ld_plugin.dense.readers.points import RotatedPointReader, find_ground_truths
from ld_plugin.dense.readers.tood import logits
from ld_plugin.regions import ValuableLocalizationRegion
from tests import needs
from tests.dense.heads import (
    IMAGES,
    all_boxes,
    all_logits,
    build_head,
    everything,
    metas,
    objects,
    random_features,
    record_loss,
    rotated,
)
from tests.families import ALL_ROTATED, REFINED, SINGLE_STAGE, tiny

ROTATED = (*ALL_ROTATED, *REFINED)
FAMILIES = [*SINGLE_STAGE, 'faster_rcnn', *ROTATED]
FOCAL = dict(type='FocalLoss', use_sigmoid=True)
ENCODED = (
    *('RetinaHead', 'RPNHead', 'RotatedRetinaHead', 'AngleBranchRetinaHead'),
    *('R3Head', 'S2AHead'),
)
NOT_IN_BFLOAT16 = (
    *('tood', 'tood_anchors', 'vfnet'),
    *('rotated_retinanet_kfiou', 'rotated_atss', 'rotated_fcos', 'rotated_rtmdet'),
    *('distribution_rotated_retinanet_gwd', 'distribution_rotated_retinanet_kld'),
    'distribution_rotated_fcos',
)
COUNTS = [(3, 2), (2, 0), (0, 0), (0, 1)]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    MessageHub.get_current_instance().update_info('epoch', 0)  # TOOD's assigner depends on it
    return request.param


@pytest.fixture
def head(family: str) -> BaseDenseHead:
    return build_head(family)


@pytest.fixture
def features(head: BaseDenseHead) -> list[Tensor]:
    return random_features(head)


def read(head: BaseDenseHead, features: list[Tensor]) -> DenseOutputs:
    return get_reader(head).read(head(features), features)


def sort_rows(rows: Tensor) -> Tensor:
    """By the last column, equal ones by the first."""
    by_first = rows[rows[:, 0].argsort()]
    return by_first[by_first[:, -1].argsort(stable=True)].detach()


# --------------------------------------------------------------------------------- predictions


def test_spec(head: BaseDenseHead, family: str) -> None:
    spec = get_reader(head).spec
    assert spec.name == type(head).__name__
    assert spec.num_classes == (1 if family == 'faster_rcnn' else 3)
    assert spec.strides == tuple(head.prior_generator.strides)
    assert spec.num_base_priors == tuple(head.prior_generator.num_base_priors)
    assert (spec.box_dim, spec.feature_channels) == (5 if family in ROTATED else 4, 32)
    assert (spec.angle_version is None) == (family not in ROTATED)
    assert (spec.num_bins is not None) == ('distributions' in spec.offers)
    assert spec.centre_offset == (0.5 if 'fcos' in family else 0)
    assert 'matched_gts' in spec.extras


@pytest.mark.parametrize(
    'generator',
    [
        dict(center_offset=0.5),
        dict(centers=[(s / 2, s / 2) for s in (8, 16, 32, 64, 128)]),
        dict(center_offset=0.125, octave_base_scale=2, base_sizes=[32, 64, 128, 256, 512]),
    ],
    ids=['in strides', 'in pixels', 'in anchors'],
)
def test_centres_of_anchors_are_known_however_they_are_said(generator: dict) -> None:
    """Distributions count from there, so these heads' mean the same."""
    stock = tiny('gfl').bbox_head.anchor_generator
    reader = get_reader(build_head('gfl', anchor_generator=stock | generator))
    assert reader.spec.centre_offset == 0.5
    assert torch.equal(reader.priors([(1, 1)] * 5, 'cpu')[0, :2], torch.full((2,), 4.0 - 32))


def test_heads_with_distributions_are_listed(head: BaseDenseHead) -> None:
    reader = get_reader(head)
    assert reader.has_distributions == (reader.spec.num_bins is not None)


def test_shapes_are_those_of_the_spec(head: BaseDenseHead, features: list[Tensor]) -> None:
    outputs = read(head, features)
    assert outputs.features == features
    for level_map, (height, width, anchors) in zip(features, outputs.level_shapes, strict=True):
        assert (height, width) == level_map.shape[-2:]
        assert anchors in outputs.spec.num_base_priors
    at = everything(outputs)
    assert outputs.class_logits(at).shape == (len(at.prior_index), outputs.spec.num_classes)
    assert outputs.boxes(at).shape == (len(at.prior_index), outputs.spec.box_dim)
    assert outputs.priors.shape == (sum(outputs.num_level_priors), outputs.spec.box_dim)
    assert bool(outputs.quality_maps) == ('quality' in outputs.spec.offers)
    if outputs.quality_maps:
        assert at.gather(outputs.quality_maps).shape == (len(at.prior_index), 1)


def test_priors_are_made_when_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    head = build_head('gfl')
    made, reader = [], get_reader(head)
    monkeypatch.setattr(reader, 'priors', lambda *args: made.append(args) or torch.zeros(3, 4))
    outputs = reader.read(head(random_features(head)), [])
    changed = replace(outputs, quality_maps=())
    assert not made
    assert changed.priors is outputs.priors is changed.priors
    assert len(made) == 1


def stock_predictions(head: BaseDenseHead, outs: tuple) -> list[InstanceData]:
    """Of ``predict_by_feat``: nothing dropped, nothing suppressed, nothing clipped."""
    settings = ConfigDict(
        nms_pre=100_000,
        max_per_img=100_000,
        score_thr=-1,
        min_bbox_size=-1,
        nms=dict(type='nms', iou_threshold=1.0),
    )
    head.with_score_voting = False
    # some heads cannot do without suppression: they get one that suppresses nothing
    always_suppresses = type(head).__name__ in ('RPNHead', 'PAAHead')
    return head.predict_by_feat(
        *outs,
        batch_img_metas=[meta | dict(img_shape=None) for meta in metas()],
        cfg=settings,
        rescale=False,
        with_nms=always_suppresses,
    )


def stock_scores(head: BaseDenseHead, scores: Tensor, quality: Tensor | None) -> Tensor:
    """(P, C), or (P, 1) for a head that predicts one class per prior, as ``predict_by_feat``."""
    if type(head).__name__ == 'YOLOXHead':
        return scores.max(-1, keepdim=True).values * quality
    if type(head).__name__ == 'PAAHead':
        return (scores * quality).sqrt()
    return scores if quality is None else scores * quality


def check_stock_prediction(head: BaseDenseHead, features: list[Tensor]) -> None:
    """Boxes and scores as read are those of ``predict_by_feat``."""
    head.eval()
    outs = head(features)
    outputs = get_reader(head).read(outs, features)
    boxes, scores = all_boxes(outputs), all_logits(outputs).sigmoid()
    quality = None
    if outputs.quality_maps:
        rows = zip(outputs.quality_maps, outputs.spec.num_base_priors, strict=True)
        quality = torch.cat([level_rows(m, a) for m, a in rows], dim=1).sigmoid()
    for image, predicted in enumerate(stock_predictions(head, outs)):
        rated = None if quality is None else quality[image]
        ours = stock_scores(head, scores[image], rated)
        rows = [boxes[image].repeat_interleave(ours.shape[1], dim=0), ours.reshape(-1, 1)]
        expected = torch.cat([get_box_tensor(predicted.bboxes), predicted.scores[:, None]], dim=1)
        # the stock list is ordered by score, and holds every (prior, class) once
        torch.testing.assert_close(sort_rows(torch.cat(rows, dim=1)), sort_rows(expected))


def test_boxes_and_scores_are_those_of_stock_prediction(
    head: BaseDenseHead, features: list[Tensor]
) -> None:
    check_stock_prediction(head, features)


@needs.mmrotate
@pytest.mark.parametrize('name', ['rotated_retinanet_csl', 'rotated_retinanet_psc'])
def test_angles_that_are_no_offsets_from_the_anchors(name: str) -> None:
    head = build_head(name, use_encoded_angle=False)
    head.bbox_coder.use_box_type = False  # the stock prediction puts angles into plain numbers
    check_stock_prediction(head, random_features(head))


def test_training_and_evaluation_give_the_same_boxes(
    head: BaseDenseHead, features: list[Tensor], family: str
) -> None:
    if family in ('rtmdet', 'rotated_rtmdet', 'yolox'):
        pytest.skip('their batch norm makes the features themselves differ')
    trained, evaluated = read(head, features), read(head.eval(), features)
    torch.testing.assert_close(all_boxes(trained), all_boxes(evaluated))
    torch.testing.assert_close(all_logits(trained), all_logits(evaluated))


def test_boxes_do_not_depend_on_the_mode_when_they_are_decoded(
    head: BaseDenseHead, features: list[Tensor]
) -> None:
    outputs = read(head, features)
    expected = all_boxes(outputs)
    head.eval()
    assert torch.equal(all_boxes(outputs), expected)


def test_boxes_at_positions_are_the_same_as_boxes_of_levels(
    head: BaseDenseHead, features: list[Tensor]
) -> None:
    outputs = read(head, features)
    at = everything(outputs)
    levels = range(len(features))
    rows = torch.cat([outputs.level_boxes(level).flatten(0, 1) for level in levels])
    torch.testing.assert_close(outputs.boxes(at), rows)
    rows = torch.cat([outputs.level_class_logits(level).flatten(0, 1) for level in levels])
    assert torch.equal(outputs.class_logits(at), rows)


def test_decoded_boxes_stand_for_what_they_are_decoded_from(
    head: BaseDenseHead, features: list[Tensor]
) -> None:
    outputs = read(head, features)
    decoded = outputs.with_decoded_boxes()
    assert torch.equal(all_boxes(decoded), all_boxes(outputs))
    rows = [decoded.level_boxes(level).flatten(0, 1) for level in range(len(features))]
    assert torch.equal(decoded.boxes(everything(outputs)), torch.cat(rows))
    assert decoded.spec.num_bins is None


def test_boxes_and_logits_carry_a_gradient(head: BaseDenseHead, features: list[Tensor]) -> None:
    features = [level.requires_grad_() for level in features]
    outputs = read(head, features)
    for values in (all_boxes(outputs), all_logits(outputs)):
        gradients = torch.autograd.grad(values.sum(), features, retain_graph=True)
        assert all(g.isfinite().all() for g in gradients)
        assert gradients[0].any()


def test_boxes_are_decoded_in_float32_under_autocast(
    head: BaseDenseHead, features: list[Tensor]
) -> None:
    outputs = read(head, features)
    expected = all_boxes(outputs)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(all_boxes(outputs), expected)


# --------------------------------------------------------------------------------- assignment


def heard(head: BaseDenseHead, features: list[Tensor], gts: list[InstanceData]) -> tuple:
    """The record of a stock loss, and the arguments of every call of its classification loss."""
    calls: list[tuple] = []
    hooks = [
        loss.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
        )
        for loss in (head.loss_cls, getattr(head, 'initial_loss_cls', None))
        if loss is not None
    ]
    record = record_loss(head, features, gts)
    for hook in hooks:
        hook.remove()
    return record, calls


def given(call: tuple) -> tuple[Tensor, Tensor]:
    """Labels and label weights, flat, that a classification loss was called with."""
    (_, target, *weight), kwargs = call
    target = target[0] if isinstance(target, tuple) else target
    if target.ndim == 2:  # varifocal loss: the IoU in the column of the class
        iou, labels = target.max(1)
        target = torch.where(iou > 0, labels, target.shape[1])
    weights = weight[0] if weight else kwargs.get('weight')
    if weights is None:
        weights = torch.ones(target.shape)
    return target.flatten(), weights.flatten()


def by_prior(rows: Tensor, head: BaseDenseHead, num_level_priors: list[int]) -> Tensor:
    """(N, P) out of values by level, image and prior, or by image and prior."""
    images = len(IMAGES)
    if type(head).__name__ == 'PAAHead':
        return rows.view(images, -1)
    levels = rows.split([count * images for count in num_level_priors])
    return torch.cat([level.view(images, -1) for level in levels], dim=1)


def without_yolox(family: str) -> None:
    if family == 'yolox':
        pytest.skip('its classification loss is given positives alone: a test of its own')


@pytest.mark.parametrize('counts', COUNTS, ids=str)
def test_assignment_is_what_the_stock_loss_used(
    head: BaseDenseHead, features: list[Tensor], family: str, counts: tuple
) -> None:
    without_yolox(family)
    record, calls = heard(head, features, objects(head, *counts))
    ours = get_reader(head).assignment(record)
    if family == 'paa':
        calls = calls[-1:]  # the others rate the candidates
    numbers = read(head, features).num_level_priors
    labels, weights = (
        by_prior(torch.cat(rows), head, numbers) for rows in zip(*map(given, calls), strict=True)
    )
    assert torch.equal(ours.labels, labels)
    assert torch.equal(ours.label_weights, weights)
    assert ours.num_classes == head.num_classes
    found = ours.positive.any(1).tolist()
    assert all(count > 0 for count, any_found in zip(counts, found, strict=True) if any_found)
    assert any(found) or sum(counts) < 2  # a single object may have none


def box_targets(head: BaseDenseHead, record: HeadRecorder, priors: Tensor) -> list[Tensor]:
    """Per image (P, E) in pixels, as the stock loss had them; anything where no positive is."""
    name = type(head).__name__.removeprefix('Distribution')
    if name == 'YOLOXHead':
        found = [torch.zeros(len(priors), 4) for _ in IMAGES]
        for boxes, target in zip(found, record.returned['_get_targets_single'], strict=True):
            boxes[target[0]] = target[3]
        return found
    returned = record.returned['get_targets'][-1]
    if name == 'PAAHead':
        return returned[2]
    if name == 'RotatedFCOSHead':
        return rotated_fcos_targets(head, returned, priors)
    index = {'FCOSHead': 1, 'VFNetHead': 2, **dict.fromkeys(ENCODED, 2)}.get(name, 3)
    levels = [level.view(len(IMAGES), -1, priors.shape[1]) for level in returned[index]]
    if name == 'FCOSHead' and head.norm_on_bbox:
        levels = [x * s[0] for x, s in zip(levels, head.prior_generator.strides, strict=True)]
    targets = torch.cat(levels, dim=1)
    if name in ('FCOSHead', 'VFNetHead'):
        centre = (priors[:, :2] + priors[:, 2:]) / 2
        return list(distance2bbox(centre.expand(len(IMAGES), -1, -1), targets))
    encoded = name in ENCODED and not head.reg_decoded_bbox
    return [head.bbox_coder.decode(priors, image) if encoded else image for image in targets]


def rotated_fcos_targets(head: BaseDenseHead, returned: tuple, priors: Tensor) -> list[Tensor]:
    _, distances, angles = returned
    units = [s if head.norm_on_bbox else 1 for s, _ in head.prior_generator.strides]
    images = []
    for image in range(len(IMAGES)):
        rows = [
            torch.cat([d.view(len(IMAGES), -1, 4)[image] * u, a.view(len(IMAGES), -1, 1)[image]], 1)
            for d, a, u in zip(distances, angles, units, strict=True)
        ]
        images.append(head.bbox_coder.decode(priors[:, :2], torch.cat(rows)))
    return images


def canonical(boxes: Tensor | BaseBoxes) -> Tensor:
    """The same box may be written with either side as its width."""
    boxes = get_box_tensor(boxes)
    return boxes if boxes.shape[1] == 4 else rotated(boxes).regularize_boxes('le90')


@pytest.mark.parametrize('counts', COUNTS, ids=str)
def test_matched_ground_truth_is_the_box_target(
    head: BaseDenseHead, features: list[Tensor], family: str, counts: tuple
) -> None:
    gts = objects(head, *counts)
    record = record_loss(head, features, gts)
    ours = get_reader(head).assignment(record)
    targets = box_targets(head, record, read(head, features).priors)
    matched = ours.matched_gts
    assert torch.equal(matched >= 0, ours.positive)
    assert [len(found) for found in ours.positive_gts] == ours.positive.sum(1).tolist()
    for image, gt in enumerate(gts):
        index = matched[image, ours.positive[image]]
        assert torch.equal(gt.labels[index], ours.labels[image, ours.positive[image]])
        expected = targets[image][ours.positive[image]]
        torch.testing.assert_close(
            canonical(gt.bboxes[index]), canonical(expected), rtol=1e-5, atol=1e-4
        )


def test_boxes_of_untrained_yolox_are_numbers() -> None:
    """Its sides are exponentials of what it predicts, and that may be thousands."""
    head = build_head('yolox')
    rows = torch.tensor([[0.0, 0.0, 2.0, 3.0], [1.0, 1.0, 4e3, -4e3]]).requires_grad_()
    priors = torch.tensor([[0.0, 0.0, 16.0, 16.0]] * 2)
    boxes = get_reader(head).decode(rows, priors, torch.full((2, 1), 8.0))
    half = 4 * torch.tensor([2.0, 3.0]).exp()
    torch.testing.assert_close(boxes[0], torch.cat([8 - half, 8 + half]))
    boxes.sum().backward()
    assert boxes.isfinite().all()
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize('name', ['fcos', 'vfnet'])
def test_ground_truths_are_searched_when_somebody_looks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = build_head(name)
    features = random_features(head)
    search = Mock(side_effect=find_ground_truths)
    monkeypatch.setattr('ld_plugin.dense.readers.fcos.find_ground_truths', search)
    found = get_reader(head).assignment(record_loss(head, features, objects(head, 3, 2)))
    sizes = [level[0, 0].numel() for level in features]
    on_levels = LevelMatch((0, 2), (0, 1), len(sizes), 2).assignment(found, sizes)
    of_classes = ClassMatch((0, 2), (1, 0), head.num_classes, 2).assignment(on_levels)
    assert of_classes.positive.any()
    search.assert_not_called()
    assert [len(gts) for gts in of_classes.positive_gts] == of_classes.positive.sum(1).tolist()
    assert torch.equal(of_classes.matched_gts >= 0, of_classes.positive)
    assert search.call_count == len(IMAGES)


def expected_valid(head: BaseDenseHead, features: list[Tensor]) -> Tensor:
    """(N, P), whether a prior's cell begins inside its image."""
    images = []
    for height, width in IMAGES:
        levels = [
            (torch.arange(h)[:, None] * y < height) & (torch.arange(w) * x < width)
            for (h, w), (x, y) in zip(
                [level.shape[-2:] for level in features],
                head.prior_generator.strides,
                strict=True,
            )
        ]
        anchors = head.prior_generator.num_base_priors
        images.append(
            torch.cat(
                [v.flatten().repeat_interleave(a) for v, a in zip(levels, anchors, strict=True)]
            )
        )
    return torch.stack(images)


@pytest.mark.parametrize('counts', [(3, 2), (0, 0)], ids=str)
def test_priors_of_the_padding_are_not_valid_and_all_others_are(
    head: BaseDenseHead, features: list[Tensor], counts: tuple
) -> None:
    record = record_loss(head, features, objects(head, *counts))
    ours = get_reader(head).assignment(record)
    assert torch.equal(ours.valid, expected_valid(head, features))
    assert not (ours.positive & ~ours.valid).any()


def test_recording_leaves_the_head_as_it_was(head: BaseDenseHead, features: list[Tensor]) -> None:
    attributes = set(vars(head))
    before = len(head._forward_hooks)
    record = record_loss(head, features, objects(head, 1, 1))
    assert not {'loss_by_feat', 'get_targets', '_get_targets_single'} & set(vars(head))
    assert set(vars(head)) - attributes <= {'epoch'}  # TOOD keeps it
    assert len(head._forward_hooks) == before
    assert record.inputs is features


# --------------------------------------------------------------------------------- single families


@pytest.mark.parametrize('family', ['yolox'], indirect=True)
@pytest.mark.parametrize('counts', COUNTS, ids=str)
def test_yolox_positives_are_what_its_loss_used(
    head: BaseDenseHead, features: list[Tensor], counts: tuple
) -> None:
    record, calls = heard(head, features, objects(head, *counts))
    ours = get_reader(head).assignment(record)
    assert ours.positive.any(1).tolist() == [count > 0 for count in counts]
    assert torch.equal(ours.label_weights, ours.positive.float())
    if calls:
        (((_, target), _),) = calls
        overlapping = target.any(1)
        labels = ours.labels[ours.positive]
        assert len(labels) == len(target)
        assert torch.equal(labels[overlapping], target.argmax(1)[overlapping])


@pytest.mark.parametrize('family', ['tood', 'tood_anchors'], indirect=True)
@pytest.mark.parametrize('counts', COUNTS, ids=str)
def test_tood_changes_its_assigner_after_some_epochs(
    head: BaseDenseHead, features: list[Tensor], family: str, counts: tuple
) -> None:
    MessageHub.get_current_instance().update_info('epoch', 4)
    test_assignment_is_what_the_stock_loss_used(head, features, family, counts)
    test_matched_ground_truth_is_the_box_target(head, features, family, counts)
    assert head.epoch == 4


def test_logits_of_probabilities() -> None:
    logit = torch.linspace(-27, 15, 50, dtype=torch.float64)
    torch.testing.assert_close(logits(logit.sigmoid().float()), logit.float(), atol=0.2, rtol=0)
    small = logit[:30]
    torch.testing.assert_close(logits(small.sigmoid().float()), small.float())
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        ends = logits(torch.tensor([0.0, 1.0], dtype=dtype))
        assert ends.dtype == (dtype if dtype == torch.float64 else torch.float32)
        assert ends.isfinite().all()
        assert ends[0] < -27 and ends[1] > 5


@pytest.mark.parametrize(
    'family', ['fcos', 'distribution_fcos', *(f for f in ALL_ROTATED if f == 'rotated_fcos')]
)
@pytest.mark.parametrize(('norm_on_bbox', 'centerness_on_reg'), [(True, False), (False, True)])
def test_fcos_with_one_of_its_two_settings(
    family: str, norm_on_bbox: bool, centerness_on_reg: bool
) -> None:
    """The families have neither or both."""
    head = build_head(family, norm_on_bbox=norm_on_bbox, centerness_on_reg=centerness_on_reg)
    features = random_features(head)
    test_boxes_and_scores_are_those_of_stock_prediction(head, features)
    test_training_and_evaluation_give_the_same_boxes(head.train(), features, family)
    test_assignment_is_what_the_stock_loss_used(head.train(), features, family, (3, 2))
    test_matched_ground_truth_is_the_box_target(head, features, family, (3, 2))


def test_distances_of_vfnet_with_the_targets_of_fcos() -> None:
    head = build_head('vfnet', use_atss=False, use_vfl=False, loss_cls=FOCAL)
    features, gts = random_features(head), objects(head, 3, 2)
    test_assignment_is_what_the_stock_loss_used(head, features, 'vfnet', (3, 2))
    test_matched_ground_truth_is_the_box_target(head, features, 'vfnet', (3, 2))
    assert get_reader(head).assignment(record_loss(head, features, gts)).positive.any()


def test_equal_boxes_of_two_classes_are_told_apart_by_class() -> None:
    box = torch.tensor([[10.0, 10.0, 40.0, 40.0]])
    found = find_ground_truths(
        box.expand(3, -1) + 1e-5, torch.tensor([2, 0, 1]), box.repeat(2, 1), torch.tensor([0, 2])
    )
    assert found[:2].tolist() == [1, 0]


@pytest.mark.parametrize('with_objectness', [False, True])
def test_rtmdet_without_separate_batch_norms(with_objectness: bool) -> None:
    model = tiny('rtmdet')
    cfg = {k: v for k, v in model.bbox_head.items() if k not in ('share_conv', 'exp_on_reg')}
    cfg.update(type='RTMDetHead', with_objectness=with_objectness)
    head = MODELS.build({**cfg, 'train_cfg': model.train_cfg, 'test_cfg': model.test_cfg}).train()
    features = random_features(head)
    test_boxes_and_scores_are_those_of_stock_prediction(head, features)
    test_assignment_is_what_the_stock_loss_used(head.train(), features, 'rtmdet', (3, 0))
    test_matched_ground_truth_is_the_box_target(head, features, 'rtmdet', (3, 0))


def test_classes_of_a_softmax_are_not_read_unless_the_reader_knows_them() -> None:
    loss = dict(type='CrossEntropyLoss', use_sigmoid=False)
    head = build_head('retinanet', loss_cls=loss)
    reader = get_reader(head, 'teacher.bbox_head', teaches=True)
    assert type(reader) is FeatureReader
    assert reader.key == 'teacher.bbox_head'
    assert reader.spec.offers == {'features'}

    class Knowing(AnchorReader):
        unread = ''

    head.__class__ = type('MySoftmaxHead', (type(head),), {})
    try:
        register_reader('MySoftmaxHead')(Knowing)
        reader = get_reader(head)
        assert type(reader) is Knowing
        assert {'class_logits', 'boxes'} <= reader.spec.offers
    finally:
        del _READERS['MySoftmaxHead']


def assignment(head: BaseDenseHead, gts: list[InstanceData]) -> Assignment:
    return get_reader(head).assignment(record_loss(head, random_features(head), gts))


@pytest.mark.parametrize('family', ['retinanet', 'faster_rcnn'], indirect=True)
def test_ignored_priors_have_no_weight_and_stay_valid(head: BaseDenseHead) -> None:
    ours = assignment(head, objects(head, 3, 2))
    ignored = ours.valid & (ours.label_weights == 0)
    assert ignored.any(1).all()
    assert (ours.labels[ignored] == ours.num_classes).all()


@pytest.mark.parametrize('base', [dense_heads.FSAFHead, dense_heads.AutoAssignHead])
@pytest.mark.parametrize('teaches', [False, True])
def test_predictions_of_heads_that_only_look_like_their_base_are_not_read(
    base: type, teaches: bool
) -> None:
    class Mine(base):
        pass

    for cls in (base, Mine):
        assert type(get_reader(cls.__new__(cls), teaches=teaches)) is FeatureReader


@pytest.mark.parametrize('name', sorted(LEARNING_OTHERWISE))
def test_heads_that_only_learn_otherwise_can_teach(name: str) -> None:
    cls = MODELS.get(name)
    head = cls.__new__(cls)
    assert type(get_reader(head)) is FeatureReader
    # what predicts is that of a class with a reader
    changed = set(vars(cls)) & {'forward', 'forward_single', '_init_layers', 'predict_by_feat'}
    assert changed == set()
    of_base = get_reader(cls.__base__.__new__(cls.__base__))
    assert type(get_reader(head, teaches=True)) is type(of_base)


@needs.mmrotate  # some are its own
@pytest.mark.parametrize('name', sorted(UNLIKE_THEIR_BASE | LEARNING_OTHERWISE))
def test_refused_heads_exist(name: str) -> None:
    assert MODELS.get(name) or MODELS.get(f'mmrotate.{name}')


@pytest.mark.parametrize('family', FAMILIES, indirect=True)
def test_half_precision_maps_are_read_in_float32(
    head: BaseDenseHead, features: list[Tensor], family: str
) -> None:
    if family in NOT_IN_BFLOAT16:
        pytest.skip('deformable convolutions and inverse matrices do not exist in bfloat16')
    with torch.autocast('cpu', torch.bfloat16):
        outputs = read(head, features)
        boxes = all_boxes(outputs)
        record = record_loss(head, features, objects(head, 3, 2))
        ours = get_reader(head).assignment(record)
    assert boxes.dtype == torch.float32
    assert boxes.isfinite().all()
    assert ours.label_weights.dtype == torch.float32
    assert ours.matched_gts.dtype == torch.int64


@pytest.mark.parametrize(
    'family', ['fcos', 'fcos_normalised', 'vfnet', 'rtmdet', 'yolox'], indirect=True
)
def test_a_point_has_a_square_of_eight_strides_around_it(
    head: BaseDenseHead, features: list[Tensor], family: str
) -> None:
    outputs = read(head, features)
    sizes = [level.shape[-2:] for level in features]
    points = torch.cat(head.prior_generator.grid_priors(sizes, device='cpu'))
    half = 4 * outputs.prior_strides
    assert torch.equal(outputs.priors, torch.cat([points - half, points + half], dim=1))
    if family == 'vfnet':
        anchors = head.atss_prior_generator.grid_priors(sizes, device='cpu')
        assert torch.equal(outputs.priors, torch.cat(anchors))


@pytest.mark.parametrize('family', ['fcos', 'rtmdet', 'yolox'], indirect=True)
def test_points_have_a_valuable_localization_region(
    head: BaseDenseHead, features: list[Tensor]
) -> None:
    gts = objects(head, 3, 0)
    record = record_loss(head, features, gts)
    reader = get_reader(head)
    outputs = reader.read(record.outs, record.inputs)
    boxes = [gt.bboxes for gt in gts]
    step = DistillationContext(outputs, outputs, reader.assignment(record), boxes)
    weights = step.select(ValuableLocalizationRegion()).weights
    assert (weights > 0).any(1).tolist() == [True, False]


def test_validity_follows_the_padding_of_every_image() -> None:
    """Where `Pad` in the pipeline made it wider than the image, it counts, as in stock heads."""
    head, padded = build_head('gfl'), [(96, 128), (64, 96)]
    recorded = [dict(meta, img_shape=(60, 90)) for meta in metas()]
    with HeadRecorder(head, get_reader(head).recorded_methods) as record:
        head.loss_by_feat(*head(random_features(head)), objects(head, 2, 1), recorded)
    valid = get_reader(head).valid_priors(record)
    for image, (height, width) in enumerate(padded):
        cells = [-(-height // s) * -(-width // s) for s, _ in head.prior_generator.strides]
        assert valid[image].sum() == sum(cells)


@pytest.mark.parametrize(
    ('dtype', 'below'), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)], ids=str
)
def test_a_certain_score_of_half_precision(dtype: torch.dtype, below: float) -> None:
    expected = torch.tensor(1 - below, dtype=torch.float64).logit().item()
    assert logits(torch.ones(1, dtype=dtype)).item() == pytest.approx(expected, rel=1e-3)


def test_rotated_points_stand_for_boxes_of_four_strides() -> None:
    class Reader(RotatedPointReader):
        spec = maps = decode = assignment = None

    reader = Reader(Mock(prior_generator=MlvlPointGenerator([8, 16])))
    priors = reader.priors([(2, 3), (1, 2)], torch.device('cpu'))
    assert priors[:, 2:4].tolist() == [[32, 32]] * 6 + [[64, 64]] * 2
