"""Models as folders and as repositories of the Hugging Face hub, in timm's format, with a card."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi
from timm.models import save_for_hf
from timm.models._hub import generate_readme
from torch import nn

from .backbone import Backbone
from .errors import InputError
from .published import checkpoints, facts
from .registry import count_macs, create_model, family_of
from .saved import hub_errors

USAGE = """
```python
import timm
import backbones

model = backbones.create_model("{source}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(picture)[None])  # a PIL picture to (1, {num_classes})
maps = backbones.create_model("{source}", pretrained=True, features_only=True)(images)
```

After `import backbones`, `timm.create_model` takes the same arguments."""


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    licence: str | None = None,
    details: dict[str, Any] | None = None,
    model_config: dict[str, Any] | None = None,
    source: str | None = None,
) -> None:
    """Save a classifier as config.json, model.safetensors and README.md, for `create_model("local-dir:FOLDER")`.

    Args:
        licence: of the weights; None: that of the published weights of this name, which what is fine-tuned from them
            keeps.
        details: further lines for the card, such as {"Dataset": "digits", "Top-1": "99.7 %"}.
        model_config: further entries for config.json, such as {"label_names": ["cat", "dog"]}; timm documents them.
        source: the name under which the card tells others to load the model; None: this folder's.

    Raises:
        InputError: no classifier of this zoo, or one that was changed so that no arguments build it.
    """
    if not isinstance(model, Backbone) or model.dense:
        raise InputError(
            f"Classifiers of backbones.create_model can be saved, but got {type(model).__name__}. Save the model "
            "without features_only; create_model(…, pretrained=True, features_only=True) makes maps of what was saved."
        )
    folder = Path(folder)
    noted = {k: v for k, v in model._model_args.items() if k not in ("drop_rate", "drop_path_rate")}
    current = dict(num_classes=model.num_classes, in_chans=model.in_chans, global_pool=model.global_pool)
    config = dict(model_config or {})  # timm takes entries out of it
    save_for_hf(model, folder, model_config=config, model_args=noted | current, safe_serialization=True)
    rebuilt = create_model(f"local-dir:{folder}", device="meta").eval()
    shapes, saved = ({n: v.shape for n, v in m.state_dict().items()} for m in (rebuilt, model))
    if shapes != saved:
        different = sorted(n for n in shapes.keys() | saved.keys() if shapes.get(n) != saved.get(n))
        raise InputError(
            f"The model in {folder} cannot be built again from its arguments {noted | current}: {len(different)} of "
            f"its entries differ, such as {different[0]}. Change models by arguments of create_model, set_input_size "
            "and reset_classifier alone, or save the state dict with torch.save."
        )
    card = model_card(rebuilt, source or f"local-dir:{folder}", licence, details or {})
    title = (source or folder.name).rpartition("/")[2]
    (folder / "README.md").write_text(generate_readme(card, title), encoding="utf-8")


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    licence: str | None = None,
    details: dict[str, Any] | None = None,
    model_config: dict[str, Any] | None = None,
    private: bool = False,
    commit_message: str = "Add model",
) -> str:
    """Upload what `save_pretrained` writes to "OWNER/NAME", for `create_model("hf-hub:OWNER/NAME")`.

    The repository is made where there is none; a card that it has stays as it is.

    Returns:
        The address of the commit.
    """
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder, licence, details, model_config, source=f"hf-hub:{repo_id}")
        with hub_errors(repo_id):
            api = HfApi(library_name="backbones")
            api.create_repo(repo_id, private=private, exist_ok=True)
            kept = ["README.md"] if api.file_exists(repo_id, "README.md") else []
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=commit_message, ignore_patterns=kept
            )
    return commit.commit_url


def model_card(model: Backbone, source: str, licence: str | None, details: dict[str, Any]) -> dict[str, Any]:
    """What timm's writer of cards needs, of a model on the meta device; facts of others are named as theirs."""
    name, input_size = model.pretrained_cfg["architecture"], (model.in_chans, *model.pretrained_cfg["input_size"][1:])
    family = family_of(name)
    about, published = facts(family), checkpoints(family, name)
    if licence is None:
        own = published.get(model.pretrained_cfg.get("tag"), {})
        licence = own.get("licence", "not stated")
    is_id = " " not in licence  # the hub knows licences by short names
    figures = {
        "Architecture": f"{name}, of the family {family}",
        "Parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "Multiply-adds": f"{count_macs(model, input_size) / 1e9:.2f} G for {' x '.join(map(str, input_size))}",
        "Classes": model.num_classes,
        "Licence of the weights": licence,
        "Paper": f"https://arxiv.org/abs/{about['paper'].removeprefix('arXiv:')}",
        "Official code": f"{about['code']} ({about['licence']['code']})",
    }
    accuracies = [f"{name}.{tag}: {own['top1']} %" for tag, own in published.items() if own["top1"]]
    if accuracies:
        figures["Published top-1 on ImageNet-1k, of the official weights"] = accuracies
    return dict(
        tags=["image-classification", "timm", "backbones"],
        library_name="backbones",
        license=licence.lower() if is_id else "other",
        **({} if is_id else dict(license_name="see Model Details")),
        description=f"A `{name}` classifier of {model.num_classes} classes.",
        details=figures | details,
        usage=USAGE.format(source=source, num_classes=model.num_classes),
    )
