"""The README's extensions and configs: they are shown in full there, and run here as a user's."""

import re
from pathlib import Path

import pytest
import torch
from mmengine import Config, ConfigDict
from mmengine.registry import RUNNERS

from ld_plugin import ConfigError
from ld_plugin.recipes import ld_full
from ld_plugin.runner import DistillationRunner
from tests.models import batch, build, losses, tiny_gfl

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = Path(__file__).resolve().parent / 'examples'
FILES = sorted(EXAMPLES.glob('*.py'))


@pytest.fixture(autouse=True)
def examples_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def read(tmp_path: Path, module: str, distillers: str) -> ConfigDict:
    """``model`` of a config file that imports the example and distils a tiny GFL."""
    path = tmp_path / 'config.py'
    path.write_text(
        f"custom_imports = dict(imports=['ld_plugin', '{module}'], allow_failed_imports=False)\n"
        f'model = dict(distillers={distillers})\n'
    )
    model = tiny_gfl()
    model.update(
        type='DistilledSingleStageDetector',
        teacher=dict(config=dict(model=tiny_gfl()), checkpoint=None),
        distillers=Config.fromfile(path).model.distillers,
    )
    return model


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_readme_shows_the_example_in_full(path: Path) -> None:
    source = path.read_text()
    assert source.strip() in (ROOT / 'README.md').read_text()
    assert len(source.splitlines()) < 40


def test_own_region(tmp_path: Path) -> None:
    model = build(
        read(
            tmp_path,
            'my_region',
            "dict(ld=dict(type='LocalizationDistiller', region=dict(type='CentreRegion')),"
            " im=dict(type='FeatureDistiller', region=dict(type='CentreRegion', share=1.0)))",
        )
    )
    found = losses(model, batch())
    assert found['loss_ld'] > 0 and found['loss_im'] > 0
    found['loss_ld'].backward()
    assert model.bbox_head.gfl_reg.weight.grad.abs().sum() > 0


def test_own_region_refuses_a_bad_value(tmp_path: Path) -> None:
    model = read(
        tmp_path,
        'my_region',
        "dict(ld=dict(type='LocalizationDistiller', region=dict(type='CentreRegion', share=2)))",
    )
    with pytest.raises(ConfigError, match=r'model\.distillers\.ld\.region\.share: found 2'):
        build(model)


def test_own_loss(tmp_path: Path) -> None:
    model = build(
        read(
            tmp_path,
            'my_loss',
            "dict(kd=dict(type='ClassificationDistiller', loss=dict(type='TotalVariationLoss')))",
        )
    )
    found = losses(model, batch())
    assert found['loss_kd'] > 0
    found['loss_kd'].backward()
    assert model.bbox_head.gfl_cls.weight.grad.abs().sum() > 0


def linear_model(distillers: dict) -> ConfigDict:
    """Student and teacher with the example's head, nine anchors per cell."""
    model = tiny_gfl()
    model.bbox_head = ConfigDict(
        type='LinearHead',
        num_classes=3,
        in_channels=32,
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
        ),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss'),
    )
    model.train_cfg = ConfigDict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, ignore_iof_thr=-1),
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    )
    teacher = dict(config=dict(model=model.copy()), checkpoint=None)
    model.update(type='DistilledSingleStageDetector', teacher=teacher, distillers=distillers)
    return model


def test_own_head() -> None:
    import my_head  # noqa: F401

    model = build(
        linear_model(
            dict(
                kd=dict(type='ClassificationDistiller'),
                vlr=dict(
                    type='ClassificationDistiller', region=dict(type='ValuableLocalizationRegion')
                ),
                im=dict(type='FeatureDistiller', region=dict(type='GIRegion')),
            )
        )
    )
    found = losses(model, batch())
    for name in ('loss_kd', 'loss_vlr', 'loss_im'):
        assert torch.isfinite(found[name]) and found[name] > 0
    (found['loss_kd'] + found['loss_vlr']).backward()
    assert model.bbox_head.conv_cls.weight.grad.abs().sum() > 0


def test_own_head_is_refused_localization_distillation() -> None:
    import my_head  # noqa: F401

    with pytest.raises(ConfigError, match='LinearHead predicts boxes without distributions'):
        build(linear_model(dict(ld=dict(type='LocalizationDistiller'))))


def test_readmes_configs_name_the_runner() -> None:
    """Which compares class names when it builds the model."""
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    configs = [block for block in blocks if 'teacher=' in block]
    assert len(configs) == 3
    for config in configs:
        assert re.search("^runner_type = '?DistillationRunner'?$", config, re.MULTILINE)


@pytest.mark.parametrize('imported', ['ld_full', '*'])
def test_pure_python_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imported: str) -> None:
    """The README's own, over a tiny detector; what the runner writes of it can be built too."""
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    (text,) = (block for block in blocks if 'read_base' in block)
    stock = f'from mmdet.models import GFL\nmodel = {tiny_gfl().to_dict()}\n'
    monkeypatch.chdir(tmp_path)
    Path('student.py').write_text(text.replace('import ld_full', f'import {imported}'))
    for name in ('gfl_r50_fpn_1x_coco.py', 'gfl_r101_fpn_2x_coco.py'):
        Path(name).write_text(f'{stock}model.update(type=GFL)\n')
    torch.save(dict(state_dict=build(tiny_gfl(), 7).state_dict()), 'gfl_r101_fpn_2x_coco.pth')
    Config.fromfile('student.py').dump('dumped.py')
    found = []
    for name in ('student.py', 'dumped.py'):
        config = Config.fromfile(name)
        config.update(work_dir='.', default_scope='mmdet')
        assert type(RUNNERS.build(config)) is DistillationRunner
        model = build(config.model)
        assert set(model.distillers) == set(ld_full)
        found.append(losses(model, batch()))
    assert found[0] == found[1]
    assert found[0]['loss_ld'] > 0
