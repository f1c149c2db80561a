"""Which replica has which session: leases, epochs, and where the next player is seated. Knows no Ray, no network, no clock.

A replica reports itself and its sessions at every beat, and is told which of them it must stop. What makes two owners of one
session impossible is the epoch, which the folder of snapshots gives out (`SnapshotStore.claim`); here the higher one wins.
A directory that was started anew knows everything again after one beat of each replica.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable

ORPHAN_S = 600.0
"""How long a session is remembered whose replica is gone, and which nobody came back for."""

PROMISED = 100
"""Rollouts of a replica that are remembered until a beat names them; one that ended before it did is named by none."""

MISSED_SHARE = 0.1
"""Of its ticks: a replica that misses more is too slow for the players it has."""


@dataclasses.dataclass(frozen=True)
class Load:
    """How a replica stands.

    Attributes:
      waiting: Players who wait for a slot there.
      fps: Frames a second of its media clock now; `wanted_fps` where it keeps up.
      missed: Ticks it skipped so far.
      scripts: Of rollouts, that wait there or run.
    """

    slots: int
    free_slots: int
    waiting: int
    fps: float
    wanted_fps: float
    missed: int
    is_ready: bool
    is_draining: bool
    scripts: int = 0


@dataclasses.dataclass(frozen=True)
class Beat:
    """What a replica reports.

    Attributes:
      replica: Its name, never used twice.
      url: Where its REST and its sockets are.
      node: Name of the machine, for `drain`.
      epochs: Of every session that is there.
      saved: The frame with which each session would go on that it has written.
      rollouts: Those that are there, with what they have made.
    """

    replica: str
    url: str
    node: str
    pid: int
    load: Load
    epochs: dict[str, int]
    saved: dict[str, int]
    rollouts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Orders:
    """What a replica must do: stop sessions that others own, and with `drain` let everybody go and end."""

    stop: tuple[str, ...] = ()
    drain: bool = False


@dataclasses.dataclass(frozen=True)
class Address:
    """A replica to turn to."""

    replica: str
    url: str


@dataclasses.dataclass(frozen=True)
class Whereabouts:
    """Where a session is.

    Attributes:
      address: Its replica; None: that is gone, and the session waits on the disk, if it was written.
      is_leaving: Its replica is about to stop, and has not yet let the session go.
    """

    address: Address | None
    is_leaving: bool
    epoch: int
    saved: int | None


@dataclasses.dataclass
class Replica:
    """A replica, as its last beat told.

    Attributes:
      promised: Slots given away since.
      rollouts: Begun there since, and not yet in a beat.
      scripts: How many they have.
    """

    beat: Beat
    heard_at: float
    missed_a_second: float = 0.0
    promised: int = 0
    rollouts: tuple[str, ...] = ()
    scripts: int = 0
    must_drain: bool = False
    is_lost: bool = False

    @property
    def room(self) -> int:
        """Free slots, less those promised since the beat; below 0: that many wait."""
        return self.beat.load.free_slots - self.beat.load.waiting - self.promised

    @property
    def is_overloaded(self) -> bool:
        """Whether its players get fewer frames than they should."""
        load = self.beat.load
        return load.fps < load.wanted_fps or self.missed_a_second > MISSED_SHARE * load.wanted_fps


@dataclasses.dataclass
class Lease:
    """A session's owner.

    Attributes:
      unseen: Beats of the owner since that did not name the session: after two it has ended there.
    """

    replica: str
    epoch: int
    saved: int | None = None
    unseen: int = 0
    orphan_at: float | None = None


class Directory:
    """All replicas and all sessions of one cluster. One caller at a time: in a cluster it is an actor."""

    def __init__(self, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease_s = lease_s
        self._clock = clock
        self._began_at = clock()
        self._replicas: dict[str, Replica] = {}
        self._leases: dict[str, Lease] = {}

    # ---- replicas

    def beat(self, beat: Beat) -> Orders:
        """A replica is there; renews the leases of the sessions it owns."""
        now = self._clock()
        known = self._replicas.get(beat.replica)
        fresh = Replica(beat, now)
        if known is not None:
            passed = max(now - known.heard_at, 1e-3)
            fresh.missed_a_second = (beat.load.missed - known.beat.load.missed) / passed
            fresh.must_drain = known.must_drain
            fresh.rollouts = tuple(name for name in known.rollouts if name not in beat.rollouts)[-PROMISED:]
        self._replicas[beat.replica] = fresh
        self._sweep(now)
        stop = tuple(name for name, epoch in beat.epochs.items() if not self._renew(name, epoch, beat))
        self._end_unseen(beat)
        return Orders(stop, fresh.must_drain)

    def leave(self, replica: str) -> None:
        """A replica has let all its sessions go and ends."""
        if self._replicas.pop(replica, None) is not None:
            self._orphan(replica, self._clock())

    def lost(self, replica: str) -> None:
        """Nobody answers there; until its next beat nobody is sent there."""
        if replica in self._replicas:
            self._replicas[replica].is_lost = True

    def drain(self, target: str) -> list[str]:
        """Has a replica, or every replica of a node, let its players go and end; their names."""
        named = [name for name, known in self._replicas.items() if target in (name, known.beat.node)]
        for name in named:
            self._replicas[name].must_drain = True
        return named

    def replicas(self) -> list[Replica]:
        """Every replica that still has its lease."""
        self._sweep(self._clock())
        return list(self._replicas.values())

    # ---- sessions

    def place(self, tried: Iterable[str] = ()) -> Address | None:
        """The replica for the next player: of those that keep up, the one with most free slots; None: none is ready."""
        ready = self._ready(tried)
        if not ready:
            return None
        best = max(ready, key=lambda known: (known.room > 0, not known.is_overloaded, known.room))
        best.promised += 1
        return Address(best.beat.replica, best.beat.url)

    def place_rollout(self, tried: Iterable[str] = ()) -> Address | None:
        """The replica for the next rollout: the one with most free slots, less the scripts that want them already."""
        best = max(
            self._ready(tried), key=lambda known: known.room - known.scripts - known.beat.load.scripts, default=None
        )
        return None if best is None else Address(best.beat.replica, best.beat.url)

    def own(self, session_id: str, replica: str) -> None:
        """A session was seated there just now, or taken up; its epoch comes with the next beat."""
        known = self._leases.get(session_id)
        self._leases[session_id] = Lease(
            replica, 0 if known is None else known.epoch, None if known is None else known.saved
        )

    def begun(self, rollout_id: str, replica: str, scripts: int) -> None:
        """A rollout was taken on there just now; its next beats name it, until it is over."""
        if replica in self._replicas:
            self._replicas[replica].rollouts += (rollout_id,)
            self._replicas[replica].scripts += scripts

    def find_rollout(self, rollout_id: str) -> Address | None:
        """Who makes a rollout, or has made it; None: nobody that has reported."""
        for known in self.replicas():
            if rollout_id in known.beat.rollouts or rollout_id in known.rollouts:
                return Address(known.beat.replica, known.beat.url)
        return None

    def is_new(self) -> bool:
        """Whether replicas may be there that have not reported since this directory was started."""
        return self._clock() - self._began_at < self._lease_s

    def find(self, session_id: str) -> Whereabouts | None:
        """Where a session is; None: no replica has named it, and it may yet be on the disk."""
        self._sweep(self._clock())
        lease = self._leases.get(session_id)
        if lease is None:
            return None
        owner = self._replicas.get(lease.replica)
        if owner is None or owner.is_lost:
            return Whereabouts(None, False, lease.epoch, lease.saved)
        is_leaving = owner.beat.load.is_draining or owner.must_drain
        return Whereabouts(Address(lease.replica, owner.beat.url), is_leaving, lease.epoch, lease.saved)

    def sessions(self) -> dict[str, Lease]:
        """Every session that is known."""
        return dict(self._leases)

    # ---- inside

    def _ready(self, tried: Iterable[str]) -> list[Replica]:
        """The replicas that take players, but these."""
        return [known for known in self._alive() if known.beat.load.is_ready and known.beat.replica not in set(tried)]

    def _alive(self) -> list[Replica]:
        """The replicas that may be given players."""
        alive = [known for known in self.replicas() if not known.is_lost]
        return [known for known in alive if not (known.must_drain or known.beat.load.is_draining)]

    def _renew(self, session_id: str, epoch: int, beat: Beat) -> bool:
        """Whether the session is this replica's; if so, for another lease."""
        lease = self._leases.get(session_id)
        if lease is not None and lease.replica != beat.replica:
            if epoch < lease.epoch:
                return False
            if epoch == lease.epoch and lease.replica in self._replicas:
                # Of two that tell the same epoch one has taken the session up just now and says so with its next beat.
                return True
        self._leases[session_id] = Lease(beat.replica, epoch, beat.saved.get(session_id))
        return True

    def _end_unseen(self, beat: Beat) -> None:
        for name, lease in list(self._leases.items()):
            if lease.replica == beat.replica and name not in beat.epochs:
                lease.unseen += 1
                if lease.unseen >= 2:
                    del self._leases[name]

    def _sweep(self, now: float) -> None:
        """Forgets who is silent for longer than a lease, and what nobody came back for."""
        for name, known in list(self._replicas.items()):
            if now - known.heard_at > self._lease_s:
                del self._replicas[name]
                self._orphan(name, now)
        for name, lease in list(self._leases.items()):
            if lease.orphan_at is not None and now - lease.orphan_at > ORPHAN_S:
                del self._leases[name]

    def _orphan(self, replica: str, now: float) -> None:
        for lease in self._leases.values():
            if lease.replica == replica and lease.orphan_at is None:
                lease.orphan_at = now
