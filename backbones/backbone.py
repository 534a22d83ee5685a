"""The base class that gives every family timm's model contract."""

import operator
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import torch
from timm.layers import ClassifierHead, to_2tuple
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, fx, nn

from .errors import InputError
from .layers import is_traced

DENSE = ("detection", "segmentation")
PIECE_BYTES = 2_500_000  # of maps that go through the blocks together; measured on swin_t with benchmarks/models.py


class Stage(nn.Module):
    """Down-sampling, then blocks: one level of the pyramid, from map to map.

    Args:
        downsample: what brings the last stage's map to this one's size; identity in the first stage.
        blocks: modules from a map to a map of the same shape; further arguments of `forward` are passed on to them,
            and tensors among these are maps of the same images.
    """

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module]):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return in_pieces(self.forward_blocks, self.downsample(x), *args)

    def forward_blocks(self, x: Tensor, *args: Any) -> Tensor:
        for block in self.blocks:
            recompute = self.grad_checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, *args) if recompute else block(x, *args)
        return x


def in_pieces(function: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    """function(x, *args), of a few images of the batch at a time in eager inference on a CPU.

    Maps and hidden layers then stay in the cache, and no large new tensor has to be mapped at every call. Tensors among
    `args` are maps of the same images.
    """
    if not goes_in_pieces(x):
        return function(x, *args)
    images = max(1, PIECE_BYTES // max(1, x.numel() * x.element_size() // max(1, len(x))))
    split_args = (arg.split(images) if isinstance(arg, Tensor) else repeat(arg) for arg in args)
    pieces = [function(*piece) for piece in zip(x.split(images), *split_args)]
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def goes_in_pieces(x: Tensor) -> bool:
    """Whether the network runs eagerly, for inference and on a CPU."""
    return not is_traced(x) and x.device.type == "cpu" and not torch.is_grad_enabled()


class Backbone(nn.Module):
    """A stem and stages of blocks on (B, H, W, C) maps, with timm's interface around them.

    A family builds `stem`, `stages` and `norm` in its constructor and ends it with `finish`. Images come in and maps
    go out as (B, C, H, W). With `dense`, the network is the family's official detection or segmentation backbone: no
    norm and head, a `norm{i}` per output map instead.

    Attributes:
        feature_info: a dict per stage: channels `num_chs`, stride to the image `reduction`, and `module`.
        num_features, head_hidden_size: channels of the last map and of the classifier's input.
        classifiers: the linear layers with a row per class, which loading adapts to another number of classes.
        optional: how entries' names start that a checkpoint may have and the model not, or the other way round.
        output_layers: how entries' names start that a dense backbone has and a classifier's checkpoint has not.
    """

    output_fmt = "NCHW"
    min_size = 32  # pixels
    classifiers = ("head.fc",)
    optional = ()
    output_layers = ("norm",)

    def __init__(self, in_chans: int, num_classes: int, global_pool: str, drop_rate: float, dense: str | None):
        super().__init__()
        if dense is not None and dense not in DENSE:
            raise InputError(f"dense must be one of {', '.join(DENSE)}, or None for the classifier, but is {dense!r}.")
        self.in_chans, self.num_classes, self.global_pool = in_chans, 0 if dense else num_classes, global_pool
        self.drop_rate, self.dense = drop_rate, dense

    def finish(self, dims: list[int], strides: list[int]) -> None:
        """Add feature_info, norms and head for stages of these widths and strides; call last in a constructor."""
        self.feature_info = [
            dict(num_chs=dim, reduction=stride, module=f"stages.{i}")
            for i, (dim, stride) in enumerate(zip(dims, strides))
        ]
        self.num_features = self.head_hidden_size = dims[-1]
        if self.dense:
            self.norm, self.head = nn.Identity(), nn.Identity()
            for i, dim in enumerate(dims):
                self.add_module(f"norm{i}", nn.LayerNorm(dim))
        else:
            self.norm = nn.LayerNorm(dims[-1])
            self.head = self.make_head()

    def check_stages(self, depths: Sequence[int], num_heads: Sequence[int], **sizes: int) -> None:
        """Raise InputError for lists that do not belong together, and for sizes under 1; says all that was given."""
        if len(depths) != len(num_heads) or min(*depths, *num_heads, *sizes.values()) < 1:
            given = ", ".join(f"{name}={value}" for name, value in sizes.items())
            raise InputError(
                f"{type(self).__name__} needs a depth and a num_heads per stage, and sizes of at least 1, but got "
                f"depths={depths}, num_heads={num_heads}, {given}."
            )

    def make_head(self) -> nn.Module:
        """Pooling and classifier: what takes `forward_features`' map to logits; its last linear layer is `fc`."""
        return ClassifierHead(self.num_features, self.num_classes, self.global_pool, self.drop_rate)

    def to_nchw(self, x: Tensor) -> Tensor:
        """A map as the stages pass it on to a map as it leaves the model."""
        return x.permute(0, 3, 1, 2)

    def dense_output(self, stage: int, x: Tensor) -> Tensor:
        """A stage's map as the dense backbone returns it: through a norm of its own."""
        return self.get_submodule(f"norm{stage}")(x)

    def stage_arguments(self, images: Tensor) -> tuple:
        """What the blocks need to know besides their map."""
        return ()

    def forward_stages(self, images: Tensor, last: int) -> list[Tensor]:
        """Images (B, in_chans, H, W) to the (B, H / r, W / r, C) maps of stages 0 to `last`, un-normed."""
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            fix_image_size(images)
        arguments = self.stage_arguments(images)
        x, maps = self.stem(images), []
        for stage in self.stages[: last + 1]:
            x = stage(x, *arguments)
            maps.append(x)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the normed last map, (B, C, H / r, W / r)."""
        check_images(x, self.in_chans, self.min_size)
        return self.to_nchw(self.norm(self.forward_stages(x, len(self.stages) - 1)[-1]))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits, (B, num_classes); with `pre_logits`, to the classifier's input."""
        return self.head(x, pre_logits=pre_logits)

    def export_sizes(self) -> tuple[int, int]:
        """The smallest side and the step, in pixels, of the images that one exported graph can take.

        What the network decides by the size of a map (which windows, whether to fill up) is alike for all of them, and
        no down-sampling leaves a remainder: arithmetic on sizes stays simple enough for `torch.export`.

        Raises:
            InputError: there is no such range; says why.
        """
        step = self.feature_info[-1]["reduction"]
        least = max(2 * step, self.min_size, *self.least_sizes())  # a map of one token a side is a case of its own
        return -(-least // step) * step, step

    def least_sizes(self) -> list[int]:
        """Sides, in pixels, from which on the network decides nothing by the size of a map."""
        return []

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles: the symbolic trace of the model in its present mode, for any image size.

        Arithmetic on sizes stays in Python, so the result runs here but cannot be saved; for a file use `torch.export`
        or `torch.jit.trace`.
        """
        return fx.symbolic_trace(self)

    def forward(self, x: Tensor) -> Tensor:
        if self.dense:
            raise InputError(
                "A dense backbone has no classifier; call forward_intermediates, or use features_only=True."
            )
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of several stages, (B, C, H / r, W / r) each: after the stage's last block, before any norm.

        Args:
            indices: which stages, in this order: the last n, a list (negative from the end), or all.
            norm: apply the final norm to the last stage's map.
            stop_early: leave out the stages after the last one asked for.
            intermediates_only: the list alone, without the normed last map before it.

        Returns:
            (what `forward_features` returns, list of maps), or the list. Dense: each map through its own norm.
        """
        if output_fmt != "NCHW":
            raise InputError(f"Maps are returned as NCHW; output_fmt={output_fmt!r} is not available.")
        check_images(x, self.in_chans, self.min_size)
        taken, last = feature_take_indices(len(self.stages), indices)
        end = len(self.stages) - 1
        maps = self.forward_stages(x, last if stop_early or intermediates_only else end)
        outputs = []
        for i in taken:
            y = self.norm(maps[i]) if norm and i == end and not self.dense else maps[i]
            y = self.dense_output(i, y) if self.dense else y
            outputs.append(self.to_nchw(y))
        if intermediates_only:
            return outputs
        final = self.norm(maps[-1]) if len(maps) > end else maps[-1]
        return self.to_nchw(final), outputs

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps of these stages do not need; returns the indices as positive numbers."""
        taken, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        for i in range(len(self.feature_info)):
            if self.dense and i not in taken and hasattr(self, f"norm{i}"):
                delattr(self, f"norm{i}")
        if prune_norm or shortened:
            self.norm = nn.Identity()
        if shortened:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if (prune_head or shortened) and not self.dense:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for `num_classes` (0: none), and another pooling where one is named ("": none)."""
        like = next(self.parameters())
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        training = self.head.training
        self.head = self.make_head()
        self.head.to(like.device, like.dtype).train(training)

    def note_arguments(self, **arguments: Any) -> None:
        """Note constructor arguments, those that are not None, that build the model as it is now; timm saves them."""
        arguments = {name: value for name, value in arguments.items() if value is not None}
        self._model_args = getattr(self, "_model_args", {}) | arguments
        if "img_size" in arguments:
            self._traits = getattr(self, "_traits", {}) | dict(img_size=to_2tuple(arguments["img_size"]))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning-rate decay: the stem, then each block (coarse: each stage).

        What a stage has beside its blocks, such as its down-sampling, learns with the first of them.
        """
        if coarse:
            return dict(stem=r"^stem", blocks=r"^stages\.(\d+)")
        return dict(
            stem=r"^stem",
            blocks=[
                (r"^stages\.(\d+)\.(?!blocks\.)", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        )

    def no_weight_decay(self) -> set[str]:
        """Names of parameters with two or more dimensions that the family's recipe does not decay."""
        return set()


def fix_image_size(images: Tensor) -> None:
    """Make a compiled graph one for this image size, and still for any batch.

    Sizes left as symbols grow with every padding and down-sampling to expressions that take minutes to prove things
    about. An exported graph has symbols where its caller names them; see `Backbone.export_sizes`.
    """
    for side in images.shape[2:]:
        operator.index(side)


@fx.wrap
@torch.jit.ignore
def check_images(images: Tensor, in_chans: int, min_size: int) -> None:
    """Raise InputError for images of another number of channels, or smaller than the network can take."""
    if images.dim() != 4:
        raise InputError(f"Images come as (B, {in_chans}, H, W), but got {tuple(images.shape)}.")
    if images.shape[1] != in_chans:
        raise InputError(
            f"This model takes images of {in_chans} channel(s), (B, {in_chans}, H, W), but got {tuple(images.shape)}. "
            f"Build it with in_chans={images.shape[1]}, or convert the images."
        )
    if images.shape[2] < min_size or images.shape[3] < min_size:
        raise InputError(
            f"This model takes images of at least {min_size} pixels a side, but got "
            f"{images.shape[2]} x {images.shape[3]}. Enlarge the images first."
        )
