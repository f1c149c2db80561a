"""Doom in first person: ViZDoom (MIT), its deathmatch arena in Freedoom's textures (BSD), empty of monsters, to walk around in.

The 512x384 view, without head-up display and weapon bob, is cropped to its square middle and averaged to 64x64, so
that far walls sparkle less, which nobody can foresee. One frame is one tic of the game (35 frames a second). A
level is one of the arena's places to start and a direction to look; held-out levels are other walks through the same
arena, so that a small world can know it by heart.
"""

import contextlib
import os
import tempfile
import weakref
from typing import Any, ClassVar

import gymnasium
import numpy as np
from PIL import Image

from wm_jax.envs.base import Frame, Game, Keys, Policy, Split, keys_of

LEVELS: dict[str, tuple[int, int]] = {"train": (100_000, 2**31 - 2), "held_out": (0, 10_000)}
TICS_PER_FRAME = 1
TURN_PER_TIC = 2.5
_SETTINGS = (
    "+snd_efx 0 -nosound -nomonsters +sv_cheats 1 +movebob 0 +sv_infiniteammo 1 "
    "+sv_noweaponspawn 1 +sv_nohealth 1 +sv_noarmor 1 +sv_noitems 1 +neverswitchonpickup 1 +gl_cachenodes 0 "
    "+cl_showsecretmessage 0 +con_midtime 0"
)


class Doom(Game):
    """Walk through the deathmatch arena. Nothing can kill you, and an episode has no end of its own."""

    held_out: ClassVar[str] = "other walks through the same arena (a first view may be one that training has seen)"
    controls = keys_of(
        ("KeyW", "forward"),
        ("KeyS", "back"),
        ("ArrowLeft", "turn left"),
        ("ArrowRight", "turn right"),
        ("KeyA", "step left"),
        ("KeyD", "step right"),
        ("Space", "shoot"),
    )
    combos: ClassVar[dict[tuple[str, ...], float]] = {
        ("KeyW",): 5.0,
        ("KeyW", "ArrowLeft"): 3.0,
        ("KeyW", "ArrowRight"): 3.0,
        ("ArrowLeft",): 2.0,
        ("ArrowRight",): 2.0,
        ("KeyS",): 1.5,
        ("KeyA",): 1.0,
        ("KeyD",): 1.0,
        ("KeyW", "KeyA"): 0.6,
        ("KeyW", "KeyD"): 0.6,
        ("KeyA", "ArrowRight"): 0.5,
        ("KeyD", "ArrowLeft"): 0.5,
        ("Space",): 0.6,
        ("KeyW", "Space"): 0.5,
        (): 1.0,
    }

    def __init__(self, *, split: Split = "train", render_mode: str | None = None):
        super().__init__((64, 64), 35 / TICS_PER_FRAME, split, render_mode)
        self._game: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._level = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        gymnasium.Env.reset(self, seed=seed)
        self._level = self.choose_level(options, *LEVELS[self.split])
        game = self._game = self._game or self._start()
        game.set_seed(self._level)
        game.new_episode()
        game.send_game_command("god")
        # Let the weapon come up before the first frame (until then no key is heard), and look somewhere else each time.
        game.make_action([0] * 7, 20)
        game.make_action([0, 0, 0, 0, float(self._level * 137 % 360), 0, 0], 1)
        self._frame = self._see()
        return self._frame, self._info(stale=False)

    def step(self, action: Keys) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        held = self.held(action)
        if self._game is None or self._frame is None or self._game.is_episode_finished():
            raise gymnasium.error.ResetNeeded("the Doom level has ended or was never started: call reset()")
        turn = TURN_PER_TIC * (("ArrowRight" in held) - ("ArrowLeft" in held))
        moves = [code in held for code in ("KeyW", "KeyS", "KeyA", "KeyD")]
        self._game.make_action([*moves, turn, "Space" in held, 0], TICS_PER_FRAME)
        ended = bool(self._game.is_episode_finished())
        if not ended:
            self._frame = self._see()
        return self._frame, 0.0, ended, False, self._info(stale=ended)

    def close(self) -> None:
        if self._game is not None:
            self._closer()
            self._game = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def clearance(self) -> np.ndarray:
        """How far one can see to the left, ahead and to the right at eye height: three numbers, 255 the farthest."""
        band = self._game.get_state().depth_buffer[176:224].astype(np.float32)
        return np.array([np.percentile(part, 30) for part in (band[:, 32:192], band[:, 200:312], band[:, 320:480])])

    def runner(self, rng: np.random.Generator) -> Policy:
        """Explores: walks on while the way is clear, turns to the more open side before walls, backs out when stuck."""
        return _Explorer(self, rng)

    def _start(self) -> Any:
        import vizdoom

        game, button = vizdoom.DoomGame(), vizdoom.Button
        # ViZDoom writes its settings file into the working directory unless told where else.
        self._folder = tempfile.TemporaryDirectory(prefix="wm_jax_doom_")
        game.set_doom_config_path(os.path.join(self._folder.name, "vizdoom.ini"))
        game.set_doom_game_path(os.path.join(os.path.dirname(vizdoom.__file__), "freedoom2.wad"))
        game.set_doom_scenario_path(os.path.join(vizdoom.scenarios_path, "deathmatch.wad"))
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_512X384)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_depth_buffer_enabled(True)
        for hide in (game.set_render_hud, game.set_render_crosshair, game.set_render_decals, game.set_render_particles,
                     game.set_render_messages, game.set_render_screen_flashes, game.set_window_visible,
                     game.set_sound_enabled):  # fmt: skip
            hide(False)
        game.set_available_buttons([button.MOVE_FORWARD, button.MOVE_BACKWARD, button.MOVE_LEFT, button.MOVE_RIGHT,
                                    button.TURN_LEFT_RIGHT_DELTA, button.ATTACK, button.SPEED])  # fmt: skip
        position = [vizdoom.GameVariable.POSITION_X, vizdoom.GameVariable.POSITION_Y, vizdoom.GameVariable.ANGLE]
        game.set_available_game_variables(position)
        game.set_episode_timeout(0)
        game.add_game_args(_SETTINGS)
        game.init()
        # The game leaves an empty folder wherever it is started.
        with contextlib.suppress(OSError):
            os.rmdir("_vizdoom")
        # Closes a game that nobody closed before its folder goes, else ViZDoom complains that it cannot save.
        self._closer = weakref.finalize(self, game.close)
        return game

    def _see(self) -> np.ndarray:
        view = self._game.get_state().screen_buffer[:, 64:448]
        return np.asarray(Image.fromarray(view).reduce(6))

    def _info(self, stale: bool) -> dict[str, Any]:
        info: dict[str, Any] = {"level": self._level, "stale": stale}
        if not stale:
            info["position"] = tuple(float(value) for value in self._game.get_state().game_variables)
        return info


