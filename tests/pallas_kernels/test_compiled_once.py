"""A program is compiled by its first call and by no later one."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# In a process of its own: in this one other tests have imported by now what the first trace of a program imports.
TWICE = """
import functools
import jax
from pallas_kernels import block_causal_attention
from pallas_kernels.block_causal_attention import cases

case = cases.SMALL["plain"]
attend = jax.jit(functools.partial(block_causal_attention, **case.static))
for _ in range(2):
    attend(*case.arguments())
    assert attend._cache_size() == 1, "traced and compiled again"
"""


def test_the_second_call_of_a_program_compiles_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
