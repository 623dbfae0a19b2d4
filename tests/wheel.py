"""What `pip install` brings is enough: builds the wheel, installs it into an environment of its own without the checkout on the path, and
runs the commands that need no data. `make check` ends with it.

The environment has the wheel and, from this Python's site-packages, what the wheel depends on; so it takes seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "ray_sassl", "tune_spaces")
COMMANDS = (("version",), ("experiments",), ("views", "demo", "--rows", "2", "--out", "views.png"))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        python = _environment(Path(folder), _wheel(Path(folder)))
        alone = {"PATH": os.environ["PATH"], "HOME": folder}
        where = _run(python, "-c", "import ray_sassl, tune_spaces; print(ray_sassl.__file__, tune_spaces.__file__)", cwd=folder, env=alone)
        assert where.count(f"{folder}/environment/") == 2, where
        for words in COMMANDS:
            output = _run(python.with_name("ray-sassl"), *words, cwd=folder, env=alone)
            assert output.strip(), words
        assert (Path(folder) / "views.png").stat().st_size > 0
    print("wheel: installs, and its commands run without the checkout")


def _wheel(folder: Path) -> Path:
    """Built from a copy, since setuptools leaves its own files in the tree and takes what an earlier build left there."""
    for name in SOURCES:
        source, target = ROOT / name, folder / "tree" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__")) if source.is_dir() else shutil.copy(source, target)
    _run(
        sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, folder / "tree"
    )
    return next(folder.glob("*.whl"))


def _environment(folder: Path, wheel: Path) -> Path:
    """The Python of a new environment that holds the wheel."""
    python = folder / "environment" / "bin" / "python"
    venv.create(folder / "environment")
    _run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet", "--no-deps", wheel)
    site = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # Path files there, such as that of an editable install, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def _run(*words: str | Path, cwd: str | None = None, env: dict[str, str] | None = None) -> str:
    """The command's output.

    Raises:
        SystemExit: it failed, with what it said.
    """
    ended = subprocess.run([str(word) for word in words], check=False, cwd=cwd, env=env, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} failed:\n{ended.stdout}{ended.stderr}")
    return ended.stdout


if __name__ == "__main__":
    main()