class _Explorer:
    """Looks at the depth of the view to keep clear of walls."""

    def __init__(self, game: Doom, rng: np.random.Generator):
        self.game, self.rng = game, rng
        self.plan: list[tuple[str, ...]] = []
        self.places: list[tuple[float, float]] = []

    def __call__(self, frame: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        self.places = [*self.places[-16:], info["position"][:2]]
        if not self.plan:
            self.plan = self._decide()
        return self.game.hold(*self.plan.pop(0))

    def _decide(self) -> list[tuple[str, ...]]:
        rng = self.rng
        left, ahead, right = self.game.clearance()
        side = "ArrowLeft" if left > right else "ArrowRight"
        if len(self.places) > 16 and np.ptp(np.array(self.places), axis=0).max() < 16:
            self.places = []
            return [("KeyS", side)] * int(rng.integers(6, 14)) + [(side,)] * int(rng.integers(12, 40))
        if ahead < 8:
            return [(side,)] * int(rng.integers(6, 18))
        if ahead < 20:
            return [("KeyW", side)] * int(rng.integers(4, 10))
        dice = rng.random()
        if dice < 0.55:
            return [("KeyW",)] * int(rng.integers(6, 20))
        if dice < 0.75:
            return [("KeyW", side)] * int(rng.integers(4, 12))
        if dice < 0.85:
            return [("KeyW", str(rng.choice(["KeyA", "KeyD"])))] * int(rng.integers(4, 16))
        if dice < 0.90:
            return [("KeyA", "ArrowRight") if rng.random() < 0.5 else ("KeyD", "ArrowLeft")] * int(rng.integers(6, 18))
        if dice < 0.95:
            return [(str(rng.choice(["ArrowLeft", "ArrowRight"])),)] * int(rng.integers(6, 28))
        return [(["Space"], [], ["KeyS"])[int(rng.integers(3))]] * int(rng.integers(4, 18))  # type: ignore[list-item]
