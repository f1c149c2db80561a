"""One world being served: engine, device loop, lobby and disk, joined, and what can be asked of them together."""

import asyncio
import contextlib
import hmac
import importlib.util
import logging
import math
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from wm_jax import envs
from wm_jax.export.artifact import Artifact
from wm_jax.serving import models
from wm_jax.serving.batcher import Batcher, Delivery, show_all
from wm_jax.serving.bodies import (
    CreateRollout,
    CreateSession,
    ForkSession,
    Media,
    ModelInfo,
)
from wm_jax.serving.config import ServeConfig, ServeConfigError
from wm_jax.serving.engine import Engine, Scenes
from wm_jax.serving.keeper import Keeper, Terms, captured, sound
from wm_jax.serving.limits import check_secret
from wm_jax.serving.lobby import Lobby, Place
from wm_jax.serving.protocol import (
    ErrorCode,
    Refusal,
    Role,
    SessionCreated,
    Snapshotted,
    Source,
)
from wm_jax.serving.real import Arcade
from wm_jax.serving.recording import Identity, identity
from wm_jax.serving.rollouts import Rollout, Rollouts
from wm_jax.serving.session import Opening
from wm_jax.serving.snapshots import SnapshotStore
from wm_jax.serving.studio import Studio
from wm_jax.serving.tokens import Permit, Tokens, bearer, is_signed
from wm_jax.serving.video import offered_codecs
from wm_jax.types import Params, Prompt
from wm_jax.world import Playable

log = logging.getLogger(__name__)

ROUND_S = 60.0
"""What writing every session once may take: it is that much later than `snapshot_every_s` that each is written again."""


