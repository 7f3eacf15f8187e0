"""A small detector of every head family, over its stock config."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from functools import cache
from typing import Any

from mmengine import ConfigDict
from mmengine.hub import get_config
from mmengine.registry import DefaultScope

from ld_plugin.packages import is_installed
from tests.models import rotate

#: stock config of every family
STOCK = {
    'gfl': 'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'atss': 'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'retinanet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'fcos': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'fcos_normalised': (
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py'
    ),
    'tood': 'mmdet::tood/tood_r50_fpn_1x_coco.py',
    'tood_anchors': 'mmdet::tood/tood_r50_fpn_anchor-based_1x_coco.py',
    'vfnet': 'mmdet::vfnet/vfnet_r50_fpn_1x_coco.py',
    'paa': 'mmdet::paa/paa_r50_fpn_1x_coco.py',
    'rtmdet': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'yolox': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
}
#: the plugin's own heads: the family whose config they stand over, and the head
OWN_HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    'distribution_atss': ('atss', dict(type='DistributionATSSHead')),
    'distribution_retinanet': (
        'retinanet',
        dict(type='DistributionRetinaHead', loss_bbox=dict(type='GIoULoss', loss_weight=2.0)),
    ),
    'distribution_fcos': ('fcos', dict(type='DistributionFCOSHead')),
    'distribution_fcos_normalised': ('fcos_normalised', dict(type='DistributionFCOSHead')),
    'gflv2': ('gfl', dict(type='GFLV2Head')),
}
SINGLE_STAGE = (*STOCK, *OWN_HEADS)
TWO_STAGE = {
    'faster_rcnn': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'cascade_rcnn': 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
}
#: whose heads have no reader, or none for a student
UNREAD = {
    'fsaf': 'mmdet::fsaf/fsaf_r50_fpn_1x_coco.py',
    'autoassign': 'mmdet::autoassign/autoassign_r50-caffe_fpn_1x_coco.py',
    'foveabox': 'mmdet::foveabox/fovea_r50_fpn_4xb4-1x_coco.py',
    'reppoints': 'mmdet::reppoints/reppoints-moment_r50_fpn_1x_coco.py',
    'centernet_update': 'mmdet::centernet/centernet-update_r50-caffe_fpn_ms-1x_coco.py',
    'free_anchor': 'mmdet::free_anchor/freeanchor_r50_fpn_1x_coco.py',
    'sabl': 'mmdet::sabl/sabl-retinanet_r50_fpn_1x_coco.py',
    'ga_retinanet': 'mmdet::guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco.py',
}
#: likewise, of two stages
UNREAD_TWO_STAGE = {
    'ga_faster_rcnn': 'mmdet::guided_anchoring/ga-faster-rcnn_r50-caffe_fpn_1x_coco.py'
}
_SOFTMAX = dict(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False))
#: heads that classify by a softmax: the family whose config they stand over, and the head
WITH_SOFTMAX: dict[str, tuple[str, dict[str, Any]]] = {
    'softmax_retinanet': ('retinanet', _SOFTMAX),
    'softmax_faster_rcnn': ('faster_rcnn', _SOFTMAX),
}
#: of MMRotate, which need its scope to be built in; see :func:`scope`
ROTATED = {
    'rotated_retinanet': 'rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py',
    'rotated_retinanet_hbox': 'rotated_retinanet/rotated-retinanet-hbox-oc_r50_fpn_1x_dota.py',
    'rotated_retinanet_kfiou': 'kfiou/rotated-retinanet-hbox-le135_r50_fpn_kfiou_1x_dota.py',
    'rotated_retinanet_csl': 'csl/rotated-retinanet-rbox-le90_r50_fpn_csl-gaussian_amp-1x_dota.py',
    'rotated_retinanet_psc': 'psc/rotated-retinanet-rbox-le90_r50_fpn_psc-dual_amp-1x_dota.py',
    'rotated_atss': 'rotated_atss/rotated-atss-le90_r50_fpn_1x_dota.py',
    'rotated_fcos': 'rotated_fcos/rotated-fcos-le90_r50_fpn_1x_dota.py',
    'rotated_fcos_csl': 'rotated_fcos/rotated-fcos-hbox-le90_r50_fpn_csl-gaussian_1x_dota.py',
    'rotated_fcos_psc': 'psc/rotated-fcos-hbox-le90_r50_fpn_psc-dual_1x_dota.py',
    'rotated_rtmdet': 'rotated_rtmdet/rotated_rtmdet_tiny-3x-dota.py',
}
_L1 = dict(type='DistributionRotatedRetinaHead')
_GWD = dict(type='GDLoss', loss_type='gwd', loss_weight=5.0)
_GAUSSIAN = dict(type='GDLoss_v1', loss_type='kld', fun='log1p', tau=1)
#: likewise; the family whose config they stand over, and the head
OWN_ROTATED: dict[str, tuple[str, dict[str, Any]]] = {
    'distribution_rotated_retinanet': ('rotated_retinanet', _L1),
    'distribution_rotated_retinanet_gwd': (
        'rotated_retinanet_hbox',
        _L1 | dict(reg_decoded_bbox=True, loss_bbox=_GWD),
    ),
    'distribution_rotated_retinanet_kld': (
        'rotated_retinanet',
        _L1 | dict(reg_decoded_bbox=True, loss_bbox=_GAUSSIAN),
    ),
    'distribution_rotated_fcos': ('rotated_fcos', dict(type='DistributionRotatedFCOSHead')),
}
#: likewise, of two stages; the second of RoI Transformer's stages pools rotated boxes
ROTATED_TWO_STAGE = {
    'oriented_rcnn': 'oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py',
    'roi_trans': 'roi_trans/roi-trans-le90_r50_fpn_1x_dota.py',
    'rotated_faster_rcnn': 'rotated_faster_rcnn/rotated-faster-rcnn-le90_r50_fpn_1x_dota.py',
    'gliding_vertex': 'gliding_vertex/gliding-vertex-qbox_r50_fpn_1x_dota.py',
}
#: likewise, of a head whose boxes other heads refine
REFINED = {
    'r3det': 'r3det/r3det-refine-oc_r50_fpn_1x_dota.py',  # twice
    's2anet': 's2anet/s2anet-le135_r50_fpn_1x_dota.py',
}
#: whose data sets are loaded as quadrilaterals
QUADRILATERAL = ('gliding_vertex',)
if not is_installed('mmrotate'):
    ROTATED.clear()
    OWN_ROTATED.clear()
    ROTATED_TWO_STAGE.clear()
    REFINED.clear()
ALL_ROTATED = (*ROTATED, *OWN_ROTATED)
#: the stock loss of these has no operator for a CPU
_ROTATED_IOU = ('rotated_atss', 'rotated_fcos', 'rotated_rtmdet')
CHANNELS = 32  # the group norm of the heads has 32 groups


def tiny(family: str, num_classes: int = 3, **head: Any) -> ConfigDict:
    """The ``model`` of a family's stock config, made narrow.

    Args:
        family: One of :data:`SINGLE_STAGE`, :data:`TWO_STAGE`, :data:`UNREAD`,
            :data:`UNREAD_TWO_STAGE`, :data:`WITH_SOFTMAX`, :data:`ALL_ROTATED`,
            :data:`ROTATED_TWO_STAGE` or :data:`REFINED`.
        num_classes: C.
        head: Other arguments of the dense head, such as ``stacked_convs``.
    """
    changed = OWN_HEADS | OWN_ROTATED | WITH_SOFTMAX
    if family in changed:
        family, own = changed[family]
        head = own | head
    model = deepcopy(_stock_model(family))
    _BACKBONES.get(family, _narrow_resnet)(model)
    model.neck.out_channels = CHANNELS
    dense = model[dense_head_name(model)]
    dense.update(in_channels=CHANNELS, feat_channels=CHANNELS)
    for refining in model.get('bbox_head_refine', []):
        _narrow_refine_head(refining, num_classes)
    if 'roi_head' in model:
        _narrow_roi_head(model, num_classes)
    else:
        dense.update(num_classes=num_classes, stacked_convs=2 if 'tood' in family else 1)
    if family in _ROTATED_IOU:
        head = dict(loss_bbox=_GAUSSIAN) | head
    for name, value in head.items():
        dense[name] = value  # update() would merge it with the stock value
    return model


def dense_head_name(model: Mapping[str, Any]) -> str:
    """The key of the dense head in a ``model``."""
    return next(k for k in ('bbox_head', 'bbox_head_init', 'rpn_head') if k in model)


def distilled_type(model: Mapping[str, Any]) -> str:
    """The plugin's detector over a ``model``."""
    kinds = dict(rpn_head='TwoStage', bbox_head_init='RefineSingleStage', bbox_head='SingleStage')
    return f'mmdet.Distilled{kinds[dense_head_name(model)]}Detector'


