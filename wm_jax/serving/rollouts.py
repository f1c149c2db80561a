"""Offline rollouts: scripts in, recordings out, made in slots that no player needs; bounded in number, size and age."""

import asyncio
import contextlib
import dataclasses
import logging
import secrets
import shutil
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from wm_jax.serving.bodies import CreateRollout, RolloutScript, RolloutState
from wm_jax.serving.config import ServeConfig
from wm_jax.serving.events import Chapter, Events
from wm_jax.serving.history import Opening
from wm_jax.serving.inputs import Input, InputReader
from wm_jax.serving.protocol import ErrorCode, Held, Refusal
from wm_jax.serving.replay import SlotTaken
from wm_jax.serving.studio import Studio
from wm_jax.types import ControlSpace

log = logging.getLogger(__name__)

LOOK_S = 0.2
"""How often somebody looks for a free slot while scripts wait."""

SWEEP_S = 5.0


@dataclasses.dataclass(eq=False)
class Rollout:
    """Scripts that were asked for together.

    Attributes:
      scripts: None are held once it has ended: what they begin with may be large.
      lengths: Frames that each script has.
      done: Frames of each script so far.
      folder: Of their recordings, `0.zip` and so on.
      sizes: Bytes of those that are there, by number.
      finished_at: Seconds since the epoch; None: not yet.
    """

    id: str
    scripts: list[Events]
    lengths: list[int]
    has_video: bool
    has_frames: bool
    folder: Path
    done: list[int]
    sizes: dict[int, int] = dataclasses.field(default_factory=dict[int, int])
    failure: Refusal | None = None
    finished_at: float | None = None
    is_removed: bool = False
    tasks: "dict[int, asyncio.Task[None]]" = dataclasses.field(default_factory=dict[int, "asyncio.Task[None]"])

    @property
    def frames(self) -> int:
        return sum(self.lengths)

    @property
    def status(self) -> str:
        """queued, running, done, failed or removed."""
        if self.is_removed:
            return "removed"
        if self.failure is not None:
            return "failed"
        if self.finished_at is not None:
            return "done"
        return "running" if any(self.done) or self.tasks else "queued"


