"""Every family's head as a frozen teacher, beside the stock detector it was made from."""

import copy

import pytest
import torch

from ld_plugin.dense import get_reader
from ld_plugin.detectors import FrozenTeacher
from tests.detectors.test_teacher import images_of, relative_error, stock_with_statistics
from tests.families import SINGLE_STAGE, tiny


@pytest.mark.parametrize('family', SINGLE_STAGE)
@pytest.mark.parametrize(('precision', 'tolerance'), [('fp32', 1e-4), ('bf16', 0.1)])
def test_teacher_equals_the_stock_detector(family: str, precision: str, tolerance: float) -> None:
    stock = stock_with_statistics(tiny(family))
    images, shapes = images_of(stock)
    with torch.no_grad():
        features = stock.extract_feat(images)
        expected = get_reader(stock.bbox_head).read(stock.bbox_head(features), features)

    found = FrozenTeacher(copy.deepcopy(stock), precision)(images, shapes).outputs

    assert relative_error(found.box_maps, expected.box_maps) < tolerance
    assert relative_error(found.class_maps, expected.class_maps) < tolerance
    assert relative_error(found.features, features) < tolerance
    if expected.quality_maps:
        assert relative_error(found.quality_maps, expected.quality_maps) < tolerance
