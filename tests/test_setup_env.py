"""The set-up of an environment: what it says, what it repairs, what it leaves alone.

The scripts run in a copy, with a PATH that holds a few system programs and made-up interpreters.
These answer what the set-up asks, write down what it lets pip do, and fail where a test wants it.
"""

import fcntl
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import check_env
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ('setup_env.sh', 'check_env.py', 'test.sh', 'demo.sh')
SYSTEM_PROGRAMS = 'awk bash cat cp dirname env flock getconf grep mkdir rm sed sleep tail touch'

# FAKE is a folder of files that say how the interpreter behaves: `no-venv`, `no-cv2`, ... by being
# there, `pip-fails-at` by a word of the pip command that fails, `pip-says` by what it prints then.
# An environment is complete when the plugin was installed into it.
INTERPRETER = r"""#!/usr/bin/env bash
here="$(dirname "$(dirname "$0")")"
if [[ -e $FAKE/needs-own-settings ]]; then
    [[ $MPLBACKEND == Agg && -z ${PYTHONSAFEPATH+set}${PYTHONHOME+set} ]] || exit 1
fi
case "$*" in
    *base_prefix*) echo "$(dirname "$FAKE")/bin/python3.11" ;;
    *version_info*) [[ ! -e $FAKE/old-python ]] ;;
    *get_path*) echo "$FAKE/include" ;;
    *ensurepip*) [[ ! -e $FAKE/no-venv ]] ;;
    --version) echo 'Python 3.11.0' ;;
    '-m venv '*)
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        echo "#!$3/bin/python" >"$3/bin/pip"
        ;;
    *'check_env.py quick')
        [[ -e $here/complete ]] || { echo 'torch torch: not installed' >&2; exit 1; }
        cat "$here/complete"
        ;;
    *'check_env.py full')
        if [[ -e $FAKE/broken ]]; then
            cat "$FAKE/broken"
            [[ -e $FAKE/hopeless ]] || rm "$FAKE/broken"
            exit 1
        fi
        ;;
    *'check_env.py ops') [[ ! -e $FAKE/stale-ops ]] || { rm "$FAKE/stale-ops"; exit 1; } ;;
    *'import cv2'*) [[ ! -e $FAKE/no-cv2 ]] ;;
    *'version("opencv-python")'*) echo 4.5 ;;
    *' pip '*)
        command="$*"
        command="${command#*--disable-pip-version-check }"
        [[ "$command" != --version ]] || exit 0
        echo "$command" >>"$FAKE/pip-calls"
        if [[ -e $FAKE/pip-fails-at && "$command" == *"$(cat "$FAKE/pip-fails-at")"* ]]; then
            cat "$FAKE/pip-says"
            exit 1
        fi
        [[ "$command" != *onedl-mmcv* ]] || echo "$MMCV_WITH_OPS $MAX_JOBS" >"$FAKE/mmcv-settings"
        [[ "$command" != *opencv-python-headless* ]] || rm "$FAKE/no-cv2"
        [[ "$command" != *' -e '* ]] || echo "fingerprint of $here" >"$here/complete"
        ;;
    -) [[ ! -e $FAKE/no-nvcc ]] ;;
    *)
        [[ $PATH == "$(dirname "$0"):"* ]] || echo 'programs of another environment come first'
        echo "ran: $*"
        ;;
esac
"""


