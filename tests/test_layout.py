"""Who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each room may import besides the standard library; the longest matching prefix of a file's path decides.
TORCH = {"torch", "torchvision", "timm", "numpy"}
ALLOWED = {
    "kernels": {"torch", "triton", "kernels"},
    "backbones": TORCH | {"safetensors", "yaml", "filelock", "tqdm", "huggingface_hub", "backbones"},
    "backbones/compat": TORCH | {"transformers", "backbones.compat", "backbones.errors", "backbones.kernels"},
    "backbones/plot": {"matplotlib", "backbones.errors", "backbones.registry"},
    "backbones/subject": TORCH
    | {"PIL", "yaml"}
    | {f"backbones.{name}" for name in ("checkpoints", "errors", "registry")},
    "backbones/explain": TORCH
    | {"PIL", "matplotlib"}
    | {f"backbones.{name}" for name in ("attention", "backbone", "errors", "explain", "subject")},
    "backbones/export": TORCH
    | {"PIL", "onnxruntime", "sklearn"}
    | {f"backbones.{name}" for name in ("backbone", "errors", "export", "kernels.dispatch", "subject")},
    "backbones/families": TORCH
    | {f"backbones.{name}" for name in ("attention", "backbone", "errors", "families", "layers", "registry")},
    "backbones/layers": TORCH | {"backbones.layers", "backbones.errors"},
    "backbones/attention": TORCH | {"backbones.attention", "backbones.layers", "backbones.kernels", "backbones.errors"},
    "training": TORCH | {"PIL", "yaml", "rich", "matplotlib", "safetensors", "backbones", "training"},
    "training/data": TORCH
    | {"PIL", "simplejpeg", "sklearn", "datasets", "filelock", "tqdm"}
    | {"backbones.errors", "training.data", "faster_coco_eval"}
    | {"training.annotation", "training.resizing", "training.seeding"},
    "training/tasks": TORCH
    | {"PIL", "matplotlib", "backbones.errors", "training.tasks", "training.distributed"}
    | {"training.annotation", "training.resizing"}
    | {"segmentation_models_pytorch", "faster_coco_eval", "transformers", "peft"},
    "training/engine": TORCH
    | {"PIL", "matplotlib", "rich", "wandb", "safetensors", "tensorboard"}
    | {"backbones.errors", "backbones.checkpoints", "training.engine", "training.seeding", "training.distributed"},
    "training/demo": TORCH | {"PIL", "yaml", "matplotlib", "backbones", "training"},
    "training/demo/page.py": {"gradio", "backbones", "training"},
    "": TORCH | {"PIL", "hydra", "omegaconf", "yaml", "backbones", "training", "train"},
}
FILES = [p.relative_to(ROOT) for room in ("kernels", "backbones", "training") for p in (ROOT / room).rglob("*.py")]
FILES = [p for p in FILES if p.parts[:2] != ("backbones", "kernels")] + [Path("train.py"), Path("eval.py")]


def imports(path: Path) -> set[str]:
    """Absolute dotted names of all modules that a file imports, anywhere in it."""
    found = set()
    package = path.parent.parts
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {".".join([*base, name]) for name in names}
    return {name for name in found if name.partition(".")[0] not in sys.stdlib_module_names}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_the_right_way(path):
    room = max((r for r in ALLOWED if str(path).startswith(r)), key=len)
    for name in imports(path):
        assert any(name == a or name.startswith(a + ".") for a in ALLOWED[room]), f"{path} imports {name}"


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[:2] == ("backbones", "families")], ids=str)
def test_no_family_imports_another(path):
    siblings = {f"backbones.families.{p.stem}" for p in (ROOT / "backbones/families").glob("[!_]*.py")}
    if path.name != "__init__.py":
        assert not imports(path) & siblings


def test_triton_and_matplotlib_are_imported_when_they_are_used():
    """The files that import Triton are imported by `fused.py` files, and these by functions; as is the search."""
    kernels = {p for p in FILES if any(n.partition(".")[0] == "triton" for n in imports(p))}
    assert {p.name for p in kernels} == {"fused.py", "device.py", "tokens.py", "tiles.py", "tune.py"}
    names = {".".join(("backbones", *p.with_suffix("").parts)) for p in kernels}
    names.add("matplotlib")
    code = f"import sys, backbones.__main__, backbones.explain; print({names} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "set()"
