from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import needs
from tests.golden_check import CHECKS, check_file, main
from tests.golden_variants import bckd, crosskd, defeat, ld, pgfi, rank, rotated

SHIPPED = Path(__file__).parent / 'data' / 'golden'
METHODS = sorted(CHECKS)
VARIANTS = {
    'bckd': lambda seed: bckd.BCKD(seed).arrays(),
    'crosskd': crosskd.crosskd,
    'defeat': defeat.defeat,
    'im_regions': ld.im_regions,
    'kd_kl': ld.kd_kl,
    'ld_head': lambda seed: ld.LDHead(seed).arrays(),
    'pgfi': pgfi.pgfi,
    'rank_mimic': rank.rank_mimic,
    'rotated_ld': rotated.rotated_ld,
    'vlr_region': ld.vlr_region,
}
WITH_RESULTS = sorted(VARIANTS.keys() - {'im_regions', 'vlr_region'})


def with_needs(method: str) -> Any:
    return pytest.param(method, marks=needs.mmrotate if method == 'rotated_ld' else ())


def read(method: str) -> dict[str, np.ndarray]:
    with np.load(SHIPPED / f'{method}_a.npz') as archive:
        return {name: archive[name] for name in archive.files}


def write(folder: Path, method: str, arrays: dict[str, np.ndarray]) -> Path:
    path = folder / f'{method}_x.npz'
    np.savez(path, **arrays)
    return path


def statuses(path: Path) -> Counter:
    return Counter(status for _, status in check_file(path))


def make(method: str) -> dict[str, np.ndarray]:
    return VARIANTS[method](seed=1)


def is_result(name: str) -> bool:
    return ('_loss' in name or '_grad' in name) and not name.endswith('loss_weight')


@needs.mmrotate
def test_shipped_files_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(SHIPPED)]) == 0
    *lines, summary = capsys.readouterr().out.splitlines()
    apart = sum('not comparable: ' in line for line in lines)
    assert summary == f'{apart} not comparable, {len(lines) - apart} ok'
    assert {line.split()[0] for line in lines} == {f'{method}_a.npz' for method in METHODS}


@pytest.mark.parametrize('seed', [1, 2, 3])
@pytest.mark.parametrize('method', map(with_needs, VARIANTS))
def test_files_with_other_sizes_agree(tmp_path: Path, method: str, seed: int) -> None:
    found = statuses(write(tmp_path, method, VARIANTS[method](seed)))
    assert found['ok'] > 10
    assert found['FAIL'] == found['not implemented'] == 0


def test_permuted_images_agree(tmp_path: Path) -> None:
    arrays = read('ld_head')
    images = len(arrays['num_gts'])
    order = np.arange(images)[::-1]
    permuted = {
        # the pairs of decoupled imitation depend on the order of the images
        name: value[order] if name.startswith('lvl') or name in ('pad_hw', 'num_gts') else value
        for name, value in arrays.items()
        if 'decouple' not in name
    }
    permuted['gt_image'] = np.argsort(order)[arrays['gt_image']]
    found = statuses(write(tmp_path, 'ld_head', permuted))
    assert set(found) == {'ok'}


@pytest.mark.parametrize('make', [read, make], ids=['shipped', 'made'])
@pytest.mark.parametrize('method', map(with_needs, WITH_RESULTS))
def test_every_wrong_result_is_found(
    tmp_path: Path, method: str, make: Callable[[str], dict[str, np.ndarray]]
) -> None:
    arrays = make(method)
    # one that is NaN throughout, where the reference raised, says nothing
    results = [n for n, x in arrays.items() if is_result(n) and not np.isnan(x).all()]
    for name in results:
        # all zeros must be zeros exactly, anything else is wrong by a little
        wrong = 1e-6 if not np.nan_to_num(arrays[name]).any() else 1e-3 * arrays[name]
        arrays[name] = np.float32(arrays[name] + wrong)
    lines = list(check_file(write(tmp_path, method, arrays)))
    checked = {line.split()[1]: status for line, status in lines if is_result(line.split()[1])}
    assert set(checked.values()) <= {'FAIL', 'not comparable'}
    # a line may say something of several levels
    assert [name for name in results if not any(fnmatch(name, row) for row in checked)] == []