@dataclass
class Machine:
    """A clone on a machine with the programs in `bin`, its interpreters obeying `fake`."""

    clone: Path
    bin: Path
    fake: Path
    environ: dict[str, str] = field(default_factory=dict)

    def run(
        self, script: str = 'setup_env.sh', *arguments: str, inside: bool = False
    ) -> subprocess.CompletedProcess:
        """Run a script, from another folder or, by its relative path, from inside the clone."""
        bash, folder = self.bin / 'bash', Path('tools') if inside else self.clone / 'tools'
        return subprocess.run(
            [bash, folder / script, *arguments],
            cwd=self.clone if inside else self.bin,
            env={'PATH': str(self.bin), 'FAKE': str(self.fake), **self.environ},
            text=True,
            capture_output=True,
            timeout=60,
        )

    def fails(self) -> str:
        """Run the set-up, which must fail, and return its last line."""
        result = self.run()
        assert result.returncode == 1, result.stderr
        return result.stderr.splitlines()[-1]

    def succeeds(self) -> str:
        """Run the set-up, which must succeed, and return all it says."""
        result = self.run()
        assert result.returncode == 0, result.stderr
        return result.stderr

    def tell(self, name: str, text: str = '') -> None:
        (self.fake / name).write_text(text)

    def pip_calls(self) -> list[str]:
        """What pip was asked to do since the last time this was called."""
        path = self.fake / 'pip-calls'
        calls = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return calls

    def add_disk(self, name: str, free_gb: int) -> None:
        """Let df see a disk of this name, whatever is free on the one of the tests."""
        line = f'{name} 1000000000 1 {free_gb * 2**20} 91% /media/a disk'
        (self.bin / 'df').write_text(f'#!/usr/bin/env bash\necho Filesystem; echo {line!r}\n')
        (self.bin / 'df').chmod(0o755)

    def add_interpreter(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(INTERPRETER)
        path.chmod(0o755)
        return path


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path / 'a clone', tmp_path / 'bin', tmp_path / 'fake')
    (made.clone / 'tools').mkdir(parents=True)
    for script in SCRIPTS:
        shutil.copy(ROOT / 'tools' / script, made.clone / 'tools')
    made.bin.mkdir()
    for program in SYSTEM_PROGRAMS.split():
        if shutil.which(program):  # flock is optional
            (made.bin / program).symlink_to(shutil.which(program))
    for compiler in ('gcc', 'c++'):
        (made.bin / compiler).symlink_to(shutil.which('bash'))
    (made.fake / 'include').mkdir(parents=True)
    (made.fake / 'include' / 'Python.h').touch()
    made.add_interpreter(made.bin / 'python3.11')
    made.add_disk('/dev/sda1', free_gb=10)
    return made


def steps_of(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith('[')]


def test_missing_python(machine: Machine) -> None:
    (machine.bin / 'python3.11').unlink()
    assert 'no Python 3.10, 3.11 or 3.12 found: install one' in machine.fails()
    machine.add_interpreter(machine.bin / 'python3')
    machine.tell('old-python')
    assert 'no Python 3.10, 3.11 or 3.12 found: install one' in machine.fails()


def test_missing_venv_module(machine: Machine) -> None:
    machine.tell('no-venv')
    assert 'python3.11 cannot make virtual environments: install' in machine.fails()


def test_missing_python_headers(machine: Machine) -> None:
    (machine.fake / 'include' / 'Python.h').unlink()
    assert 'python3.11 has no headers' in machine.fails()


@pytest.mark.parametrize(
    ('compiler', 'language', 'variable'), [('gcc', 'C', 'CC'), ('c++', 'C++', 'CXX')]
)
def test_missing_compiler(machine: Machine, compiler: str, language: str, variable: str) -> None:
    (machine.bin / compiler).rename(machine.bin / 'my-compiler')
    assert f'no {language} compiler found, which mmcv needs: install' in machine.fails()
    assert not (machine.clone / '.venv').exists(), 'said before anything is installed'
    machine.environ[variable] = 'my-compiler'
    machine.succeeds()


def test_missing_cuda_toolkit(machine: Machine) -> None:
    machine.tell('no-nvcc')
    assert 'torch sees a GPU, but nvcc is not found' in machine.fails()
    assert not any('onedl-mmcv' in call for call in machine.pip_calls())


