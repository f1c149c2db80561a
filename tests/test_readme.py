"""Every command and every snippet that the README and the docs show in a block, run at a small size in a folder of their own.

Four things are too long for a test. The set-up that `make play` and `make test` begin with (a `.venv`, packages from an
index): CI does it, and this process runs in its result. The tests that `make test` ends with: they are this very run. And
the download behind the `pip` lines: pip reads the lock file and says whether all of it is installed. And published weights.
What stands inside a sentence is not run; it must exist.
"""

import ast
import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FEW_STEPS = "--steps 2 --log-every 1 --picture-every 2 --save-every 2"
# The autoencoder as it is: two steps are not the thousand of its config, and the command would train the others first.
FROM_FEW_STEPS = " --autoencoder-from runs/toy_autoencoder"
FEW_CLIPS = "--clips 2 --rows 2 --films 1 --horizons 1 4 --drift-frames 0 --latency-frames 0 --held-out-frames 600"

# The environment of this process stands for the one that make would set up: only what follows the set-up is run.
AS_INSTALLED = f"VENV={sys.prefix} --old-file={sys.prefix}/.play"
ALL_INSTALLED = ("{} --dry-run --no-index" if importlib.util.find_spec("pip") else  # uv makes environments without pip
                 f"uv pip install --python {sys.executable} --offline --dry-run --no-deps -r requirements/games.txt")  # fmt: skip

# What a page shows -> what is run here, in this order.
SMALL = {
    "make play": f"SERVE make play {AS_INSTALLED}",
    "python -m wm_jax.data.record --env bouncing_ball --frames 60000 --out episodes/bouncing_ball":
        "python -m wm_jax.data.record --env bouncing_ball --frames 1200 --out episodes/bouncing_ball",
    "python -m wm_jax.data.record --env bouncing_ball --frames 6000 --split held_out --out episodes/bouncing_ball_held_out":
        "python -m wm_jax.data.record --env bouncing_ball --frames 600 --split held_out"
        " --out episodes/bouncing_ball_held_out",
    "python -m wm_jax.data.inspect episodes/bouncing_ball --out report/bouncing_ball": "{}",
    "python train.py configs/toy/autoencoder.py": "{} " + FEW_STEPS,
    "python train.py configs/toy/dynamics.py": "{} " + FEW_STEPS + FROM_FEW_STEPS,
    "python -m wm_jax.eval runs/toy":
        "python -m wm_jax.eval.inverse_training --episodes episodes/bouncing_ball --out idm.safetensors --steps 2"
        " && {} --inverse idm.safetensors " + FEW_CLIPS,
    "python serve.py runs/toy": "SERVE {}",
    "python train.py configs/toy/dynamics.py --help": "{}",
    "python train.py configs/toy/dynamics.py --optimizer.learning-rate 1e-3 --init-from runs/toy --out runs/toy_again":
        "{} " + FEW_STEPS + FROM_FEW_STEPS,
    "python serve.py worlds/coinrun --port 8001": "SERVE {}",
    "python examples/stream.py --url http://127.0.0.1:8001 --out stream.mp4":
        "SERVE python serve.py worlds/coinrun --port 8001 && {} --frames 3",
    "python serve.py worlds/coinrun --slots 4 --snapshots sessions": "SERVE {} --slots 1",
    "python -m wm_jax.eval.load worlds/coinrun --players 2":
        "python -m wm_jax.eval.load runs/toy --players 2 --seconds 1 --warmup 0.5",
    # A cluster of two processes: tests/scale starts one, plays it, kills, drains and updates it.
    "python -m wm_jax.scale worlds/coinrun --replicas 2 --slots 4 --snapshots sessions": "python -m wm_jax.scale --help",
    "pip install -e '.[serve,scale]'": "python -c 'import ray.serve'",
    "python serve.py worlds/coinrun --rollout actions.npz --out dream.mp4": "{}",
    "pip install -e '.[serve,hub]'": "python -c 'import huggingface_hub'",
    # 3 GB from a network; what they do with it is tested on a small model of that format, in tests/ports and tests/serving.
    "python -m wm_jax.ports.open_oasis download --folder weights/oasis": "python -m wm_jax.ports.open_oasis --help",
    "python serve.py oasis-500m --weights weights/oasis": "python serve.py oasis-500m --help",
    "python -m wm_jax.eval worlds/coinrun": "{} " + FEW_CLIPS,
    "make test": "make --dry-run test",
    "python -m wm_jax.data.inspect episodes/my_game --out report/my_game": "{}",
    "python -m pip install --no-deps -r requirements/games.txt": ALL_INSTALLED,
}  # fmt: skip


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language on all pages, in order."""
    text = "\n".join(page.read_text() for page in PAGES)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository seen through links, so that what the commands write lies beside it and not in it."""
    made = tmp_path_factory.mktemp("readme")
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name not in ("build", "runs", "episodes", "report"):
            (made / path.name).symlink_to(path)
    return made


