"""Where a number comes from: the commit and the machine."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import jax


def commit() -> str:
    """The commit of this code, marked where files differ from it; the version where it is no checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        short = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        state = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"wm_jax {importlib.metadata.version('wm_jax')}"
    return short.stdout.strip() + (" with changes" if state.stdout.strip() else "")


def device() -> str:
    """What computed: the accelerator, or the CPU by its name and number of cores."""
    kind = jax.devices()[0]
    if kind.platform != "cpu":
        return f"{len(jax.devices())} x {kind.device_kind}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
