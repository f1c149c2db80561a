"""One player: the latch that keys fall into, the clock of frames, and the outbox that frames leave by.

The event loop writes the latch, the device thread reads it just before each launch; a small lock is their only meeting
place. A control is resolved to a frame index the moment it arrives: in realtime the index of the next frame not yet
launched, in stepped mode that of the first frame no step has asked for. So a stepped session is what was asked of it,
in that order, however fast the device is.
"""

import dataclasses
import math
import secrets
import threading
import time
from collections import deque
from typing import Any, NamedTuple

from jaxtyping import Bool

from wm_jax.serving.events import EventLog, Events, Piece
from wm_jax.serving.history import Filed, History, Kept, Log, Memory, Opening, Row, Stretch, Trail, Writing
from wm_jax.serving.inputs import Input, InputReader, Mouse, moved
from wm_jax.serving.outbox import EncodedFrame, Outbox
from wm_jax.serving.protocol import Action, Codec, Error, ErrorCode, EventId, Mode, Refusal, Source, Step
from wm_jax.types import ControlSpace

MAX_WAITING_STEPS = 8
MAX_SCHEDULED = 1024
KEPT_STEPS = 2
"""The frames of finished steps are kept, so that a client may ask for them again: as many as so many of the longest have."""


class Turn(NamedTuple):
    """One frame that a session wants: taken from the latch just before launch.

    Attributes:
      keys: Held during the frame.
      mouse: Moved during the frame; None in a world without a mouse.
      opening: Start anew with this first, if given.
      taken_at: `time.perf_counter()` of the taking.
      pressed_at: The same clock when the newest event arrived, if it is new in this frame.
      pts_ms: When the frame is due on the session's media clock.
      tapped: Those of the keys that were pressed since the frame before: they count even if they are let go.
    """

    keys: Bool[Any, " keys"]
    mouse: Mouse
    source: Source
    opening: Opening | None
    frame_id: int
    event_id: EventId | None
    client_ts: float | None
    step_id: EventId | None
    taken_at: float
    pressed_at: float | None
    pts_ms: float = 0.0
    tapped: Bool[Any, " keys"] | None = None


class Moment(NamedTuple):
    """A session between two frames: what another one starts from to be this one as it is.

    Attributes:
      opening: With its memory, once it has any.
      frame_id: Its next frame.
      keys: Held before that.
    """

    opening: Opening
    frame_id: int
    keys: Bool[Any, " keys"]


class _Pressed(NamedTuple):
    """An action as the world reads it, and what is told of it with the frames that obey it."""

    given: Input
    event_id: EventId | None
    client_ts: float | None


@dataclasses.dataclass(eq=False)
class _StepWork:
    """A step being made or kept: all that decides its frames, how many are launched, and the frames so far.

    Attributes:
      first: Index of its first frame.
      opening: Start anew with this before the first frame, if given.
    """

    request: Step
    rows: list[Input]
    first: int
    source: Source
    opening: Opening | None
    launched: int = 0
    frames: list[EncodedFrame] = dataclasses.field(default_factory=list[EncodedFrame])

    @property
    def beginning(self) -> Opening | None:
        """What its next frame begins anew with; None: that frame follows from the one before it."""
        return self.opening if self.launched == 0 else None

    @property
    def is_finished(self) -> bool:
        """Whether all of its frames were made."""
        return len(self.frames) == len(self.rows)


