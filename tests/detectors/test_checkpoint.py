"""Reading checkpoints: from everywhere, safely, and completely or not at all."""

import re
import sys
import threading
import warnings
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.models import FCOSHead
from mmengine.logging.history_buffer import HistoryBuffer
from torch import nn

from ld_plugin import ConfigError
from ld_plugin.detectors import FrozenTeacher
from ld_plugin.detectors import checkpoint as reading
from ld_plugin.detectors.checkpoint import (
    class_names,
    drop_distillers,
    first_of,
    load_checkpoint_file,
    weights_of,
)
from ld_plugin.detectors.model_config import published_checkpoint
from tests import needs
from tests.families import tiny
from tests.models import TinyDataset, build, tiny_gfl, tiny_runner

CLASSES = ('circle', 'square', 'star')
said_to_be_safe = needs.pytorch('2.5', 'torch.load cannot be told what is safe')


class Surprise:
    """Something that only a full unpickling can restore."""


class Attack:
    """Runs a function when it is unpickled."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The published form: weights and class names."""
    path = tmp_path / 'teacher.pth'
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=build(tiny_gfl(), 7).state_dict(), meta=meta), path)
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server that offers the files of ``tmp_path``."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(tmp_path))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{http.server_port}'
        http.shutdown()
        thread.join()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Path]:
    """Torch's download folder, for this test alone."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / 'hub'))
    yield tmp_path / 'hub' / 'checkpoints'
    torch.hub.set_dir(before)


def teacher(checkpoint: Any, **options: Any) -> FrozenTeacher:
    config = dict(model=tiny_gfl(**options))
    return FrozenTeacher.from_config(dict(config=config, checkpoint=str(checkpoint)))


def weight(found: FrozenTeacher) -> torch.Tensor:
    return found._model.bbox_head.gfl_cls.weight


def expected_weight() -> torch.Tensor:
    return build(tiny_gfl(), 7).bbox_head.gfl_cls.weight


def test_path(checkpoint: Path) -> None:
    found = teacher(checkpoint)
    assert torch.equal(weight(found), expected_weight())
    assert found.classes == CLASSES


@pytest.mark.parametrize('meta', [dict(CLASSES='ship'), dict(dataset_meta=dict(classes='ship'))])
def test_a_text_is_the_name_of_one_class(meta: dict) -> None:
    assert class_names(dict(meta=meta)) == ('ship',)


def test_a_checkpoint_of_another_model_is_named_as_it_was_given(checkpoint: Path) -> None:
    cfg = dict(config=dict(model=tiny_gfl(num_classes=5)), checkpoint=checkpoint)
    with pytest.raises(ConfigError, match=f"checkpoint: '{checkpoint}' does not fit"):
        FrozenTeacher.from_config(cfg)


@pytest.mark.parametrize('broken', ['backbone.bn1.running_var', 'backbone.layer4.1.conv2.weight'])
def test_weights_that_are_not_finite(broken: str, checkpoint: Path) -> None:
    """Which the ReLUs of a processor's kernels would make 0."""
    content = torch.load(checkpoint)
    content['state_dict'][broken].view(-1)[3] = torch.nan
    torch.save(content, checkpoint)
    message = f"'{checkpoint}' holds NaN or infinity: {broken}. Expected the weights of a training"
    with pytest.raises(ConfigError, match=re.escape(message)):
        teacher(checkpoint)