@pytest.mark.parametrize(
    ('method', 'name'),
    [
        ('defeat', 'mask_lvl2'),
        ('defeat', 'mask_gt_level'),
        ('im_regions', 'img0_im_finegrained'),
        ('im_regions', 'img0_im_in_gt'),
        ('im_regions', 'gi0_idx'),
        ('im_regions', 'gi1_dbg_score'),
        ('im_regions', 'gi2_dbg_box'),
        ('ld_head', 'lvl1_grad_bbox_pred_of_loss_ld'),
        ('ld_head', 'lvl0_labels'),
        ('ld_head', 'lvl0_vlr_region'),
        ('vlr_region', 'img0_vlr_region'),
        ('vlr_region', 'img0_assign_gt_inds'),
        ('vlr_region', 'img0_assign_max_overlaps'),
        ('vlr_region', 'img0_thr'),
    ],
)
def test_one_wrong_number_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, name: str
) -> None:
    arrays = read(method)
    place = np.unravel_index(arrays[name].argmax(), arrays[name].shape)
    arrays[name][place] -= max(1e-3 * arrays[name][place], arrays[name].dtype.kind == 'i')
    write(tmp_path, method, arrays)
    assert main([str(tmp_path)]) == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    assert 'FAIL' in summary
    quantity = name.replace('lvl0', 'lvl*') if 'grad' not in name else name
    assert any(quantity in line and line.endswith('FAIL') for line in lines)


def test_nan_does_not_pass(tmp_path: Path) -> None:
    arrays = read('kd_kl')
    arrays['T2_loss_none'][3] = np.nan
    assert statuses(write(tmp_path, 'kd_kl', arrays))['FAIL'] == 1


def test_another_shape_does_not_pass(tmp_path: Path) -> None:
    arrays = read('kd_kl')
    arrays['T2_loss_none'] = arrays['T2_loss_none'][:-1]
    (line,) = (l for l, status in check_file(write(tmp_path, 'kd_kl', arrays)) if status == 'FAIL')
    assert line.endswith('FAIL: shape (40,), expected (39,)')


def test_a_missing_input_fails(tmp_path: Path) -> None:
    arrays = read('kd_kl')
    del arrays['T2_soft']
    lines = [line for line, _ in check_file(write(tmp_path, 'kd_kl', arrays))]
    assert lines[-1].endswith("FAIL: array 'T2_soft' is missing")


def test_an_unknown_array_is_named(tmp_path: Path) -> None:
    arrays = read('kd_kl') | {'T2_something': np.zeros(3)}
    found = statuses(write(tmp_path, 'kd_kl', arrays))
    assert found['not implemented'] == 1


def test_other_methods_are_listed_and_do_not_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / 'rank_of_something_a.npz', x=np.zeros(3))
    assert main([str(tmp_path)]) == 0
    line, summary = capsys.readouterr().out.splitlines()
    assert line.split() == ['rank_of_something_a.npz', 'not', 'implemented']
    assert summary == '1 not implemented'


@pytest.mark.parametrize('kept', [0, 100, 0.5, 0.99])
def test_a_truncated_file_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: float
) -> None:
    whole = (SHIPPED / 'kd_kl_a.npz').read_bytes()
    size = kept if kept >= 1 else int(kept * len(whole))
    (tmp_path / 'kd_kl_a.npz').write_bytes(whole[:size])
    assert main([str(tmp_path)]) == 1
    assert 'FAIL: cannot be read' in capsys.readouterr().out


def test_a_damaged_file_fails(tmp_path: Path) -> None:
    damaged = bytearray((SHIPPED / 'kd_kl_a.npz').read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path = tmp_path / 'kd_kl_a.npz'
    path.write_bytes(damaged)
    assert statuses(path) == {'FAIL': 1}


@pytest.mark.parametrize(
    ('folder', 'message'), [('none', 'is not a folder'), ('', 'holds no .npz')]
)
def test_nothing_to_check_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str, message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / folder)])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