@pytest.mark.parametrize(
    ('gpu', 'cuda', 'home', 'missing'),
    [
        (True, '12.8', None, True),
        (True, '12.8', '/usr/local/cuda', False),
        (True, None, None, False),  # of another maker
        (False, '12.8', None, False),
    ],
)
def test_who_needs_the_cuda_toolkit(
    gpu: bool, cuda: str | None, home: str | None, missing: bool, tmp_path: Path
) -> None:
    script = (ROOT / 'tools' / 'setup_env.sh').read_text()
    program = re.search(r"<<'PYTHON' .*\n([^']*?)\nPYTHON\n", script)[1]
    (tmp_path / 'torch' / 'utils').mkdir(parents=True)
    (tmp_path / 'torch' / '__init__.py').write_text(
        f'class cuda: is_available = staticmethod(lambda: {gpu})\nclass version: cuda = {cuda!r}'
    )
    (tmp_path / 'torch' / 'utils' / 'cpp_extension.py').write_text(f'CUDA_HOME = {home!r}')
    done = subprocess.run([sys.executable, '-S', '-c', program], env={'PYTHONPATH': str(tmp_path)})
    assert done.returncode == missing


def test_interpreter_whose_origin_is_gone(machine: Machine) -> None:
    """It says that it was made with python3.11."""
    (machine.bin / 'python3.11').rename(machine.bin / 'python3.12')
    machine.succeeds()


def test_missing_disk_space(machine: Machine) -> None:
    machine.add_disk('/dev/sda1', free_gb=9)
    message = machine.fails()
    assert 'only 9 GB free in' in message
    assert 'needs 10 GB: free some' in message
    machine.environ['SETUP_MIN_GB'] = '4.5'
    assert 'SETUP_MIN_GB: found 4.5, expected a whole number of GB' in machine.fails()
    machine.environ['SETUP_MIN_GB'] = '09'
    machine.succeeds()


def test_disk_space_as_df_of_this_machine_tells_it(machine: Machine) -> None:
    (machine.bin / 'df').unlink()
    (machine.bin / 'df').symlink_to(shutil.which('df'))
    machine.environ['SETUP_MIN_GB'] = '100000000'
    found = re.search(r'only (\d+) GB free in', machine.fails())
    assert found
    assert abs(int(found[1]) - shutil.disk_usage(machine.clone).free / 2**30) < 20


def test_disk_space_of_a_share_with_spaces_in_its_name(machine: Machine) -> None:
    machine.add_disk('//nas/our shared files', free_gb=95)
    machine.environ['SETUP_MIN_GB'] = '96'
    assert 'only 95 GB free in' in machine.fails()
    machine.environ['SETUP_MIN_GB'] = '95'
    machine.succeeds()


def test_clone_that_cannot_be_written_to(machine: Machine) -> None:
    for name in ('.setup_env.lock', '.setup_env.checked'):
        (machine.clone / name).mkdir()  # as root may write where permissions forbid it
    (line,) = machine.run().stderr.splitlines()
    assert line.endswith('activate one, or clone to another folder')
    active = machine.fake / 'active'
    machine.add_interpreter(active / 'bin' / 'python')
    (active / 'complete').write_text('fingerprint')
    machine.environ['VIRTUAL_ENV'] = str(active)
    machine.succeeds()


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ('ERROR: Could not find a version (from versions: none)', 'pip reached no package index'),
        ('Max retries exceeded with url: /simple/torch/', 'pip reached no package index'),
        ('Temporary failure in name resolution', 'pip reached no package index'),
        ('ERROR: Operation cancelled by user', 'torchvision: interrupted'),
        ('OSError: [Errno 28] No space left on device', 'the disk is full'),
        ('c++: fatal error: Killed signal terminated program', 'run again with MAX_JOBS=1'),
        ('error: something else', 'see the lines above'),
    ],
)
def test_what_pip_fails_of(machine: Machine, words: str, message: str) -> None:
    machine.tell('pip-fails-at', 'torch==')
    machine.tell('pip-says', words)
    last_line = machine.fails()
    assert last_line.startswith('set-up: torch and torchvision: ')
    assert message in last_line
    assert 'running the command again goes on from here' in last_line


def test_fresh_machine_then_second_run(machine: Machine) -> None:
    output = machine.succeeds()
    assert [line.split()[0] for line in steps_of(output)] == [f'[{n}/8]' for n in range(1, 9)]
    assert 'environment ready after' in output
    assert 'another set-up' not in output
    calls = machine.pip_calls()
    assert any('torch==' in call for call in calls)
    assert any(call.startswith('install -v --no-build-isolation onedl-mmcv==') for call in calls)
    assert machine.succeeds() == '', 'a second run starts at once'
    assert machine.pip_calls() == []


