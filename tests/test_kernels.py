"""The Triton kernels against the references: by Triton's interpreter on a CPU, and on a GPU with `-m gpu`."""

import gc
import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import backbones
from backbones import attention
from backbones.kernels import dispatch
from backbones.kernels.dispatch import use
from backbones.kernels.routed import routed_attention
from backbones.kernels.window import window_attention

from .kernel_cases import (
    DEVICE,
    OPERATORS,
    Case,
    aggregate_case,
    check,
    grid,
    neighborhood_case,
    outlook_case,
    routed_case,
    window_case,
)

GPU = torch.cuda.is_available()
TINY = dict(height=6, width=8, heads=1)
SMALL = [
    window_case(**TINY, shift=(1, 2)),
    neighborhood_case(**TINY),
    aggregate_case(**TINY, softmax=True),
    outlook_case(**TINY),
    routed_case(heads=1),
]
of_small = pytest.mark.parametrize("case", SMALL, ids=OPERATORS)
pytestmark = [pytest.mark.gpu] if GPU else []


@pytest.mark.parametrize("case", grid(), ids=repr)
def test_equals_the_reference(case):
    check(case, torch.float32, 1e-5)


@of_small
@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)])
def test_half_precision(case, dtype):
    if dtype == torch.bfloat16 and not GPU:
        pytest.skip("Triton's interpreter has no products of bfloat16")
    check(case, dtype, 2e-3 if dtype == torch.float16 else 1.6e-2)


@of_small
def test_tensors_of_any_strides(case):
    strided = {n: x.movedim(-1, 0).contiguous().movedim(0, -1) for n, x in case.tensors.items()}
    check(Case(case.operator, case.arguments, strided, case.call), torch.float32, 1e-5)


@of_small
def test_gradients_of_the_references_are_those_of_finite_differences(case):
    tensors = {n: x.clone().requires_grad_() for n, x in case.tensors.items()}
    with use("reference"):
        assert torch.autograd.gradcheck(
            lambda *x: case.call(**dict(zip(tensors, x))), tuple(tensors.values()), fast_mode=True
        )


