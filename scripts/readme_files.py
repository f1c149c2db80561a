"""Writes the README's one line a file from the first line of each file: python scripts/readme_files.py [--check]"""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START, END = (
    "<!-- files: `make readme` writes these lines from the first line of each file -->",
    "<!-- end of files -->",
)
FOLDERS = ("wm_jax", "pallas_kernels", "configs", "examples")


def opening(path: Path) -> str:
    """The first sentence of a file's docstring, without the command that may follow it."""
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
    return re.split(r"(?<=\w)\.(?: |$)|: python |: `?python ", first)[0].rstrip(".:")


def files() -> list[Path]:
    """The Python files that a reader of the tree meets, folder by folder, the room's door first."""
    git = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    names = subprocess.run(git, capture_output=True, text=True, check=True).stdout.split()
    paths = sorted({Path(name) for name in names if (ROOT / name).exists()})
    fronts = [path for path in paths if len(path.parts) == 1]
    inside = [path for folder in FOLDERS for path in paths if path.parts[0] == folder]
    return fronts + sorted(inside, key=lambda p: (FOLDERS.index(p.parts[0]), p.parent, p.name != "__init__.py", p.name))


def section() -> str:
    """The lines between the marks."""
    lines, folder = ["```"], Path()
    for path in files():
        if path.parent != folder:
            folder = path.parent
            sign = opening(ROOT / folder / "__init__.py") if (ROOT / folder / "__init__.py").exists() else ""
            lines.append(f"{folder}/".ljust(40) + sign)
        if path.name != "__init__.py":
            lines.append(f"{'' if path.parent == Path() else '  '}{path.name}".ljust(40) + opening(ROOT / path))
    return "\n".join([START, *(line.rstrip() for line in lines), "```", END])


def main() -> int:
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(START)
    fresh = before + section() + rest.split(END)[1]
    if "--check" in sys.argv[1:]:
        if fresh != text:
            print("README.md does not show the files as they are: run `make readme`", file=sys.stderr)
        return int(fresh != text)
    readme.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
