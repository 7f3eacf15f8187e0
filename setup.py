"""Put `configs/` and `tools/` into the package for MIM; pyproject.toml has everything else.

MIM runs `<package folder>/.mim/tools/train.py`, and searches that folder for a config's name.

- In a wheel, `ld_plugin/.mim` holds copies of both folders. They are made in the build folder:
  nothing is written into the source tree.
- In an editable install, MIM takes the whole source tree for the package folder, and finds
  `tools/` and `configs/` where they are. Links in `ld_plugin/.mim` would show it every config
  twice, and it refuses a name found twice, so an editable install has none.

MIM takes the first entry of a distribution's file list for the package folder. That entry is
`ld_plugin/...` because `mmdet_ld_plugin-*.dist-info` sorts behind it and because there are no
console scripts (`../../../bin/...` would sort first). Keep both so.
"""

import atexit
import shutil
import sys
import tempfile
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
MIM_FOLDER = Path('ld_plugin', '.mim')
# The shell scripts in tools/ set up a clone and have no use outside of one.
MIM_SOURCES = {'configs': ('.py', '.yml', '.md'), 'tools': ('.py',)}


def mim_files() -> list[Path]:
    """Files that belong into `ld_plugin/.mim`, relative to the root of the source tree."""
    return sorted(
        path.relative_to(ROOT)
        for folder, suffixes in MIM_SOURCES.items()
        for path in (ROOT / folder).rglob('*')
        if path.suffix in suffixes and '__pycache__' not in path.parts
    )


class BuildMim(Command):
    """Copy configs and tools into the build folder (a setuptools `SubCommand`)."""

    description = 'copy configs and tools for MIM'
    user_options = []

    def initialize_options(self) -> None:
        self.build_lib = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options('build_py', ('build_lib', 'build_lib'))

    def run(self) -> None:
        if self.editable_mode:
            return
        for target, source in self.get_output_mapping().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(str(ROOT / source), target)

    def get_output_mapping(self) -> dict[str, str]:
        if self.editable_mode:
            return {}
        return {str(Path(self.build_lib, MIM_FOLDER, path)): str(path) for path in mim_files()}

    def get_outputs(self) -> list[str]:
        return list(self.get_output_mapping())

    def get_source_files(self) -> list[str]:
        """What a source distribution must hold for a wheel to be built from it."""
        return [str(path) for path in mim_files()]


class Build(build):
    sub_commands = [*build.sub_commands, ('build_mim', None)]


def scratch_options() -> dict[str, dict[str, str]]:
    """Options that send intermediate files to a temporary folder instead of the source tree.

    A `build/` left behind is no mere litter: the next wheel would contain whatever was deleted
    since, and MIM would find the configs in it a second time. A source distribution keeps its
    usual place for metadata, because it archives it.
    """
    scratch = tempfile.mkdtemp(prefix='mmdet-ld-plugin-')
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    options = {'build': {'build_base': scratch}}
    if 'sdist' not in sys.argv:
        options['egg_info'] = {'egg_base': scratch}
    return options


setup(cmdclass={'build': Build, 'build_mim': BuildMim}, options=scratch_options())
