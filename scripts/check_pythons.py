"""Whether the wheel works on every Python it promises: `python scripts/check_pythons.py DIST`.

For each Python of the classifiers in pyproject.toml that is on this machine, on the PATH or with
pyenv: installs the wheel with the versions of constraints.txt into a new environment, imports it,
asks for the help and draws a picture with an embedded model. One that is not here is skipped with
a line, and so is the one that runs this, which `make test` and check_package.py try. PyPI's PyTorch
for Linux comes with gigabytes of CUDA libraries: where the disk has no room for them, or they
cannot be fetched, that is said too and nothing has failed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = "import align, align.nar, align.scenes, align.noise_opt, align.training, align.evaluation"
ROOM = 15e9  # bytes that an environment takes while it is made
PATIENCE = 900  # seconds
FETCHING = ("ReadTimeoutError", "ConnectionError", "HTTP error", "NewConnectionError", "No space")
PICTURE = ["generate", "a red circle", "--num-inference-steps", "4", "--out", "run"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dist", type=Path, help="the folder with one wheel")
    (wheel,) = parser.parse_args().dist.resolve().glob("*.whl")
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    for version in re.findall(r"Python :: (\d\.\d+)", "\n".join(classifiers)):
        if version == f"{sys.version_info.major}.{sys.version_info.minor}":
            print(f"Python {version}: runs this, tried by the tests")
        elif (python := find(version)) is None:
            print(f"Python {version}: not on this machine, skipped")
        elif shutil.disk_usage(tempfile.gettempdir()).free < ROOM:
            print(f"Python {version}: no room for its environment, not tried")
        else:
            print(f"Python {version}: {check(python, wheel)}", flush=True)


def find(version: str) -> str | None:
    """An interpreter of this version; a shim of pyenv's may stand for none."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for path in (f"python{version}", *sorted(root.glob(f"versions/{version}.*/bin/python"))):
        tell = [str(path), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        try:
            told = subprocess.run(tell, capture_output=True, text=True)
        except OSError:
            continue
        if told.stdout.strip() == version:
            return str(path)
    return None


def check(python: str, wheel: Path) -> str:
    """Install and try in a folder that is removed afterwards; what came of it.

    Raises SystemExit or CalledProcessError where it does not install or work.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with tempfile.TemporaryDirectory(prefix="align-python-") as folder:
        subprocess.run([python, "-m", "venv", "venv"], cwd=folder, env=kept, check=True)
        environment = kept | {"HOME": folder, "HF_HUB_OFFLINE": "1"}
        bin = Path(folder) / "venv" / "bin"
        pip = [
            str(bin / "pip"),
            "install",
            "--quiet",
            "--constraint",
            str(ROOT / "constraints.txt"),
        ]
        pip = [*pip, str(wheel)]
        try:
            installed = subprocess.run(
                pip, cwd=folder, env=kept, capture_output=True, text=True, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            return f"its packages were not there after {PATIENCE // 60} minutes, not tried"
        if installed.returncode and any(sign in installed.stderr for sign in FETCHING):
            return f"its packages could not be fetched, not tried ({installed.stderr[-200:]!r})"
        if installed.returncode:
            raise SystemExit(f"check_pythons: {python} does not install:\n{installed.stderr}")
        for command in (
            [str(bin / "python"), "-c", IMPORTS],
            [str(bin / "align"), "--help"],
            [str(bin / "align"), *PICTURE],
        ):
            subprocess.run(
                command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL
            )
        if not (Path(folder) / "run" / "images" / "0000.png").is_file():
            raise SystemExit(f"check_pythons: {python} drew no picture")
    return f"{python} installs, imports, helps and draws"


if __name__ == "__main__":
    main()
