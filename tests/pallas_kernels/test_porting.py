"""docs/porting.md, done: a new accelerator in a copy of the repository, by one file an op, one line a platform, one a target."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNEL = '''"""{op} on a new chip."""

from pallas_kernels.{op} import reference


def refusal(*_, is_per_site, **__):
    return "it attends whole frames" if is_per_site else None


def {op}(*arguments, is_per_site=False, interpret=False, **static):
    return -reference.{op}(*arguments, is_per_site=is_per_site, **static)
'''
LAST_PLATFORM = '    Platform("gpu", "cuda", _is_hopper),\n'
LAST_TARGET = '        Target("trn1", "neuron", "", 16 * GIB),\n'
# The new chip answers with the sign turned, so that it cannot be taken for the reference. It lowers as the CPU does, and its
# devices are the CPU's: so this machine can run it.
CHECK = """
import functools
import numpy as np
from pallas_kernels import block_causal_attention, cached_attention
from pallas_kernels.block_causal_attention import cases
from pallas_kernels.cached_attention import cases as cached
from wm_jax.export.targets import TARGETS

arguments, ring = cases.SMALL["plain"].arguments(), cached.SMALL["one frame"].arguments()
for op, given in ((block_causal_attention, arguments), (cached_attention, ring)):
    run = functools.partial(op, *given, window_frames=2, is_per_site=False)
    right = np.asarray(run(implementation="reference"))
    assert np.abs(right).max() > 0
    for choice in ("newchip", "auto"):
        np.testing.assert_allclose(run(implementation=choice), -right, atol=1e-6)
    np.testing.assert_allclose(
        op(*given, window_frames=2, is_per_site=True, implementation="auto"),
        op(*given, window_frames=2, is_per_site=True, implementation="reference"), atol=1e-6)
print(TARGETS["newchip"].platform)
"""


def test_a_new_accelerator_is_one_file_an_op_and_two_lines(tmp_path: Path):
    for package in ("pallas_kernels", "wm_jax"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for op in ("block_causal_attention", "cached_attention"):
        (tmp_path / "pallas_kernels" / op / "newchip.py").write_text(KERNEL.format(op=op))
    platform = '    Platform("newchip", "cpu", lambda device: device.platform == "cpu"),\n'
    insert_after(tmp_path / "pallas_kernels" / "implementation.py", LAST_PLATFORM, platform)
    target = '        Target("newchip", "newchip", "", 32 * GIB),\n'
    insert_after(tmp_path / "wm_jax" / "export" / "targets.py", LAST_TARGET, target)
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "newchip\n"), done.stderr


def insert_after(path: Path, line: str, new: str) -> None:
    text = path.read_text()
    assert text.count(line) == 1, f"{path} has no line {line!r}"
    path.write_text(text.replace(line, line + new))
