"""Which packages count as installed, and that the core asks nothing else for it."""

import subprocess
import sys
from pathlib import Path

import pytest

from ld_plugin.packages import how_to_install_mmrotate, is_installed


def test_a_folder_of_the_name_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'a_clone').mkdir()
    (tmp_path / 'a_package').mkdir()
    (tmp_path / 'a_package/__init__.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    names = 'a_clone', 'a_package', 'mmdet', 'there_is_none'
    assert [is_installed(name) for name in names] == [False, True, True, False]


@pytest.mark.parametrize(
    ('family', 'expected'),
    [
        ('onedl_mmdetection', "pip install '.[rotated]'"),
        ('mmdet', "see the README's Versions: [rotated] is of the maintained family of packages"),
    ],
)
def test_the_extra_is_recommended_to_its_own_family(
    family: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / f'{family}-3.3.0.dist-info' / 'METADATA'
    metadata.parent.mkdir()
    metadata.write_text(f'Metadata-Version: 2.1\nName: {family}\nVersion: 3.3.0\n')
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    assert how_to_install_mmrotate('.') == expected


def test_the_core_imports_where_mmengine_cannot_tell() -> None:
    """As in the original family, beside setuptools 82, which has no pkg_resources."""
    program = (
        'import mmdet.models, mmengine.utils, mmengine.utils.package_utils as package_utils\n'
        'def is_installed(package): raise ModuleNotFoundError("pkg_resources")\n'
        'mmengine.utils.is_installed = package_utils.is_installed = is_installed\n'
        'import ld_plugin\n'
        'import ld_plugin.detectors, ld_plugin.heads\n'
    )
    subprocess.run([sys.executable, '-c', program], check=True)
