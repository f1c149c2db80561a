"""cached_attention on a TPU: flash attention to the ring, which XLA turns heads first."""

from typing import Any

from pallas_kernels import flash_tpu
from pallas_kernels.block_sizes import sizes_of
from pallas_kernels.cached_attention import flash


def refusal(q: Any, k: Any, *_: Any, is_per_site: bool, **__: Any) -> str | None:
    """Why these arguments are not for this kernel; None where they are."""
    return "it attends whole frames, not site by site" if is_per_site else flash_tpu.refusal(q, k)


def cached_attention(*arguments: Any, window_frames: int, is_per_site: bool = False, interpret: Any = False) -> Any:
    assert not is_per_site
    return flash.cached_attention(
        flash_tpu.kernels(sizes_of("cached_attention")), *arguments, window_frames=window_frames, interpret=interpret
    )