def test_interrupted_set_up_goes_on(machine: Machine) -> None:
    machine.tell('pip-fails-at', 'onedl-mmcv')
    machine.tell('pip-says', 'interrupted')
    machine.fails()
    machine.pip_calls()
    (machine.fake / 'pip-fails-at').unlink()
    machine.add_disk('/dev/sda1', free_gb=1)  # as torch, which needs it, is there
    output = machine.succeeds()
    assert sum(line.endswith(': there') for line in steps_of(output)) == 3
    calls = machine.pip_calls()
    assert not [call for call in calls if 'torch==' in call]
    assert any('onedl-mmcv' in call for call in calls)


def test_a_step_of_other_versions_is_done_again(machine: Machine) -> None:
    machine.succeeds()
    (machine.clone / '.venv' / '.steps' / 'helpers').write_text('ruff==0.1 pytest')
    (machine.clone / '.venv' / 'complete').unlink()
    machine.pip_calls()
    machine.succeeds()
    helpers, _plugin = machine.pip_calls()
    assert helpers.startswith('install ruff==')


@pytest.mark.parametrize('jobs', ['', '1'])
def test_how_mmcv_is_compiled(machine: Machine, jobs: str) -> None:
    machine.environ['MAX_JOBS'] = jobs
    machine.succeeds()
    with_ops, used = (machine.fake / 'mmcv-settings').read_text().split()
    assert with_ops == '1'
    assert int(used) == int(jobs or os.sysconf('SC_NPROCESSORS_ONLN'))


@pytest.mark.skipif(not shutil.which('flock'), reason='needs flock')
@pytest.mark.parametrize('succeeds', [True, False])
def test_two_set_ups_of_one_clone_wait_for_each_other(machine: Machine, succeeds: bool) -> None:
    machine.succeeds()
    machine.pip_calls()
    complete = machine.clone / '.venv' / 'complete'
    complete.rename(complete.with_name('soon'))
    with (machine.clone / '.setup_env.lock').open() as lock, ThreadPoolExecutor() as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        output = pool.submit(machine.succeeds)
        assert wait([output], timeout=2).not_done
        if succeeds:
            complete.with_name('soon').rename(complete)
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert 'another set-up of this clone is running; waiting' in output.result()
    assert (machine.pip_calls() == []) == succeeds


@pytest.mark.parametrize('state', ['dangling link', 'no pip', 'moved'])
def test_half_built_or_moved_environment_is_made_afresh(machine: Machine, state: str) -> None:
    machine.succeeds()
    venv = machine.clone / '.venv'
    (venv / 'complete').unlink()
    if state == 'dangling link':
        (venv / 'bin' / 'python').unlink()
        (venv / 'bin' / 'python').symlink_to('/nowhere/python')
    elif state == 'no pip':
        (venv / 'bin' / 'pip').unlink()
    else:
        machine.clone = machine.clone.rename(machine.clone.with_name('moved'))
    machine.pip_calls()
    assert 'is half-built, or was made in another place: starting it afresh' in machine.succeeds()
    assert any('torch==' in call for call in machine.pip_calls())


def test_linked_environment_of_another_clone_stays(machine: Machine, tmp_path: Path) -> None:
    other = tmp_path / 'other'
    machine.succeeds()
    shutil.move(machine.clone / '.venv', other)
    (other / 'pyvenv.cfg').touch()
    (other / 'bin' / 'pip').write_text(f'#!{other}/bin/python')
    (machine.clone / '.venv').symlink_to(other)
    (other / 'complete').rename(other / 'was complete')
    assert 'starting it afresh' in machine.succeeds()
    assert (other / 'pyvenv.cfg').is_file()
    assert (other / 'was complete').is_file()
    assert not (machine.clone / '.venv').is_symlink()


