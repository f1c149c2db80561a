"""Players who come, leave, pause, fork, go back and start anew in any order: nobody's frames change by a bit."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import wm_jax as wm
from wm_jax.export.programs import bare_shapes
from wm_jax.serving.batcher import Batcher
from wm_jax.serving.engine import Engine, Scenes
from wm_jax.serving.events import EventLog, Events
from wm_jax.serving.history import Filed, History, Kept, Memory, Mover, Trail
from wm_jax.serving.outbox import Outbox
from wm_jax.serving.protocol import Action, Step
from wm_jax.serving.real import Arcade
from wm_jax.serving.session import Moment, Opening, Session
from wm_jax.serving.snapshots import arrays_of, opening_of

SLOTS, DEPTH, EVERY, RECORDED = 3, 3, 2, 24

Past = tuple[Any, ...]
"""How a dream came about: its seed, then what was held in each frame."""


@functools.cache
def engine() -> Engine:
    world, params = wm.tiny_world(0)
    made = Engine(world, params, Scenes(wm.Prompt()), SLOTS)
    made.compile(lambda name, share: None)
    made.start_s = 0.0  # nobody is put off, however busy the machine
    return made


def alone(past: Past) -> dict[Past, bytes]:
    """Every frame of a dream that nobody shares the engine with, by what led to it."""
    frames: dict[Past, bytes] = {}
    served, active = engine(), np.arange(SLOTS) == 0
    served.seat(0, Opening(past[0]))
    for count in range(1, len(past)):
        keys = np.zeros((SLOTS, 4), bool)
        keys[0] = past[count]
        frames[past[: count + 1]] = np.asarray(served.step(wm.Controls(keys), active))[0].tobytes()
    return frames


def made_again(events: Events) -> dict[int, bytes]:
    """Every frame of a recording, by a dream that nobody shares the engine with."""
    frames: dict[int, bytes] = {}
    kept: dict[int, Memory] = {}
    served, active = engine(), np.arange(SLOTS) == 0
    wanted = {chapter.opening.back_to for chapter in events.chapters}
    for piece in events.pieces(64):
        if piece.opening is not None:
            back = piece.opening.back_to
            served.seat(0, piece.opening if back is None else Opening(0, memory=kept[back]))
        for frame_id, row in enumerate(piece.rows, piece.first):
            if frame_id in wanted:
                kept[frame_id] = served.take(0)
            keys = np.zeros((SLOTS, 4), bool)
            keys[0] = row.keys
            frames[frame_id] = np.asarray(served.step(wm.Controls(keys), active))[0].tobytes()
    return frames


class Written(NamedTuple):
    """What was written of a session: what led to its next frame, that frame, and how it goes on from there."""

    past: Past
    moment: Moment


@dataclasses.dataclass
class Player:
    """The simple model of a session: what led to its next frame, and what is still to come."""

    session: Session
    past: Past
    frame_id: int = 0
    held: frozenset[int] = frozenset()
    tapped: frozenset[int] = frozenset()
    is_paused: bool = False
    steps: list[tuple[Past | None, frozenset[int]]] = dataclasses.field(default_factory=list)
    restart: Past | None = None
    kept: list[tuple[int, Past]] = dataclasses.field(default_factory=list)
    shown: dict[int, bytes] = dataclasses.field(default_factory=dict)
    written: Written | None = None
    filed: list[Written] = dataclasses.field(default_factory=list)
    begun: set[int] = dataclasses.field(default_factory=set)
    came_with: Past | None = None

    @property
    def is_due(self) -> bool:
        return bool(self.steps) if self.session.mode == "stepped" else not self.is_paused

    def next_frame(self) -> tuple[int, Past]:
        """Index of the frame just made, and what led to it."""
        restart, held = self.restart, self.held | self.tapped
        if self.session.mode == "stepped":
            restart, held = self.steps.pop(0)
        else:
            self.restart, self.tapped = None, frozenset()
        if restart is not None and restart is not self.came_with:
            self.begun.add(self.frame_id)
        self.past = restart or self.past
        if self.frame_id % EVERY == 0:
            self.kept = [*(kept for kept in self.kept if kept[0] < self.frame_id), (self.frame_id, self.past)][-DEPTH:]
        self.past = (*self.past, tuple(key in held for key in range(4)))
        self.frame_id += 1
        return self.frame_id - 1, self.past

    def lose(self, frames: int) -> None:
        """As many frames are taken and not made: all is as before, but for what was kept, which the first takes along."""
        taken = dataclasses.replace(self, steps=list(self.steps))
        for _ in range(frames):
            if taken.is_due:
                taken.next_frame()
        self.kept = [kept for kept in taken.kept if kept[0] < self.frame_id]


def engine_state(opening: Opening) -> Memory | None:
    """What an opening remembers, as it is read from a file; None: nothing."""
    if opening.memory is None:
        return None
    shapes = bare_shapes(engine().world, 1)
    read = opening_of(arrays_of(opening), Opening(0), opening.memory.stream, shapes, engine().world.config.image, 0)
    return read.memory


players = st.integers(0, SLOTS - 1)
keys = st.frozensets(st.integers(0, 3))


class AtOnce(Mover):
    """Has moved a state when it was told to: when one is kept does not depend on threads."""

    def move(self, memory: Memory | None) -> None:
        if memory is not None:
            self._moving += 1
            self._move(memory)


class Storm(RuleBasedStateMachine):
    """Drives the device loop by hand, one launch at a time, and a model of each player beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.delivered: list[tuple[Session, Any]] = []
        self.batcher = Batcher(engine(), Arcade("", lambda delivery: None), 15.0, self.delivered.extend)
        self.batcher._mover, self.batcher._copies = AtOnce(), SLOTS
        self.players: list[Player] = []
        self.seen: list[tuple[Past, bytes]] = []
        self.codes = engine().world.config.controls.codes

    def chosen(self, index: int) -> Player:
        return self.players[index % len(self.players)]

    def session(self, opening: Opening, mode: Any) -> Session:
        world = engine().world.config
        made = Session(
            *(world.controls, world.fps, Outbox(None), opening),
            mode=mode, codec="raw", history=History(DEPTH, EVERY, on_device=len(self.players)), events=EventLog(RECORDED),
        )  # fmt: skip
        made.is_connected, made.trail = True, Trail(DEPTH)
        return made

    def seat(self, opening: Opening, past: Past, mode: Any) -> None:
        session = self.session(opening, mode)
        assert self.batcher.seat(session) == (len(self.players) < SLOTS)
        if len(self.players) < SLOTS:
            self.players.append(Player(session, past, restart=past))

    @rule(seed=st.integers(0, 5), mode=st.sampled_from(["realtime", "stepped"]))
    def join(self, seed: int, mode: str) -> None:
        self.seat(Opening(seed), (seed,), mode)

    @precondition(lambda self: self.players)
    @rule(index=players)
    def leave(self, index: int) -> None:
        self.batcher.evict(self.players.pop(index % len(self.players)).session)

    @precondition(lambda self: self.players)
    @rule(index=players, held=keys)
    def press(self, index: int, held: frozenset[int]) -> None:
        player = self.chosen(index)
        action = Action(type="action", held=[self.codes[key] for key in held])
        assert player.session.press(action) == player.frame_id + len(player.steps)
        if player.session.mode == "realtime":
            player.tapped |= held - player.held
        player.held = held

    @precondition(lambda self: self.players)
    @rule(index=players, count=st.integers(1, 3))
    def step(self, index: int, count: int) -> None:
        player = self.chosen(index)
        if player.session.mode == "stepped" and len(player.steps) < 8:
            player.session.ask(Step(type="step", step_id=f"{player.frame_id} {len(player.steps)}", n=count))
            player.steps += [(player.restart if index == 0 else None, player.held) for index in range(count)]
            player.restart = None

    @precondition(lambda self: self.players)
    @rule(index=players)
    def pause(self, index: int) -> None:
        player = self.chosen(index)
        player.is_paused = not player.is_paused
        player.session.pause(player.is_paused)

    @precondition(lambda self: self.players)
    @rule(index=players, seed=st.integers(0, 5))
    def reset(self, index: int, seed: int) -> None:
        player = self.chosen(index)
        player.session.restart(seed)
        if player.session.opening.memory is not None:  # a fork: at its own seed it begins again where it was forked
            seed += 100
            player.session.restart(seed)
        player.restart = (seed,)

    @precondition(lambda self: self.players)
    @rule(index=players, back=st.integers(0, DEPTH))
    def seek(self, index: int, back: int) -> None:
        player = self.chosen(index)
        at_hand = [frame for frame, _ in player.kept]
        older = [one.moment.frame_id for one in player.filed if not at_hand or one.moment.frame_id < at_hand[0]]
        assert player.session.kept_frames() == older + at_hand
        if back < len(player.kept):
            frame, past = player.kept[back]
            assert player.session.seek(frame + 1 if player.kept[-1][0] == frame else frame)[1] == frame
            player.restart = past

    @precondition(lambda self: self.players)
    @rule(index=players)
    def write(self, index: int) -> None:
        """As to the disk; what was written before stays there, unless the session began anew since, at that very frame."""
        player = self.chosen(index)
        asked = self.batcher.capture(player.session)
        self.batcher._capture_next()
        moment, next_one = asked.result(), player.steps[0][0] if player.steps else player.restart
        state = engine_state(moment.opening)
        writing = player.session.writing(moment.frame_id)
        player.session.trail.follow(writing, None if state is None else Filed(0, moment.frame_id))
        older = player.written
        if older is not None and older.moment.opening.memory is not None:
            frame_id = older.moment.frame_id
            stays = frame_id < player.frame_id and frame_id not in player.begun
            player.filed = [*player.filed, *[older][:stays]][-DEPTH:]
        opening = dataclasses.replace(moment.opening, memory=state)
        player.written = Written(next_one or player.past, moment._replace(opening=opening))
        assert [one.moment.frame_id for one in player.filed] == player.session.trail.frames

    @precondition(lambda self: self.players)
    @rule(index=players, which=st.integers(0, DEPTH - 1))
    def seek_what_is_on_the_disk(self, index: int, which: int) -> None:
        player = self.chosen(index)
        if which < len(player.filed):
            past, moment = player.filed[which]
            if player.session.filed_at(moment.frame_id) is not None:
                assert moment.opening.memory is not None
                recalled = Kept(moment.frame_id, moment.opening.memory)
                assert player.session.seek(moment.frame_id, None, recalled)[1] == moment.frame_id
                player.restart = past

    @precondition(lambda self: self.players)
    @rule(index=players)
    def killed(self, index: int) -> None:
        """Its server is; another one takes it up as it was written."""
        player = self.chosen(index)
        if player.written is None:
            return
        past, moment = player.written
        mode, is_fork = player.session.mode, player.session.opening.memory is not None
        self.batcher.evict(player.session)
        again = self.session(dataclasses.replace(moment.opening, memory=None), mode)
        again.go_on(player.session.id, moment, is_fork)
        newest = None if moment.opening.memory is None else Filed(0, moment.frame_id)
        again.trail = Trail(DEPTH, [Filed(0, one.moment.frame_id) for one in player.filed], newest)
        assert self.batcher.seat(again)
        held = frozenset(np.flatnonzero(moment.keys).tolist()) if mode == "stepped" else frozenset()
        shown = {frame_id: payload for frame_id, payload in player.shown.items() if frame_id < moment.frame_id}
        self.players[self.players.index(player)] = Player(
            again,
            past,
            moment.frame_id,
            held,
            restart=past,
            shown=shown,
            written=player.written,
            filed=player.filed,
            came_with=past,
        )

    @precondition(lambda self: self.players and len(self.players) < SLOTS)
    @rule(index=players, mode=st.sampled_from(["realtime", "stepped"]))
    def fork(self, index: int, mode: str) -> None:
        player = self.chosen(index)
        asked = self.batcher.capture(player.session)
        self.batcher._capture_next()
        moment, next_one = asked.result(), player.steps[0][0] if player.steps else player.restart
        assert moment.frame_id == player.frame_id
        self.seat(moment.opening, next_one or player.past, mode)

    @precondition(lambda self: self.players and len(self.players) < SLOTS)
    @rule(index=players, back=st.integers(0, DEPTH - 1))
    def fork_of_the_past(self, index: int, back: int) -> None:
        player = self.chosen(index)
        if back < len(player.kept):
            frame, past = player.kept[back]
            self.seat(player.session.opening_at(frame), past, "stepped")

    @rule(where=st.sampled_from(["before", "after", "pixels"]))
    def a_frame_fails(self, where: str) -> None:
        """Before the device takes the state, after that, or when the pixels are asked for, with the next frame under way."""
        served, step = engine(), engine().step

        def broken(controls: Any, active: Any, chosen: Any = None) -> Any:
            if where != "before":
                step(controls, active, chosen)
            for leaf in jax.tree.leaves(served._state if where == "after" else ()):
                leaf.delete()
            served.step = step  # once
            raise RuntimeError("the device had a bad moment")

        for player in self.players:
            player.lose(2 if where == "pixels" else 1)
        if where != "pixels":
            served.step = broken
            self.batcher._launch(is_tick=True)
            served.step = step
            self.batcher._failures = 0
            return
        for _ in range(2):
            self.batcher._launch(is_tick=True)
        while not self.batcher._launched.empty():
            launch = self.batcher._launched.get()
            assert launch is not None
            self.batcher._broken.put(launch._replace(error=RuntimeError("the pixels never came")))
            self.batcher._finished.put(None)
        if not self.batcher._broken.empty():
            first = self.batcher._broken.get()
            assert first.error is not None
            self.batcher._recover(first.error, first.turns)
            self.batcher._failures = 0

    @rule()
    def begin_ahead(self) -> None:
        self.batcher.pace._due = math.inf
        while self.batcher._begin_ahead():
            pass

    @rule()
    def tick(self) -> None:
        self.batcher._launch(is_tick=True)
        due = [player for player in self.players if player.is_due]
        self.delivered.clear()
        if due:
            launch = self.batcher._launched.get_nowait()
            assert launch is not None
            self.batcher._scatter(launch, np.asarray(launch.frames))
        made = {session.id: frame for session, frame in self.delivered}
        assert set(made) == {player.session.id for player in due}
        for player in due:
            frame_id, past = player.next_frame()
            assert made[player.session.id].frame_id == frame_id
            player.shown[frame_id] = made[player.session.id].payload
            self.seen.append((past, player.shown[frame_id]))

    @invariant()
    def only_the_newest_states_stay_on_the_device(self) -> None:
        for player in self.players:
            history = player.session._history
            older = history._kept[: max(0, len(history._kept) - history.on_device)]
            leaves = jax.tree.leaves([kept.memory.state for kept in older])
            assert all(isinstance(leaf, np.ndarray) for leaf in leaves)

    @invariant()
    def every_slot_is_free_or_taken(self) -> None:
        assert self.batcher.free_slots == SLOTS - len(self.players)

    def teardown(self) -> None:
        for player in self.players:
            events = player.session.events
            again = {} if events is None else made_again(events)
            newest = range(len(player.shown) - len(again), len(player.shown))
            assert again == {frame_id: player.shown[frame_id] for frame_id in newest}, (
                "a recording shows something else"
            )
        known: dict[Past, bytes] = {}
        for past, _ in sorted(self.seen, key=lambda seen: -len(seen[0])):
            if past not in known:
                known |= alone(past)
        for past, payload in self.seen:
            assert payload == known[past], f"after {past} the dream depends on its neighbours"


Storm.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestStorm = Storm.TestCase
