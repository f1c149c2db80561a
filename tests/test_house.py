"""The laws of the house itself: who may import whom, what importing may do, what may lie in the repository."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOMS = ("wm_jax", "pallas_kernels")
LEARNING_WING = ("wm_jax.data", "wm_jax.training", "wm_jax.eval", "grain", "tensorboardX")
MEGABYTE = 1_000_000


def listed(root: Path) -> list[Path]:
    """Every file of the repository, tracked or about to be, or what a source archive holds."""
    git = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(git, capture_output=True, text=True, check=True).stdout.splitlines()
    return [root / name for name in names if (root / name).is_file()]


def sources(root: Path) -> list[Path]:
    return [path for path in listed(root) if path.suffix == ".py"]


def modules(root: Path) -> list[str]:
    """Every importable module of the rooms by its dotted name, `__main__` files left out: they are front doors."""
    paths = [path.relative_to(root).with_suffix("") for path in sources(root)]
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths if path.parts[0] in ROOMS]
    return sorted(name for name in names if not name.endswith(".__main__"))


def in_bare_process(code: str, root: Path, folder: Path) -> str:
    """What `code` prints in a process that has only this repository, an empty folder and no JAX platform."""
    bare = {"PATH": os.defpath, "HOME": str(folder), "PYTHONPATH": str(root), "JAX_PLATFORMS": "there_is_none"}
    bare["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=bare, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_floor_imports_only_from_floors_below(root: Path) -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-cache"], cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_opens_with_a_sentence(root: Path) -> None:
    openings = {path: ast.get_docstring(ast.parse(path.read_text())) for path in sources(root)}
    mute = [str(path) for path, text in openings.items() if not text or " " not in text.splitlines()[0]]
    assert not mute, f"no opening sentence in {mute}"


def test_every_room_has_its_sign_on_the_door(root: Path) -> None:
    doors = [path for path in sources(root) if path.name == "__init__.py" and path.parent.parent == root / "wm_jax"]
    signs = {door.parent.name: ast.get_docstring(ast.parse(door.read_text())) or "" for door in doors}
    unsigned = [room for room, sign in signs.items() if "never" not in sign.lower() or "mports" not in sign]
    assert doors and not unsigned, f"the docstring of {unsigned} does not say what it does, never does, and imports"


def test_importing_does_no_work(root: Path, tmp_path: Path) -> None:
    code = f"import importlib, threading\nfor name in {modules(root)}: importlib.import_module(name)\n"
    assert in_bare_process(code + "print(threading.active_count())", root, tmp_path) == "1\n"
    assert not list(tmp_path.iterdir()), "importing wrote a file"


def test_served_world_contains_no_training_module(root: Path, tmp_path: Path) -> None:
    served = [name for name in modules(root) if name.startswith(("wm_jax.serving", "wm_jax.world"))]
    code = f"import importlib, sys\nfor name in {['wm_jax', 'serve', *served]}: importlib.import_module(name)\n"
    loaded = in_bare_process(code + "print(*sys.modules)", root, tmp_path).split()
    assert not [name for name in loaded if name.startswith(LEARNING_WING)]


def test_no_host_of_a_registry_and_no_path_of_a_machine(root: Path) -> None:
    hosts = ("python" + r"hosted\.org", "py" + r"pi\.(org|python)", "registry" + r"\.npm")
    folders = [rf"(?<![\w.$}}])/{folder}/\w" for folder in ("root", "home", "work", "Users")]
    forbidden = re.compile("|".join([*hosts, *folders]))
    for path in listed(root):
        text = path.read_bytes()
        found = None if b"\0" in text else forbidden.search(text.decode())
        assert not found, f"{path}: {found}"


def test_the_readme_has_one_line_a_file(root: Path) -> None:
    check = [sys.executable, str(root / "scripts" / "readme_files.py"), "--check"]
    done = subprocess.run(check, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_is_left_for_later(root: Path) -> None:
    later = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b|pytest\.(mark\.)?(sk" + r"ip|xf" + r"ail)\b")
    assert not [f"{path}: {found}" for path in sources(root) if (found := later.search(path.read_text()))]


def test_the_licence_is_apache(root: Path) -> None:
    text = (root / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0" in text
    assert 'license = "Apache-2.0"' in (root / "pyproject.toml").read_text()


def test_a_clone_stays_light(root: Path) -> None:
    sizes = {path.relative_to(root): path.stat().st_size for path in listed(root)}
    worlds = {name.parts[1] for name in sizes if name.parts[0] == "worlds" and len(name.parts) > 2}
    for world in worlds:
        size = sum(size for name, size in sizes.items() if name.parts[:2] == ("worlds", world))
        limit = 48 if world.endswith("_small") else 12
        assert size <= limit * MEGABYTE, f"worlds/{world} has {size / MEGABYTE:.1f} MB, the limit is {limit}"
    heavy = {str(name): size for name, size in sizes.items() if name.parts[0] != "worlds" and size > 2 * MEGABYTE}
    assert not heavy, f"larger than 2 MB: {heavy}"


def test_the_makefile_takes_the_python_it_is_given(root: Path) -> None:
    finder = ["sh", str(root / "scripts" / "find_python.sh"), sys.executable]
    assert subprocess.run(finder, capture_output=True, text=True, check=True).stdout.strip() == sys.executable


@pytest.mark.parametrize("wanted", ["3.10", "3.14", "no_such_python"])
def test_the_makefile_refuses_a_python_it_cannot_use(root: Path, wanted: str) -> None:
    finder = ["sh", str(root / "scripts" / "find_python.sh"), wanted]
    done = subprocess.run(finder, check=False, capture_output=True, text=True)
    assert done.returncode == 1 and wanted in done.stderr and "3.11, 3.12 or 3.13" in done.stderr


@pytest.mark.parametrize("minor", [12, 13])
def test_make_test_needs_a_python_that_plays_coinrun(root: Path, tmp_path: Path, minor: int) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"  # judges the version as a Python 3.<minor> would
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, {minor}); $2"\n')
    python.chmod(0o755)
    make = ["make", "-C", str(root), "plays-coinrun", f"VENV={tmp_path}"]
    done = subprocess.run(make, check=False, capture_output=True, text=True)
    assert (done.returncode == 0) == (minor < 13)
    assert ("no wheel for the Python 3.13" in done.stderr) == (minor == 13)


@pytest.mark.parametrize("chromium", ["", "there-is-one"])
def test_make_test_brings_a_browser_where_there_is_none(root: Path, chromium: str) -> None:
    make = ["make", "-C", str(root), "--dry-run", "test", "VENV=.venv", f"CHROMIUM={chromium}"]
    steps = subprocess.run(make, check=True, capture_output=True, text=True).stdout
    assert f'test -n "{chromium}" || .venv/bin/playwright install --no-shell chromium' in steps
    assert steps.index("playwright install") < steps.index("pytest")
