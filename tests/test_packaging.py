"""What an installed plugin brings along, and that MIM finds it."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest
from mmengine.utils import digit_version

from ld_plugin.version import __version__

# openmim's dependencies keep setuptools at 60; pip's isolated builds get their own
pytestmark = pytest.mark.skipif(
    digit_version(version('setuptools')) < digit_version('80'), reason='needs setuptools 80'
)
ROOT = Path(__file__).resolve().parent.parent
PROBE = 'packaging_probe.py'
KINDS = ('wheel', 'editable')

# The smallest thing that mmengine trains: one weight, four numbers, no detector.
PROBE_MODULE = """
import torch
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS

@DATASETS.register_module()
class ProbeData(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return dict(data=torch.ones(1))

@MODELS.register_module()
class ProbeModel(BaseModel):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, data, mode):
        return dict(loss=(self.weight * data).sum())
"""
PROBE_BASE = """
model = dict(type='ProbeModel')
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
train_cfg = dict(by_epoch=True, max_epochs=1)
"""
PROBE_CONFIG = """
_base_ = './packaging_probe_base.py'
custom_imports = dict(imports=['probe_module'])
train_dataloader = dict(
    batch_size=2, dataset=dict(type='ProbeData'),
    sampler=dict(type='DefaultSampler', shuffle=False), collate_fn=dict(type='default_collate'))
"""

# Asks MIM which commands it would run, without running them.
ASK_MIM = """
import contextlib, io, json, subprocess, sys
from mim.commands.train import train

commands = []
subprocess.check_output = lambda command: b'--launcher'
subprocess.check_call = lambda command, env: commands.append(command[1:3]) or 0
for config in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()):
        train('mmdet-ld-plugin', config, gpus=0)
print(json.dumps(commands))
"""


def run(*command: object, cwd: Path) -> str:
    """Run a command and return what it prints; show it all if the command fails."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def pip(*arguments: object, cwd: Path, python: Path | None = None) -> str:
    target = () if python is None else ('--python', python)
    return run(sys.executable, '-m', 'pip', *target, *arguments, cwd=cwd)


@pytest.fixture(scope='module')
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree, with a config of its own."""
    copy = tmp_path_factory.mktemp('source')
    for name in ('setup.py', 'pyproject.toml', 'LICENSE', 'README.md'):
        shutil.copy(ROOT / name, copy)
    for name in ('ld_plugin', 'configs', 'tools'):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__'))
    probe = copy / 'configs' / 'probe'
    probe.mkdir()
    (probe / PROBE).write_text(PROBE_CONFIG)
    (probe / 'packaging_probe_base.py').write_text(PROBE_BASE)
    return copy


@pytest.fixture(scope='module')
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('wheel')
    before = files(source)
    pip('wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', folder, '.', cwd=source)
    assert files(source) == before, 'building a wheel leaves nothing in the source tree'
    (path,) = folder.glob('*.whl')
    return path


@pytest.fixture(scope='module')
def installed(
    source: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """For each kind of install, the interpreter of an environment that has it.

    The environments hold only the plugin, and see the packages of the one that runs the tests.
    """
    interpreters = {}
    for kind, what in zip(KINDS, ((wheel,), ('-e', source)), strict=True):
        venv = tmp_path_factory.mktemp(kind)
        run(sys.executable, '-m', 'venv', '--without-pip', venv, cwd=source)
        python = venv / 'bin' / 'python'
        (site_packages,) = venv.glob('lib/python*/site-packages')
        (site_packages / 'shared.pth').write_text(shared_packages())
        options = ('--no-deps', '--no-build-isolation', '--no-index', '--ignore-installed')
        pip('install', *options, *what, cwd=source, python=python)
        interpreters[kind] = python
    return interpreters


def shared_packages() -> str:
    """A .pth file: the packages of this environment, and setuptools' stand-in for distutils.

    Python 3.12 has no distutils any more, mmengine imports it, and .pth files of a folder that is
    only on the path are not read.
    """
    folder = Path(sysconfig.get_path('purelib'))
    stand_in = folder / 'distutils-precedence.pth'
    return f'{folder}\n{stand_in.read_text() if stand_in.is_file() else ""}'


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A user's folder, with a config of their own."""
    (tmp_path / 'mine.py').write_text(PROBE_CONFIG)
    (tmp_path / 'packaging_probe_base.py').write_text(PROBE_BASE)
    (tmp_path / 'probe_module.py').write_text(PROBE_MODULE)
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}


