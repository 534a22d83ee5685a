"""The models equal their official releases: stand-in weights in the official format, compared with recorded numbers."""

import sys
from pathlib import Path

import pytest
import torch

import backbones
from backbones.kernels.dispatch import use

PARITY = Path(__file__).parent / "parity"
sys.path.insert(0, str(PARITY))
import parity  # noqa: E402

CASES = sorted(PARITY.glob("*/*.json"))


def official_file(case, path: Path) -> Path:
    torch.save({"model": parity.standin_checkpoint(case["manifest"])}, path)
    return path


# By default two cases of each family, one in each type: a classifier's and, where there is one, a dense backbone's.
FLOAT64 = (
    *("biformer_t_224", "davit_t_backbone_200x264", "dinat_m_200x264", "gcvit_t_dense_200x264", "l2vit_t_100x132"),
    *("litv2_s_segmentation_ws4_136x168", "overlock_xt_reparam_192", "swin_t_dense_200x264", "volo_d1_184"),
)
FLOAT32 = (
    *("biformer_t_backbone_200x280", "davit_t_224", "dinat_m_det_200x264", "gcvit_xxt_224", "l2vit_t_dense_200x264"),
    *("litv2_s", "overlock_xt_det_200x264", "swin_t", "volo_d1_320_resized"),
)


def with_dtypes(cases: list[Path]) -> list:
    parameters = []
    for path in cases:
        for dtype, fast in ((torch.float64, FLOAT64), (torch.float32, FLOAT32)):
            name = f"{path.stem}-{str(dtype).removeprefix('torch.')}"
            parameters.append(pytest.param(path, dtype, id=name, marks=() if path.stem in fast else pytest.mark.slow))
    return parameters


@pytest.mark.parametrize(("path", "dtype"), with_dtypes(CASES))
def test_parity(path, dtype, tmp_path):
    compare(path, dtype, tmp_path)


# One of each family, small enough for Triton's interpreter.
ON_KERNELS = (
    "swin_t_dense_200x264",
    "litv2_s_segmentation_ws4_136x168",
    "biformer_t_224",
    "dinat_m_200x264",
    "volo_d1_184",
    "gcvit_xxt_224",
    "davit_t_backbone_200x264",
    "l2vit_t_100x132",
    "overlock_xt_reparam_192",
)
GPU = torch.cuda.is_available()
CASES_ON_KERNELS = [path for path in CASES if GPU or path.stem in ON_KERNELS]


@(pytest.mark.gpu if GPU else pytest.mark.slow)
@pytest.mark.parametrize("path", CASES_ON_KERNELS, ids=[path.stem for path in CASES_ON_KERNELS])
def test_parity_on_the_kernels(path, tmp_path):
    with use("triton"):
        compare(path, torch.float32, tmp_path, device="cuda" if GPU else "cpu")


def compare(path: Path, dtype: torch.dtype, tmp_path: Path, device: str = "cpu") -> None:
    """Build the model of a case, load its stand-in weights, and hold all its numbers against the recorded ones."""
    case = parity.load_case(path)
    # The stand-in weights are float64: a float64 model must take them without rounding.
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        file = official_file(case, tmp_path / "official.pth")
        model = backbones.create_model(case["variant"], checkpoint_path=file, **case.get("create_kwargs", {})).eval()
        model.to(device)
    finally:
        torch.set_default_dtype(previous)
    assert sum(p.numel() for p in model.parameters()) == case["params"]

    size = case["input"]
    images = parity.standin_images(size["batch"], size["height"], size["width"]).to(device, dtype).requires_grad_()
    checks = {}
    if "logits" in case:
        logits = model(images)
        checks["logits"] = (logits, case["logits"])
        features = model.forward_intermediates(images, intermediates_only=True)
        total = (logits * parity.standin_tensor("cotangent", list(logits.shape)).to(logits)).sum()
    else:
        features = model(images)
        cotangents = [parity.standin_tensor(f"cotangent{i}", list(y.shape)).to(y) for i, y in enumerate(features)]
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
