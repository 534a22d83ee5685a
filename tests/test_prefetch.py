"""Batches on their way to the device."""

import pytest
import torch

from training.data import Batch, prefetched


def test_on_the_cpu_batches_are_handed_through():
    batches = [Batch(*torch.randint(0, 256, (3, 4))) for _ in range(3)]
    assert all(a is b for a, b in zip(batches, prefetched(iter(batches), torch.device("cpu")), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_arrive_whole_and_in_order():
    batches = [Batch(*torch.randint(0, 256, (3, 64, 3, 64, 64), dtype=torch.uint8)) for _ in range(20)]
    busy = torch.randn(2048, 2048, device="cuda")
    for batch, there in zip(batches, prefetched(iter(batches), torch.device("cuda")), strict=True):
        for _ in range(5):
            busy = busy @ busy / 2048  # the GPU is behind while the next batch is copied
        for x, y in zip(batch, there, strict=True):
            assert y.is_cuda and torch.equal(x, (y + 0).cpu())
