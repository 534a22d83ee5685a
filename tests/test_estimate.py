"""The arithmetic of large-scale training, against numbers by hand and against what a training step takes."""

import os
import random
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import backbones
from backbones import InputError
from training.activations import footprint, kept
from training.estimate import Cluster, Footprint, Link, collective_seconds, estimate, overlapped_seconds

from .conftest import ROOT

SLOW = Cluster(4, Link(100.0, 0.0), Link(10.0, 0.0))  # bytes per second
FAST = Cluster(8, Link(float("inf"), 0.0), Link(float("inf"), 0.0))
MODEL = Footprint(parameters=1000, largest_block=100, blocks=10, image_bytes=50.0, fixed_bytes=7.0)


def plan(gpus: int, strategy: str = "ddp", cluster: Cluster = SLOW, model: Footprint = MODEL, **more):
    """Eight images a GPU and step, in a second on one GPU."""
    more = dict(jpeg_bytes=110_000, decoded_per_second=4) | more
    return estimate(model, cluster, gpus, 8, 8.0, strategy, **more)


def test_collectives_by_hand():
    assert collective_seconds(800, 1, SLOW) == 0
    assert collective_seconds(800, 2, SLOW) == 1 / 2 * 800 / 100
    assert collective_seconds(800, 4, SLOW) == 3 / 4 * 800 / 100
    # Inside, then each GPU's quarter between two nodes.
    assert collective_seconds(800, 8, SLOW) == 6 + 1 / 2 * 200 / 10
    late = Cluster(4, Link(100.0, 0.5), Link(10.0, 2.0))
    assert collective_seconds(800, 8, late) == 16 + 3 * 0.5 + 1 * 2.0
    # With links of one speed, rings of rings take as long as one ring: (n - 1) / n of the bytes.
    even = Cluster(8, Link(10.0, 0.0), Link(10.0, 0.0))
    for gpus in (1, 2, 8, 16, 512):
        assert collective_seconds(4000, gpus, even) == pytest.approx((gpus - 1) / gpus * 4000 / 10)


def test_overlap_is_what_a_simulation_gives():
    draw = random.Random(0)
    for _ in range(200):
        compute, communication, pieces = draw.uniform(0, 3), draw.uniform(0, 3), draw.randint(1, 9)
        free = 0.0
        for i in range(pieces):
            free = max(free, compute * (i + 1) / pieces) + communication / pieces
        assert overlapped_seconds(compute, communication, pieces) == pytest.approx(free)


def test_memory_by_hand():
    ddp = plan(8)
    assert (ddp.weight_bytes, ddp.gradient_bytes, ddp.moment_bytes) == (4000, 4000, 8000)
    assert ddp.activation_bytes == 8 * 50 + 7 and ddp.gathered_bytes == ddp.average_bytes == 0
    assert ddp.memory_bytes == 16_000 + 407
    assert plan(8, average=True, moments=1).memory_bytes == 16_000 + 407
    fsdp = plan(8, "fsdp")
    assert fsdp.weight_bytes == 500 and fsdp.moment_bytes == 1000
    assert fsdp.gathered_bytes == 100 * (2 + 2 + 4) and fsdp.memory_bytes == 2000 + 800 + 400
    assert plan(8, model=replace(MODEL, block_bytes=5.0)).activation_bytes == 8 * (50 + 5) + 7


def test_bytes_on_the_wire_by_hand():
    assert plan(4).sent_bytes == 2 * 3 / 4 * 4000  # an all-reduce of float32 gradients
    # Weights of two bytes gathered for the forward and for the backward pass, gradients reduced once.
    assert plan(4, "fsdp").sent_bytes == 3 / 4 * (2000 + 2000 + 4000)
    assert plan(4, "fsdp", sent_weight_bytes=4).sent_bytes == 3 / 4 * 12_000
    assert plan(4).communication_seconds == pytest.approx(plan(4).sent_bytes / 100)
    assert plan(4, "fsdp").communication_seconds == pytest.approx(plan(4, "fsdp").sent_bytes / 100)
    assert plan(512).sent_bytes < 2 * 4000


