"""The facts of published checkpoints, `pretrained/<family>.yaml`, and what timm wants to know of them."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from timm.models import PretrainedCfg

from .checkpoints import HEAD, STEM


@cache
def facts(family: str) -> dict[str, Any]:
    """Paper, code, licence, preprocessing and checkpoints of a family."""
    text = (Path(__file__).parent / "pretrained" / f"{family}.yaml").read_text()
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def checkpoints(family: str, name: str) -> dict[str, dict[str, Any]]:
    """Published checkpoints of a model by tag, the default first: url, input_size, num_classes, top1, licence, …

    `arguments` are what the constructor needs for a file besides the variant's. Where the release offers no direct
    download, `page` says where a person gets the file, and there is no url.
    """
    family_facts = facts(family)
    common = family_facts["preprocessing"] | dict(
        num_classes=1000, top1=None, licence=family_facts["licence"]["weights"]
    )
    tagged = (full.split(".", 1) + [own] for full, own in family_facts["checkpoints"].items())
    return {tag: common | own for model, tag, own in tagged if model == name}


def pretrained_cfgs(family: str, name: str, img_size: tuple[int, int]) -> dict[str, PretrainedCfg]:
    """timm's configuration of each published checkpoint of a model, `name.tag`; of the bare name if there is none."""
    family_facts = facts(family)
    common = dict(first_conv=STEM, classifier=HEAD, paper_ids=family_facts["paper"], origin_url=family_facts["code"])
    tags = checkpoints(family, name)
    if not tags:
        own = dict(input_size=(3, *img_size), **family_facts["preprocessing"], licence=None)
        return {name: PretrainedCfg(**_timm_fields(own), **common)}
    return {f"{name}.{tag}": PretrainedCfg(tag=tag, **_timm_fields(own), **common) for tag, own in tags.items()}


def _timm_fields(checkpoint: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in checkpoint.items() if k not in ("top1", "licence", "page", "arguments")}
    kept = {k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()}
    return kept | dict(license=checkpoint["licence"])
