"""Which optional packages there are."""

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
