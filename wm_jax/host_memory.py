"""How the C library hands out memory on a CPU: freed blocks are kept for the next step instead of given back to the system."""

import ctypes
import platform

# From malloc.h of the GNU C library; mallopt(3) explains them.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Lets this process keep the memory it frees; call it first of all, before threads are started. True where it could.

    XLA on a CPU takes the buffers of every call from malloc, and malloc maps large ones anew each time: the kernel clears
    their pages again in every step. With the settings below they come from one heap that is never given back. A process then
    stays as large as it ever was. For training (docs/log.md: 1.2 to 1.8 times as fast); playing allocates too little to gain,
    and one heap for all threads makes its step a tenth slower. Only the GNU C library has these settings; elsewhere nothing
    happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*setting) for setting in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)))