def test_steps_by_hand():
    """A second of computing: 1/3 forward, 2/3 backward; one bucket is sent after it."""
    assert plan(4).step_seconds == pytest.approx(1 + 60)
    buckets = Footprint(parameters=25 * 2**20, largest_block=1, blocks=1, image_bytes=1)  # four of 25 MiB
    sending = 2 * 3 / 4 * 100 * 2**20
    quick, slow = (Cluster(4, Link(sending / seconds, 0.0), SLOW.between) for seconds in (0.4, 4.0))
    assert plan(4, cluster=quick, model=buckets).step_seconds == pytest.approx(1 + 0.4 / 4)
    assert plan(4, cluster=slow, model=buckets).step_seconds == pytest.approx(1 / 3 + 2 / 3 / 4 + 4.0)
    again = replace(buckets, block_bytes=1)  # with checkpointing 1/4 and 3/4
    assert plan(4, cluster=slow, model=again).step_seconds == pytest.approx(1 / 4 + 3 / 4 / 4 + 4.0)
    # Ten blocks: gathering 15 s beside the forward pass, gathering and scattering 45 s beside the backward pass.
    expected = 1 / 3 / 10 + 15 + 2 / 3 / 10 + 45
    assert plan(4, "fsdp").step_seconds == pytest.approx(expected)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_limits(strategy):
    alone = plan(1, strategy)
    assert alone.sent_bytes == alone.communication_seconds == 0 and alone.step_seconds == alone.compute_seconds == 1
    assert alone.efficiency == 1 and alone.images_per_second == 8
    assert alone.data_bytes_per_second == 880_000 and alone.decode_cores == 2
    before = alone
    for gpus in (2, 4, 8, 16, 512):
        ideal = plan(gpus, strategy, FAST)
        assert ideal.efficiency == 1 and ideal.images_per_second == 8 * gpus and ideal.decode_cores == 2 * gpus
        real = plan(gpus, strategy)
        assert real.efficiency < before.efficiency and real.images_per_second == pytest.approx(
            8 * gpus * real.efficiency
        )
        assert real.data_bytes_per_second == pytest.approx(110_000 * real.images_per_second)
        before = real
    with pytest.raises(InputError, match="6 GPUs do not fill nodes of 4"):
        plan(6, strategy)
    with pytest.raises(InputError, match="0 GPUs do not fill"):
        plan(0, strategy)


def test_an_unknown_strategy():
    with pytest.raises(InputError, match="no strategy 'zero'; use ddp or fsdp"):
        plan(1, "zero")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["swin_nano", "davit_nano"])
def test_what_a_training_step_allocates(name, checkpointing, monkeypatch):
    """Within 15 %: gradients grow while activations shrink, and the products have intermediate results."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from scaling_estimate import real_step

    model = footprint(name, checkpointing, "fp32", "cpu", (3, 32, 32))
    expected = estimate(model, SLOW, 1, 32, 1, jpeg_bytes=0, decoded_per_second=1)
    measured, _ = real_step(name, checkpointing, batch=32, size=32)
    state = expected.weight_bytes + expected.moment_bytes  # which are exact, and would hide the rest
    assert measured - state == pytest.approx(expected.memory_bytes - state, rel=0.15)
    parameters = sum(p.numel() for p in backbones.create_model(name, device="meta").parameters())
    assert model.parameters == parameters and model.checkpointing == checkpointing


@pytest.mark.parametrize("checkpointing", [False, True])
def test_counting_without_content_gives_what_real_tensors_give(checkpointing):
    model = backbones.create_model("volo_nano").train()
    model.set_grad_checkpointing(checkpointing)
    one, two = (kept(model, torch.rand(n, 3, 32, 32), [])[0] for n in (1, 2))
    counted = footprint("volo_nano", checkpointing, device="cpu", input_size=(3, 32, 32))
    assert (counted.image_bytes, counted.fixed_bytes) == (two - one, 2 * one - two)


def test_what_a_gpu_keeps_is_counted_without_one():
    """Its kernels keep no weights of attention, and autocast keeps maps of half the size, and cast weights."""
    size = (3, 32, 32)
    reference, kernels = (footprint("swin_nano", device=device, input_size=size) for device in ("cpu", "cuda"))
    assert kernels.image_bytes < reference.image_bytes and kernels.parameters == reference.parameters
    half = footprint("swin_nano", precision="fp16", input_size=size)
    assert 0.5 < half.image_bytes / kernels.image_bytes < 0.75
    assert half.fixed_bytes > kernels.parameters > kernels.fixed_bytes
    again = footprint("swin_nano", checkpointing=True, input_size=size)
    assert again.image_bytes + again.block_bytes < 0.7 * kernels.image_bytes


@pytest.mark.slow
def test_the_tables_of_the_page_are_what_the_script_prints():
    page = (ROOT / "docs/scaling.md").read_text()
    (rate,) = re.findall(r"(\d+) pictures/s", page)
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "BACKBONES_KERNELS")}
    done = subprocess.run(
        [sys.executable, "-c", f"import scaling_estimate; scaling_estimate.scaling({rate})"],
        cwd=ROOT / "benchmarks",
        env=environment | dict(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 10 + 4 * 12 and not [row for row in rows if row not in page.splitlines()]
