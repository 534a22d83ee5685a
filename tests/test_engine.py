"""Files, run folders, schedules, precision and interruptions, each on its own."""

import json
import math
import os
import resource
import signal

import pytest
import torch
from torch import nn

from backbones import InputError
from training.distributed import choose_device
from training.engine import (
    Checkpoints,
    EmaSettings,
    OptimizerSettings,
    RunFolder,
    ScheduleSettings,
    TrainerSettings,
    find_unfinished,
    scale_rates,
)
from training.engine.files import write_atomically
from training.engine.optimization import Precision, build_optimizer, build_schedule
from training.engine.session import Session
from training.engine.stopping import StopSignals
from training.seeding import seed_everything

CPU = torch.device("cpu")


def session(ema=None, warmup_epochs=1, **trainer):
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    settings = OptimizerSettings(), ScheduleSettings(warmup_epochs=warmup_epochs), EmaSettings(decay=ema)
    return Session(model, CPU, 10, 0, TrainerSettings(**trainer), *settings)


def step(one):
    one.schedule.step_update(one.progress.step)
    one.precision.backward(one.model(torch.randn(3, 4)).square().sum())
    one.precision.step(one.optimizer, list(one.model.parameters()), clip_grad=1.0)
    if one.ema is not None:
        one.ema.update(one.model, step=one.progress.step)
    one.progress.step += 1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_restored_session_goes_on_as_the_saved_one(tmp_path, precision):
    one = session(ema=0.9, precision=precision)
    for _ in range(3):
        step(one)
    one.save(Checkpoints(tmp_path))
    other = session(ema=0.9, precision=precision)
    other.restore(Checkpoints(tmp_path))
    for each in (one, other):
        torch.manual_seed(5)
        step(each)
    assert one.progress == other.progress and one.progress.step == 4
    for name in ("model", "ema"):
        states = [getattr(each, name).state_dict() for each in (one, other)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path):
    """A limit on file sizes makes the kernel refuse to write, as a full disk does."""
    one = session()
    one.save(Checkpoints(tmp_path))
    before = (tmp_path / "last.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(InputError, match=r"last.pt could not be written .* The previous one is still there"):
            one.save(Checkpoints(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "last.pt").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["SHA256SUMS", "last.pt"]


def test_a_write_that_is_refused_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="could not be written"):
        write_atomically(tmp_path / "missing/file", b"content")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="could not be written"):
        write_atomically(tmp_path / "folder", b"content")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_is_for_one_process(tmp_path):
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    with first.locked(), pytest.raises(InputError, match="Another process is training"), second.locked():
        pass
    with second.locked():
        pass


def test_a_run_stopped_in_its_last_step_is_not_done():
    one = session(epochs=1)
    one.progress.step = one.progress.step_in_epoch = 10
    assert not one.done
    one.progress.step_in_epoch = 0
    assert one.done


def test_a_run_keeps_the_length_of_its_epochs(tmp_path):
    one = session()
    step(one)
    one.save(Checkpoints(tmp_path))
    with pytest.raises(InputError, match="has epochs of 10 steps and cannot go on with 5"):
        session(accumulation_steps=2).restore(Checkpoints(tmp_path))


def test_the_optimizer_goes_on_with_the_settings_of_today(tmp_path):
    one = session()
    step(one)
    one.save(Checkpoints(tmp_path))
    other = session()
    for group in other.optimizer.param_groups:
        group["betas"] = (0.5, 0.6)
    other.restore(Checkpoints(tmp_path))
    assert {group["betas"] for group in other.optimizer.param_groups} == {(0.5, 0.6)}
    assert other.optimizer.state


def test_the_rate_rises_then_falls_as_a_cosine():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    settings = ScheduleSettings(warmup_epochs=2, warmup_lr=0.1, min_lr=0.0)
    schedule = build_schedule(optimizer, settings, total_steps=60, steps_per_epoch=10)
    rates = []
    for number in range(60):
        schedule.step_update(number)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.1) and rates[10] == pytest.approx(0.55) and rates[20] == pytest.approx(1.0)
    assert rates[40] == pytest.approx(0.5) and rates[59] < 0.01
    assert rates[:21] == sorted(rates[:21]) and rates[20:] == sorted(rates[20:], reverse=True)


