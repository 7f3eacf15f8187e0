"""Say whether an interpreter has everything that the plugin, its demo and its tests need.

`tools/setup_env.sh` runs this with interpreters that may lack anything, so it uses only the
standard library until it is told to import the rest.

    check_env.py quick   imports nothing and takes 0.1 s: prints a fingerprint of the environment
    check_env.py full    imports everything
    check_env.py ops     loads mmcv's compiled ops, without the rest of mmcv

The first two fail with a line `STEP MODULE: REASON` for what does not work, where STEP is the step
of the set-up that provides it.
"""

import argparse
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The modules that each step of tools/setup_env.sh provides.
MODULES = {
    'torch': ('torch', 'torchvision'),
    'opencv': ('cv2',),
    'mmcv': ('mmcv', 'mmcv.ops'),
    'frameworks': ('mmengine', 'mmdet', 'mmrotate', 'mim', 'pycocotools'),
    'helpers': ('hypothesis', 'matplotlib', 'pytest', 'ruff', 'sklearn', 'xdist'),
    'plugin': ('ld_plugin',),
}


def quick() -> int:
    """Look for every module without importing it; print a fingerprint of what is installed."""
    missing = _missing()
    if missing:
        print(missing, file=sys.stderr)
        return 1
    print(_fingerprint())
    return 0


def _missing() -> str:
    if not (3, 10) <= sys.version_info[:2] < (3, 13):
        return f'python python: {sys.version.split()[0]} is not 3.10 to 3.12'
    for step, names in MODULES.items():
        for name in names:
            if '.' not in name and importlib.util.find_spec(name) is None:
                return f'{step} {name}: not installed'
    if (found := _version('ruff')) != (wanted := _ruff_of_the_set_up()):
        return f'helpers ruff: found version {found}, expected {wanted}'
    if _ops_library() is None:
        return 'mmcv mmcv.ops: not compiled'
    plugin = importlib.util.find_spec('ld_plugin').origin
    if plugin is None or ROOT not in Path(plugin).resolve().parents:
        return f'plugin ld_plugin: another copy than this one ({plugin})'
    return ''


def _version(distribution):
    """What is installed, or None if its metadata is missing."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _ruff_of_the_set_up():
    """Another version formats differently, and would complain of clean files."""
    return re.search(r'ruff==([\w.]+)', Path(ROOT, 'tools', 'setup_env.sh').read_text())[1]


def _ops_library():
    """The file with mmcv's compiled ops, or None."""
    for folder in importlib.util.find_spec('mmcv').submodule_search_locations or ():
        for path in Path(folder).glob('_ext*'):
            if path.suffix in ('.so', '.pyd'):
                return path
    return None


def _fingerprint() -> str:
    """A digest that changes with the interpreter, any installed version, or the set-up itself."""
    digest = hashlib.sha256(f'{sys.version} {sys.prefix} {ROOT}'.encode())
    for folder in filter(os.path.isdir, sys.path):
        names = (name for name in os.listdir(folder) if name.endswith('.dist-info'))
        digest.update(' '.join(sorted(names)).encode())
    for script in ('check_env.py', 'setup_env.sh'):
        digest.update(Path(ROOT, 'tools', script).read_bytes())
    return digest.hexdigest()


def full() -> int:
    """Import every module; print those that fail."""
    status = 0
    for step, names in MODULES.items():
        for name in names:
            try:
                importlib.import_module(name)
            except Exception as error:  # a broken installation raises anything
                reason = str(error).splitlines() or [type(error).__name__]
                print(f'{step} {name}: {reason[0]}')
                status = 1
    return status


def ops() -> int:
    """Load the compiled ops alone: those built for another torch fail to load into this one."""
    importlib.import_module('torch')
    spec = importlib.util.spec_from_file_location('mmcv._ext', _ops_library())
    importlib.util.module_from_spec(spec)
    return 0


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    checks = {'quick': quick, 'full': full, 'ops': ops}
    parser.add_argument('check', choices=checks)
    sys.exit(checks[parser.parse_args().check]())