def scope(family: str) -> AbstractContextManager:
    """The registry's scope in which a family's models are built."""
    return DefaultScope.overwrite_default_scope(scope_name(family))


def scope_name(family: str) -> str:
    """``default_scope`` of a family's configs."""
    return 'mmrotate' if family in (*ALL_ROTATED, *ROTATED_TWO_STAGE, *REFINED) else 'mmdet'


def fit_boxes(family: str, data: Mapping[str, list]) -> None:
    """Give the ground truth of a batch the type of boxes that a family learns."""
    if scope_name(family) == 'mmdet':
        return
    rotate(data)
    if family in QUADRILATERAL:
        for sample in data['data_samples']:
            sample.gt_instances.bboxes = sample.gt_instances.bboxes.convert_to('qbox')


@cache
def _stock_model(family: str) -> ConfigDict:
    of_mmrotate = ROTATED | ROTATED_TWO_STAGE | REFINED
    if family in of_mmrotate:
        return get_config(f'mmrotate::{of_mmrotate[family]}').model
    return get_config((STOCK | TWO_STAGE | UNREAD | UNREAD_TWO_STAGE)[family]).model


def _narrow_resnet(model: ConfigDict) -> None:
    model.backbone.update(depth=18, base_channels=8, stem_channels=8, init_cfg=None)
    model.neck.in_channels = [8, 16, 32, 64]


def _narrow_csp(model: ConfigDict) -> None:
    model.backbone.update(widen_factor=1 / 32, init_cfg=None)
    model.neck.in_channels = [8, 16, 32]
    model.data_preprocessor.update(batch_augments=None)
    for part in (model.backbone, model.neck, model.bbox_head):
        part.norm_cfg.type = 'BN'  # synchronised batch norm does not run on a CPU


def _narrow_roi_head(model: ConfigDict, num_classes: int) -> None:
    roi_head = model.roi_head
    extractors, heads = (
        part if isinstance(part, list) else [part]
        for part in (roi_head.bbox_roi_extractor, roi_head.bbox_head)
    )
    for extractor in extractors:
        extractor.out_channels = CHANNELS
    for head in heads:
        head.update(in_channels=CHANNELS, fc_out_channels=64, num_classes=num_classes)


def _narrow_refine_head(head: ConfigDict, num_classes: int) -> None:
    head.update(
        in_channels=CHANNELS, feat_channels=CHANNELS, num_classes=num_classes, stacked_convs=1
    )
    head.frm_cfg.feat_channels = CHANNELS


_BACKBONES = dict(rtmdet=_narrow_csp, yolox=_narrow_csp, rotated_rtmdet=_narrow_csp)