def run(command: str, folder: Path) -> str:
    """What the command says; it must end well."""
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MPLBACKEND": "agg"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env={**os.environ, **paths}, check=False, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@contextlib.contextmanager
def serving(command: str, folder: Path) -> Iterator[None]:
    """A server that is up, and that ends well when told to stop."""
    tool, *words = command.split()
    # make tells its server to stop, waits for it, and then ends by the same signal.
    words, well = ([tool, *words], -signal.SIGTERM) if tool == "make" else ([sys.executable, *words], 0)
    log, env = folder / "serve.log", {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("w") as out, subprocess.Popen(words, cwd=folder, env=env, stdout=out, stderr=out) as server:
        try:
            while "play it at" not in log.read_text():
                assert server.poll() is None, log.read_text()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(0.2)
            yield
            server.terminate()
            assert server.wait(60) == well, log.read_text()
        finally:
            server.kill()


def wait_until_it_listens(folder: Path) -> None:
    """A server says its address a moment before it listens there."""
    told = re.search(r"play it at http://[^:\s]+:(\d+)", (folder / "serve.log").read_text())
    assert told is not None
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", int(told[1]))):
            return
        time.sleep(0.1)
    raise AssertionError(f"nobody listens at port {told[1]}")


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def test_every_command_of_a_block_has_its_small_one_here() -> None:
    shown = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    assert list(dict.fromkeys(shown)) and set(shown) == set(SMALL)


def test_every_command_inside_a_sentence_exists() -> None:
    """Targets of make, modules after `python -m`, and files of the repository."""
    text = re.sub(r"^```.*?^```", "", "\n".join(page.read_text() for page in PAGES), flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = [word for span in spans if (found := re.search(r"(?:^|=\S+ )make ([a-z].*)", span))
            for word in found[1].split('"')[0].split() if "=" not in word]  # fmt: skip
    asked = [found[1] for span in spans if (found := re.match(r"python -m (\S+)", span))]
    roots = (
        "wm_jax/",
        "pallas_kernels/",
        "configs/",
        "docs/",
        "examples/",
        "scripts/",
        "tests/",
        "requirements/",
        ".ci/",
    )
    files = [span for span in spans if span.startswith(roots) and not re.search(r"[<*\s]", span)]
    assert {"play", "test"} <= set(made) and asked and len(files) > 20, "nothing was found to check"
    assert not set(made) - targets, "no such target in the Makefile"
    assert not [module for module in asked if importlib.util.find_spec(module) is None]
    assert not [name for name in files if not (ROOT / name).exists()]


def test_the_docstring_of_each_config_holds_its_command() -> None:
    configs = sorted(ROOT.glob("configs/*/*.py"))
    signs = {path: ast.get_docstring(ast.parse(path.read_text())) or "" for path in configs}
    assert configs and not [p for p in configs if f"python train.py {p.relative_to(ROOT)}" not in signs[p]]


@pytest.mark.slow
def test_every_snippet_runs(folder: Path) -> None:
    for snippet in blocks("python"):
        (folder / "snippet.py").write_text(textwrap.dedent(snippet))
        run("python -c \"exec(open('snippet.py').read())\"", folder)


@pytest.mark.slow
@pytest.mark.parametrize("shown", SMALL)
def test_the_command_runs(shown: str, folder: Path) -> None:
    command = SMALL[shown].replace("{}", shown).replace("8001", str(free_port()))
    if not command.startswith("SERVE "):
        run(command, folder)
        return
    server, *then = command.removeprefix("SERVE ").split(" && ")
    if "--port" not in server:
        server += f" PORT={free_port()}" if server.startswith("make") else f" --port {free_port()}"
    with serving(server, folder):
        if then:
            wait_until_it_listens(folder)
        for client in then:
            run(client, folder)
