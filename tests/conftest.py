"""Set-up that every test gets."""

import os
from collections.abc import Iterator

import pytest

# Numbers are compared to the last bit, and with models on the processor: a GPU stays out of it.
os.environ['CUDA_VISIBLE_DEVICES'] = ''

import torch
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from mmengine.visualization import Visualizer


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    """Every test starts as a new process does: a fixed seed, one thread, nothing of a runner's."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    init_default_scope('mmdet')
    yield
    for left_by_runners in (MessageHub, Visualizer):
        left_by_runners._instance_dict.clear()
