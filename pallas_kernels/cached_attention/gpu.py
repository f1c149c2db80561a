"""cached_attention on a GPU: flash attention to the ring as it lies, or each site to its own frames in it."""

from typing import Any

from pallas_kernels import flash_gpu, site_gpu
from pallas_kernels.block_sizes import sizes_of
from pallas_kernels.cached_attention import flash
from pallas_kernels.cached_attention.reference import visible
from pallas_kernels.frame_flash import join
from pallas_kernels.softmax_attention import attend_site, is_narrow, widened

CORES = 132
"""Of an H100 or H200."""


def refusal(q: Any, k: Any, _v: Any, ring_k: Any, *_: Any, is_per_site: bool, **__: Any) -> str | None:
    """Why these arguments are not for this kernel; None where they are."""
    return flash_gpu.refusal(q, k) or (site_gpu.refusal(q, ring_k) if is_per_site else None)


def cached_attention(
    q: Any, k: Any, v: Any, ring_k: Any, ring_v: Any, ring_age: Any, is_block_seen: Any, sink: Any,
    ring_scale: Any = None, *, window_frames: int, is_per_site: bool = False, interpret: Any = False,
    parts: int | None = None,
) -> Any:  # fmt: skip
    if is_narrow(ring_k):  # wgmma wants keys as wide as the queries
        ring_k, ring_v = widened(ring_k, ring_v, ring_scale, k.dtype)
    arguments = (q, k, v, ring_k, ring_v, ring_age, is_block_seen, sink)
    if is_per_site:
        return _by_site(*arguments, window_frames=window_frames, interpret=interpret)
    return flash.cached_attention(
        flash_gpu.kernels(sizes_of("cached_attention")), *arguments, None, window_frames=window_frames,
        interpret=interpret, parts=parts or _parts(q.shape, ring_k.shape[1]),
    )  # fmt: skip


def _by_site(
    q: Any, k: Any, v: Any, ring_k: Any, ring_v: Any, ring_age: Any, is_block_seen: Any, sink: Any,
    *, window_frames: int, interpret: Any,
) -> Any:  # fmt: skip
    """The ring by the kernel; the frames in flight and the sinks are too few to need one."""
    mask, length = visible(ring_age, is_block_seen, window_frames), ring_k.shape[1]
    ring = site_gpu.attend(q, ring_k.astype(k.dtype), ring_v.astype(v.dtype), mask[..., :length], interpret)
    answers = [ring, attend_site(q, k, v, mask[..., length:])]
    return join(answers if sink is None else [*answers, attend_site(*sink)])


def _parts(shape: tuple[int, ...], length: int) -> int:
    """Into how many parts the ring goes so that each of the GPU's cores has about two blocks of threads."""
    batch, frames, tokens, heads, _ = shape
    blocks = batch * frames * heads * -(-tokens // 128)
    return max(
        parts for parts in range(1, length + 1) if length % parts == 0 and (parts == 1 or parts * blocks <= 2 * CORES)
    )