def rates_of(settings, total_steps=60, steps_per_epoch=10, lr=1.0):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=lr)
    schedule = build_schedule(optimizer, settings, total_steps, steps_per_epoch)
    rates = []
    for number in range(total_steps):
        schedule.step_update(number)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_a_warm_up_may_hide_the_beginning_of_the_schedule():
    settings = ScheduleSettings(warmup_epochs=2, warmup_lr=0.0, warmup_prefix=False, min_lr=0.0, cooldown_epochs=1)
    rates = rates_of(settings)
    assert rates[10] == pytest.approx(0.5)
    for step in (20, 25, 49):
        assert rates[step] == pytest.approx(0.5 + 0.5 * math.cos(math.pi * step / 50))
    assert rates[50:] == [0.0] * 10


def test_rates_may_change_between_epochs_alone():
    settings = ScheduleSettings(warmup_epochs=2, warmup_lr=0.0, warmup_prefix=False, min_lr=0.0, by_epoch=True)
    every_step = rates_of(ScheduleSettings(warmup_epochs=2, warmup_lr=0.0, warmup_prefix=False, min_lr=0.0))
    assert rates_of(settings) == [every_step[step // 10 * 10] for step in range(60)]


def test_rates_are_linear_in_the_pictures_per_step():
    given = OptimizerSettings(lr=1e-3), ScheduleSettings(warmup_lr=1e-6, min_lr=1e-5)
    assert scale_rates(*given, 1024, 1024) == given == scale_rates(*given, 256, None)
    optimizer, schedule = scale_rates(*given, 256, 1024)
    assert (optimizer.lr, schedule.warmup_lr, schedule.min_lr) == (2.5e-4, 2.5e-7, 2.5e-6)


def test_some_parameters_have_another_peak():
    settings = OptimizerSettings(lr=1e-2, lr_multipliers={"2.*": 0.1})
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    optimizer = build_optimizer(model, settings)
    schedule = build_schedule(optimizer, ScheduleSettings(warmup_epochs=0, min_lr=1e-3), 10, 1)
    peak = {}
    for step in (9, 0):
        schedule.step_update(step)
        for group in optimizer.param_groups:
            peak.update({id(parameter): (group["lr"], group["weight_decay"]) for parameter in group["params"]})
    assert len(peak) == 6
    assert peak[id(model[2].weight)] == pytest.approx((1e-3, 0.05)) and peak[id(model[2].bias)][1] == 0
    assert peak[id(model[0].weight)] == pytest.approx((1e-2, 0.05))
    with pytest.raises(InputError, match="the pattern 'head', but no parameter"):
        build_optimizer(model, OptimizerSettings(lr_multipliers={"head": 0.1}))


@pytest.mark.parametrize("name", ["adamw", "lamb", "lion", "muon", "sgd"])
def test_optimizers_learn(name):
    import backbones

    model = backbones.create_model("swin_nano", in_chans=1, num_classes=2)
    optimizer = build_optimizer(model, OptimizerSettings(name=name, lr=1e-3))
    images, targets = torch.randn(8, 1, 32, 32), torch.arange(8) % 2
    losses = []
    for _ in range(5):
        losses.append(nn.functional.cross_entropy(model(images), targets))
        losses[-1].backward()
        Precision("fp32", CPU).step(optimizer, list(model.parameters()), clip_grad=1.0)
    assert losses[-1] < losses[0]


def test_settings_reach_the_optimizer():
    settings = OptimizerSettings(name="lamb", betas=[0.8, 0.9], eps=1e-5)
    assert {(g["betas"], g["eps"]) for g in build_optimizer(nn.Linear(2, 2), settings).param_groups} == {
        ((0.8, 0.9), 1e-5)
    }
    settings = OptimizerSettings(name="sgd", momentum=0.5)
    assert build_optimizer(nn.Linear(2, 2), settings).param_groups[0]["momentum"] == 0.5


@pytest.mark.parametrize(
    ("mode", "limit", "expected"),
    [("norm", 1.0, [0.6, 0.8]), ("value", 3.5, [3.0, 3.5]), ("agc", 0.1, [0.06, 0.08]), ("norm", 9.0, [3.0, 4.0])],
)
def test_ways_to_clip_a_gradient(mode, limit, expected):
    weight = nn.Parameter(torch.tensor([[0.6, 0.8]]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    before = weight.detach().clone()
    weight.grad = torch.tensor([[3.0, 4.0]])
    Precision("fp32", CPU).step(optimizer, [weight], limit, mode)
    torch.testing.assert_close(before - weight.detach(), torch.tensor([expected]))


def test_max_steps_shortens_the_schedule():
    one = session(epochs=100, max_steps=25)
    assert one.total_steps == 25
    one.schedule.step_update(24)
    assert one.lr < 1e-4


def test_decay_spares_norms_and_biases_and_layers_learn_at_their_own_rate():
    import backbones

    model = backbones.create_model("swin_nano")
    optimizer = build_optimizer(model, OptimizerSettings(weight_decay=0.1, layer_decay=0.8))
    decay, scale = {}, {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            decay[id(parameter)], scale[id(parameter)] = group["weight_decay"], group["lr_scale"]
    for name, parameter in model.named_parameters():
        spared = parameter.dim() == 1 or name.endswith("position_bias.table")
        assert decay[id(parameter)] == (0 if spared else 0.1), name
    assert scale[id(model.stem.proj.weight)] < scale[id(model.stages[3].blocks[0].mlp.fc1.weight)] < 1
    assert scale[id(model.head.fc.weight)] == 1


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (
            lambda: build_optimizer(nn.Linear(1, 1), OptimizerSettings(name="adamx")),
            "cannot build the optimizer 'adamx'",
        ),
        (lambda: session(precision="fp8"), "precision is 'fp8', but must be one of fp32, bf16, fp16"),
        (lambda: choose_device("tpu"), "device is 'tpu', but must be auto, cpu or cuda"),
        (lambda: OptimizerSettings(clip_mode="max"), "clip_mode is 'max', but must be norm, value or agc"),
        (lambda: ScheduleSettings(cooldown_epochs=-1), "cooldown_epochs is -1, but must not be negative"),
        (lambda: TrainerSettings(batch_size=0), "trainer.batch_size is 0, but must be at least 1"),
    ],
)
def test_wrong_settings(build, said):
    with pytest.raises(InputError, match=said):
        build()


def test_schedules():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    for name, late in (("cosine", 0.02), ("poly", 0.2), ("step", 0.1)):
        settings = ScheduleSettings(name=name, warmup_epochs=0, min_lr=0.0, decay_epochs=5, decay_rate=0.1)
        settings.decay_rate = 1.0 if name == "poly" else 0.1
        schedule = build_schedule(optimizer, settings, total_steps=10, steps_per_epoch=1)
        schedule.step_update(9 if name != "poly" else 8)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(late, abs=0.01), name
    for name in ("cosin", "none", "constant"):
        with pytest.raises(InputError, match="must be one of cosine"):
            build_schedule(optimizer, ScheduleSettings(name=name), 10, 1)


def test_bf16_is_mixed_precision():
    with Precision("bf16", CPU).autocast():
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == torch.bfloat16
    with Precision("fp32", CPU).autocast():
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == torch.float32


def test_signals_are_noted_and_handlers_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_run_folders_are_never_shared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [RunFolder.create(None, "name", "a: 1\n") for _ in range(3)]
    assert len({run.path for run in runs}) == 3 and runs[0].path.parent.parts == ("runs", "name")
    RunFolder.create("own", "name", "a: 1\n")
    with pytest.raises(InputError, match="There is a run in own already"):
        RunFolder.create("own", "name", "a: 1\n")


def test_the_newest_unfinished_run_of_the_same_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parent = tmp_path / "runs/name"
    assert find_unfinished(parent, "a: 1\n") is None
    for time, config in (("2001", "a: 1\n"), ("2002", "a: 1\n"), ("2003", "a: 1\n"), ("2004", "a: 2\n")):
        RunFolder.create(parent / time, "name", config)
    RunFolder(parent / "2003").write_json("summary.json", {})
    assert find_unfinished(parent, "a: 1\n").path == parent / "2002"


def test_metrics_and_summary_are_plain_files(tmp_path):
    run = RunFolder(tmp_path)
    run.write_metrics([{"epoch": 1, "top1": 0.5}, {"epoch": 2, "top1": 0.75}])
    assert run.metrics.read_text() == "epoch,top1\n1,0.5\n2,0.75\n"
    run.write_json("summary.json", {"top1": 0.75})
    assert json.loads(run.summary.read_text()) == {"top1": 0.75}


def test_draws_depend_on_the_key_alone():
    def draw(*key):
        seed_everything(*key)
        return torch.rand(1).item()

    assert draw(0, "step", 3) == draw(0, "step", 3)
    assert len({draw(0, "step", 3), draw(1, "step", 3), draw(0, "step", 4), draw(0, "order", 3)}) == 4