def names_in(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_wheel_brings_configs_and_tools(source: Path, wheel: Path) -> None:
    names = names_in(wheel)
    expected = {
        f'ld_plugin/.mim/{path.relative_to(source)}'
        for files in ('configs/**/*.py', 'configs/**/*.md', 'tools/**/*.py')
        for path in source.glob(files)
    }
    assert f'ld_plugin/.mim/configs/probe/{PROBE}' in expected
    assert expected <= names
    assert [name for name in names if name.endswith('.dist-info/licenses/LICENSE')]
    assert not [name for name in names if name.endswith(('.sh', '.pyc')) or 'tests/' in name]


def test_wheel_of_the_source_distribution_is_the_same(
    source: Path, wheel: Path, tmp_path: Path
) -> None:
    tree = tmp_path / 'tree'  # a copy, because a source distribution writes its file list beside it
    shutil.copytree(source, tree)
    build = f'from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})'
    run(sys.executable, '-c', build, cwd=tree)
    (archive,) = tmp_path.glob('*.tar.gz')
    pip(
        *('wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', tmp_path, archive),
        cwd=tmp_path,
    )
    (rebuilt,) = tmp_path.glob('*.whl')
    assert names_in(rebuilt) == names_in(wheel)


def test_metadata_leaves_the_family_to_the_extras(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith('.dist-info/METADATA')]
    lines = archive.read(name).decode().splitlines()
    assert f'Version: {__version__}' in lines
    assert 'Requires-Python: <3.13,>=3.10' in lines
    extras = {line.split()[-1] for line in lines if line.startswith('Provides-Extra:')}
    assert extras == {'onedl', 'openmmlab', 'rotated', 'dev'}
    needed = [
        re.fullmatch(r'Requires-Dist: ([\w-]+)[^;]*(?:; extra == "(\w+)")?', line).groups()
        for line in lines
        if line.startswith('Requires-Dist:')
    ]
    assert [name for name, extra in needed if extra is None] == ['numpy', 'torch']
    assert ('onedl-mmrotate', 'rotated') in needed


@pytest.mark.parametrize('kind', KINDS)
def test_mim_finds_a_config_by_name_and_by_path(
    kind: str, installed: dict[str, Path], source: Path, elsewhere: Path
) -> None:
    python = installed[kind]
    # A run in the source tree leaves its config there; it must not get in the way of the next.
    (source / 'work_dirs').mkdir(exist_ok=True)
    (source / 'work_dirs' / 'config.py').write_text(PROBE_CONFIG)
    by_name, by_path = json.loads(
        run(python, '-c', ASK_MIM, PROBE, 'mine.py', cwd=elsewhere).splitlines()[-1]
    )
    home = source
    if kind == 'wheel':
        (home,) = python.parent.parent.glob('lib/python*/site-packages/ld_plugin/.mim')
    assert by_name == [str(home / 'tools/train.py'), str(home / 'configs/probe' / PROBE)]
    assert by_path == [str(home / 'tools/train.py'), 'mine.py']


def test_mim_trains_a_config_by_name(
    installed: dict[str, Path], elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('PYTHONPATH', str(elsewhere))  # for the config's custom_imports
    mim = 'from mim.__main__ import cli; cli()'
    output = run(
        *(installed['wheel'], '-c', mim, 'train', 'mmdet-ld-plugin', PROBE, '--gpus', '0'),
        cwd=elsewhere,
    )
    assert 'Training finished successfully' in output
    work_dir = elsewhere / 'work_dirs' / Path(PROBE).stem
    assert (work_dir / 'epoch_1.pth').exists()
    assert (work_dir / 'config.py').exists()
    assert not list(work_dir.rglob(PROBE)), 'a second config of that name would confuse MIM'


def test_config_names_are_unambiguous() -> None:
    """MIM finds a config by its name alone, in an editable install below `.venv` too."""
    ours = [path.name for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts]
    assert [name for name, count in Counter(ours).items() if count > 1] == []
    site_packages = Path(sysconfig.get_path('purelib'))
    stock = {path.name for path in site_packages.glob('mm*/.mim/configs/**/*.py')}
    assert stock, 'mmdet is installed without its configs'
    assert sorted(stock.intersection(ours)) == []