class Rollouts:
    """All rollouts of one server, newest last. Used by the event loop alone."""

    def __init__(self, config: ServeConfig, controls: ControlSpace, image: tuple[int, int], studio: Studio) -> None:
        self._config = config
        self._controls = controls
        self._frame_bytes = 3 * image[0] * image[1]
        self._studio = studio
        self._known: dict[str, Rollout] = {}
        self._waiting: deque[tuple[Rollout, int]] = deque()
        self._asked = asyncio.Event()
        self._creating = asyncio.Lock()

    async def create(self, body: CreateRollout, begin: Callable[[], Awaitable[list[Opening]]]) -> Rollout:
        """Puts scripts in line.

        Args:
          begin: Loads what the scripts begin with, perhaps gigabytes: asked for once it is known that there is room.

        Raises:
          Refusal: they are too long or too many, hold what this world does not read, or too many others wait; or of `begin`.
        """
        self._check(body)
        is_loaded = any(script.init.snapshot is not None for script in body.scripts)
        # Of two that load at once neither would have counted the other; who loads nothing does not wait for the disk.
        async with self._creating if is_loaded else contextlib.nullcontext():
            self._check(body)
            openings = await begin()
            scripts = await asyncio.to_thread(self._scripts, body, openings)  # up to a row for every frame
            self._check(body)  # others asked meanwhile
            return self._put_in_line(body, scripts)

    def find(self, name: str) -> Rollout:
        """The rollout of that name.

        Raises:
          Refusal: there is none, or no more.
        """
        if name not in self._known:
            raise Refusal(ErrorCode.UNKNOWN_ROLLOUT, "no such rollout, or it has expired", param="rollout_id")
        return self._known[name]

    @property
    def scripts(self) -> int:
        """How many wait or run."""
        going = (one for one in self._known.values() if one.status in ("queued", "running"))
        return sum(len(one.lengths) - len(one.sizes) for one in going)

    def names(self) -> tuple[str, ...]:
        """Of every rollout that is here."""
        return tuple(self._known)

    def result(self, rollout: Rollout, index: int) -> Path:
        """The recording of one script.

        Raises:
          Refusal: there is no such script, or it is not done.
        """
        path = rollout.folder / f"{index}.zip"
        if not 0 <= index < len(rollout.lengths):
            text = f"the rollout has {len(rollout.lengths)} scripts (from 0), {index} is none of them"
            raise Refusal(ErrorCode.UNKNOWN_ROLLOUT, text, param="index")
        if not path.exists():
            raise rollout.failure or Refusal(ErrorCode.BUSY, f"script {index} is not done", retry_after_ms=1000)
        return path

    def state(self, rollout: Rollout) -> RolloutState:
        """How a rollout stands."""
        queued = [one for one in self._known.values() if one.status == "queued"]
        expires_at = None if rollout.finished_at is None else rollout.finished_at + self._config.rollout_age_s
        return RolloutState(
            rollout_id=rollout.id,
            status=rollout.status,
            code=None if rollout.failure is None else rollout.failure.code,
            message=None if rollout.failure is None else rollout.failure.message,
            position=queued.index(rollout) + 1 if rollout in queued else None,
            scripts=len(rollout.lengths),
            frames=rollout.frames,
            done=sum(rollout.done),
            expires_at=expires_at,
        )

    def close(self) -> None:
        """Stops them all."""
        for rollout in self._known.values():
            self._stop(rollout)

    async def forget(self, rollout: Rollout) -> None:
        """Stops it, and removes what it has made."""
        rollout.is_removed = True
        self._stop(rollout)
        self._known.pop(rollout.id, None)
        await asyncio.to_thread(shutil.rmtree, rollout.folder, ignore_errors=True)  # perhaps a gigabyte

    async def run_forever(self) -> None:
        """Starts what waits as slots become free, and removes what is old or too much."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if self._waiting else SWEEP_S):
                    await self._asked.wait()
            self._asked.clear()
            # One that finds its slot taken after all comes back into the line.
            for _ in range(min(len(self._waiting), self._studio.empty_slots)):
                self._start(*self._waiting.popleft())
            await self._sweep()

    # ---- inside

    def _check(self, body: CreateRollout) -> None:
        frames, most = sum(script.frames for script in body.scripts), self._config.rollout_frames
        if frames > most:
            text = f"the scripts have {frames} frames together, this server makes at most {most} in one rollout"
            raise Refusal(ErrorCode.TOO_LARGE, text, param="scripts")
        if not body.video and not body.lossless:
            raise Refusal(ErrorCode.BAD_MESSAGE, "neither video nor lossless is asked for: nothing would be made")
        if body.lossless and frames * self._frame_bytes > 1e6 * self._config.rollout_mb:
            text = (
                f"{frames} frames without loss are {frames * self._frame_bytes / 1e6:.0f} MB, this server keeps "
                f"{self._config.rollout_mb:g}: ask for fewer, or for the video alone"
            )
            raise Refusal(ErrorCode.TOO_LARGE, text, param="lossless")
        if not self._config.rollouts:
            raise Refusal(ErrorCode.UNSUPPORTED, "this server makes no rollouts: it was started with --rollouts 0")
        self._check_room(body, frames)

    def _put_in_line(self, body: CreateRollout, scripts: list[Events]) -> Rollout:
        name = f"roll_{secrets.token_urlsafe(18)}"
        folder = self._studio.folder / name
        folder.mkdir()
        lengths = [script.frames for script in scripts]
        rollout = Rollout(name, scripts, lengths, body.video, body.lossless, folder, [0] * len(scripts))
        self._known[name] = rollout
        self._waiting.extend((rollout, index) for index in range(len(scripts)))
        self._asked.set()
        return rollout

    def _check_room(self, body: CreateRollout, frames: int) -> None:
        going = [one for one in self._known.values() if one.status in ("queued", "running")]
        if len(going) >= self._config.rollouts:
            text = f"{self._config.rollouts} rollouts wait or run already; try again later"
            raise Refusal(ErrorCode.BUSY, text, retry_after_ms=10_000)
        promised = self._frame_bytes * sum(one.frames for one in going if one.has_frames)
        if body.lossless and promised + self._frame_bytes * frames > 1e6 * self._config.rollout_mb:
            text = (
                f"{frames} frames without loss do not fit beside the {promised / 1e6:.3g} MB of rollouts that wait or run: "
                f"this server keeps {self._config.rollout_mb:g} MB; try again later"
            )
            raise Refusal(ErrorCode.BUSY, text, param="lossless", retry_after_ms=10_000)

    def _scripts(self, body: CreateRollout, openings: list[Opening]) -> list[Events]:
        return [self._events(*pair) for pair in enumerate(zip(body.scripts, openings, strict=True))]

    def _events(self, index: int, asked: tuple[RolloutScript, Opening]) -> Events:
        script, opening = asked
        rows = [*self._rows(index, script)]
        keys = np.stack([row.keys for row in rows])
        mouse = np.array([row.mouse for row in rows], np.float32) if self._controls.has_mouse else None
        return Events([Chapter(0, "dream", opening, keys, mouse)])

    def _rows(self, index: int, script: RolloutScript) -> list[Input]:
        """What is done in each frame: keys stay held until told otherwise, the mouse moves in its frame alone."""
        reader = InputReader(self._controls)
        held, rows = reader.nothing(), list[Input]()
        for number, event in enumerate(script.events):
            where = f"scripts.{index}.events.{number}"
            if not len(rows) <= event.frame < script.frames:
                text = f"{where}.frame is {event.frame}; frames of events ascend, and this script has {script.frames} (from 0)"
                raise Refusal(ErrorCode.BAD_MESSAGE, text, param=f"{where}.frame")
            rows += [Input(held.keys, reader.still)] * (event.frame - len(rows))
            try:
                given = reader.read(_with_keys(event, held), None)
            except Refusal as refusal:
                refusal.param = f"{where}.{refusal.param}"
                raise
            held = Input(given.keys, reader.still)
            rows.append(given)
        return rows + [held] * (script.frames - len(rows))

    def _start(self, rollout: Rollout, index: int) -> None:
        task = asyncio.get_running_loop().create_task(self._run(rollout, index))
        rollout.tasks[index] = task

    async def _run(self, rollout: Rollout, index: int) -> None:
        def report(frames: int) -> None:
            rollout.done[index] = frames

        try:
            out = rollout.folder / f"{index}.zip"
            await self._studio.write(out, rollout.scripts[index], rollout.has_video, rollout.has_frames, report)
            rollout.sizes[index] = out.stat().st_size
        except SlotTaken:
            report(0)
            if rollout.status in ("queued", "running"):
                self._waiting.appendleft((rollout, index))
        except Exception as error:
            log.exception("script %d of rollout %s failed", index, rollout.id)
            text = f"script {index} could not be made; the server's log says why"
            self._fail(rollout, error if isinstance(error, Refusal) else Refusal(ErrorCode.SERVER_FAILED, text))
        finally:
            rollout.tasks.pop(index, None)
            self._asked.set()  # a slot is free, or a script waits again
        if len(rollout.sizes) == len(rollout.lengths):
            self._finish(rollout)

    def _fail(self, rollout: Rollout, refusal: Refusal) -> None:
        rollout.failure = refusal
        self._stop(rollout)
        self._finish(rollout)

    def _finish(self, rollout: Rollout) -> None:
        rollout.finished_at = time.time()
        rollout.scripts.clear()

    def _stop(self, rollout: Rollout) -> None:
        self._waiting = deque(one for one in self._waiting if one[0] is not rollout)
        for task in list(rollout.tasks.values()):
            if task is not asyncio.current_task():
                task.cancel()

    async def _sweep(self) -> None:
        """Removes what is too old, then the oldest until the rest is small enough; what is not done counts, and is left alone."""
        finished = [one for one in self._known.values() if one.finished_at is not None]
        room = 1e6 * self._config.rollout_mb
        room -= sum(sum(one.sizes.values()) for one in self._known.values() if one.finished_at is None)
        finished.sort(key=lambda one: one.finished_at or 0.0, reverse=True)
        for place, one in enumerate(finished):
            room -= sum(one.sizes.values())
            assert one.finished_at is not None
            if (room < 0 and place > 0) or time.time() - one.finished_at > self._config.rollout_age_s:
                await self.forget(one)


def _with_keys(event: Held, held: Input) -> Held:
    """An event that tells of the mouse alone leaves the keys as they are."""
    if event.held is None and event.raw is None:
        return event.model_copy(update={"raw": held.keys.astype(float).tolist()})
    return event
