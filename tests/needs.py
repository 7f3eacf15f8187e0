"""What a test needs of the environment.

The set-up of this project has all of it. Others may lack MMRotate, or have the older PyTorch that
the original family of OpenMMLab's packages goes with.
"""

from typing import Any

import pytest
import torch
from mmengine.utils import digit_version
from torch._subclasses.fake_tensor import FakeTensorMode

from ld_plugin.packages import is_installed

mmrotate = pytest.mark.skipif(not is_installed('mmrotate'), reason='needs MMRotate')


def is_before(version: str) -> bool:
    """Whether PyTorch is older than ``version``."""
    return digit_version(torch.__version__) < digit_version(version)


def pytorch(version: str, reason: str) -> pytest.MarkDecorator:
    """Skips a test where PyTorch is older than ``version``, which lacks something."""
    return pytest.mark.skipif(is_before(version), reason=f'{reason} before PyTorch {version}')


def fake_gpu(**options: Any) -> FakeTensorMode:
    """The mode in which tensors on a GPU can be made where there is none; options are its own."""
    if is_before('2.6'):
        pytest.skip('fake tensors on a GPU ask for its driver before PyTorch 2.6')
    return FakeTensorMode(**options)


half_on_processors = pytorch('2.4', 'no float16 on processors')
packed_kernels = pytorch('2.4', 'no packed convolutions')