def test_environment_is_made_afresh_while_it_is_active(machine: Machine) -> None:
    machine.succeeds()
    venv = machine.clone / '.venv'
    for gone in ('complete', 'bin/pip'):
        (venv / gone).unlink()
    machine.add_interpreter(venv / 'bin' / 'python3.11')  # the first of this name in PATH
    machine.environ |= {'VIRTUAL_ENV': str(venv), 'PATH': f'{venv / "bin"}:{machine.bin}'}
    assert 'is half-built' in machine.succeeds()
    assert (venv / 'complete').exists()


def test_environment_of_somebody_else_is_not_removed(machine: Machine) -> None:
    venv = machine.clone / '.venv'
    machine.add_interpreter(venv / 'bin' / 'python')
    (venv / 'pyvenv.cfg').touch()  # but no pip, as uv leaves it out
    assert f'{venv} was not made by this set-up' in machine.fails()
    assert (venv / 'bin' / 'python').exists()
    (venv / 'bin' / 'pip').write_text(f'#!{venv}/bin/python')
    machine.succeeds()


def test_package_cut_off_while_being_installed_is_installed_over(machine: Machine) -> None:
    machine.succeeds()
    (machine.clone / '.venv' / 'complete').unlink()
    packages = machine.clone / '.venv' / 'lib' / 'python3.11' / 'site-packages'
    for name, file in (('whole-1.dist-info', 'RECORD'), ('cut_off-1.dist-info', 'METADATA')):
        (packages / name).mkdir(parents=True)
        (packages / name / file).touch()
    machine.succeeds()
    assert [path.name for path in packages.iterdir()] == ['whole-1.dist-info']


def test_server_without_libgl_gets_the_headless_opencv(machine: Machine) -> None:
    machine.tell('no-cv2')
    assert 'replacing it by opencv-python-headless' in machine.succeeds()
    calls = machine.pip_calls()
    assert 'uninstall -y opencv-python' in calls
    assert 'install --force-reinstall --no-deps opencv-python-headless==4.5' in calls


def test_ops_built_for_another_torch_are_compiled_again(machine: Machine) -> None:
    machine.tell('stale-ops')
    assert 'do not fit this torch: compiling them' in machine.succeeds()
    calls = [call for call in machine.pip_calls() if 'onedl-mmcv' in call]
    assert len(calls) == 2
    assert '--no-cache-dir --force-reinstall --no-deps' in calls[1]


def test_interrupted_second_compilation_goes_on(machine: Machine) -> None:
    machine.tell('stale-ops')
    machine.tell('pip-fails-at', '--no-cache-dir')
    machine.tell('pip-says', 'interrupted')
    assert machine.fails().startswith('set-up: mmcv, compiling its ops: ')
    (machine.fake / 'pip-fails-at').unlink()
    machine.pip_calls()
    machine.succeeds()
    assert any('onedl-mmcv' in call for call in machine.pip_calls())


def test_what_does_not_import_is_installed_again(machine: Machine) -> None:
    lines = 'frameworks mmdet: No module named x', 'frameworks mim: No y', 'helpers xdist: No z'
    machine.tell('broken', '\n'.join(lines) + '\n')
    assert 'installing that again: frameworks mmdet: No module named x' in machine.succeeds()
    calls = machine.pip_calls()
    for package in ('onedl-mmdetection', 'pytest-xdist'):
        again = ['--force-reinstall' in call for call in calls if package in call]
        assert again == [False, True]
    assert len([call for call in calls if 'torch==' in call]) == 1
    assert not list((machine.clone / '.venv' / '.steps').glob('*.again'))


def test_what_never_imports_is_said(machine: Machine) -> None:
    machine.tell('broken', 'frameworks mmdet: No module named x\nhelpers xdist: No z\n')
    machine.tell('hopeless')
    assert machine.fails().startswith(
        'set-up: still not importable: frameworks mmdet: No module named x; remove'
    )


