"""How many players does a server carry, and how evenly? Plays as many clients at once, through real sockets.

    python -m wm_jax.eval.load worlds/coinrun --players 6 --fps 15         # a server of its own, six players at 15 frames/s
    python -m wm_jax.eval.load http://127.0.0.1:8000 --players 4           # a server that runs already
    python -m wm_jax.eval.load worlds/coinrun --players 8 --processes      # one batch of 8 against 8 servers of one player each
    python -m wm_jax.eval.load oasis-500m --random-weights --fps 20 --players 64 --search --price 2.5    # how many fit, and what each costs
    python -m wm_jax.eval.load configs/base/dynamics.py --fps 20 --players 64 --search                   # a world that nobody trained
    python -m wm_jax.eval.load worlds/coinrun --players 2 --hostile        # alone, in company, beside clients that break every rule

What is measured is the server: the clients (`wm_jax.eval.players`) show no frame, and their own cost is small.
"""

import asyncio
import contextlib
import dataclasses
import json
import math
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from wm_jax.eval import hostile
from wm_jax.eval.players import Played, Server, Visit, play_all, play_watched, rate, repeats
from wm_jax.ports.published import Published
from wm_jax.rest import request

if TYPE_CHECKING:
    from wm_jax.world import WorldConfig

SERVE = Path(__file__).parents[2] / "serve.py"
PROMPT_FRAMES = 4
"""Of the scene that an untrained world begins with, as the released ones have."""

UNPACED = 1000.0
"""Frames a second that no device here reaches: the arms of `--processes` run as fast as they can."""

KEPT = ("fps_least", "rows_a_step", "gap_p50_ms", "gap_p95_ms", "gap_p99_ms", "gap_max_ms", "action_to_frame_p50_ms")
"""What of a player's numbers is told of the arms of `--hostile`."""

BARS = {
    "fps_least": ">= 95 % of the rate",
    "gap_p99_ms": "< 120",
    "recompilations": "0",
    "ratio": ">= 2",
    "beside_gap_p99_ms": "< 120",
}


@dataclasses.dataclass(frozen=True)
class LoadConfig:
    """Play a served world with many clients."""

    target: Annotated[str, tyro.conf.Positional]
    """What `serve.py` serves: a world's or a run's folder, a published world's name; or a run's config, whose world then has random
    weights; or the URL of a running server."""
    players: int = 1
    """Clients at once, each in its own session."""
    search: bool = False
    """Find out how many players the device carries: 1, 2, 4 and so on to --players, until they no longer get their frames."""
    price: float | None = None
    """What one hour of the device costs; with it the cost of an hour of a player is told."""
    device: str | None = None
    """As `serve.py --device`."""
    published: tyro.conf.OmitArgPrefixes[Published] = dataclasses.field(default_factory=Published)
    """Weights and speed of a published world, as `serve.py` takes them."""
    seconds: float = 20.0
    """How long to play."""
    warmup: float = 3.0
    """Seconds played before counting."""
    fps: float | None = None
    """Frames a second of the server that is started; where it is not given the world's own."""
    slots: int | None = None
    """Slots of that server; where it is not given one a player."""
    processes: bool = False
    """Compare one batch for all players with a server for each, both as fast as they can, in turn."""
    hostile: bool = False
    """Compare playing alone, beside polite players and beside hostile clients (`wm_jax.eval.hostile`), on one server, in turn."""
    rounds: int = 3
    """Turns of such a comparison; the medians count."""
    auth: str | None = None
    """The server's secret, if it has one."""
    json: Path | None = None
    """A file for the numbers."""
    plot: Path | None = None
    """A PNG: the gaps of every player over time, how they are distributed, and the memory of the server."""

    def __post_init__(self) -> None:
        kinds = [name for name in ("processes", "hostile", "search") if getattr(self, name)]
        if len(kinds) > 1:
            raise ValueError(f"--{kinds[0]} and --{kinds[1]} are two measurements: ask for one")
        if self.plot is not None and kinds:
            raise ValueError(f"--plot draws one run, --{kinds[0]} makes several: leave one of them out")
        if self.is_url and (self.processes or self.search):
            raise ValueError(f"--{kinds[0]} starts servers of its own: name a world, not a URL")
        if self.is_url and (self.device is not None or self.published != Published()):
            raise ValueError(
                f"{self.target} runs already: --device and the settings of published worlds are for a new server"
            )

    @property
    def is_url(self) -> bool:
        """Whether a server that runs already is played."""
        return self.target.startswith(("http://", "https://"))

    @property
    def visit(self) -> Visit:
        """How the clients play."""
        return Visit(self.players, self.seconds, self.warmup, self.auth)


