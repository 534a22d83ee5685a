"""Files, run folders, schedules, precision and interruptions, each on its own."""

import json
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
