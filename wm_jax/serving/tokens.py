"""Ephemeral tokens: signed by whoever knows the server's secret, remembered by nobody, good for a while and for one thing."""

import hashlib
import math
import secrets
import time
from typing import Any

import jwt
from pydantic import BaseModel, ConfigDict

from wm_jax.serving.bodies import CreateToken
from wm_jax.serving.protocol import ErrorCode, Refusal

ALGORITHM = "HS256"
TO_PLAY, TO_WATCH = "wm.play", "wm.watch"
"""The `aud` of a token: what it is for. Neither passes for the other."""

SALT = b"wm_jax ephemeral tokens 1"
STRETCH = {"n": 2**14, "r": 8, "p": 1, "maxmem": 2**26}
"""Of scrypt: 16 MB and some 50 ms for each guess. Whoever holds a token could otherwise try secrets against it offline."""


class Permit(BaseModel):
    """What a token lets its bearer do: the claims it carries beside `exp` and `aud`; None: whatever the server allows.

    Attributes:
      jti: Its name, which its sessions are counted by.
      models: Worlds it may open.
      origins: Pages it works from, as browsers name them in `Origin`.
      max_sessions: Sessions of it at once.
      max_session_s: Seconds after which each of them ends.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    jti: str
    models: tuple[str, ...] | None = None
    origins: tuple[str, ...] | None = None
    max_sessions: int = 1
    max_session_s: float | None = None

    def check_model(self, name: str) -> None:
        """Passes where the token is for this world.

        Raises:
          Refusal: it is for others.
        """
        if self.models is not None and name not in self.models:
            text = f"this token is for {', '.join(self.models)}; this server plays {name}"
            raise Refusal(ErrorCode.UNAUTHORIZED, text, param="model")

    def check_origin(self, origin: str | None) -> None:
        """Passes where the token works from this page.

        Raises:
          Refusal: it is bound to others, or the request comes from no page at all.
        """
        if self.origins is not None and origin not in self.origins:
            text = f"this token works from {', '.join(self.origins)}; this request comes from {origin or 'no page'}"
            raise Refusal(ErrorCode.FORBIDDEN_ORIGIN, text)


class Tokens:
    """Signs tokens and reads them back. Servers with the same secret take each other's.

    Args:
      secret: `--auth`; None (nobody else reaches the server): the tokens end with the process.
    """

    def __init__(self, secret: str | None) -> None:
        self._key = secrets.token_bytes(32)
        if secret is not None:
            self._key = hashlib.scrypt(secret.encode(), salt=SALT, dklen=32, **STRETCH)

    def to_play(self, asked: CreateToken) -> tuple[str, float]:
        """A token that opens sessions, and when it expires (seconds since the epoch)."""
        claims = asked.model_dump(exclude={"ttl_s"}, exclude_none=True)
        return self._sign(TO_PLAY, asked.ttl_s, claims)

    def to_watch(self, session_id: str, ttl_s: float) -> tuple[str, float]:
        """A token that watches one session, and when it expires."""
        return self._sign(TO_WATCH, ttl_s, {"sub": session_id})

    def permit(self, token: str) -> Permit:
        """What a token that opens sessions allows.

        Raises:
          Refusal: it is not one that this server or one with its secret made, or it has expired.
        """
        return Permit.model_validate(self._read(token, TO_PLAY))

    def check_watches(self, token: str, session_id: str) -> float:
        """Passes where the token is for watching this session; when it expires.

        Raises:
          Refusal: it is for another one or for playing, was made elsewhere, or has expired.
        """
        claims = self._read(token, TO_WATCH)
        if claims["sub"] != session_id:
            raise Refusal(ErrorCode.UNAUTHORIZED, f"this token does not watch session {session_id}, but another one")
        return float(claims["exp"])

    def _sign(self, audience: str, ttl_s: float, claims: dict[str, Any]) -> tuple[str, float]:
        expires_at = math.ceil(time.time() + ttl_s)
        claims = {**claims, "aud": audience, "exp": expires_at, "jti": secrets.token_urlsafe(12)}
        return jwt.encode(claims, self._key, ALGORITHM), float(expires_at)

    def _read(self, token: str, audience: str) -> dict[str, Any]:
        try:
            return jwt.decode(token, self._key, [ALGORITHM], {"require": ["exp", "jti"]}, audience=audience)
        except jwt.ExpiredSignatureError:
            text = "this token has expired; ask for another one where it came from (POST /v1/tokens makes them)"
        except jwt.InvalidAudienceError:
            text = f"this token is not one to {'watch' if audience == TO_WATCH else 'play'} with"
        except jwt.InvalidAlgorithmError:
            text = f"this token is not signed with {ALGORITHM}, the only way this server signs"
        except (jwt.PyJWTError, ValueError, RecursionError):  # the last: a head nested too deeply
            text = "this token was not made by this server, nor by one with the same --auth secret"
        raise Refusal(ErrorCode.UNAUTHORIZED, text)


def is_signed(token: str) -> bool:
    """Whether this is one of these tokens by its look: no token of a session has dots."""
    return token.count(".") == 2


def bearer(authorization: str | None) -> str:
    """What the header `Authorization: Bearer ...` shows; empty where it shows nothing."""
    return (authorization or "").removeprefix("Bearer ").strip()