def measure(url: str, config: LoadConfig) -> tuple[dict[str, float], list[Played], Server]:
    """The numbers of all players together, what each saw, and how the server's process stood."""
    before = request("GET", f"{url}/healthz", auth=config.auth)
    if "rows" not in before:
        raise RuntimeError(
            f"{url} is the gateway of many servers; name one of them: GET {url}/v1/replicas tells their URLs"
        )
    played, server = asyncio.run(play_watched(url, config.visit))
    after = request("GET", f"{url}/healthz", auth=config.auth)
    gaps = 1e3 * np.concatenate([np.diff(one.arrived_s) for one in played])
    latency = 1e3 * np.concatenate([np.asarray(one.latency_s) for one in played])
    steps = np.concatenate([np.asarray(one.step_ms) for one in played])
    rates = [rate(one) for one in played]
    shown = sum(len(one.arrived_s) for one in played)
    wanted = request("GET", f"{url}/v1/models", auth=config.auth)["models"][0]["fps"]
    return (
        {
            "players": config.players,
            "fps_wanted": wanted,
            "fps_least": min(rates),
            "fps_together": sum(rates),
            "first_frame_p50_ms": 1e3 * float(np.median([one.first_frame_s for one in played])),
            "first_frame_max_ms": 1e3 * max(one.first_frame_s for one in played),
            "gap_p50_ms": float(np.percentile(gaps, 50)),
            "gap_p95_ms": float(np.percentile(gaps, 95)),
            "gap_p99_ms": float(np.percentile(gaps, 99)),
            "gap_max_ms": float(gaps.max()),
            "on_time": shown / (shown + sum(repeats(one, 1.0 / wanted) for one in played)),
            "underruns_a_minute": 60.0 * float(np.sum(gaps > 2e3 / wanted)) / config.seconds / config.players,
            "action_to_frame_p50_ms": float(np.percentile(latency, 50)),
            "action_to_frame_p99_ms": float(np.percentile(latency, 99)),
            "step_p50_ms": float(np.percentile(steps, 50)),
            "step_p99_ms": float(np.percentile(steps, 99)),
            "dropped": float(sum(one.dropped for one in played)),
            "rows_a_step": (after["rows"] - before["rows"]) / max(1, after["frames"] - before["frames"]),
            "recompilations": after["recompilations"],
            "missed_ticks": after["missed_ticks"] - before["missed_ticks"],
            **{name: after[name] for name in ("fps", "encode_ms", "host_us")},
            **({} if config.price is None else {"price_of_a_player_hour": config.price / config.players}),
            **drift(played),
            **growth(server),
        },
        played,
        server,
    )


def drift(played: list[Played]) -> dict[str, float]:
    """The same measures of the first and of the last tenth of the run: of a long one they are to be alike."""
    parts = {"first": (0.0, 0.1), "last": (0.9, 1.0)}
    gaps = {
        part: np.concatenate([piece(np.diff(one.arrived_s), *share) for one in played]) for part, share in parts.items()
    }
    latency = {part: np.concatenate([piece(one.latency_s, *share) for one in played]) for part, share in parts.items()}
    return {
        **{f"gap_p99_{part}_ms": 1e3 * float(np.percentile(some, 99)) for part, some in gaps.items()},
        **{
            f"action_to_frame_p50_{part}_ms": 1e3 * float(np.median(some))
            for part, some in latency.items()
            if len(some)
        },
    }


def growth(server: Server) -> dict[str, float]:
    """Memory of the server's process after a tenth of the run and at its end, and its open files."""
    if not server.memory_mb:
        return {}
    early, late = len(server.memory_mb) // 10, len(server.memory_mb) - 1
    return {
        "memory_first_mb": server.memory_mb[early],
        "memory_last_mb": server.memory_mb[late],
        "memory_samples": len(server.memory_mb),
        "files_first": server.files[early],
        "files_last": server.files[late],
    }


def piece(values: Sequence[float] | np.ndarray, start: float, end: float) -> np.ndarray:
    """From one share of the values to another."""
    count = len(values)
    return np.asarray(values)[int(start * count) : math.ceil(end * count)]


