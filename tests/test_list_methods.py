"""`tools/list_methods.py`: the table of what works with what, and that the README shows it."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import list_methods
import pytest

from ld_plugin import recipes
from ld_plugin.dense import registered_heads
from ld_plugin.dense.readers.base import _READERS
from ld_plugin.registry import DISTILLERS

ROOT = Path(__file__).resolve().parents[1]


COMMAND = 'python tools/list_methods.py --update README.md'


def own_heads() -> list[str]:
    """Without those that other tests registered in this process."""
    return [h for h in registered_heads() if _READERS[h].__module__.startswith('ld_plugin.')]


@pytest.fixture(scope='module', autouse=True)
def only_own_heads() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_methods, 'registered_heads', own_heads)
        yield


@pytest.fixture(scope='module')
def specs() -> dict:
    pytest.importorskip('mmrotate', reason='its heads have rows, too')
    return list_methods.read_specs()


@pytest.fixture(scope='module')
def refusals(specs: dict) -> dict:
    return list_methods.try_all(specs)


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip('| ').split('|')] for line in table.splitlines()]


def test_readme_shows_the_tables(
    tmp_path: Path, specs: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(list_methods, 'read_specs', lambda: specs)
    readme = (ROOT / 'README.md').read_text()
    (tmp_path / 'README.md').write_text(readme)
    list_methods.main(['--update', str(tmp_path / 'README.md')])
    assert (tmp_path / 'README.md').read_text() == readme, f'run {COMMAND}'


def test_every_head_and_every_recipe_is_there(refusals: dict) -> None:
    header, _, *rows = cells(list_methods.head_table(refusals))
    assert {row[0].strip('`') for row in rows} >= set(own_heads())
    listed = [name.strip(' `') for column in header[1:] for name in column.split(',')]
    public = [n for n, r in vars(recipes).items() if isinstance(r, dict) and n[0] != '_']
    assert sorted(listed) == sorted(public)
    assert all(set(row[1:]) <= {'yes', '–'} for row in rows)


def test_cells_are_tried(refusals: dict) -> None:
    assert refusals['GFLHead']['ld_full'] == ''
    assert refusals['DistributionRetinaHead']['ld_retina'] == ''
    assert 'without distributions' in refusals['RetinaHead']['ld_full']
    assert 'no head features' in refusals['TOODHead']['crosskd']
    assert refusals['RPNHead']['defeat_two_stage'] == ''
    assert 'no rois' in refusals['GFLHead']['defeat_two_stage']
    assert all(of_head['pkd'] == '' for of_head in refusals.values())


def test_reasons(
    specs: dict, refusals: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(list_methods, 'read_specs', lambda: specs)
    list_methods.main(['--reasons'])
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith('- `GFLHead`, ')]
    assert line.startswith('- `GFLHead`, `defeat_two_stage`: model.distillers.defeat_roi: ')
    lines = [line for line in printed.splitlines() if line.startswith('- `TOODHead`, ')]
    reasons = set(refusals['TOODHead'].values()) - {''}
    assert len(reasons) > 1
    assert {line.split('`: ', 1)[1] for line in lines} == reasons


def test_a_dash_that_the_terminal_has_no_letter_for(
    specs: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(list_methods, 'read_specs', lambda: {'GFLHead': specs['GFLHead']})
    shown = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    monkeypatch.setattr(list_methods, 'distiller_table', lambda specs: '')
    monkeypatch.setattr(sys, 'stdout', shown)
    list_methods.main([])
    shown.flush()
    assert rb'\u2013' in shown.buffer.getvalue()


def test_every_distiller_is_there(specs: dict) -> None:
    _, _, *rows = cells(list_methods.distiller_table(list(specs.values())))
    assert [row[0].strip('`') for row in rows] == sorted(DISTILLERS.module_dict)
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name['`QualityDistiller`'] == ['quality', '`MainRegion`', '`BinaryKDLoss`']


def test_a_recipe_of_its_own_has_a_column(specs: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    quality = dict(it=dict(type='QualityDistiller'))
    monkeypatch.setattr(list_methods, 'RECIPES', dict(bckd=recipes.bckd, mine=quality))
    few = {name: specs[name] for name in ('GFLHead', 'ATSSHead')}
    table = cells(list_methods.head_table(list_methods.try_all(few)))
    assert table[0] == ['head', '`bckd`', '`mine`']
    assert table[2:] == [['`GFLHead`', 'yes', '–'], ['`ATSSHead`', 'yes', 'yes']]


def test_a_head_without_a_config_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(list_methods, 'registered_heads', lambda: ['GFLHead', 'MyHead'])
    with pytest.raises(SystemExit, match='MyHead'):
        list_methods.read_specs()


def test_a_file_without_the_comments_is_refused() -> None:
    with pytest.raises(SystemExit, match='list_methods'):
        list_methods.with_tables('nothing', 'table')


def test_a_file_that_is_not_there_is_refused_before_anything_is_tried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(list_methods, 'read_specs', None)
    with pytest.raises(SystemExit):
        list_methods.main(['--update', 'nowhere/README.md'])
    assert '--update: there is no file nowhere/README.md' in capsys.readouterr().err


def test_heads_of_packages_that_are_not_there_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = {name: list_methods.CONFIGS[name] for name in ('GFLHead', 'RotatedFCOSHead')}
    monkeypatch.setattr(list_methods, 'CONFIGS', configs)
    monkeypatch.setattr(list_methods, 'registered_heads', lambda: ['GFLHead'])
    monkeypatch.setattr(list_methods, 'is_installed', lambda package: package != 'mmrotate')
    assert list(list_methods.read_specs()) == ['GFLHead']