def test_path_in_the_home_folder(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` is what mmengine takes in ``load_from``."""
    monkeypatch.setenv('HOME', str(checkpoint.parent))
    (checkpoint.parent / 'teacher.py').write_text(f'model = {tiny_gfl().to_dict()}')
    teacher = FrozenTeacher.from_config(dict(config='~/teacher.py', checkpoint='~/teacher.pth'))
    assert teacher.classes == CLASSES


def test_url_is_downloaded_once(checkpoint: Path, server: str, hub: Path) -> None:
    published = checkpoint.rename(checkpoint.with_name('teacher_20200629_121244-25944287.pth'))
    url = f'{server}/{published.name}'
    assert torch.equal(weight(teacher(url)), expected_weight())
    assert [f.name for f in hub.iterdir()] == [published.name]
    published.unlink()
    assert torch.equal(weight(teacher(url)), expected_weight())


def test_urls_of_equal_file_names(checkpoint: Path, server: str, hub: Path) -> None:
    """As epoch_12.pth, which every training leaves."""
    other = build(tiny_gfl(), 8)
    (checkpoint.parent / 'other').mkdir()
    torch.save(dict(state_dict=other.state_dict()), checkpoint.parent / 'other' / checkpoint.name)
    first, second = (teacher(f'{server}/{x}{checkpoint.name}') for x in ('', 'other/'))
    assert torch.equal(weight(first), expected_weight())
    assert torch.equal(weight(second), other.bbox_head.gfl_cls.weight)


@pytest.mark.parametrize('rank', [0, 1])
def test_the_first_process_downloads_and_then_those_of_other_machines(
    rank: int, checkpoint: Path, server: str, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, fetch = [], reading._fetch
    monkeypatch.setattr(reading, 'get_rank', lambda: rank)
    monkeypatch.setattr(reading, 'barrier', lambda: done.append('barrier'))
    monkeypatch.setattr(reading, '_fetch', lambda *args: (done.append('fetch'), fetch(*args)))
    assert torch.equal(weight(teacher(f'{server}/{checkpoint.name}')), expected_weight())
    first, others = ['fetch', 'barrier', 'barrier'], ['barrier', 'fetch', 'barrier']
    assert done == (first if rank == 0 else others)


def test_url_that_offers_nothing(server: str, hub: Path) -> None:
    with pytest.raises(ConfigError) as error:
        teacher(f'{server}/nothing.pth')
    assert str(error.value).startswith(
        f'model.teacher.checkpoint: {server}/nothing.pth cannot be downloaded (HTTP Error 404'
    )
    assert list(hub.iterdir()) == []


def test_auto_is_the_checkpoint_that_the_package_publishes() -> None:
    url = published_checkpoint('mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py')
    assert url.startswith('https://')
    assert Path(url).name.startswith('gfl_r101_fpn_mstrain_2x_coco_')


def test_no_checkpoint_is_published_for_configs_of_this_package() -> None:
    with pytest.raises(ConfigError, match="found 'auto', which needs a stock name such as"):
        published_checkpoint('ld_plugin::bccd/teacher.py')


def test_auto_is_resolved_before_loading(
    checkpoint: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = []
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, path: wanted.append(url))
    with pytest.raises(ConfigError, match='there is no file'):  # the download wrote none
        FrozenTeacher.from_config(
            dict(config='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py', checkpoint='auto')
        )
    assert wanted == [published_checkpoint('mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py')]


@pytest.mark.parametrize('wrap', [False, True])
def test_bare_state_dict_and_parallel_prefix(tmp_path: Path, wrap: bool) -> None:
    state = build(tiny_gfl(), 7).state_dict()
    if wrap:
        state = {f'module.{key}': value for key, value in state.items()}
    torch.save(state, tmp_path / 'bare.pth')
    found = teacher(tmp_path / 'bare.pth')
    assert torch.equal(weight(found), expected_weight())
    assert found.classes is None


@pytest.mark.parametrize(
    'meta',
    [
        dict(dataset_meta=dict(classes=CLASSES)),
        dict(dataset_meta=dict(CLASSES=CLASSES)),  # release candidates of MMDetection 3
        dict(CLASSES=CLASSES, epoch=12),  # MMDetection 2
        dict(dataset_meta=[dict(classes=CLASSES), dict(classes=('a', 'b'))]),  # of two data sets
    ],
)
def test_class_names_of_every_generation(meta: dict) -> None:
    assert class_names(dict(meta=meta)) == CLASSES


@pytest.mark.parametrize(
    'meta',
    [None, {}, 'a text', dict(dataset_meta=None), dict(dataset_meta=[]), dict(dataset_meta='text')],
)
def test_class_names_may_be_unknown(meta: dict | None) -> None:
    assert class_names({}) is None
    assert class_names(dict(meta=meta)) is None


def test_classes_of_the_config_win(checkpoint: Path) -> None:
    cfg = dict(config=dict(model=tiny_gfl()), checkpoint=str(checkpoint), classes=('a', 'b', 'c'))
    assert FrozenTeacher.from_config(cfg).classes == ('a', 'b', 'c')


@said_to_be_safe
def test_checkpoint_of_a_runner_is_read_without_a_warning(tmp_path: Path) -> None:
    tiny_runner(build(tiny_gfl()), tmp_path, epochs=1).train()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        loaded = load_checkpoint_file(tmp_path / 'epoch_1.pth')
    history = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert len(history.data[0]) == 2
    assert class_names(loaded) == TinyDataset.METAINFO['classes']


@said_to_be_safe
def test_arrays_and_scalars_of_either_numpy_are_read_without_a_warning(tmp_path: Path) -> None:
    values = [np.float64(0.5), np.float32(2), np.int64(3), np.arange(4), np.ones(2, dtype=bool)]
    path = tmp_path / 'new.pth'
    torch.save(dict(state_dict={}, values=values), path)
    old = tmp_path / 'old.pth'
    _rename_module(path, old)
    for file in (path, old):
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            found = load_checkpoint_file(file)['values']
        for value, expected in zip(found, values, strict=True):
            np.testing.assert_array_equal(value, expected)
            assert value.dtype == expected.dtype


def _rename_module(source: Path, target: Path) -> None:
    """Make the file that the other generation of NumPy would have written."""
    names = (b'numpy._core.multiarray', b'numpy.core.multiarray')
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, 'w') as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith('data.pkl'):
                here, there = names if names[0] in content else names[::-1]
                assert here in content
                content = content.replace(here, there)
            new.writestr(name, content)


def test_file_that_holds_more_than_weights_is_announced(tmp_path: Path) -> None:
    path = tmp_path / 'more.pth'
    torch.save(dict(state_dict=build(tiny_gfl(), 7).state_dict(), meta={'x': Surprise()}), path)
    with pytest.warns(UserWarning, match=r'model\.teacher\.checkpoint: .*more\.pth.*can run code'):
        found = teacher(path)
    assert torch.equal(weight(found), expected_weight())


def test_no_code_runs_before_the_warning(tmp_path: Path) -> None:
    marker = tmp_path / 'executed'
    torch.save(dict(state_dict={}, x=Attack(open, str(marker), 'w')), tmp_path / 'attack.pth')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(UserWarning, match='can run code'):
            load_checkpoint_file(tmp_path / 'attack.pth')
    assert not marker.exists()


def test_only_the_log_historys_methods_may_be_looked_up(tmp_path: Path) -> None:
    # a runner's own checkpoint needs getattr, with which everything could be reached
    path = tmp_path / 'attack.pth'
    torch.save(dict(state_dict={}, x=Attack(getattr, np.ndarray, 'tofile')), path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(UserWarning, match='can run code'):
            load_checkpoint_file(path)


def test_missing_file_comes_with_the_command_that_makes_it(tmp_path: Path) -> None:
    config = 'ld_plugin::bccd/gfl_r34_fpn_36e_bccd.py'
    with pytest.raises(ConfigError) as error:
        load_checkpoint_file(tmp_path / 'nothing.pth', trained_by=config)
    message = str(error.value)
    assert message.startswith(
        f"model.teacher.checkpoint: there is no file '{tmp_path}/nothing.pth'"
    )
    assert message.endswith('Train it: mim train mmdet-ld-plugin bccd/gfl_r34_fpn_36e_bccd.py')
    with pytest.raises(ConfigError, match=r"mim train mmdet-ld-plugin 'my configs/a\.py'$"):
        load_checkpoint_file(tmp_path / 'nothing.pth', trained_by='my configs/a.py')


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^model\.teacher\.checkpoint: '.*' is a folder, .* none\.$"
    ):
        load_checkpoint_file(tmp_path)
    for epoch in (1, 2):
        (tmp_path / f'epoch_{epoch}.pth').touch()
    with pytest.raises(ConfigError, match=r'those in it: epoch_1\.pth, epoch_2\.pth\.$'):
        load_checkpoint_file(tmp_path)


def test_misspelt_file_beside_others(tmp_path: Path) -> None:
    (tmp_path / 'epoch_12.pth').touch()
    with pytest.raises(ConfigError, match=r'; in its folder there are epoch_12\.pth\. Train it: '):
        load_checkpoint_file(tmp_path / 'epoch_36.pth', trained_by='teacher.py')


@pytest.mark.parametrize('kept', [0, 1, 100, 5000, -100, -1])
def test_truncated_file(checkpoint: Path, kept: int) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # it holds nothing, so it cannot hold more than weights
        with pytest.raises(ConfigError, match=r'^model\.teacher\.checkpoint: .*it is truncated'):
            load_checkpoint_file(checkpoint)


@pytest.mark.parametrize('content', ['<html>404</html>', 'http://x/y', 'hello', 'Not found'])
def test_text_instead_of_a_checkpoint(content: str, tmp_path: Path) -> None:
    path = tmp_path / 'page.pth'
    path.write_text(content)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(ConfigError) as error:
            load_checkpoint_file(path)
    assert 'weights_only' not in str(error.value)
    assert str(error.value).startswith(
        f"model.teacher.checkpoint: '{path}' cannot be read; it is truncated or not a checkpoint"
    )


def test_objects_of_a_missing_package(tmp_path: Path) -> None:
    path = tmp_path / 'foreign.pth'

    package = ModuleType('not_installed')
    package.Thing = type('Thing', (), dict(__module__='not_installed'))
    sys.modules['not_installed'] = package
    try:
        torch.save(dict(state_dict={}, thing=package.Thing()), path)
    finally:
        del sys.modules['not_installed']
    with pytest.warns(UserWarning, match='can run code'), pytest.raises(ConfigError) as error:
        load_checkpoint_file(path)
    assert str(error.value) == (
        f"model.teacher.checkpoint: '{path}' holds objects of a package that is not installed (No "
        "module named 'not_installed'). Install it, or save the weights alone."
    )


def test_a_file_that_may_not_be_read(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(torch, 'load', refuse)
    with pytest.raises(
        ConfigError, match=r"teacher.pth' cannot be read \(.*Permission denied\)\.$"
    ):
        load_checkpoint_file(checkpoint)


def test_tensor_instead_of_a_dict(tmp_path: Path) -> None:
    torch.save(torch.ones(2), tmp_path / 'tensor.pth')
    with pytest.raises(
        ConfigError, match=r'^model\.teacher\.checkpoint: .*holds a Tensor, expected'
    ):
        load_checkpoint_file(tmp_path / 'tensor.pth')


def test_model_instead_of_its_state_dict(tmp_path: Path) -> None:
    path = tmp_path / 'model.pth'
    torch.save(dict(state_dict=torch.nn.Linear(1, 1)), path)
    with (
        pytest.warns(UserWarning, match='holds more than weights'),
        pytest.raises(ConfigError, match=r'state_dict in .* is a Linear, expected a dict'),
    ):
        load_checkpoint_file(path)


def test_other_shapes_are_all_listed(checkpoint: Path) -> None:
    with pytest.raises(ConfigError) as error:
        teacher(checkpoint, num_classes=5)
    message = str(error.value)
    assert message.startswith(f"model.teacher.checkpoint: '{checkpoint}' does not fit")
    for part in ('bbox_head.gfl_cls.weight', 'bbox_head.gfl_cls.bias', '[3]', '[5]'):
        assert part in message
    assert 'lacks' not in message
    assert message.endswith('Choose the config that the checkpoint was trained with.')


def test_other_shapes_and_missing_weights_are_listed_together(checkpoint: Path) -> None:
    with pytest.raises(ConfigError) as error:
        teacher(checkpoint, num_classes=5, stacked_convs=2)
    message = str(error.value)
    assert 'size mismatch for bbox_head.gfl_cls.weight' in message
    assert 'it lacks 6 weights: bbox_head.cls_convs.1.conv.weight, ' in message


def test_missing_weights_are_all_listed(checkpoint: Path) -> None:
    with pytest.raises(ConfigError) as error:
        teacher(checkpoint, stacked_convs=2)
    message = str(error.value)
    assert 'it lacks 6 weights' in message
    for branch in ('cls', 'reg'):
        for name in ('conv.weight', 'gn.weight', 'gn.bias'):
            assert f'bbox_head.{branch}_convs.1.{name}' in message
    assert 'Choose the config that the checkpoint was trained with.' in message


def test_weights_of_another_model_altogether(tmp_path: Path) -> None:
    torch.save(dict(state_dict=torch.nn.Linear(2, 2).state_dict()), tmp_path / 'linear.pth')
    with pytest.raises(ConfigError, match=r'it has none of 132 weights; found weight, bias\. '):
        teacher(tmp_path / 'linear.pth')


def test_a_checkpoint_without_weights(tmp_path: Path) -> None:
    torch.save(dict(state_dict={}), tmp_path / 'empty.pth')
    with pytest.raises(ConfigError, match=r'it has none of 132 weights; found nothing\. '):
        teacher(tmp_path / 'empty.pth')


def test_weights_under_another_key(tmp_path: Path) -> None:
    torch.save(dict(model=build(tiny_gfl(), 7).state_dict(), epoch=3), tmp_path / 'other.pth')
    with pytest.raises(ConfigError, match=r'it has none of 132 weights; found model, epoch\. '):
        teacher(tmp_path / 'other.pth')


@pytest.mark.parametrize(
    ('deeper', 'options', 'weight'),
    [
        (dict(depth=34), {}, 'backbone.layer1.2.conv1.weight'),
        (dict(stacked_convs=2), {}, 'bbox_head.cls_convs.1.conv.weight'),
        (dict(stacked_convs=2), dict(stacked_convs=0), 'bbox_head.cls_convs.0.conv.weight'),
    ],
)
def test_a_checkpoint_of_a_deeper_model(
    tmp_path: Path, deeper: dict, options: dict, weight: str
) -> None:
    """Whose weights include all of a shallower one's."""
    torch.save(dict(state_dict=build(tiny_gfl(**deeper), 7).state_dict()), tmp_path / 'more.pth')
    with pytest.raises(ConfigError) as error:
        teacher(tmp_path / 'more.pth', **options)
    assert re.search(
        rf'it is of a deeper model, with \d+ more weights: {weight}, ', str(error.value)
    )


def test_further_parts_and_levels_are_named(tmp_path: Path) -> None:
    more = tiny_gfl()
    more.neck.num_outs += 1
    more.bbox_head.anchor_generator.strides.append(256)
    state = build(more, 7).state_dict() | {'mask_head.bias': torch.ones(1)}
    torch.save(dict(state_dict=state), tmp_path / 'more.pth')
    with pytest.warns(UserWarning, match='holds weights that the teacher') as found:
        teacher(tmp_path / 'more.pth')
    named = next(str(w.message) for w in found if 'holds weights' in str(w.message))
    for weight in ('mask_head.bias', 'neck.fpn_convs.5.conv.bias', 'bbox_head.scales.5.scale'):
        assert weight in named


class BranchedFCOSHead(FCOSHead):
    """With a branch that, without its version, passes for one of MMDetection 1."""

    def _init_layers(self) -> None:
        super()._init_layers()
        self.iou_reg = nn.Conv2d(self.feat_channels, 4, 1)


@pytest.mark.parametrize('parallel', [False, True])
def test_versions_of_modules_stay_with_their_weights(parallel: bool, tmp_path: Path) -> None:
    cfg = tiny('fcos', type=BranchedFCOSHead)
    model = build(cfg)
    with_distillers = nn.Module()
    with_distillers.distillers = nn.Linear(1, 1)
    for name, part in model.named_children():
        with_distillers.add_module(name, part)
    wrapper = nn.DataParallel(with_distillers) if parallel else with_distillers
    path = tmp_path / 'teacher.pth'
    torch.save(dict(state_dict=wrapper.state_dict()), path)
    teacher = FrozenTeacher.from_config(dict(config=dict(model=cfg), checkpoint=str(path)))
    branch = teacher._model.bbox_head.iou_reg
    torch.testing.assert_close(branch.weight, model.bbox_head.iou_reg.weight)
    weights = weights_of(load_checkpoint_file(path))
    build(cfg, seed=1).load_state_dict(weights, strict=True)


def test_infinite_weights() -> None:
    weights = dict(weight=torch.tensor([[1.0, torch.inf]]), bias=torch.zeros(1))
    with pytest.raises(ConfigError, match=r"'x' holds NaN or infinity: weight\."):
        reading.load_weights(nn.Linear(2, 1), weights, 'x')


def test_version_of_the_whole_model() -> None:
    state = nn.DataParallel(nn.Sequential(nn.BatchNorm2d(1))).state_dict()
    found = weights_of(dict(state_dict=state))._metadata
    assert '' in found
    assert 'module' not in found
    assert found['0']['version'] == 2


@pytest.mark.parametrize(
    ('names', 'listed'),
    [('', 'nothing'), ('abcde', 'a, b, c, d, e'), ('abcdef', 'a, b, c, d, e, ...')],
)
def test_long_lists_are_cut(names: str, listed: str) -> None:
    assert first_of(names) == listed


def test_averages_of_distillers_are_taken_out_with_them() -> None:
    names = 'neck.weight', 'distillers.x.weight'
    found = dict(
        state_dict=dict.fromkeys(names),
        ema_state_dict=dict.fromkeys(['steps', *(f'module.{name}' for name in names)]),
    )
    drop_distillers(found)
    assert list(found['state_dict']) == ['neck.weight']
    assert list(found['ema_state_dict']) == ['steps', 'module.neck.weight']