@contextlib.contextmanager
def serving(config: LoadConfig, slots: int, fps: float | None) -> Iterator[str]:
    """`serve.py` of this world, ready to play; its URL. What it prints goes to our standard error."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = {"port": port, "slots": slots, "fps": fps, "device": config.device, **dataclasses.asdict(config.published)}
    words = {name: value for name, value in words.items() if value is not None and value is not False}
    command = [sys.executable, str(SERVE), config.target]
    for name, value in words.items():
        command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    process = subprocess.Popen(command, stdout=sys.stderr)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{SERVE.name} ended with exit status {process.returncode}; it says why above")
            with contextlib.suppress(OSError, RuntimeError):
                if request("GET", f"{url}/readyz")["ready"]:
                    break
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()


def compare(config: LoadConfig) -> dict[str, float]:
    """One batch for everybody against a server for each, in turn; frames a second of all players together."""
    batch: list[float] = []
    apart: list[float] = []
    for _ in range(config.rounds):
        with serving(config, config.players, UNPACED) as url:
            batch.append(sum(rate(one) for one in asyncio.run(play_all([url], config.visit))))
        with contextlib.ExitStack() as stack:
            urls = [stack.enter_context(serving(config, 1, UNPACED)) for _ in range(config.players)]
            apart.append(sum(rate(one) for one in asyncio.run(play_all(urls, config.visit))))
    one, other = float(np.median(batch)), float(np.median(apart))
    return {"players": config.players, "one_batch_fps": one, "processes_fps": other, "ratio": one / other}


def withstand(config: LoadConfig) -> dict[str, Any]:
    """The same players alone, beside as many polite players as there are seats for hostile ones, and beside those, in turn on
    one server; and what the last were answered."""
    arms: dict[str, list[dict[str, float]]] = {"alone": [], "company": [], "beside": []}
    answers: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        url = config.target.rstrip("/")
        if not config.is_url:
            slots = config.slots or config.players + hostile.SEATS
            url = stack.enter_context(serving(config, slots, config.fps))
        free = request("GET", f"{url}/v1/models", auth=config.auth)["models"][0]["limits"]["slots_free"]
        if free < config.players + hostile.SEATS:
            text = f"{config.players} players beside {hostile.SEATS} hostile ones need as many slots; {url} has {free} free"
            raise RuntimeError(text)
        company = dataclasses.replace(config, players=config.players + hostile.SEATS)
        for _ in range(config.rounds):
            arms["alone"].append(measure(url, config)[0])
            arms["company"].append(measure(url, company)[0])
            with attacked(url, config, answers):
                arms["beside"].append(measure(url, config)[0])
    middle = {
        f"{arm}_{name}": float(np.median([numbers[name] for numbers in rounds]))
        for name in KEPT
        for arm, rounds in arms.items()
    }
    last = {name: arms["beside"][-1][name] for name in ("players", "fps_wanted", "recompilations")}
    return {**last, **middle, "answers": dict(sorted(answers.items()))}


def search(config: LoadConfig) -> dict[str, Any]:
    """The numbers of the largest number of players, of 1, 2, 4 and so on, who all get 95 % of the frames they want; each number
    plays on a server of as many slots.

    Raises:
      RuntimeError: one player alone does not get them.
    """
    found: dict[str, Any] = {}
    sizes = {2**power for power in range(config.players.bit_length())} | {config.players}
    for players in sorted(size for size in sizes if size <= config.players):
        with serving(config, players, config.fps) as url:
            numbers, _, _ = measure(url, dataclasses.replace(config, players=players))
        print(f"{players} players: {numbers['fps_least']:.1f} of {numbers['fps_wanted']:g} frames/s", file=sys.stderr)
        if numbers["fps_least"] < 0.95 * numbers["fps_wanted"]:
            if not found:
                text = f"one player gets {numbers['fps_least']:.2f} of {numbers['fps_wanted']:g} frames a second: try a lower --fps"
                raise RuntimeError(text)
            return {**found, "too_many": players}
        found = numbers
    return found


@contextlib.contextmanager
def attacked(url: str, config: LoadConfig, answers: Counter[str]) -> Iterator[None]:
    """Hostile clients in a process of their own; what they are answered is added to `answers`."""
    command = [sys.executable, "-m", hostile.__name__, url, "--seconds", "600"]
    command += [] if config.auth is None else ["--auth", config.auth]
    with subprocess.Popen(command, cwd=SERVE.parent, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "begins":
                raise RuntimeError(f"{hostile.__name__} did not start; it says why above")
            yield
            process.terminate()
            said, _ = process.communicate(timeout=60)
            if process.returncode:
                raise RuntimeError(f"{hostile.__name__} ended with exit status {process.returncode}; it says why above")
            answers.update(json.loads(said))
        finally:
            process.kill()


def draw(played: list[Played], server: Server, wanted: float, path: Path) -> None:
    """The gaps between frames, over time and sorted, and the server's memory over time."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (over_time, sorted_, memory) = pyplot.subplots(1, 3, figsize=(15, 4), width_ratios=(2, 1, 1))
    began = min(one.arrived_s[0] for one in played)
    for index, one in enumerate(played):
        gaps = 1e3 * np.diff(one.arrived_s)
        over_time.plot(np.asarray(one.arrived_s[1:]) - began, gaps, linewidth=0.7, label=f"player {index + 1}")
        sorted_.plot(np.linspace(0, 100, len(gaps)), np.sort(gaps), linewidth=1)
    memory.plot(np.asarray(server.at_s) - began, server.memory_mb, linewidth=1)
    memory.set(xlabel="seconds", ylabel="MB", title="memory of the server")
    memory.set_ylim(bottom=0)
    for axes in (over_time, sorted_):
        axes.axhline(1e3 / wanted, color="black", linestyle=":", linewidth=1)
        axes.set_ylim(bottom=0)
    over_time.set(xlabel="seconds", ylabel="ms from frame to frame", title=f"{len(played)} players; dotted: the rate")
    sorted_.set(xlabel="percent of the gaps are shorter")
    if len(played) <= 8:
        over_time.legend(fontsize="small", ncols=4)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def run(config: LoadConfig) -> dict[str, Any]:
    """All the numbers."""
    if config.target.endswith(".py"):
        with random_world(Path(config.target)) as folder:
            return run(dataclasses.replace(config, target=str(folder)))
    if config.search:
        return search(config)
    if config.processes:
        return compare(config)
    if config.hostile:
        return withstand(config)
    if config.is_url:
        numbers, played, server = measure(config.target.rstrip("/"), config)
    else:
        began = time.perf_counter()
        with serving(config, config.slots or config.players, config.fps) as url:
            ready_s = time.perf_counter() - began
            numbers, played, server = measure(url, config)
            numbers = {"start_to_ready_s": ready_s, **numbers}
    if config.plot is not None:
        draw(played, server, numbers["fps_wanted"], config.plot)
    return numbers


