"""Weight initialisation."""

from torch import nn


def init_weights(module: nn.Module) -> None:
    """Linear weights normal with std 0.02, linear biases 0; everything else keeps its own initialisation.

    The official releases truncate at the absolute values -2 and 2, a hundred standard deviations away.
    """
    if isinstance(module, nn.Linear):
        init_conv_weights(module)


def init_conv_weights(module: nn.Module) -> None:
    """The same of linear layers and convolutions, depthwise ones included."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
