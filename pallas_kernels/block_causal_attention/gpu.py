"""block_causal_attention on a GPU: flash attention over the pairs of frames that see each other."""

from typing import Any

from pallas_kernels import flash_gpu
from pallas_kernels.block_causal_attention import flash
from pallas_kernels.block_sizes import sizes_of


def refusal(q: Any, k: Any, *_: Any, is_per_site: bool, **__: Any) -> str | None:
    """Why these arguments are not for this kernel; None where they are."""
    return "it attends whole frames, not site by site" if is_per_site else flash_gpu.refusal(q, k)


def block_causal_attention(
    *arguments: Any, window_frames: int, is_per_site: bool = False, drafts: int = 0, interpret: Any = False
) -> Any:
    assert not is_per_site
    return flash.block_causal_attention(
        flash_gpu.kernels(sizes_of("block_causal_attention")),
        *arguments,
        window_frames=window_frames,
        drafts=drafts,
        interpret=interpret,
    )
