"""Makes recordings: events in, a zip out, with the video of a replay in a slot that no player needs."""

import asyncio
import functools
import secrets
import shutil
import tempfile
from pathlib import Path

from wm_jax.serving import recording
from wm_jax.serving.batcher import Batcher
from wm_jax.serving.events import Events
from wm_jax.serving.history import History
from wm_jax.serving.keeper import sound
from wm_jax.serving.protocol import ErrorCode, Refusal
from wm_jax.serving.recording import Identity
from wm_jax.serving.replay import Film, Report, SlotTaken, film, film_worker, frames_of, to_its_end

MAX_AT_ONCE = 4
"""Recordings that may be written for players at the same time."""


class Studio:
    """Writes recordings into a folder of its own, which goes with it. Used by the event loop alone."""

    def __init__(self, identity: Identity, batcher: Batcher, fps: float, history: History) -> None:
        self.identity = identity
        self._batcher = batcher
        self._fps = fps
        self._history = history
        self._worker = film_worker()
        self._asked = 0

    @functools.cached_property
    def folder(self) -> Path:
        """Made when it is first needed; whatever is in there may be removed by whoever put it there."""
        return Path(tempfile.mkdtemp(prefix="wm_jax-"))

    @property
    def empty_slots(self) -> int:
        """Slots in which nobody sits."""
        return self._batcher.empty_slots

    def close(self) -> None:
        """Removes all that is left."""
        self._worker.shutdown(wait=True, cancel_futures=True)
        if "folder" in vars(self):
            shutil.rmtree(self.folder, ignore_errors=True)

    async def record(self, events: Events, has_video: bool) -> Path:
        """A session's recording, in a file that is the caller's to remove.

        Raises:
          Refusal: the video needs a slot and there is none, or a player took it; or too many are asked for at once.
        """
        if self._asked >= MAX_AT_ONCE:
            raise Refusal(ErrorCode.BUSY, "too many recordings are being written", retry_after_ms=5_000)
        self._asked += 1
        out = self.folder / f"{secrets.token_hex(16)}.zip"
        try:
            await self.write(out, events, has_video, has_frames=False, report=lambda _: None)
        except SlotTaken:
            text = (
                "the video is made in a slot that no player needs, and there is none; try again later, or ask for "
                "?video=false and make it with `python serve.py WORLD --replay recording.zip`"
            )
            raise Refusal(ErrorCode.FULL, text, param="video", retry_after_ms=5_000) from None
        except BaseException:
            out.unlink(missing_ok=True)  # told to stop after the last byte
            raise
        finally:
            self._asked -= 1
        return out

    async def write(self, out: Path, events: Events, has_video: bool, has_frames: bool, report: Report) -> None:
        """Writes a recording to `out`.

        Raises:
          SlotTaken: there is no free slot for the video, or a player took it.
          Refusal: a frame could not be made.
        """
        for opening in {id(one.opening.memory): one.opening for one in events.chapters}.values():
            await sound(opening)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            sha256 = None
            if has_video or has_frames:
                video = folder / "video.mp4" if has_video else None
                lossless = folder / "frames.npy" if has_frames else None
                sha256 = await self._film(video, lossless, events, report)
            info = self.identity.info(events, self._history, sha256, self._fps)
            made = sorted(folder.iterdir())
            write = asyncio.to_thread(recording.write, folder / "recording.zip", info, events, made)
            await to_its_end(asyncio.ensure_future(write))
            (folder / "recording.zip").replace(out)  # whoever finds it finds it whole
        finally:
            await to_its_end(asyncio.ensure_future(asyncio.to_thread(shutil.rmtree, folder)))

    async def _film(self, video: Path | None, lossless: Path | None, events: Events, report: Report) -> str:
        config = self.identity.world.config
        frames = frames_of(events, config.controls, self._fps, self._batcher, self._history)
        reel = Film(video, lossless, self._fps, config.image, events.frames)
        return await film(frames, reel, self._worker, report)
