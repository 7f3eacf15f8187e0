"""A teacher with operators that torch does not have: the published R-101-DCN."""

import pytest
import torch
from mmdet.registry import MODELS

from ld_plugin.detectors import FrozenTeacher
from tests.models import batch, tiny_gfl


@pytest.mark.parametrize(
    ('precision', 'tolerance'), [('fp32', 1e-4), ('bf16', 0.05)], ids=['fp32', 'bf16']
)
def test_deformable_convolutions(precision: str, tolerance: float) -> None:
    cfg = tiny_gfl(depth=50)
    cfg.backbone.update(
        dcn=dict(type='DCN', deform_groups=1), stage_with_dcn=(False, True, True, True)
    )
    model = MODELS.build(cfg).eval()
    for module in model.modules():
        if hasattr(module, 'conv_offset'):  # zero at first, when it is a plain convolution
            torch.nn.init.normal_(module.conv_offset.weight, std=0.02)
    data = model.data_preprocessor(batch([(96, 96), (96, 96)], [1, 1]))
    with torch.no_grad():
        eager = model.bbox_head(model.extract_feat(data['inputs']))
    teacher = FrozenTeacher(model, precision)
    outputs = teacher(data['inputs'], [(96, 96), (96, 96)]).outputs
    found = [*outputs.class_maps, *outputs.box_maps]
    for mine, plain in zip(found, [*eager[0], *eager[1]], strict=True):
        torch.testing.assert_close(mine.float(), plain, rtol=0, atol=tolerance * plain.abs().max())
