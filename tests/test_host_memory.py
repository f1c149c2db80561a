"""What a process keeps of the memory it frees."""

import platform
import subprocess
import sys

import pytest

# Prints how many pages the kernel had to clear for the temporaries (64 MB each) of 20 calls, after 20 to grow into.
CALLS = """
import resource, sys
from wm_jax.host_memory import keep_freed_memory
assert sys.argv[1] == "given back" or keep_freed_memory()
import jax, jax.numpy as jnp
double = jax.jit(lambda x: x + x)
x = jnp.ones((4096, 4096))
def call(times):
    for _ in range(times):
        jax.block_until_ready(double(double(x)))
call(20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
call(20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", CALLS, how], capture_output=True, text=True, timeout=120, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="these settings are those of the GNU C library")
def test_kept_memory_is_not_cleared_again_by_the_kernel():
    assert page_faults("kept") < page_faults("given back") / 4