@contextlib.contextmanager
def random_world(config: Path) -> Iterator[Path]:
    """A folder of the world of this run, untrained: as fast as a trained one.

    Raises:
      ValueError: it is no config of a run of dynamics.
    """
    import jax

    from wm_jax import config as config_file
    from wm_jax.checkpoint import save_world
    from wm_jax.world import World

    told = config_file.load(config)
    if not hasattr(told, "world"):
        raise ValueError(f"{config} has no world: name the config of a run that trains one (.../dynamics.py)")
    world: WorldConfig = told.world
    rng, shape = np.random.default_rng(0), (1, PROMPT_FRAMES)
    prompts = {
        "frames": rng.integers(0, 256, (*shape, *world.image, 3), dtype=np.uint8),
        "keys": np.zeros((*shape, len(world.controls.keys)), bool),
    }
    with TemporaryDirectory(prefix="wm_jax-") as folder:
        made = Path(folder) / "world"
        save_world(made, world, World(world).init(jax.random.key(0)), prompts)
        yield made


def show(numbers: dict[str, Any]) -> str:
    """The numbers as a table, each beside the bar it has to meet; below, what hostile clients were answered."""
    answers = numbers.get("answers", {})
    rows = {name: value for name, value in numbers.items() if name != "answers"}
    lines = [f"{name:29} {value:10.2f}   {BARS.get(name, '')}".rstrip() for name, value in rows.items()]
    return "\n".join([*lines, *(f"{answer:29} {count:7} times" for answer, count in answers.items())])


def main() -> None:
    try:
        config = tyro.cli(LoadConfig, description=__doc__)
        numbers = run(config)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(show(numbers))
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
