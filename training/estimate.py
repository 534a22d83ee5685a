"""What training on many GPUs takes, by arithmetic: memory, communication, data, and how well it scales.

Everything about the hardware and the speed of one GPU is the caller's, measured or assumed. docs/scaling.md has the
formulas in words, what they leave out, and how they compare with measurements.
"""

import math
from dataclasses import dataclass

from backbones.errors import InputError

FP32 = 4  # bytes; weights, gradients and moments are kept in it, whatever the precision of the products
BUCKET_BYTES = 25 * 2**20  # of gradients that DistributedDataParallel sends together, its default


@dataclass(frozen=True)
class Link:
    """What joins a GPU to the others: bytes per second in one direction, and seconds until a message arrives."""

    bytes_per_second: float
    hop_seconds: float


@dataclass(frozen=True)
class Cluster:
    """Nodes of some GPUs each, which are joined by one link inside and by another, per GPU, between nodes."""

    gpus_per_node: int
    inside: Link
    between: Link


@dataclass(frozen=True)
class Footprint:
    """What a model needs, as `activations.footprint` counts it.

    Args:
        parameters, largest_block: numbers of parameters, of the model and of its largest block.
        blocks: their number; FSDP gathers the parameters of one block at a time.
        image_bytes: kept of each image for the backward pass, the blocks' inputs alone with checkpointing.
        fixed_bytes: kept whatever the batch: the weights as they were cast to a lower precision.
        block_bytes: the most that a block keeps of an image while it is computed again; 0 without checkpointing.
    """

    parameters: int
    largest_block: int
    blocks: int
    image_bytes: float
    fixed_bytes: float = 0
    block_bytes: float = 0

    @property
    def checkpointing(self) -> bool:
        return self.block_bytes > 0


@dataclass(frozen=True)
class Estimate:
    """Of one step: memory and `sent_bytes` per GPU, times; and what all GPUs together need in data.

    `gathered_bytes` are the whole parameters and gradients of the blocks at work, with FSDP. `images_per_second`,
    `data_bytes_per_second` and `decode_cores` are of the whole cluster.
    """

    weight_bytes: float
    gradient_bytes: float
    moment_bytes: float
    average_bytes: float
    gathered_bytes: float
    activation_bytes: float
    sent_bytes: float
    communication_seconds: float
    compute_seconds: float
    step_seconds: float
    images_per_second: float
    data_bytes_per_second: float
    decode_cores: float

    @property
    def memory_bytes(self) -> float:
        state = self.weight_bytes + self.gradient_bytes + self.moment_bytes + self.average_bytes
        return state + self.gathered_bytes + self.activation_bytes

    @property
    def efficiency(self) -> float:
        """Images per second of a GPU, relative to those of a GPU alone."""
        return self.compute_seconds / self.step_seconds


def collective_seconds(size: float, gpus: int, cluster: Cluster) -> float:
    """Time of an all-gather or a reduce-scatter of `size` bytes, by rings inside nodes and then between them.

    All GPUs of a node send between nodes at once, each its own part. An all-reduce is one of either.
    """
    inside = min(gpus, cluster.gpus_per_node)
    nodes = gpus // inside
    seconds = 0.0
    for ring, part, link in ((inside, size, cluster.inside), (nodes, size / inside, cluster.between)):
        seconds += (ring - 1) * (part / ring / link.bytes_per_second + link.hop_seconds)
    return seconds


def overlapped_seconds(compute: float, communication: float, pieces: int) -> float:
    """Time of computing and sending in equal pieces, where a piece is sent once it is computed.

    Either the computation is the longer, and sending the last piece comes after it, or the sending, and computing the
    first piece comes before it.
    """
    return max(compute + communication / pieces, compute / pieces + communication)


def estimate(
    model: Footprint,
    cluster: Cluster,
    gpus: int,
    batch: int,
    images_per_second: float,
    strategy: str = "ddp",
    *,
    jpeg_bytes: float,
    decoded_per_second: float,
    moments: int = 2,
    average: bool = False,
    sent_weight_bytes: int = 2,
) -> Estimate:
    """Memory, communication and speed of training with a fixed batch per GPU.

    Args:
        gpus: their number: up to a node's, or whole nodes.
        batch: images per GPU and step.
        images_per_second: of one GPU alone, training step and optimizer included.
        strategy: ddp (all of the model on each GPU) or fsdp (1 / gpus of it, gathered block by block).
        jpeg_bytes: of an image, on average.
        decoded_per_second: images that a CPU core decodes and augments.
        moments: running averages of the optimizer: 2 for AdamW, 1 for SGD with momentum.
        average: whether a moving average of the weights is kept.
        sent_weight_bytes: of a gathered parameter with fsdp, 2 for bfloat16; gradients are sent in float32.

    Raises:
        InputError: numbers that make no cluster, or an unknown strategy.
    """
    if strategy not in ("ddp", "fsdp"):
        raise InputError(f"There is no strategy {strategy!r}; use ddp or fsdp.")
    if gpus < 1 or (gpus > cluster.gpus_per_node and gpus % cluster.gpus_per_node):
        raise InputError(
            f"{gpus} GPUs do not fill nodes of {cluster.gpus_per_node}. Use fewer than a node's, or a multiple of it."
        )
    whole = FP32 * model.parameters
    compute = batch / images_per_second
    # A backward pass does twice the products of a forward pass, and with checkpointing the forward pass's once more.
    forward = compute / (4 if model.checkpointing else 3)
    activations = batch * (model.image_bytes + model.block_bytes)
    if strategy == "ddp":
        shards, gathered = 1, 0.0
        activations += model.fixed_bytes
        sent = 2 * whole
        buckets = math.ceil(whole / BUCKET_BYTES)
        communication = 2 * buckets * collective_seconds(whole / buckets, gpus, cluster)
        step = forward + overlapped_seconds(compute - forward, communication, buckets)
    else:
        shards = gpus
        # The block at work and the next one, and the gradient of the block at work.
        gathered = 0.0 if gpus == 1 else model.largest_block * (2 * sent_weight_bytes + FP32)
        weights = sent_weight_bytes * model.parameters
        sent = 2 * weights + whole
        gather = model.blocks * collective_seconds(weights / model.blocks, gpus, cluster)
        scatter = model.blocks * collective_seconds(whole / model.blocks, gpus, cluster)
        communication = 2 * gather + scatter
        step = overlapped_seconds(forward, gather, model.blocks)
        step += overlapped_seconds(compute - forward, gather + scatter, model.blocks)
    total = gpus * batch / step
    return Estimate(
        weight_bytes=whole / shards,
        gradient_bytes=whole / shards,
        moment_bytes=moments * whole / shards,
        average_bytes=whole / shards if average else 0.0,
        gathered_bytes=gathered,
        activation_bytes=activations,
        sent_bytes=sent * (gpus - 1) / gpus,
        communication_seconds=communication,
        compute_seconds=compute,
        step_seconds=step,
        images_per_second=total,
        data_bytes_per_second=total * jpeg_bytes,
        decode_cores=total / decoded_per_second,
    )
