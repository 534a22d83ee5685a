"""A backbone as part of a larger network: which layers learn how fast, and which not at all."""

from collections.abc import Callable

from timm.models import group_parameters
from torch import nn

from backbones.errors import InputError


class BackboneLayers(nn.Module):
    """What a network around a backbone of the zoo tells optimizers, and how its frozen part behaves.

    The backbone, anywhere inside, is the first module with a `group_matcher`. Its modules whose parameters are all
    frozen are never in training mode: their running statistics and paths stay as they are.
    """

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[int]]:
        """Layer groups for layer-wise learning-rate decay: the backbone's, then all else as the last one."""
        prefix, backbone = self._backbone()
        groups = group_parameters(backbone, backbone.group_matcher(coarse), reverse=True)
        groups = {f"{prefix}.{name}": group for name, group in groups.items()}
        last = max(groups.values()) + 1
        return lambda name: (groups.get(name, last),)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters with two or more dimensions that are not decayed: the backbone's."""
        prefix, backbone = self._backbone()
        return {f"{prefix}.{name}" for name in backbone.no_weight_decay()}

    def train(self, mode: bool = True):
        super().train(mode)
        for module in self._backbone()[1].modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self

    def compile_backbone(self) -> None:
        """Run the backbone through torch.compile; the heads make boxes of changing numbers, which it does not suit."""
        next(module for module in self.modules() if hasattr(module, "feature_info")).compile()

    def _backbone(self) -> tuple[str, nn.Module]:
        return next((name, m) for name, m in self.named_modules() if name and hasattr(m, "group_matcher"))


def freeze_stages(backbone: nn.Module, stages: int) -> None:
    """Let a features-only backbone's first layers learn no more; `BackboneLayers` keeps them out of training mode.

    Args:
        backbone: from `create_model(..., features_only=True)`.
        stages: how many are frozen, with the stem and all else that pictures pass before the last of them; -1 or 0:
            nothing is, not even the stem; the number of all stages: the whole backbone, output norms included. In other
            cases the norm of a dense backbone's output still learns, as it is no part of the stage.

    Raises:
        InputError: there are fewer stages.
    """
    network = backbone.model
    count = len(network.stages)
    if not -1 <= stages <= count:
        raise InputError(
            f"{stages} stages of the backbone cannot be frozen, as it has {count}. Give a number from 0, which freezes "
            f"nothing, to {count}, the whole backbone."
        )
    if stages == count:
        network.requires_grad_(False)
    elif stages > 0:
        groups = group_parameters(network, network.group_matcher(), reverse=True)
        last = max(group for name, group in groups.items() if name.startswith(f"stages.{stages - 1}.blocks."))
        frozen = tuple(f"stages.{i}." for i in range(stages))  # parts beside the blocks are in no layer's group
        for name, parameter in network.named_parameters():
            if groups[name] <= last or name.startswith(frozen):
                parameter.requires_grad_(False)


def add_lora(backbone: nn.Module, rank: int) -> None:
    """Freeze a backbone but for low-rank corrections of its linear layers (LoRA, Hu et al., arXiv:2106.09685), by peft.

    Raises:
        InputError: peft is not installed, or the rank is below 1.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("task.lora_rank needs peft: pip install 'backbones[lora]'.") from error
    if rank < 1:
        raise InputError(f"task.lora_rank is {rank}, but must be at least 1 (or null for none).")
    backbone.requires_grad_(False)
    # OverLoCK's `kernels` are never called: their weights are part of a larger product.
    layers = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    layers = [name for name in layers if not name.endswith(".kernels")]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers), backbone)