@of_small
def test_results_are_the_same_bit_for_bit_and_every_element_is_written(case):
    """In deterministic mode PyTorch fills new tensors with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        with use("triton"):
            first, second = case.run(torch.float32, DEVICE), case.run(torch.float32, DEVICE)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip((first[0], *first[1].values()), (second[0], *second[1].values())):
        assert torch.isfinite(a).all() and torch.equal(a, b)


@of_small
def test_compiles_into_one_graph(case):
    tensors = {n: x.to(DEVICE, torch.float32).requires_grad_() for n, x in case.tensors.items()}
    with use("triton"):
        expected = case.call(**tensors)
        compiled = torch.compile(case.call, fullgraph=True, backend="aot_eager")(**tensors)
        grads = [torch.autograd.grad(y.square().sum(), list(tensors.values())) for y in (expected, compiled)]
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(grads[1], grads[0])


@of_small
def test_checkpointing_gives_the_same_gradients(case):
    tensors = [x.to(DEVICE, torch.float32).requires_grad_() for x in case.tensors.values()]

    def call(*x):
        return case.call(**dict(zip(case.tensors, x)))

    with use("triton"):
        expected = torch.autograd.grad(call(*tensors).square().sum(), tensors)
        found = torch.autograd.grad(checkpoint(call, *tensors, use_reentrant=False).square().sum(), tensors)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def operators_and_arguments():
    """The registered operators themselves, with arguments like those of the public functions."""
    from backbones.kernels import neighborhood, outlook, routed, window

    q, k, v = torch.randn(1, 5, 6, 3, 2, 16, device=DEVICE).unbind(3)
    bias = torch.randn(2, 16, 16, device=DEVICE)
    table = torch.randn(2, 5, 5, device=DEVICE)
    logits = torch.randn(1, 3, 3, 2, 9, 9, device=DEVICE)
    routes = torch.randint(4, (1, 4, 2), device=DEVICE)
    return {
        "window": (window._op, [q, k, v, bias, None, k[0, 0, 0], [4, 4], [2, 2], 0.25, False]),
        "neighborhood": (neighborhood._op, [q, k, v, table, None, 3, 1, 0.25, True]),
        "aggregate": (
            neighborhood._op,
            [None, None, v, None, torch.randn(1, 5, 6, 2, 9, device=DEVICE), 3, 1, 1.0, False],
        ),
        "outlook": (outlook._op, [logits, v, 3, 1, 2, 0.25]),
        "routed": (routed._op, [*(x[:, :4, :4] for x in (q, k, v)), routes, 2, 2, 0.25]),
    }


@pytest.mark.parametrize("name", ["window", "neighborhood", "aggregate", "outlook", "routed"])
def test_operators_are_registered_as_pytorch_asks(name):
    operator, arguments = operators_and_arguments()[name]
    arguments = [
        x.detach().clone().requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in arguments
    ]
    torch.library.opcheck(operator, arguments)


@of_small
def test_second_derivatives_are_refused(case):
    tensors = {n: x.to(DEVICE, torch.float32).requires_grad_() for n, x in case.tensors.items()}
    with use("triton"):
        out = case.call(**tensors)
        (grad,) = torch.autograd.grad(out.square().sum(), tensors["v"], create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivatives"):
            grad.sum().backward()


BLOCKS = {
    "window": lambda: attention.WindowAttention(32, 2, 4, shifted=True),
    "global_query": lambda: attention.GlobalQueryAttention(32, 2, 4),
    "neighborhood": lambda: attention.NeighborhoodAttention(32, 2, 3),
    "hilo": lambda: attention.HiLoAttention(32, 2, 2, 0.5),
    "outlook": lambda: attention.OutlookAttention(32, 2),
    "routing": lambda: attention.BiLevelRoutingAttention(32, 2, 2, 2),
    "context_mixing": lambda: attention.ContextMixing(32, 16, 2, 7),
}


def arguments_of(name, side, **options):
    if name == "global_query":
        return torch.randn(1, side, side, 32, **options), torch.randn(1, 4, 4, 32, **options)
    channels = 48 if name == "context_mixing" else 32
    return (torch.randn(1, side, side, channels, **options),)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_run_on_the_kernels_under_autocast(name):
    block = BLOCKS[name]().to(DEVICE).eval()
    arguments = arguments_of(name, 8, device=DEVICE, requires_grad=True)
    results = {}
    for choice in ("reference", "triton"):
        with use(choice), torch.autocast(DEVICE, torch.float16):
            out = block(*arguments)
        grads = torch.autograd.grad(
            out.float().square().mean(), [arguments[0], *block.parameters()], materialize_grads=True
        )
        results[choice] = (out, *grads)
    for found, expected in zip(results["triton"], results["reference"]):
        assert found.dtype == expected.dtype
        assert (found - expected).float().norm() <= 2e-2 * expected.float().norm() + 1e-5


# Triton's interpreter takes long over a network; `test_blocks_run_on_the_kernels_under_autocast` has all mechanisms.
NETWORKS = [
    pytest.param(name, marks=() if GPU or name in ("dinat_nano", "swin_nano", "volo_nano") else pytest.mark.slow)
    for name in backbones.list_models("*_nano")
]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_give_the_same_numbers(name):
    """Logits and input gradient, with weights that let every block be heard."""
    model = backbones.create_model(name, num_classes=10).to(DEVICE).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.5)
    results = {}
    for choice in ("reference", "triton"):
        images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(DEVICE).requires_grad_()
        with use(choice):
            logits = model(images)
            logits.square().sum().backward()
        results[choice] = logits, images.grad
    for found, expected in zip(results["triton"], results["reference"]):
        assert 0 < (found - expected).norm() <= 1e-4 * expected.norm()  # not bit for bit: they are other kernels


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operator makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // max(1, x.element_size()))
        return out


@pytest.mark.parametrize(
    "case",
    [
        window_case(batch=4, height=28, width=28, heads=1, window=(7, 7)),  # 16 windows of 49 x 49 an image
        neighborhood_case(batch=1, height=24, width=24, heads=1, kernel=7),
        aggregate_case(batch=1, height=16, width=16, heads=2, kernel=5, softmax=True),
        outlook_case(batch=1, height=16, width=16, heads=2),
        routed_case(batch=1, regions=(4, 4), size=(2, 2), heads=2, top_k=8),
    ],
    ids=OPERATORS,
)
def test_nothing_is_allocated_that_the_definition_would(case):
    """No windows x N x N, no k * k * H * W * C, no gathered keys: nothing beyond maps, weights and tables."""
    inputs = {n: x.to(DEVICE, torch.float32).requires_grad_() for n, x in case.tensors.items()}
    sizes = [x.numel() for x in inputs.values()]
    with use("triton"), Largest() as forward:
        out = case.call(**inputs)
    with Largest() as backward:
        out.backward(torch.ones_like(out))
    # One sum over the whole batch may be kept apart in parts; these do not grow with the map.
    parts = 1024 * 64 * 64
    assert forward.elements <= max(3 * out.numel(), *sizes)
    assert backward.elements <= max(3 * out.numel(), *sizes, parts)
    gc.collect()


def test_more_elements_than_32_bits_count():
    far = 2**31 // 4
    try:
        memory = torch.empty(4 * far + 2**16, dtype=torch.float16, device=DEVICE)  # untouched, so not taken on a CPU
    except RuntimeError:
        pytest.skip("no room for 2**31 numbers")
    shape, strides = (5, 4, 4, 1, 16), (far, 64, 16, 16, 1)
    maps = [memory.as_strided(shape, strides, offset) for offset in (0, 2**12, 2**13)]
    for x in maps:
        x.copy_(torch.randn(shape))
    with use("triton"):
        found = window_attention(*maps, (2, 2))
        expected = window_attention(*(x.clone() for x in maps), (2, 2))
    assert torch.equal(found, expected) and found.isfinite().all()


def test_data_parallel_training(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        block = attention.WindowAttention(32, 2, 4).to(DEVICE)
        parallel = torch.nn.parallel.DistributedDataParallel(block)
        x = torch.randn(1, 6, 8, 32, device=DEVICE)
        with use("triton"):
            parallel(x).square().sum().backward()
            grads = [p.grad.clone() for p in block.parameters()]
            block.zero_grad()
            block(x).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(grads, [p.grad for p in block.parameters()])


def test_exported_programs_take_the_reference():
    block = attention.WindowAttention(32, 2, 4).to(DEVICE).eval()
    with use("triton"):
        program = torch.export.export(block, (torch.randn(1, 6, 8, 32, device=DEVICE),))
        traced = torch.jit.trace(block, torch.randn(1, 6, 8, 32, device=DEVICE))
    assert not any("zoo" in str(node.target) for node in program.graph.nodes)
    assert "zoo" not in str(traced.inlined_graph)


def test_the_choice_of_the_implementation():
    case = window_case(dim=160)
    x = {n: t.to(DEVICE, torch.float32) for n, t in case.tensors.items()}
    case.call(**x)  # by itself: what the kernels do not support is the reference's
    with use("triton"), pytest.raises(ValueError, match="heads of at most 128 channels, and these have 160"):
        case.call(**x)
    with use("triton"), pytest.raises(ValueError, match=r"these tensors are of torch\.float64"):
        case.call(**case.tensors)
    with use("reference"):
        with use("auto"):
            assert dispatch._choice == "auto"
        assert dispatch._choice == "reference"
    with pytest.raises(ValueError, match="one of auto, reference, triton, but got 'cuda'"):
        use("cuda")
    use("reference")
    assert dispatch._choice == "reference"
    use("auto")


@pytest.mark.parametrize(
    ("variables", "printed"),
    [
        pytest.param(dict(BACKBONES_KERNELS="triton", TRITON_INTERPRET="1"), "ok", marks=pytest.mark.slow),
        (dict(BACKBONES_KERNELS="triton", TRITON_INTERPRET="0", CUDA_VISIBLE_DEVICES=""), "Triton runs on GPUs"),
        (dict(BACKBONES_KERNELS="fast"), "BACKBONES_KERNELS is one of auto, reference, triton, but got 'fast'"),
        pytest.param(dict(TRITON_INTERPRET="0", CUDA_VISIBLE_DEVICES=""), "ok", marks=pytest.mark.slow),
    ],
    ids=["triton", "without a GPU", "unknown", "auto"],
)
def test_the_choice_by_the_environment(variables, printed):
    code = (
        "import torch\n"
        "from backbones.kernels.window import window_attention\n"
        "x = torch.randn(1, 4, 4, 1, 16)\n"
        "window_attention(x, x, x, (2, 2))\n"
        "print('ok')\n"
    )
    environment = {n: v for n, v in os.environ.items() if n not in ("BACKBONES_KERNELS", "TRITON_INTERPRET")}
    done = subprocess.run([sys.executable, "-c", code], env=environment | variables, capture_output=True, text=True)
    assert printed in done.stdout + done.stderr


def test_tensors_that_do_not_go_together():
    q = torch.randn(1, 4, 4, 1, 16)
    with pytest.raises(ValueError, match=r"q, k, v of one type, but got .* k torch\.float64"):
        window_attention(q, q.double(), q, (2, 2))
    with pytest.raises(ValueError, match=r"on one device, but got .* bias torch\.float32 on meta"):
        window_attention(q, q, q, (2, 2), bias=torch.empty(1, 4, 4, device="meta"))
    with pytest.raises(ValueError, match="expects tensors of floating-point numbers"):
        window_attention(q.long(), q.long(), q.long(), (2, 2))
    with pytest.raises(ValueError, match="routes to regions 0 to 3, but got 0 to 4"):
        routed_attention(q, q, q, torch.tensor([[[0], [1], [2], [4]]]), 2)


def test_transformations_take_the_reference():
    q = torch.randn(3, 1, 4, 4, 1, 16, device=DEVICE)
    with use("triton"):
        found = torch.func.vmap(lambda x: window_attention(x, x, x, (2, 2)))(q)
    torch.testing.assert_close(found, torch.stack([window_attention(x, x, x, (2, 2)) for x in q]))
