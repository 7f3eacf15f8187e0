"""The teacher sees exactly what its own preprocessor would have made of the images."""

import copy
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmengine.model import BaseDataPreprocessor

from ld_plugin.detectors.input_conversion import InputConversion
from ld_plugin.recipes import ld_main
from tests.models import batch, build, distillation_loss, tiny_distilled, tiny_gfl

PREPROCESSORS = dict(
    torchvision=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    caffe=dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0]),
    rtmdet=dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395]),
    raw=dict(),
    gray_padding=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_value=114.0,
    ),
    one_value=dict(mean=[127.5], std=[128.0], rgb_to_bgr=True),
)
SHAPES = [(64, 64), (40, 90), (33, 17)]


def preprocessor(**kwargs: Any) -> DetDataPreprocessor:
    return DetDataPreprocessor(**kwargs, pad_size_divisor=32)


def preprocessed(**kwargs: Any) -> torch.Tensor:
    data = batch(SHAPES, [1, 1, 1])
    return preprocessor(**kwargs)(data, training=True)['inputs']


@pytest.mark.parametrize(('source', 'target'), list(permutations(PREPROCESSORS, 2)))
def test_conversion_equals_the_targets_own_preprocessing(source: str, target: str) -> None:
    source, target = PREPROCESSORS[source], PREPROCESSORS[target]
    images = preprocessed(**source)
    before = images.clone()

    conversion = InputConversion.between(preprocessor(**source), preprocessor(**target))
    converted = conversion(images, SHAPES)

    assert images.shape == (3, 3, 64, 96)
    torch.testing.assert_close(converted, preprocessed(**target), rtol=2e-5, atol=2e-5)
    assert torch.equal(images, before), "the student's images must not change"


@pytest.mark.parametrize('target', [name for name in PREPROCESSORS if name != 'torchvision'])
def test_padding_is_exactly_the_targets(target: str) -> None:
    target = PREPROCESSORS[target]
    source = PREPROCESSORS['torchvision']
    conversion = InputConversion.between(preprocessor(**source), preprocessor(**target))
    converted = conversion(preprocessed(**source), SHAPES)
    for image, (height, width) in zip(converted, SHAPES, strict=True):
        padding = torch.ones(image.shape, dtype=torch.bool)
        padding[:, :height, :width] = False
        assert (image[padding] == target.get('pad_value', 0)).all()


@pytest.mark.parametrize('name', PREPROCESSORS)
def test_equal_preprocessing_returns_the_same_tensor(name: str) -> None:
    images = torch.rand(3, 3, 64, 96)
    before = images.clone()
    both = preprocessor(**PREPROCESSORS[name]), preprocessor(**PREPROCESSORS[name])
    assert InputConversion.between(*both)(images, SHAPES) is images
    assert torch.equal(images, before), 'whatever the padding holds'


@pytest.mark.parametrize('source', [dict(), dict(mean=[127.0], std=[58.0])])
@pytest.mark.parametrize('target', [dict(), dict(mean=[100.0], std=[50.0], pad_value=3)])
def test_images_of_one_channel(source: dict, target: dict) -> None:
    source, target = preprocessor(**source), preprocessor(**target)
    data = batch(SHAPES, [1, 1, 1])
    data['inputs'] = [image[:1] for image in data['inputs']]
    images, expected = (p(copy.deepcopy(data), training=True)['inputs'] for p in (source, target))
    assert images.shape[1] == 1
    converted = InputConversion.between(source, target)(images, SHAPES)
    torch.testing.assert_close(converted, expected, rtol=2e-5, atol=2e-5)


def test_a_preprocessor_that_only_moves_images() -> None:
    """As a model without one has: what it sees are the pixels as they were read."""
    plain, raw = BaseDataPreprocessor(), preprocessor()
    caffe = preprocessor(**PREPROCESSORS['caffe'])
    for found, expected in (((plain, caffe), (raw, caffe)), ((caffe, plain), (caffe, raw))):
        assert InputConversion.between(*found) == InputConversion.between(*expected)


@pytest.mark.parametrize('factor', [0.5, 1.5, 2])
def test_resized_images_end_where_their_last_pixel_lies(factor: float) -> None:
    padded = PREPROCESSORS['gray_padding']
    images = preprocessed(**padded)[..., :95]
    before = images.clone()
    conversion = InputConversion.between(preprocessor(**padded), preprocessor())
    resized, shapes = conversion.resize(images, SHAPES, factor)
    assert resized.shape[2:] == (np.ceil(64 * factor), np.ceil(95 * factor))
    for image, shape, before_ in zip(resized, shapes, SHAPES, strict=True):
        assert shape == tuple(np.ceil(np.array(before_) * factor))
        padding = torch.ones(image.shape, dtype=torch.bool)
        padding[:, : shape[0], : shape[1]] = False
        assert (image[padding] == 114).all()
    assert torch.equal(images, before), "the student's images must not change"


@pytest.mark.parametrize('inside', [True, False])
def test_teacher_of_a_distilled_model_sees_its_own_normalisation(inside: bool) -> None:
    """Which a config may also have beside its model."""
    caffe = dict(model=tiny_gfl())
    if not inside:
        caffe['model'].pop('data_preprocessor')
    else:  # which wins
        caffe['data_preprocessor'] = dict(type='DetDataPreprocessor')
    (caffe['model'] if inside else caffe)['data_preprocessor'] = dict(
        type='DetDataPreprocessor', pad_size_divisor=32, **PREPROCESSORS['caffe']
    )
    model = build(tiny_distilled(dict(config=caffe, checkpoint=None), ld_main))
    seen = []
    model.teacher._model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))

    data = batch(SHAPES, [1, 1, 1])
    distillation_loss(model, data)

    torch.testing.assert_close(
        seen[0], preprocessed(**PREPROCESSORS['caffe']), rtol=2e-5, atol=2e-4
    )


def test_images_that_shrink_are_averaged_over_all_pixels() -> None:
    conversion = InputConversion.between(preprocessor(), preprocessor())
    stripes = torch.tensor([0.0, 1, 1, 0]).repeat(16).expand(1, 3, 64, 64)
    shrunk, _ = conversion.resize(stripes, [(64, 64)], 0.25)
    torch.testing.assert_close(shrunk, torch.full((1, 3, 16, 16), 0.5), rtol=0, atol=0.1)


def test_shapes_of_three_numbers() -> None:
    """As transforms of MMDetection 2 write them."""
    teacher = dict(model=tiny_gfl())
    teacher['model'].data_preprocessor.pad_value = 7
    model = build(tiny_distilled(dict(config=teacher, checkpoint=None), ld_main))
    data = batch(((64, 64), (48, 64)))
    expected = distillation_loss(model, data)
    for sample in data['data_samples']:
        sample.set_metainfo(dict(img_shape=(*sample.img_shape, 3)))
    assert torch.equal(distillation_loss(model, data), expected)
