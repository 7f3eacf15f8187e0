"""The speed measurement: what its table and file hold, and that its memory accounting adds up."""

import argparse
import json
from pathlib import Path

import benchmark_speed as benchmark
import pytest
import torch
from mmengine.registry import DefaultScope

from ld_plugin.detectors.packed_convolution import PackedConv2d

ROOT = Path(__file__).resolve().parents[1]


OPTIONS = '--teacher 18 --channels 32 --size 64 --rounds 2 --threads 1 --recipes ld_full'
FP32, BF16 = 'ld_full, fp32', 'ld_full, bf16'


@pytest.fixture(scope='module')
def results(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The file that a run in small writes."""
    path = tmp_path_factory.mktemp('speed') / 'speed.json'
    assert benchmark.main([*OPTIONS.split(), '--json', str(path)]) == 0
    return json.loads(path.read_text())


@pytest.fixture(scope='module')
def steps(results: dict) -> dict[str, dict]:
    return {row['name']: row for row in results['steps']}


def _skip_without_package(detector: str) -> None:
    pytest.importorskip(benchmark.DETECTORS[detector].scope)


def test_every_way_is_measured_on_both_clocks(steps: dict[str, dict]) -> None:
    teachers = ['teacher, eager fp32', 'teacher, fp32', 'teacher, bf16']
    assert sorted(steps) == sorted(
        ['student alone', 'floor', 'mmdet LDHead', FP32, BF16, *teachers]
    )
    for row in steps.values():
        assert all(row['milliseconds'][clock] > 0 for clock in ('wall', 'processor'))
    assert steps['floor']['to_floor'] == {'wall': 1, 'processor': 1}
    assert steps['mmdet LDHead']['to_ld_head'] == {'wall': 1, 'processor': 1}


@pytest.mark.parametrize(
    ('detector', 'recipes'),
    [
        ('rotated-retinanet', ['rotated_ld_kld', 'bckd']),
        ('rotated-atss', ['bckd']),
        ('dist-rotated-fcos', ['ld_point']),
        ('rotated-rtmdet', ['bckd']),
        ('faster-rcnn', ['defeat_two_stage', 'pkd']),
        ('oriented-rcnn', ['defeat_two_stage']),
        ('roi-transformer', ['defeat_two_stage']),
    ],
)
def test_measures_other_students(detector: str, recipes: list[str], tmp_path: Path) -> None:
    _skip_without_package(detector)
    is_rtmdet = detector == 'rotated-rtmdet'
    # a group of the group norm's has two channels, as the last level has one cell
    sizes = '--teacher tiny --student tiny' if is_rtmdet else '--teacher 18 --channels 64'
    options = OPTIONS.replace('ld_full', ' '.join(recipes))
    options = options.replace('--teacher 18 --channels 32', sizes)
    path = tmp_path / 'speed.json'
    command = [*options.split(), '--detector', detector, '--batch', '1', '--json', str(path)]
    assert benchmark.main(command) == 0
    rows = {row['name']: row for row in json.loads(path.read_text())['steps']}
    assert 'mmdet LDHead' not in rows
    for name in (f'{recipe}, {p}' for recipe in recipes for p in benchmark.PRECISIONS):
        assert rows[name]['to_floor']['processor'] > 0
        assert rows[name]['peak_to_budget'] > 0.9


@pytest.mark.parametrize(
    ('detector', 'sizes', 'outputs'),
    [
        ('faster-rcnn', [5], [(81, 80 * 4)]),
        ('cascade-rcnn', [5, 5, 5], [(81, 4)] * 3),
        ('oriented-rcnn', [6], [(16, 5)]),
        ('roi-transformer', [5, 6], [(16, 5), (16, 15 * 5)]),
    ],
)
def test_the_eager_teacher_classifies_as_many_boxes_as_the_student_samples(
    detector: str, sizes: list[int], outputs: list[tuple[int, int]]
) -> None:
    _skip_without_package(detector)
    options = f'--detector {detector} --teacher 18 --channels 32 --size 64 --objects 3'
    with DefaultScope.overwrite_default_scope(benchmark.DETECTORS[detector].scope):
        bench = benchmark.Bench(benchmark.parse_args(options.split()))
    cfgs = benchmark.stages(bench.student.train_cfg.rcnn)
    for rois, size, cfg in zip(bench.rois, sizes, cfgs, strict=True):
        images, counts = rois[:, 0].unique(return_counts=True)
        assert images.tolist() == [0, 1]
        assert counts.tolist() == [cfg.sampler.num] * 2
        assert rois.shape[1] == size
    _, _, *classified = bench._look()  # what comes first is the RPN's
    widths = [width for stage in outputs for width in stage]
    number = len(bench.rois[0])
    assert [tuple(out.shape) for out in classified] == [(number, width) for width in widths]


@pytest.mark.parametrize(
    ('options', 'found'),
    [
        ('--teacher 19', "--teacher: '19' is no size of gfl: ('18', '34', '50', '101')"),
        ('--detector rotated-rtmdet --student 18', "--student: '18' is no size of rotated-rtmdet"),
        ('--detector rotated-rtmdet --channels 64', '--channels: those of rotated-rtmdet go with'),
    ],
)
def test_sizes_are_those_of_the_detector(
    options: str, found: str, capsys: pytest.CaptureFixture
) -> None:
    if 'rotated' in options:
        pytest.importorskip('mmrotate')
    with pytest.raises(SystemExit):
        benchmark.parse_args(options.split())
    assert found in capsys.readouterr().err


@pytest.mark.parametrize(
    ('options', 'found'),
    [
        (['--json', 'nowhere/speed.json'], '--json: found nowhere/speed.json, expected a file in'),
        (['--json', '.'], '--json: found ., expected a file in a folder that is there'),
        (['--recipes', 'pkd', 'pkd'], '--recipes: found pkd 2 times, expected each value once'),
    ],
)
def test_options_are_looked_at_before_the_measurement(
    options: list[str], found: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        benchmark.parse_args(options)
    assert found in capsys.readouterr().err


def test_a_recipe_that_does_not_fit_is_named() -> None:
    options = '--detector retinanet --teacher 18 --channels 32 --size 64 --recipes ld_main'
    with pytest.raises(SystemExit, match=r'^--recipes: model\.distillers\.ld: the student'):
        benchmark.main(options.split())


def test_ratios_are_taken_within_a_round() -> None:
    """The machine got ten times slower halfway; the ratio is 2 throughout."""
    fast = torch.tensor([[1.0, 1.0], [1.0, 1.0], [10.0, 10.0]]).numpy()
    cases = [
        benchmark.Case(name, torch.nn.Identity(), None, int, seconds=list(map(tuple, seconds)))
        for name, seconds in (
            (benchmark.ALONE, fast),
            (benchmark.FLOOR, fast),
            (benchmark.LD_HEAD, 2 * fast[::-1]),
            ('recipe', 2 * fast),
        )
    ]
    for case in cases:
        case.peak = 1
    recipe = benchmark.summary(cases)[-1]
    assert recipe['milliseconds'] == {'wall': 2000, 'processor': 2000}
    assert recipe['to_floor'] == {'wall': 2, 'processor': 2}
    assert recipe['to_ld_head'] == {'wall': 1, 'processor': 1}


def test_memory_adds_up(steps: dict[str, dict]) -> None:
    alone, fp32, bf16 = steps['student alone'], steps[FP32], steps[BF16]
    weights = fp32['teacher_megabytes']
    assert 40 < weights < 50  # 11 million of the backbone, and a narrow neck and head
    assert 0.5 * weights < bf16['teacher_megabytes'] < 0.55 * weights
    assert alone['teacher_megabytes'] == 0
    # a student of equal size keeps weights and gradients, so it needs at least twice its weights
    assert alone['peak_megabytes'] > 1.9 * weights
    for row in (fp32, bf16, steps['mmdet LDHead']):
        total = alone['peak_megabytes'] + row['teacher_megabytes']
        assert row['peak_to_budget'] == pytest.approx(row['peak_megabytes'] / total)
        assert 0.95 < row['peak_to_budget'] < 1.1
    assert steps['teacher, fp32']['peak_to_budget'] is None


def test_work_adds_up(steps: dict[str, dict]) -> None:
    work = {name: row['billion_multiplications'] for name, row in steps.items()}
    assert work['teacher, eager fp32'] > 0.1
    assert work['teacher, fp32'] == work['teacher, bf16'] == work['teacher, eager fp32']
    # backward takes twice the work of forward, but for the frozen layers
    assert 2.2 * work['teacher, eager fp32'] < work['student alone']
    floor = work['student alone'] + work['teacher, eager fp32']
    assert [work[row] for row in ('floor', 'mmdet LDHead', FP32, BF16)] == pytest.approx(
        [floor] * 4
    )


def test_multiplications_of_convolutions_and_products() -> None:
    conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    image, row = torch.ones(2, 3, 8, 8), torch.ones(1, 7)
    once = 2 * 5 * (8 * 8) * 3 * (3 * 3)

    def run() -> None:
        with torch.no_grad():
            conv(image)
            row @ row.T + row.sum()
        conv(image).sum().backward()  # and the gradient of the weights, as often

    assert benchmark.multiplications_in(run) == 3 * once + 7
    conv.requires_grad_(False)
    PackedConv2d.convert(conv)
    assert benchmark.multiplications_in(lambda: conv(image)) == once
    image.requires_grad_()
    assert benchmark.multiplications_in(lambda: conv(image).sum().backward()) == 2 * once


def test_peak_counts_what_is_alive_at_once() -> None:
    before = torch.zeros(1_000_000)

    def run() -> None:
        first = before + 1  # 4 MB
        second = first * 2  # 8 MB
        del first
        (second + 3).sum().item()  # 8 MB

    assert benchmark.peak_of(run, torch.device('cpu')) == pytest.approx(8e6, rel=1e-3)


def test_region_is_compared_at_full_size(results: dict) -> None:
    region = results['region']
    assert (region['priors'], region['ground_truths']) == (22400, 50)
    for clock, speedup in region['speedup'].items():
        assert region['milliseconds'][clock] < region['sorting_milliseconds'][clock]
        assert speedup > 1


def test_table_has_a_line_per_case(results: dict) -> None:
    lines = benchmark.table(results['steps'], results['region']).splitlines()
    for row in results['steps']:
        line = next(line for line in lines if line.startswith(f'{row["name"]}  '))
        columns = []
        for clock in ('wall', 'processor'):
            columns.append(f'{row["milliseconds"][clock]:.1f}')
            ratios = [row[key][clock] for key in ('to_floor', 'to_ld_head')]
            columns += [f'{ratio:.3f}' for ratio in ratios]
        for key in ('billion_multiplications', 'peak_megabytes', 'teacher_megabytes'):
            columns.append(f'{row[key]:.1f}')
        if row['peak_to_budget'] is not None:
            columns.append(f'{row["peak_to_budget"]:.3f}')
        assert line.removeprefix(row['name']).split() == columns
    assert any('22400 priors x 50 ground truths' in line for line in lines)


def test_threads_are_those_of_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reached(Exception):
        pass

    def bench(options: argparse.Namespace) -> None:
        raise Reached

    found: list[int] = []
    monkeypatch.setattr(torch, 'set_num_threads', found.append)
    monkeypatch.setattr(benchmark, 'Bench', bench)
    for options in ([], ['--threads', '3']):
        with pytest.raises(Reached):
            benchmark.main(options)
    assert found == [2, 3]


def test_every_recipe_is_a_choice() -> None:
    assert {'ld_main', 'ld_kd', 'ld_full', 'ld_voc', 'imitation_gi'} <= set(benchmark.RECIPES)
    of_one_stage = benchmark.parse_args([]).recipes
    assert set(benchmark.RECIPES) - set(of_one_stage) == {'defeat_two_stage'}
    with pytest.raises(SystemExit):
        benchmark.parse_args(['--recipes', 'ld_ful'])
