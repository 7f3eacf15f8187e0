"""Which optional packages there are, and how to get the others."""

from importlib.metadata import distributions
from importlib.util import find_spec


def is_installed(package: str) -> bool:
    """Whether a package can be imported; a mere folder of its name, as of a clone, is none.

    mmengine's function of this name asks ``pkg_resources`` in the original family, which setuptools
    82 no longer has.

    Args:
        package: The name by which it is imported, without dots.
    """
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def how_to_install_mmrotate(plugin: str = 'mmdet-ld-plugin') -> str:
    """A command, or what to do where there is none.

    The extra brings the maintained family, which pip would install over the original one.

    Args:
        plugin: What pip takes for this package: its name, or the path of a checkout.
    """
    if any(distributions(name='mmdet')):  # the maintained family's is onedl-mmdetection
        return "see the README's Versions: [rotated] is of the maintained family of packages"
    return f"pip install '{plugin}[rotated]'"
