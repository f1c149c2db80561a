"""Recordings of a served world from Python: of a session, and of scripts that are dreamt without one."""

import contextlib
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import UInt8

from wm_jax.rest import ServerError, download, patiently, request

LOOK_S = 0.2
PATIENCE_S = 30.0
"""How long a server may not answer while it is only asked how far it is."""


def record(url: str, session_id: str, path: Path, auth: str | None, video: bool) -> Path:
    """Downloads the recording of a session; see `Session.record`."""
    download(f"{url}/v1/sessions/{session_id}/recording?video={str(video).lower()}", path, auth)
    return path


def roll_out(
    url: str, scripts: Sequence[dict[str, Any]], auth: str | None = None, folder: str | Path | None = None
) -> list[UInt8[np.ndarray, "t h w 3"]]:
    """Dreams scripts beside each other, in slots that no player needs, and waits for all of their frames.

    Args:
      scripts: Each as `{"frames": 60, "init": {"seed": 7}, "events": [{"frame": 0, "held": ["ArrowRight"]}]}`: keys stay
        held until a later event, `mouse` is moved in its frame alone.
      auth: The server's secret, if it has one.
      folder: Leaves the recordings there, with their videos: `0.zip` and so on.

    Raises:
      ServerError: the server refuses the scripts, or cannot make a frame.
    """
    url = url.rstrip("/")
    body = {"scripts": list(scripts), "video": folder is not None, "lossless": True}
    asked = request("POST", f"{url}/v1/rollouts", body, auth)
    where = f"{url}/v1/rollouts/{asked['rollout_id']}"
    try:
        while (state := patiently("GET", where, None, auth, PATIENCE_S))["status"] in ("queued", "running"):
            time.sleep(LOOK_S)
        if state["status"] != "done":
            raise ServerError(f"{state['code']}: {state['message']}")
        with contextlib.ExitStack() as kept:
            into = Path(kept.enter_context(TemporaryDirectory()) if folder is None else folder)
            into.mkdir(parents=True, exist_ok=True)
            return [
                _frames(f"{where}/recordings/{index}", into / f"{index}.zip", auth) for index in range(len(scripts))
            ]
    finally:
        # Only tidying up: a server that is gone already must not hide why it was left.
        with contextlib.suppress(ServerError, OSError):
            request("DELETE", where, None, auth)


def _frames(url: str, path: Path, auth: str | None) -> UInt8[np.ndarray, "t h w 3"]:
    download(url, path, auth)
    with zipfile.ZipFile(path) as recording, recording.open("frames.npy") as pixels:
        return np.lib.format.read_array(pixels, allow_pickle=False)
