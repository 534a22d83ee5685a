"""Learning rates of the schedules that count optimizer steps, against their formulas."""

import bisect
import random

import pytest
import torch
from torch import nn

from backbones import InputError
from training.engine import ScheduleSettings
from training.engine.optimization import build_schedule


def rates_of(settings, total_steps, steps_per_epoch, peak):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=peak)
    schedule = build_schedule(optimizer, settings, total_steps, steps_per_epoch)
    rates = []
    for step in range(total_steps):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def drawn(seed):
    """Any length of a run and of its warm-up, in steps, and a peak with a ratio to begin the warm-up with."""
    draw = random.Random(seed)
    per_epoch, epochs = draw.randint(1, 40), draw.randint(2, 12)
    total = draw.randint(2, per_epoch * epochs)
    warmup = draw.randint(0, total - 1)
    return draw, per_epoch, epochs, total, warmup, 10 ** draw.uniform(-5, -1), 10 ** draw.uniform(-6, 0)


@pytest.mark.parametrize("seed", range(30))
def test_a_rate_that_is_cut_after_some_epochs(seed):
    draw, per_epoch, epochs, total, warmup, peak, ratio = drawn(seed)
    milestones = sorted(draw.choice([draw.randint(1, epochs), draw.uniform(0.1, epochs)]) for _ in range(3))
    settings = ScheduleSettings(
        name="multistep",
        milestones=milestones,
        decay_rate=0.3,
        warmup_steps=warmup,
        warmup_lr=ratio * peak,
        warmup_prefix=draw.random() < 0.5,  # milestones count from the first step in either case
    )
    cuts = [round(epoch * per_epoch) for epoch in milestones]
    expected = [
        peak * (ratio + (1 - ratio) * step / warmup if step < warmup else 0.3 ** bisect.bisect_right(cuts, step))
        for step in range(total)
    ]
    assert rates_of(settings, total, per_epoch, peak) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(30))
def test_a_rate_that_falls_as_a_power_of_the_steps_left(seed):
    draw, per_epoch, _, total, warmup, peak, ratio = drawn(seed)
    power, end = draw.choice([0.9, 1.0, 2.0]), draw.choice([0.0, 0.01 * peak])
    settings = ScheduleSettings(
        name="poly",
        decay_rate=power,
        min_lr=end,
        warmup_steps=warmup,
        warmup_lr=ratio * peak,
        warmup_prefix=False,
    )
    expected = [
        peak * (ratio + (1 - ratio) * step / warmup)
        if step < warmup
        else end + (peak - end) * (1 - step / total) ** power
        for step in range(total)
    ]
    assert rates_of(settings, total, per_epoch, peak) == pytest.approx(expected)


def test_the_schedule_of_detectors():
    """12 epochs of 7,329 steps, as COCO has with 16 pictures each: full rate for 8 of them, a tenth for 3."""
    settings = ScheduleSettings(
        name="multistep", milestones=[8, 11], warmup_steps=500, warmup_lr=1e-7, warmup_prefix=False
    )
    rates = rates_of(settings, 12 * 7329, 7329, 1e-4)
    assert rates[0] == pytest.approx(1e-7) and rates[250] == pytest.approx(0.5005e-4)
    assert set(rates[500 : 8 * 7329]) == {1e-4}
    assert rates[8 * 7329 : 11 * 7329] == pytest.approx([1e-5] * 3 * 7329)
    assert rates[11 * 7329 :] == pytest.approx([1e-6] * 7329)


def test_a_warm_up_in_steps_takes_the_place_of_that_in_epochs():
    common = dict(name="cosine", warmup_lr=0.0)
    by_steps = rates_of(ScheduleSettings(warmup_epochs=5, warmup_steps=20, **common), 100, 10, 1.0)
    assert by_steps == rates_of(ScheduleSettings(warmup_epochs=2, **common), 100, 10, 1.0)
    assert rates_of(ScheduleSettings(warmup_steps=0, **common), 100, 10, 1.0)[0] == 1.0
    assert rates_of(ScheduleSettings(warmup_steps=500, **common), 10, 10, 1.0)[9] == 1.0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(name="multistep"), "name is 'multistep' and milestones is .*: give epochs"),
        (dict(milestones=[8, 11]), "name is 'cosine' and milestones is .* with others"),
        (dict(name="multistep", milestones=[11, 8]), r"milestones is \[11, 8\], but must rise"),
        (dict(name="multistep", milestones=[0, 8]), "must rise, from above 0"),
        (dict(warmup_steps=-1), "warmup_steps is -1, but must not be negative"),
    ],
)
def test_wrong_schedules(wrong, said):
    with pytest.raises(InputError, match=said):
        ScheduleSettings(**wrong)