@pytest.mark.parametrize('variable', ['VIRTUAL_ENV', 'CONDA_PREFIX'])
def test_active_environment_in_which_all_imports_is_used(machine: Machine, variable: str) -> None:
    active = machine.fake / 'active'
    interpreter = machine.add_interpreter(active / 'bin' / 'python')
    (active / 'complete').write_text('fingerprint')
    machine.environ[variable] = str(active)
    assert (
        machine.succeeds()
        == f'checking that everything imports in {interpreter} (only this once)\n'
    )
    assert machine.succeeds() == ''
    (active / 'complete').write_text('fingerprint of what was changed')
    assert 'checking that everything imports' in machine.succeeds()
    assert machine.pip_calls() == []
    assert not (machine.clone / '.venv').exists()


def test_active_environment_that_lacks_something_is_left_alone(machine: Machine) -> None:
    folder = machine.fake / 'active' / 'bin'
    for name in ('python', 'python3'):
        machine.add_interpreter(folder / name)
    machine.environ['CONDA_PREFIX'] = str(machine.fake / 'active')
    machine.environ['PATH'] = f'{folder}:{machine.bin}'
    output = machine.succeeds()
    assert output.startswith('not using the active environment')
    assert output.count('not using') == 1  # though both of its names are there
    assert 'torch torch: not installed' in output
    assert (machine.clone / '.venv' / 'complete').exists()
    assert not (machine.fake / 'active' / 'complete').exists()


def test_settings_with_which_python_finds_nothing_are_left_behind(machine: Machine) -> None:
    machine.tell('needs-own-settings')
    machine.environ |= {
        'MPLBACKEND': 'module://matplotlib_inline.backend_inline',  # a notebook's
        'PYTHONSAFEPATH': '1',
        'PYTHONHOME': '/usr',
    }
    machine.succeeds()
    assert machine.run('demo.sh').stdout == f'ran: {machine.clone}/tools/demo.py\n'


def test_folder_is_found_beside_a_search_path_for_folders(machine: Machine) -> None:
    machine.environ['CDPATH'] = f'.:{machine.clone}'
    result = machine.run(inside=True)
    assert result.returncode == 0, result.stderr
    assert (machine.clone / '.venv' / 'complete').exists()


def test_commands_pass_their_options_on(machine: Machine) -> None:
    machine.succeeds()
    demo = machine.run('demo.sh', '--seed', '1')
    assert demo.stdout == f'ran: {machine.clone}/tools/demo.py --seed 1\n'
    assert machine.run('test.sh', '-k', 'a b').stdout.splitlines() == [
        'ran: -m ruff check .',
        'ran: -m ruff format --check .',
        'ran: -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal -k a b',
    ]


