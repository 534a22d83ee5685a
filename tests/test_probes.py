"""What is trained on, and read off, frozen features."""

import json

import pytest
import torch
from torch import nn

import backbones
import eval as evaluation
import train
from backbones import InputError
from training.data import Batch
from training.tasks import TASKS, AttentiveProbing, LinearProbing, NearestNeighbours, TeachingSettings

from .conftest import SHORT

CLASSES = list("abc")


def build(kind, name="swin_nano", **options):
    model = backbones.create_model(name, in_chans=1, **kind.backbone_keywords(CLASSES))
    return kind(model, CLASSES, [0.5], [0.25], TeachingSettings(), **options)


def batch(count=6):
    images = torch.randint(0, 256, (count, 1, 32, 32), dtype=torch.uint8)
    return Batch(images, torch.arange(count) % 3, torch.arange(count))


@pytest.mark.parametrize("kind", [LinearProbing, AttentiveProbing])
@pytest.mark.parametrize("name", ["swin_nano", "volo_nano", "overlock_nano"])
def test_only_the_head_of_a_probe_learns(kind, name):
    one, b = build(kind, name), batch()
    one.train()
    assert not any(module.training for module in one.model.frozen.modules()) and one.model.head.training
    before = {key: value.clone() for key, value in one.model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in one.model.parameters() if p.requires_grad], lr=3e-4)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(one.training_step(b)["loss"])
        losses[-1].backward()
        optimizer.step()
    assert min(losses[1:]) < losses[0]
    changed = {
        key.split(".")[0] for key, value in one.model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == {"head"}


def test_attention_heads_must_divide_the_channels():
    with pytest.raises(InputError, match="num_heads is 7, but must divide the backbone's"):
        build(AttentiveProbing, num_heads=7)


class Identity(nn.Module):
    def forward(self, images):
        return images.flatten(1)


def test_the_nearest_neighbours_vote():
    one = NearestNeighbours(Identity(), CLASSES, [0.5], [0.25], TeachingSettings(), k=3, temperature=0.5)
    memory, queries = (torch.randint(0, 256, (count, 1, 2, 2), dtype=torch.uint8) for count in (10, 4))
    labels = torch.randint(0, 3, (10,))
    one.memorise([Batch(memory[:6], labels[:6], torch.arange(6)), Batch(memory[6:], labels[6:], torch.arange(4))])
    keys, values = ((((x / 255) - 0.5) / 0.25).flatten(1) for x in (memory, queries))
    shares = one.logits((queries / 255 - 0.5) / 0.25).exp()
    for query, share in zip(values, shares):
        similarity = torch.cosine_similarity(query[None], keys)
        nearest = similarity.argsort(descending=True)[:3]
        votes = torch.zeros(3)
        for i in nearest.tolist():
            votes[labels[i]] += (similarity[i] / 0.5).exp()
        torch.testing.assert_close(share, (votes / votes.sum()).clamp(min=1e-6))


def test_frozen_evaluation_from_end_to_end(call, run_folder, tmp_path):
    weights = run_folder / "checkpoints/best.safetensors"
    start = ["recipe=probe", f"backbone.checkpoint_path={weights}", "trainer.max_steps=8"]
    for name, lr in (("linear_probe", 0.02), ("attentive_probe", 0.002)):
        call(train, *SHORT, f"task={name}", *start, f"recipe.optimizer.lr={lr}", f"run_dir={name}")
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["task"] == name and summary["top1"] > 0.2
        call(evaluation, f"run={name}")
        result = json.loads((tmp_path / name / "eval.json").read_text())
        assert result["top1"] == summary["top1"] and result["loss"] == pytest.approx(summary["loss"], rel=1e-5)
        assert "is not of a probe" in call(evaluation, f"run={name}", f"checkpoint={weights}", code=2)
    call(evaluation, "task=knn", "backbone=swin_nano", f"checkpoint={weights}", "data=digits", "run_dir=knn")
    result = json.loads((tmp_path / "knn/eval.json").read_text())
    assert result["task"] == "knn" and result["top1"] > 0.6 and result["images"] == 360


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["task=knn"], "task=knn has nothing to train"),
        (["task=attentive_probe", "task.num_heads=5"], "num_heads is 5, but must divide"),
        (["task.k=5"], "The task cannot be built with {'name': 'classification', 'k': 5}"),
    ],
)
def test_wrong_tasks(call, arguments, said):
    assert said in call(train, *arguments, code=2)


def test_a_probe_is_evaluated_from_its_run(call):
    said = call(
        evaluation, "task=linear_probe", "backbone=swin_nano", "data=digits", "backbone.pretrained=true", code=2
    )
    assert "evaluates what it trained" in said
    assert {name for name, task in TASKS.items() if task.whole_checkpoint and task.target is None} == {
        "linear_probe",
        "attentive_probe",
    }