class Session:
    """One player's place in a world.

    Attributes:
      id: Unguessable name.
      source: What the next frame shows that no step has asked for yet.
      is_seated: Its slot holds a dream of its own, and no more that of whoever sat there before.
      yields: It makes frames that nobody waits for: its slot is any player's who finds no other.
      has_shown: Whether a frame of it was made ready to be sent.
      wants_pixels: Its connection encodes its frames, those that it sends.
      stride: Every how many frames one is sent, so that no more than `media.max_fps` are.
      viewers: The outboxes of its spectators.
      trail: What lies on the disk of its past; changed by the event loop alone.
    """

    def __init__(
        self,
        controls: ControlSpace,
        fps: float,
        outbox: Outbox,
        opening: Opening,
        *,
        mode: Mode = "realtime",
        source: Source = "dream",
        codec: Codec = "jpeg",
        quality: int = 90,
        max_fps: float | None = None,
        max_step_frames: int = 256,
        history: History | None = None,
        events: EventLog | None = None,
    ) -> None:
        self.id = secrets.token_urlsafe(16)
        self.resumed_at: int | None = None
        self.mode: Mode = mode
        self.source: Source = source
        self.codec: Codec = codec
        self.quality = quality
        self.fps = fps
        self.outbox = outbox
        self.opening = opening
        self.stride = 1 if max_fps is None else max(1, math.ceil(fps / max_fps))
        self.is_connected = False
        self.is_paused = False
        self.is_seated = False
        self.yields = False
        self.has_shown = False
        self.wants_pixels = codec == "h264"
        self.failure: ErrorCode | None = None
        self.viewers: list[Outbox] = []
        self.started_at = time.monotonic()
        self.trail = Trail(0)
        self._history = history or History(0, 1)
        self._log = Log()
        self._events = events or EventLog(0)
        self._newest_shown = -1
        self._early: dict[int, EncodedFrame] = {}
        self._reader = InputReader(controls)
        self._still = self._reader.still
        self._max_step_frames = max_step_frames
        self._lock = threading.Lock()
        self._keys, self._mouse = self._reader.nothing()
        self._tapped: Bool[Any, " keys"] | None = None
        self._event_id: EventId | None = None
        self._client_ts: float | None = None
        self._pressed_at: float | None = None
        self._scheduled: dict[int, _Pressed] = {}
        self._next_frame = 0
        self._pts_ms = 0.0
        self._asked = 0
        self._restart: Opening | None = opening
        self._steps: deque[_StepWork] = deque()
        self._done: deque[_StepWork] = deque(maxlen=KEPT_STEPS + 2)
        self._kept: dict[EventId, _StepWork] = {}
        self._launched_keys = self._keys
        self._begun = set[int]()  # frames that began anew since the trail's newest state
        self._came_with: Opening | None = None

    # ---- the event loop's side

    def go_on(self, session_id: str, moment: Moment, is_fork: bool) -> None:
        """Becomes, before its first frame, the session of that name as it was at some moment of another process."""
        assert self._next_frame == 0, "a session goes on before it has begun"
        self.id = session_id
        self.resumed_at = self._next_frame = self._asked = moment.frame_id
        self._newest_shown = moment.frame_id - 1
        self._pts_ms = 1e3 * moment.frame_id / self.fps
        self._restart = self._came_with = moment.opening
        # A fork has no seed to begin at again: it begins where it went on.
        self.opening = dataclasses.replace(moment.opening, memory=moment.opening.memory if is_fork else None)
        if self.mode == "stepped":
            self._keys = self._launched_keys = moment.keys

    @property
    def frames(self) -> int:
        """How many frames are launched."""
        return self._next_frame

    @property
    def next_frame(self) -> int:
        """Index of the first frame that can still be changed: not launched, and asked for by no step."""
        return self._asked if self.mode == "stepped" else self._next_frame

    def press(self, action: Action) -> int:
        """Latches an action; the frame it will first count in. In stepped mode it holds for steps without actions.

        The newest keys win; the mouse adds up until a frame takes it, and counts in that frame alone.

        Raises:
          Refusal: an input that this world does not read, too many actions ahead, or a frame named in stepped mode.
        """
        pressed = _Pressed(self._reader.read(action, action.event_id), action.event_id, action.client_ts)
        if self.mode == "stepped":
            return self._press_between_steps(pressed.given, action)
        with self._lock:
            if action.at == "next" or action.at <= self._next_frame:
                self._latch(pressed)
                return self._next_frame
            older = self._scheduled.get(action.at)
            if older is None and len(self._scheduled) >= MAX_SCHEDULED:
                raise Refusal(
                    ErrorCode.BUSY,
                    f"{MAX_SCHEDULED} actions are scheduled already; send later ones later",
                    param="at",
                    event_id=action.event_id,
                )
            self._scheduled[action.at] = pressed if older is None else _after(older, pressed)
            return action.at

    def ask(self, step: Step) -> int:
        """Queues a step; the index of its first frame. A step asked for before is sent again, not made again.

        Raises:
          Refusal: not a stepped session, too many frames or steps, or a known `step_id` with other content.
        """
        if self.mode != "stepped":
            raise Refusal(
                ErrorCode.WRONG_MODE,
                f'this session is {self.mode}; create it with mode "stepped" to step it',
                event_id=step.step_id,
            )
        known = self._kept.get(step.step_id)
        if known is not None:
            return self._replay(known, step)
        work = _StepWork(step, self._step_rows(step), self._asked, self.source, self._restart)
        self._queue(work)
        self._kept[step.step_id] = work
        self._forget_steps()
        return work.first

    def follow(self, piece: Piece) -> None:
        """Queues frames that were decided elsewhere: a recording's, or a script's. They are not kept to be sent again.

        Raises:
          Refusal: too many wait already, or they go back to what is not kept.
        """
        step = Step(type="step", step_id=f"frame {self._asked}")
        opening = piece.opening
        with self._lock:
            self.source = piece.source
            if opening is not None and opening.back_to is not None:
                opening = dataclasses.replace(opening, memory=self._find(opening.back_to, None).memory)
        self._queue(_StepWork(step, piece.rows, self._asked, piece.source, opening))

    @property
    def waiting_steps(self) -> int:
        """Steps of which not every frame is launched."""
        return len(self._steps)

    def turn_out(self) -> None:
        """Its slot is another's now: whoever reads its frames is told."""
        self.outbox.put(Error(code=ErrorCode.FULL, message="a player needed the slot", fatal=True))

    @property
    def events(self) -> Events | None:
        """What decided its frames, as far back as that is known; None: nothing is. Many beginnings take a while to read."""
        with self._lock:
            log = self._events.copy()
        return log.read()

    def restart(self, seed: int | None = None, source: Source | None = None) -> int:
        """Starts anew before `next_frame`, which it returns. Without a seed: the same dream again."""
        with self._lock:
            self.source = source or self.source
            if seed is not None and seed != self.opening.seed:
                self.opening = Opening(seed, image=self.opening.image)
            self._restart = self.opening
            self._mouse = self._still
            return self.next_frame

    def writing(self, frame_id: int) -> Writing:
        """What writing the session as it is before this frame makes of its states on the disk."""
        with self._lock:
            is_left = self.trail.newest in self._begun
        return self.trail.next(frame_id, is_left)

    def filed_at(self, frame_id: int) -> Filed | None:
        """Where on the disk the newest memory kept at or before this frame lies; None: it need not be read, or is nowhere."""
        with self._lock:
            is_at_hand = self._history.find(frame_id) is not None
        return None if is_at_hand else self.trail.find(frame_id)

    def seek(self, frame_id: int, event_id: EventId | None = None, recalled: Kept | None = None) -> tuple[int, int]:
        """Goes back to the newest memory kept at or before this frame; the next frame to be made, and the one gone back to.

        Frames go on being counted: what follows has numbers of its own, and what was left can be gone back to as well.

        Args:
          recalled: What was read from the disk, where `filed_at` said so.

        Raises:
          Refusal: none that old is kept, or none at all.
        """
        with self._lock:
            kept = self._find(frame_id, event_id, recalled)
            self._restart = dataclasses.replace(self.opening, memory=kept.memory, back_to=kept.frame_id)
            self._mouse = self._still
            return self.next_frame, kept.frame_id

    def kept_frames(self) -> list[int]:
        """Frames that one can go back to, oldest first."""
        with self._lock:
            return self._known_frames()

    def opening_at(self, frame_id: int, recalled: Kept | None = None) -> Opening:
        """What another session starts from to be this one as it was at the newest kept frame up to this one.

        Raises:
          Refusal: none that old is kept, or none at all.
        """
        with self._lock:
            return dataclasses.replace(self.opening, memory=self._find(frame_id, None, recalled).memory)

    def pause(self, wanted: bool) -> None:
        """Stops the media clock, or lets it run on; where the mouse was moved to meanwhile is forgotten."""
        with self._lock:
            if wanted != self.is_paused:
                self._mouse = self._still
            self.is_paused = wanted

    def release_keys(self) -> None:
        """Nothing is held any more: the player is gone. A stepped session obeys its steps alone, connected or not."""
        if self.mode == "stepped":
            return
        with self._lock:
            self._keys, self._mouse = self._reader.nothing()
            self._tapped = None
            self._scheduled.clear()

    def show(self, frame: EncodedFrame) -> None:
        """Hands a finished frame to the outbox, in order, and keeps it if a step asked for it."""
        # A real game and a dream are made by two threads: at a switch one may overtake the other.
        if self.mode == "stepped":
            self._early[frame.frame_id] = frame
            while (following := self._early.pop(self._newest_shown + 1, None)) is not None:
                self._show(following)
        elif frame.frame_id > self._newest_shown:
            self._show(frame)

    def _show(self, frame: EncodedFrame) -> None:
        self._newest_shown = frame.frame_id
        work = None if frame.step_id is None else self._kept.get(frame.step_id)
        if work is not None:
            work.frames.append(frame)
            if work.is_finished:
                self._forget_steps()
        if self.is_connected:
            self.outbox.put_frame(frame)
        if self.viewers:
            # The same bytes; which events they obey, and by whose clock, is the player's own matter.
            shown = frame._replace(event_id=None, client_ts=None, step_id=None)
            for viewer in self.viewers:
                viewer.put_frame(shown)

    # ---- the device thread's side

    @property
    def is_playing(self) -> bool:
        """Whether the media clock should run for this session."""
        return self.mode == "realtime" and self.is_connected and not self.is_paused and self.failure is None

    @property
    def has_steps(self) -> bool:
        """Whether a step waits to be made and its frames would find room."""
        return bool(self._steps) and self.failure is None and not self.outbox.is_full

    @property
    def beginning(self) -> Opening | None:
        """What its next frame begins anew with; None: that frame follows from the one before it."""
        with self._lock:
            return self._beginning

    @property
    def is_to_begin(self) -> bool:
        """Whether its next frame is the first of a new dream, for which the device has more to do."""
        opening, source = self._restart, self.source
        if self.mode == "stepped":
            work = self._steps[0] if self._steps else None
            opening, source = (work.beginning, work.source) if work else (None, source)
        return opening is not None and opening.memory is None and source == "dream"

    def take(self, fps: float | None = None) -> Turn | None:
        """What this session wants of the frame about to be launched; None: nothing. The media clock runs at `fps` now."""
        with self._lock:
            if self.mode == "stepped":
                return None if not self._steps or self.outbox.is_full else self._take_of_step()
            if self._scheduled:
                self._apply_scheduled()
            # Between launches the caches go cold, and each call of NumPy then takes tens of microseconds: none without need.
            turn = Turn(
                self._keys if self._tapped is None else self._keys | self._tapped,
                self._mouse,
                self.source,
                self._restart,
                self._next_frame,
                self._event_id,
                self._client_ts,
                None,
                time.perf_counter(),
                self._pressed_at,
                self._pts_ms,
                self._tapped,
            )
            self.fps = fps or self.fps
            self._pts_ms += 1e3 / self.fps
            self._next_frame += 1
            self._launched_keys = self._keys
            self._restart = None
            self._pressed_at = None
            self._tapped = None
            self._mouse = self._still
            self._note(turn)
            return turn

    def begins(self, frame_id: int, opening: Opening) -> Memory | None:
        """It begins anew in its slot, with this frame; what it holds of that is to leave the device where it keeps none there."""
        self.is_seated = True
        self._log.begin(frame_id, opening)
        return None if self._history.on_device else opening.memory

    def lateness(self, frame_id: int) -> float | None:
        """How urgent it is to `keep` the state before this frame; see `History.lateness`."""
        return self._history.lateness(frame_id)

    def cannot_keep(self) -> None:
        """The state that is due could not be copied: it is not kept."""
        self._history.put_off()

    @property
    def moves_states(self) -> bool:
        """Whether what it keeps leaves the device sooner or later."""
        return self._history.on_device < self._history.depth

    def keep(self, frame_id: int, memory: Memory) -> Memory | None:
        """Remembers what the session was just before this frame; what is to leave the device for it, if anything is."""
        with self._lock:
            leaving = self._history.keep(frame_id, memory)
            self._events.keep(frame_id, dataclasses.replace(self.opening, memory=memory))
            self._log.begin(frame_id, dataclasses.replace(self.opening, memory=memory))
        return leaving

    def is_launched(self, turn: Turn) -> None:
        """The frame of this turn is about to be made."""
        if self._history.depth:
            self._log.note(Row(turn.keys, turn.mouse))

    def give_back(self, turn: Turn) -> None:
        """The frame of this turn, the newest taken, was not made: it is wanted again, under the same keys."""
        with self._lock:
            self._log.give_back(turn.frame_id)
            self._events.give_back(turn.frame_id)
            self._history.forget(turn.frame_id - 1)
            self._next_frame = turn.frame_id
            self._pts_ms = turn.pts_ms
            if self.mode == "stepped":
                self._give_back_step(turn)
            else:
                self._give_back_latch(turn)
            # Where it begins anew with that frame, what is in its slot is not its own.
            self.is_seated = self._beginning is None

    def way_back(self) -> Stretch | None:
        """How to make the state before its next frame again; None where nobody knows."""
        return self._log.newest if self._history.depth else None

    def moment(self, memory: Memory) -> Moment:
        """The session as it is: with `memory`, which is its slot's, unless its next frame begins anew anyway."""
        with self._lock:
            opening = self._beginning or dataclasses.replace(self.opening, memory=memory if self.is_seated else None)
            # To whoever goes on from it, a frame of this session is none of its own.
            return Moment(dataclasses.replace(opening, back_to=None), self._next_frame, self._launched_keys)

    # ---- inside

    @property
    def _beginning(self) -> Opening | None:
        """What its next frame begins anew with; None: that frame follows from the one before it."""
        return self._steps[0].beginning if self.mode == "stepped" and self._steps else self._restart

    def _note(self, turn: Turn) -> None:
        self._events.note(turn.frame_id, turn.keys, turn.mouse, turn.source, turn.opening)
        if turn.opening is not None and turn.opening is not self._came_with and self.trail.depth:
            newest = self.trail.newest
            self._begun = {frame_id for frame_id in self._begun if frame_id >= newest} | {turn.frame_id}

    def _known_frames(self) -> list[int]:
        at_hand = self._history.frames
        return [frame for frame in self.trail.frames if not at_hand or frame < at_hand[0]] + at_hand

    def _find(self, frame_id: int, event_id: EventId | None, recalled: Kept | None = None) -> Kept:
        if self.source == "real":
            text = "this session plays the real game, which cannot go back; switch it to the dream first"
            raise Refusal(ErrorCode.UNSUPPORTED, text, param="frame", event_id=event_id)
        kept = self._history.find(frame_id) or recalled
        if kept is None:
            known = ", ".join(map(str, self._known_frames())) or "none"
            text = f"frame {frame_id} is not kept any more; one can go back to {known}"
            raise Refusal(ErrorCode.UNSUPPORTED, text, param="frame", event_id=event_id)
        return kept

    def _queue(self, work: _StepWork) -> None:
        with self._lock:
            if len(self._steps) >= MAX_WAITING_STEPS:
                text = f"{MAX_WAITING_STEPS} steps are waiting already"
                raise Refusal(ErrorCode.BUSY, text, event_id=work.request.step_id)
            self._steps.append(work)
        self._restart = None
        self._keys, self._mouse = work.rows[-1].keys, self._still
        self._asked += len(work.rows)

    def _press_between_steps(self, given: Input, action: Action) -> int:
        if action.at != "next":
            raise Refusal(
                ErrorCode.WRONG_MODE,
                f"this session is stepped: keys of frame {action.at} go into the `actions` of the step that makes it; "
                'an action at a frame is for mode "realtime"',
                param="at",
                event_id=action.event_id,
            )
        self._keys, self._mouse = given.keys, moved(self._mouse, given.mouse)
        return self._asked

    def _latch(self, pressed: _Pressed) -> None:
        keys, mouse = pressed.given
        # A key pressed and released between two frames still counts in the next one.
        tapped = keys & ~self._keys
        self._tapped = tapped if self._tapped is None else self._tapped | tapped
        self._keys = keys
        self._mouse = moved(self._mouse, mouse)
        self._pressed_at = time.perf_counter()
        if pressed.event_id is not None:
            self._event_id = pressed.event_id
        if pressed.client_ts is not None:
            self._client_ts = pressed.client_ts

    def _apply_scheduled(self) -> None:
        for frame in sorted(frame for frame in self._scheduled if frame <= self._next_frame):
            self._latch(self._scheduled.pop(frame))

    def _take_of_step(self) -> Turn:
        work = self._steps[0]
        request = work.request
        turn = Turn(
            *work.rows[work.launched],
            work.source,
            work.beginning,
            self._next_frame,
            request.step_id if request.event_id is None else request.event_id,
            request.client_ts,
            request.step_id,
            time.perf_counter(),
            None,
            1e3 * self._next_frame / self.fps,
        )
        self._next_frame += 1
        self._launched_keys = work.rows[work.launched].keys
        self._note(turn)
        work.launched += 1
        if work.launched == len(work.rows):
            self._done.append(self._steps.popleft())
        return turn

    def _give_back_latch(self, turn: Turn) -> None:
        self._restart = self._restart or turn.opening
        tapped = turn.keys & ~self._keys if turn.tapped is None else turn.tapped | (turn.keys & ~self._keys)
        self._tapped = tapped if self._tapped is None else self._tapped | tapped
        self._mouse = moved(self._mouse, turn.mouse)
        self._pressed_at = self._pressed_at or turn.pressed_at

    def _give_back_step(self, turn: Turn) -> None:
        # The newest of that name: a finished step that is forgotten may have been asked for anew.
        known = (*self._steps, *reversed(self._done))
        work = next((work for work in known if work.request.step_id == turn.step_id), None)
        if work is None:
            return
        if work.launched == len(work.rows):
            self._done.remove(work)
            self._steps.appendleft(work)
        work.launched -= 1

    def _forget_steps(self) -> None:
        """Lets the oldest finished steps go that are too many, or have too many frames; what is still made stays."""
        finished = [work for work in self._kept.values() if work.is_finished]
        frames = sum(len(work.frames) for work in finished)
        for work in finished:
            if frames <= KEPT_STEPS * self._max_step_frames and len(self._kept) <= MAX_WAITING_STEPS + KEPT_STEPS:
                return
            del self._kept[work.request.step_id]
            frames -= len(work.frames)
            work.frames.clear()  # `_done` may still hold it

    def _replay(self, known: _StepWork, step: Step) -> int:
        if (known.request.actions, known.request.n) != (step.actions, step.n):
            raise Refusal(
                ErrorCode.STEP_CONFLICT,
                f"step {step.step_id!r} was asked for before with other content; use a new step_id",
                param="step_id",
                event_id=step.step_id,
            )
        if self.outbox.is_full:
            raise Refusal(
                ErrorCode.BUSY,
                f"step {step.step_id!r} was made; its frames are sent again once those that wait have been read",
                event_id=step.step_id,
            )
        for frame in known.frames:
            self.outbox.put_frame(frame)
        return known.first

    def _step_rows(self, step: Step) -> list[Input]:
        count = step.n if step.n is not None else max(1, len(step.actions))
        if count > self._max_step_frames:
            raise Refusal(
                ErrorCode.STEP_TOO_LONG,
                f"the step asks for {count} frames, this server makes at most {self._max_step_frames} at once",
                param="n",
                event_id=step.step_id,
            )
        if len(step.actions) > count:
            raise Refusal(
                ErrorCode.WRONG_DIMENSION,
                f"the step has {len(step.actions)} actions for n = {count} frames",
                param="actions",
                event_id=step.step_id,
            )
        still = self._still
        rows = [self._reader.read(action, step.step_id) for action in step.actions] or [Input(self._keys, still)]
        # Keys hold for the rest of the step; what the mouse was moved before it belongs to its first frame.
        rest = [Input(rows[-1].keys, still)] * (count - len(rows))
        return [Input(rows[0].keys, moved(self._mouse, rows[0].mouse)), *rows[1:], *rest]


def _after(older: _Pressed, newer: _Pressed) -> _Pressed:
    """Two actions for the same frame: the newer keys, and both movements of the mouse."""
    return newer._replace(given=Input(newer.given.keys, moved(older.given.mouse, newer.given.mouse)))