class Service:
    """One world being served: engine, device loop and lobby, joined."""

    def __init__(
        self,
        config: ServeConfig,
        world: Playable[Any],
        params: Params,
        prompts: Prompt,
        artifact: Artifact | None = None,
    ) -> None:
        self.config = config
        self.tokens = Tokens(config.auth)
        self.world = world.config
        self.scenes = Scenes(prompts)
        self.takes_image = world.takes_image or self.scenes.count > 0
        has_game = self.world.env in envs.NAMES and envs.is_installed(self.world.env)
        self.sources: list[Source] = ["dream", "real"] if has_game else ["dream"]
        self.loop: asyncio.AbstractEventLoop | None = None
        # Two connections that come back to one session must find the same one; a lock is there while somebody holds it.
        self._returning = weakref.WeakValueDictionary[str, asyncio.Lock]()
        self.has_webrtc = importlib.util.find_spec("aiortc") is not None
        if config.ice_servers and not self.has_webrtc:
            raise ServeConfigError("ice_servers are for WebRTC, which is not installed: pip install -e '.[rtc]'")
        offered_codecs()  # imports PyAV now, not while somebody plays
        engine = Engine(world, params, self.scenes, config.slots, artifact, config.ladder)
        _check_disk(config, engine.memory_bytes)
        arcade = Arcade(self.world.env, self._deliver)
        fps = config.fps or self.world.fps
        self.batcher = Batcher(engine, arcade, fps, self._deliver)
        known = identity(world, params, prompts, config.slots)
        self.keeper = _keeper(config, known, self.batcher)
        self.lobby = Lobby(config, self.world.controls, fps, self.batcher, engine.memory_bytes, self.keeper)
        self.studio = Studio(known, self.batcher, fps, self.lobby.new_history())
        self.rollouts = Rollouts(config, self.world.controls, self.world.image, self.studio)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Compiles and plays in the background while the server is up."""
        self.loop = asyncio.get_running_loop()
        self.batcher.begin()
        forever = [asyncio.create_task(task) for task in (self.lobby.sweep_forever(), self.rollouts.run_forever())]
        if self.keeper is not None:
            forever.append(asyncio.create_task(self.lobby.keep_forever()))
        try:
            yield
        finally:
            for task in forever:
                task.cancel()
            self.rollouts.close()
            await self.lobby.drain()
            await asyncio.to_thread(self.batcher.stop)
            await asyncio.to_thread(self.studio.close)
            if self.keeper is not None:
                self.keeper.close()

    def _deliver(self, delivery: Delivery) -> None:
        if delivery and self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(show_all, delivery)

    async def create(self, body: CreateSession, permit: Permit | None = None) -> Place:
        """Seats a new session, or refuses to; with the permit of an ephemeral token only what that allows."""
        if permit is not None:
            permit.check_model(body.model or self.world.name)
        if body.init.snapshot is not None:
            self.lobby.check_room(body.mode)  # before it is loaded: a state may be large
        return self.lobby.create(body, (await self._openings([body]))[0], permit)

    async def _openings(self, bodies: list[CreateSession]) -> list[Opening]:
        """How each begins; those that begin with the same snapshot share its memory."""
        openings = [
            models.check_request(body, self.world, self.sources, self.scenes.count, self.takes_image) for body in bodies
        ]
        loaded: dict[str, Opening] = {}
        for place, body in enumerate(bodies):
            name = body.init.snapshot
            if name is None:
                continue
            if name not in loaded:
                loaded[name] = (await self._kept("init.snapshot").load(name))[1].opening
            openings[place] = loaded[name]
        return openings

    async def record(self, place: Place, has_video: bool) -> Path:
        """The recording of a session so far, in a file that is the caller's to remove.

        Raises:
          Refusal: nothing is written down here or of this session, or there is no slot for the video.
        """
        if not self.config.record_frames:
            raise Refusal(ErrorCode.UNSUPPORTED, "this server records nothing: it was started with --record-frames 0")
        events = await asyncio.to_thread(lambda: place.session.events)
        if events is None:
            text = "nothing of this session can be played again yet: it has made no frame, or its log is too short"
            raise Refusal(ErrorCode.BUSY, text, retry_after_ms=1000)
        return await self.studio.record(events, has_video)

    async def roll_out(self, body: CreateRollout) -> Rollout:
        """Puts scripts in line, to be dreamt in slots that no player needs.

        Raises:
          Refusal: the server is about to stop or its world has failed; or they cannot be dreamt.
        """
        self.lobby.check_open()
        asked = [CreateSession(model=body.model, init=script.init) for script in body.scripts]
        return await self.rollouts.create(body, lambda: self._openings(asked))

    async def come_back(self, session_id: str, resume_token: str) -> Place:
        """The session of that name, from the disk if it is not here; whoever comes must know its token.

        Raises:
          Refusal: there is none, it is another token's, or every slot is taken.
        """
        place = self.lobby.get(session_id)
        if place is not None:
            return place
        if self.keeper is None:
            return self.lobby.find(session_id)
        await self.keeper.check(session_id, resume_token)  # first: who has not the token makes nobody wait who has
        lock = self._returning.setdefault(session_id, asyncio.Lock())
        async with lock:
            place = self.lobby.get(session_id)
            if place is not None:
                return place
            self.lobby.check_room("realtime", comes_back=True)
            record, moment, epoch = await self.keeper.claim(session_id)
            return self.lobby.resume(record, moment, resume_token, epoch)

    async def join(self, session_id: str, token: str, origin: str | None) -> Place:
        """The session that whoever brings this token, from a page of this origin, may play.

        Raises:
          Refusal: there is none, the token is not its own, or does not work from there.
        """
        place = await self.come_back(session_id, token)
        self.lobby.check_token(place, token)
        if place.permit is not None:
            place.permit.check_origin(origin)
        return place

    async def snapshot(self, place: Place) -> Snapshotted:
        """Writes a session to the disk under a name of its own.

        Raises:
          Refusal: this server keeps no snapshots, the session plays the real game, or the disk is full.
        """
        keeper = self._kept("snapshot")
        try:
            name, record, size = await keeper.snapshot(place.session, Terms(place.resume_token, place.linger_s))
        except OSError as error:
            log.warning("a snapshot could not be written: %s", error)
            raise Refusal(ErrorCode.BUSY, "the server's disk takes no snapshot now", retry_after_ms=10_000) from None
        expires_at = record.saved_at + self.config.snapshot_age_s
        return Snapshotted(snapshot=name, frame_id=record.frame_id, bytes=size, expires_at=expires_at)

    def _kept(self, param: str) -> Keeper:
        if self.keeper is None:
            text = "this server keeps no snapshots: it was started without --snapshots"
            raise Refusal(ErrorCode.UNSUPPORTED, text, param=param)
        return self.keeper

    async def fork(self, place: Place, body: ForkSession, permit: Permit | None = None) -> Place:
        """Seats a new session that goes on as this one is, or was just before a frame that is kept.

        Raises:
          Refusal: that frame is not kept, the session has ended or is not this permit's, every slot is taken, or the
            server is busy or about to stop.
        """
        session = place.session
        if permit is not None and not _is_of(place, permit):
            raise Refusal(ErrorCode.UNAUTHORIZED, f"this token did not open session {session.id}, another one did")
        self.lobby.check_room(session.mode)
        if session.source == "real":
            raise Refusal(ErrorCode.UNSUPPORTED, "this session plays the real game, which cannot be copied")
        if body.at is None:
            opening = (await captured(self.batcher.capture(session))).opening
        else:
            opening = await sound(session.opening_at(body.at, await self.lobby.recall(place, body.at)))
        mode = session.mode if body.mode is None else body.mode
        media = body.media or Media(codec=session.codec, quality=session.quality)
        asked = CreateSession(mode=mode, media=media, linger_s=body.linger_s)
        forked = self.lobby.create(asked, opening, permit)
        if body.media is None:
            forked.session.stride = session.stride
        return forked

    def info(self) -> ModelInfo:
        """The world, as the model list shows it."""
        free = self.batcher.free_slots
        return models.model_info(self.world, self.config, self.sources, self.scenes.count, self.takes_image, free)

    def created(self, place: Place, role: Role = "player") -> SessionCreated:
        """The first message of a connection."""
        return SessionCreated(
            session=models.session_info(self.world, place.session, self.lobby.status(place)),
            capabilities=models.capabilities(
                self.world, self.config, self.sources, self.takes_image, self.lobby.room.depth
            ),
            role=role,
            resume_token=place.resume_token if role == "player" else None,
        )

    def check_bearer(self, authorization: str | None, place: Place | None = None) -> None:
        """Lets the server's secret, or the session's own tokens, pass; everyone where no secret is set."""
        token = bearer(authorization)
        own = [] if place is None else [place.token, place.resume_token]
        if self.config.auth is None or _is_one_of(token, [self.config.auth, *own]):
            return
        if place is None or not is_signed(token):
            return check_secret(self.config, authorization)
        if not _is_of(place, self.tokens.permit(token)):
            text = f"this token did not open session {place.session.id}, another one did"
            raise Refusal(ErrorCode.UNAUTHORIZED, text)

    def permit(self, authorization: str | None, origin: str | None) -> Permit | None:
        """What the bearer of an ephemeral token may open; None: whatever he likes, for he shows the server's secret.

        Raises:
          Refusal: neither the secret nor a token that is good, or one that does not work from this page.
        """
        token = bearer(authorization)
        if not is_signed(token) or (self.config.auth is not None and _is_one_of(token, [self.config.auth])):
            self.check_bearer(authorization)
            return None
        permit = self.tokens.permit(token)
        permit.check_origin(origin)
        return permit


def _is_one_of(token: str, known: list[str]) -> bool:
    """Whether the token is one of these, in a time that tells nothing about them."""
    return any(hmac.compare_digest(token.encode(), one.encode()) for one in known)


def _is_of(place: Place, permit: Permit) -> bool:
    """Whether the token with this permit opened the session."""
    return place.permit is not None and place.permit.jti == permit.jti


def _check_disk(config: ServeConfig, memory_bytes: int) -> None:
    """Passes where a session in every slot fits into the folder of snapshots.

    Raises:
      ServeConfigError: it does not.
    """
    wanted = 1e-6 * config.slots * memory_bytes
    if config.snapshots is not None and wanted > config.snapshot_mb:
        raise ServeConfigError(
            f"a session of this world takes {1e-6 * memory_bytes:.4g} MB on the disk, {config.slots} slots of them "
            f"{math.ceil(wanted)} MB, and snapshot_mb is {config.snapshot_mb:g}: pass --snapshot-mb {math.ceil(wanted)} or "
            "more, fewer --slots, or no --snapshots"
        )


def _keeper(config: ServeConfig, known: Identity, batcher: Batcher) -> Keeper | None:
    if config.snapshots is None:
        return None
    folder = Path(config.snapshots).expanduser()
    weights = known.weights_sha256
    awake_s = 2 * config.snapshot_every_s + ROUND_S
    store = SnapshotStore(
        folder, known.world, weights, known.scenes, config.snapshot_mb, config.snapshot_age_s, awake_s
    )
    return Keeper(store, batcher.capture)
