"""What CUDA does otherwise than a CPU, for fake tensors on a CPU: autocast's lists, attention kernels, allocator.

Kernels of PyTorch are replaced for as long as `as_on_a_card` is open: the operators that CUDA's autocast treats unlike
the CPU's (aten/src/ATen/autocast_mode.h against autocast_mode.cpp), and attention, for which a card of compute
capability 8.0 (Ampere) or later has fused kernels that save no T x T matrix.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK_BYTES = 512  # c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize: every allocation is a multiple of it
CUBLAS_WORKSPACE_BYTES = 8_519_680  # aten/src/ATen/cuda/CublasHandlePool.cpp: 2 x 4 MiB + 8 x 16 KiB
ASSUMED = (
    "attention by the flash kernel in half precision without a mask, by the memory-efficient kernel otherwise; "
    "neither saves a T x T matrix; needs compute capability 8.0 or later",
    f"allocations rounded up to {BLOCK_BYTES} bytes; cuBLAS workspace of {CUBLAS_WORKSPACE_BYTES / 1e6:.1f} MB, "
    "transient; 33.6 MB on Hopper",
    "recurrent layers counted step by step, as the CPU runs them; cuDNN's reserve is smaller",
    "not counted: CUDA context, cuDNN workspaces, fragmentation",
)

# Operators that CUDA's autocast runs in float32 and the CPU's leaves alone, and those it runs in half precision.
TO_FLOAT32 = (
    *("exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "softplus", "tan", "acos", "asin"),
    *("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "layer_norm", "native_layer_norm", "rms_norm"),
    *("group_norm", "cosine_similarity", "logsumexp", "cumsum", "cumprod", "softmax.int", "log_softmax.int"),
    *("sum", "sum.dim_IntList", "linalg_vector_norm", "norm.ScalarOpt_dim", "dist", "pdist", "renorm"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d"),
    *("upsample_trilinear3d", "upsample_bicubic2d"),
)
TO_HALF = ("prelu", "einsum", "mv", "addmv", "addr", "chain_matmul", "linalg_multi_dot")
# Operators that only the CPU's autocast lists, and CUDA's runs in whatever precision comes.
AS_THEY_COME = (
    *("avg_pool3d", "max_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool3d", "reflection_pad1d"),
    *("reflection_pad2d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "quantile", "trace"),
)
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


@contextmanager
def as_on_a_card() -> Iterator[None]:
    """Let fake CPU tensors take the operators that a CUDA card would run."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)  # replaced on purpose
        for name in TO_FLOAT32:
            library.impl(name, _casting(name, torch.float32), "AutocastCPU")
        for name in TO_HALF:
            library.impl(name, _casting(name, torch.float16), "AutocastCPU")
        for name in AS_THEY_COME:
            library.impl(name, torch.library.fallthrough_kernel, "AutocastCPU")
        library.impl("scaled_dot_product_attention", _attention, "AutogradCPU")
    try:
        yield
    finally:
        library._destroy()


def _casting(name: str, dtype: torch.dtype) -> Any:
    """The operator on arguments of that type, as autocast calls it."""
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def cast(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(map(cast, value))
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return operator(*cast(args), **kwargs)

    return kernel


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention, (B, heads, T, D) each, by the kernel that a card takes: aten/src/ATen/native/transformers."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    width = query.shape[-1]
    scale = 1.0 / math.sqrt(width) if scale is None else scale
    if attn_mask is None and query.dtype in (torch.float16, torch.bfloat16) and width <= 256:
        if width % 8:
            query, key, value = (F.pad(x, (0, -width % 8)) for x in (query, key, value))
        mixed = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )[0]
        return mixed[..., :width]
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, float("-inf"))
        length = attn_mask.shape[-1]
        if length % 16:  # the kernel reads whole 16s
            attn_mask = F.pad(attn_mask, (0, -length % 16))[..., :length]
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    learns = any(x.requires_grad for x in (query, key, value))
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, learns and torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]


def workspace_bytes(operator: Any, args: Any, _: Any) -> int:
    """Bytes that a card's kernel takes while it runs, beside what it returns.

    Flash attention sums the gradient of the queries in float32, rows in steps of 128 and columns of 32
    (aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, mha_bwd).
    """
    if operator._overloadpacket is not torch.ops.aten._scaled_dot_product_flash_attention_backward:
        return 0
    batch, heads, length, width = args[1].shape
    rows, columns = -(-length // 128) * 128, -(-width // 32) * 32
    return 4 * batch * heads * rows * (columns + 1)
