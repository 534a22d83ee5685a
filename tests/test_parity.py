"""The models equal their official releases: stand-in weights in the official format, compared with recorded numbers."""

import sys
from pathlib import Path

import pytest
import torch

import backbones

PARITY = Path(__file__).parent / "parity"
sys.path.insert(0, str(PARITY))
import parity  # noqa: E402

CASES = sorted(PARITY.glob("*/*.json"))


def official_file(case, path: Path) -> Path:
    torch.save({"model": parity.standin_checkpoint(case["manifest"])}, path)
    return path


LARGE = ("volo_d4_224", "swin_b_384")  # minutes on a CPU


def with_dtypes(cases: list[Path]) -> list:
    """By default every case but the large ones in float64, and one of each family in float32."""
    first = {path.parent: path for path in reversed(cases)}
    parameters = []
    for path in cases:
        for dtype in (torch.float64, torch.float32):
            fast = path.stem not in LARGE and (dtype == torch.float64 or path in first.values())
            name = f"{path.stem}-{str(dtype).removeprefix('torch.')}"
            parameters.append(pytest.param(path, dtype, id=name, marks=() if fast else pytest.mark.slow))
    return parameters


@pytest.mark.parametrize(("path", "dtype"), with_dtypes(CASES))
def test_parity(path, dtype, tmp_path):
    case = parity.load_case(path)
    # The stand-in weights are float64: a float64 model must take them without rounding.
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        file = official_file(case, tmp_path / "official.pth")
        model = backbones.create_model(case["variant"], checkpoint_path=file, **case.get("create_kwargs", {})).eval()
    finally:
        torch.set_default_dtype(previous)
    assert sum(p.numel() for p in model.parameters()) == case["params"]

    size = case["input"]
    images = parity.standin_images(size["batch"], size["height"], size["width"]).to(dtype).requires_grad_()
    checks = {}
    if "logits" in case:
        logits = model(images)
        checks["logits"] = (logits, case["logits"])
        features = model.forward_intermediates(images, intermediates_only=True)
        total = (logits * parity.standin_tensor("cotangent", list(logits.shape)).to(dtype)).sum()
    else:
        features = model(images)
        cotangents = [parity.standin_tensor(f"cotangent{i}", list(y.shape)).to(dtype) for i, y in enumerate(features)]
        total = sum((y * c).sum() for y, c in zip(features, cotangents))
    total.backward()
    expected = case["features"]
    if case.get("features_official_only"):  # ours, and further internal maps after them
        expected = expected[: len(features)]
    checks |= {f"feature {i}": pair for i, pair in enumerate(zip(features, expected, strict=True))}
    checks["input gradient"] = (images.grad, case["input_grad"])

    limit = 1e-8 if dtype == torch.float64 else max(1e-3, 20 * case["float32_mismatch"])
    found = {what: parity.mismatch(*pair) for what, pair in checks.items()}
    assert max(found.values()) <= limit, found
