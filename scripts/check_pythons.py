"""Whether the wheel works on every Python it promises: `python scripts/check_pythons.py DIST`.

For each Python of the classifiers in pyproject.toml that is on this machine, on the PATH or with
pyenv: installs the wheel with the versions of constraints.txt into a new environment, imports it,
asks for the help and draws a picture with an embedded model. One that is not here is skipped with
a line, and so is the one that runs this, which `make test` and check_package.py try.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = "import align, align.nar, align.scenes, align.noise_opt, align.train, align.evaluation"
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
        else:
            check(python, wheel)
            print(f"Python {version}: {python} installs, imports, helps and draws", flush=True)


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


def check(python: str, wheel: Path) -> None:
    """Install and try in a folder that is removed afterwards. Raises CalledProcessError."""
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
        subprocess.run([*pip, str(wheel)], cwd=folder, env=kept, check=True)
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


if __name__ == "__main__":
    main()