@pytest.mark.parametrize('found', ['0.1.0', None])
def test_another_ruff_is_not_the_one_that_is_needed(
    found: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def version(distribution: str) -> str:
        if found is None:  # the metadata of an installation that was cut off
            raise importlib.metadata.PackageNotFoundError(distribution)
        return found

    monkeypatch.setattr(check_env, 'MODULES', {})  # what else may be missing here
    monkeypatch.setattr(importlib.metadata, 'version', version)
    assert check_env.quick() == 1
    (complaint,) = capsys.readouterr().err.splitlines()
    wanted = complaint.removeprefix(f'helpers ruff: found version {found}, expected ')
    assert f'"ruff=={wanted}"' in (ROOT / 'pyproject.toml').read_text()


@pytest.mark.parametrize('version', [(3, 9), (3, 13)])
def test_another_python_is_not_the_one_that_is_needed(
    version: tuple, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, 'version_info', version)
    assert check_env.quick() == 1
    assert capsys.readouterr().err.startswith('python python: ')


@dataclass
class Packages:
    """Empty packages of all names that are looked for, and the clone whose script looks."""

    folder: Path
    clone: Path

    def check(self, what: str) -> tuple[int, list[str]]:
        """The exit status, and the lines that it prints."""
        result = subprocess.run(
            [sys.executable, '-S', self.clone / 'tools' / 'check_env.py', what],
            env={'PYTHONPATH': f'{self.folder}{os.pathsep}{self.clone}'},
            text=True,
            capture_output=True,
        )
        return result.returncode, (result.stdout + result.stderr).splitlines()


@pytest.fixture
def packages(tmp_path: Path) -> Packages:
    made = Packages(tmp_path / 'packages', tmp_path / 'clone')
    for names in check_env.MODULES.values():
        for name in names:
            home = made.clone if name == 'ld_plugin' else made.folder
            (home / name.replace('.', '/')).mkdir(parents=True)
            (home / name.replace('.', '/') / '__init__.py').touch()
    (made.folder / 'mmcv' / '_ext.so').touch()
    (made.folder / 'ruff-1.dist-info').mkdir()
    ruff = f'Name: ruff\nVersion: {check_env._ruff_of_the_set_up()}\n'
    (made.folder / 'ruff-1.dist-info' / 'METADATA').write_text(ruff)
    (made.clone / 'tools').mkdir()
    for script in ('check_env.py', 'setup_env.sh'):
        shutil.copy(ROOT / 'tools' / script, made.clone / 'tools')
    return made


def test_fingerprint_changes_with_what_is_installed_and_with_the_set_up(packages: Packages) -> None:
    (packages.folder / 'mmcv' / '__init__.py').write_text('raise OSError')  # which is not imported
    seen = [packages.check('quick')]
    assert packages.check('quick') == seen[0]
    (packages.folder / 'torch-2.dist-info').mkdir()
    seen.append(packages.check('quick'))
    for script in ('check_env.py', 'setup_env.sh'):
        with (packages.clone / 'tools' / script).open('a') as file:
            file.write('# changed')
        seen.append(packages.check('quick'))
    assert [status for status, _ in seen] == [0] * 4
    assert len({line for _, (line,) in seen}) == 4


def test_fingerprint_changes_with_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    here, listdir = check_env._fingerprint(), os.listdir
    monkeypatch.setattr(os, 'listdir', lambda folder: listdir(folder)[::-1])
    assert check_env._fingerprint() == here
    monkeypatch.setattr(sys, 'prefix', '/another/.venv')
    assert check_env._fingerprint() != here


@pytest.mark.parametrize(
    ('gone', 'complaint'),
    [
        ('torchvision', 'torch torchvision: not installed'),
        ('xdist', 'helpers xdist: not installed'),
        ('mmcv/_ext.so', 'mmcv mmcv.ops: not compiled'),
    ],
)
def test_what_is_missing_is_told_with_its_step(
    packages: Packages, gone: str, complaint: str
) -> None:
    (packages.folder / gone).rename(packages.folder.with_name('gone'))
    (packages.folder / 'mmcv' / '_ext.cpp').touch()  # which is no library
    assert packages.check('quick') == (1, [complaint])


@pytest.mark.parametrize('is_package', [True, False])
def test_another_copy_of_the_plugin_is_told_apart(packages: Packages, is_package: bool) -> None:
    other = packages.folder / 'ld_plugin'
    (packages.clone / 'ld_plugin').rename(other)
    if not is_package:  # a mere folder of its name
        (other / '__init__.py').unlink()
    status, (line,) = packages.check('quick')
    assert status == 1
    assert line.startswith('plugin ld_plugin: another copy than this one')


def test_everything_that_does_not_import_is_told_with_its_step(packages: Packages) -> None:
    assert packages.check('full') == (0, [])
    for name, code in (('torch', 'raise OSError("no libtorch\\nat all")'), ('mim', 'assert False')):
        (packages.folder / name / '__init__.py').write_text(code)
    assert packages.check('full') == (
        1,
        ['torch torch: no libtorch', 'frameworks mim: AssertionError'],
    )


def test_ops_are_loaded_without_the_rest_of_mmcv(packages: Packages) -> None:
    assert check_env.ops() == 0
    (packages.folder / 'mmcv' / '__init__.py').write_text('raise OSError')
    status, lines = packages.check('ops')
    assert status == 1
    assert lines[-1].startswith('ImportError')  # an empty file is no library


@pytest.mark.parametrize(
    'script', ['.ci/run', 'tools/demo.sh', 'tools/test.sh', 'tools/setup_env.sh']
)
def test_scripts_parse(script: str) -> None:
    subprocess.run(['bash', '-n', ROOT / script], check=True)


def test_ci_entry_is_executable() -> None:
    assert os.access(ROOT / '.ci' / 'run', os.X_OK)
