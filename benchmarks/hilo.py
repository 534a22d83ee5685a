"""Speed of HiLo attention beside the attentions that it was proposed to replace, in one process, alternating.

    python benchmarks/hilo.py

One layer, inference, fp32, at the setting of the paper's comparison (arXiv:2205.13213, figure 3 and section 5.1): maps
of 14 x 14 tokens, 768 channels in 12 heads, batch 64; HiLo with windows of 2 and alpha 0.9. The others are timm's:
spatial reduction attention (PVT; keys from 2 x 2 patches), local window attention (Swin; windows of 7 with position
bias), and global attention (ViT). Prints medians in ms, multiply-adds per image, and the ratios to HiLo's time (above
1: HiLo is faster).
"""

import argparse

import measure
import torch
from timm.models.pvt_v2 import Attention as SpatialReductionAttention
from timm.models.swin_transformer import WindowAttention, window_partition, window_reverse
from timm.models.vision_transformer import Attention as GlobalAttention
from torch import Tensor, nn

from backbones.attention import HiLoAttention


class OnTokens(nn.Module):
    """A layer that takes (B, H * W, C), on (B, H, W, C); with `sized`, it is told (H, W), too."""

    def __init__(self, layer: nn.Module, sized: bool = False):
        super().__init__()
        self.layer, self.sized = layer, sized

    def forward(self, x: Tensor) -> Tensor:
        size = [x.shape[1:3]] if self.sized else []
        return self.layer(x.flatten(1, 2), *size).view(x.shape)


class OnWindows(nn.Module):
    """A layer that takes (windows, N * N, C), on (B, H, W, C)."""

    def __init__(self, layer: nn.Module, window_size: int):
        super().__init__()
        self.layer, self.window_size = layer, (window_size, window_size)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(window_partition(x, self.window_size).flatten(1, 2))
        return window_reverse(y.unflatten(1, self.window_size), self.window_size, *x.shape[1:3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=14, help="side of the map, in tokens; 14 divides evenly")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--alpha", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each layer")
    options = parser.parse_args()

    torch.manual_seed(0)
    print(f"{measure.headline()}; medians of {options.rounds} rounds")
    dim, heads = options.dim, options.heads
    layers = {
        "HiLo": HiLoAttention(dim, heads, window_size=2, alpha=options.alpha),
        "spatial reduction": OnTokens(
            SpatialReductionAttention(dim, heads, sr_ratio=2, linear_attn=False, qkv_bias=True), sized=True
        ),
        "local windows": OnWindows(WindowAttention(dim, heads, window_size=7), window_size=7),
        "global": OnTokens(GlobalAttention(dim, heads, qkv_bias=True)),
    }
    x = torch.randn(options.batch, options.size, options.size, dim, device=measure.device())
    runs = [measure.inference(layer.to(x.device), x) for layer in layers.values()]
    times = dict(zip(layers, measure.medians(runs, options.rounds)))
    gmacs = {name: measure.macs(layer, x) / 1e9 for name, layer in layers.items()}
    print(f"{'attention':<20}{'ms':>8}{'GMACs':>8}{'ratio':>8}{'of GMACs':>10}")
    for name, spent in times.items():
        ratio, of_gmacs = spent / times["HiLo"], gmacs[name] / gmacs["HiLo"]
        print(f"{name:<20}{1e3 * spent:>8.1f}{gmacs[name]:>8.3f}{ratio:>8.2f}{of_gmacs:>10.2f}")


if __name__ == "__main__":
    main()
