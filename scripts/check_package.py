"""Whether what `python -m build` made works: `python scripts/check_package.py DIST`.

Looks that the wheel holds every file of `align/`, the sdist those of `demo/` too, and both the
licences, then installs the wheel into an environment that holds its declared dependencies (extra
`demo`) and nothing else, and runs `align` from an empty folder, without network: help, a short
quickstart, the demo until it answers. The dependencies are links to those of the environment that
runs this.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
import venv
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 100_000_000  # bytes of a wheel
DEMO_SECONDS = 300  # until the page must answer, on however busy a machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dist", type=Path, help="the folder with one wheel and one sdist")
    parser.add_argument("--minutes", type=float, default=1.0, help="of the quickstart")
    options = parser.parse_args()
    (wheel,), (sdist,) = options.dist.glob("*.whl"), options.dist.glob("*.tar.gz")
    check_contents(wheel.resolve(), sdist.resolve())
    with tempfile.TemporaryDirectory(prefix="align-package-") as name:
        folder = Path(name)
        align = install(wheel.resolve(), folder / "venv")
        empty = folder / "empty"
        empty.mkdir()
        check_commands(align, empty, options.minutes)
        check_demo(align, empty)


def check_contents(wheel: Path, sdist: Path) -> None:
    """Raise SystemExit naming files that are missing, or where the wheel is too large."""
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 1e6:.1f} MB, {sdist.name}: {sdist.stat().st_size / 1e6:.1f} MB")
    require(size < LIMIT, f"the wheel has {size} bytes; {LIMIT} are allowed")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {member.name.partition("/")[2] for member in archive.getmembers()}
    sources = [
        path.relative_to(ROOT).as_posix()
        for top in ("align", "demo")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    lost = [name for name in sources if name.startswith("align/") and name not in in_wheel]
    require(not lost, f"the wheel lacks {', '.join(lost)}")
    lost = [name for name in (*sources, "LICENSE", "LICENSE-WEIGHTS") if name not in in_sdist]
    require(not lost, f"the sdist lacks {', '.join(lost)}")
    for name in ("LICENSE", "LICENSE-WEIGHTS"):
        found = any(one.endswith(f".dist-info/licenses/{name}") for one in in_wheel)
        require(found, f"the wheel lacks {name}")


def install(wheel: Path, target: Path) -> Path:
    """A new environment with the wheel and links to its dependencies; returns its `align`."""
    venv.create(target, with_pip=False, symlinks=True)
    python = target / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = (target / "lib").glob("python*/site-packages")
    (declared,) = metadata.distributions(path=[str(site)])
    links = target / "dependencies"
    links.mkdir()
    for name in sorted(needed(declared, "demo")):
        distribution = metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}
        for top in tops - {"__pycache__"}:
            if not (links / top).exists():
                (links / top).symlink_to(Path(str(distribution.locate_file(top))))
    (site / "dependencies.pth").write_text(f"{links}\n", encoding="utf-8")
    return target / "bin" / "align"


def needed(distribution: metadata.Distribution, *extras: str) -> set[str]:
    """The names of all distributions that this one asks for, theirs included."""
    found: set[str] = set()
    todo = [(distribution, extras)]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while todo:
        one, wanted = todo.pop()
        for line in one.requires or ():
            requirement = Requirement(line)
            name, more = requirement.name.lower(), tuple(sorted(requirement.extras))
            marker, settings = requirement.marker, [{"extra": e} for e in (*wanted, "")]
            if marker is not None and not any(marker.evaluate(s) for s in settings):
                continue
            found.add(name)
            if (name, more) not in seen:
                seen.add((name, more))
                todo.append((metadata.distribution(name), more))
    return found


def check_commands(align: Path, empty: Path, minutes: float) -> None:
    """Help, where the package lies, and a short quickstart."""
    code = "import align, align.demo; print(align.__file__, align.demo.__file__)"
    python = [str(align.with_name("python")), "-c", code]
    for place in run(python, empty).split():
        inside = Path(place).is_relative_to(align.parent.parent)
        require(inside, f"{place} was imported, not the installed package")
    require("quickstart" in run([str(align), "--help"], empty), "`align --help` lists no commands")
    started = time.monotonic()
    print(run([str(align), "quickstart", "--minutes", str(minutes)], empty))
    print(f"align quickstart --minutes {minutes:g}: {time.monotonic() - started:.0f} s")
    report = empty / "runs" / "quickstart" / "report.html"
    require(report.is_file() and report.stat().st_size > 10_000, f"there is no {report}")


def run(command: list[str], folder: Path) -> str:
    """A command's standard output; SystemExit with all it said where it fails."""
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True
    )
    require(done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def environment(folder: Path) -> dict[str, str]:
    """The usual one without paths of Python and without models that were downloaded before."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"HOME": str(folder.parent), "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS": "False"}


def check_demo(align: Path, empty: Path) -> None:
    """Start `align demo`, ask for its page and its endpoints, end it by an interrupt."""
    started, lines = time.monotonic(), []
    found = threading.Event()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else the demo may ignore it too
    with subprocess.Popen(
        [str(align), "demo"], cwd=empty, env=environment(empty), stderr=subprocess.PIPE, text=True
    ) as process:

        def read() -> None:
            for line in process.stderr or ():
                lines.append(line)
                if "the demo is at" in line:
                    found.set()
            found.set()  # it ended

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            found.wait(DEMO_SECONDS)
            address = re.search(r"the demo is at (\S+)", "".join(lines))
            require(address is not None, f"`align demo` gave no address: {''.join(lines)}")
            url = address[1].rstrip("/")
            fetch(url)
            print(f"align demo: its page answered after {time.monotonic() - started:.1f} s")
            endpoints = json.loads(fetch(f"{url}/gradio_api/info"))["named_endpoints"]
            require("/generate" in endpoints, f"no /generate among {', '.join(endpoints)}")
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
        require(process.returncode == 130, f"`align demo` ended with status {process.returncode}")


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=120) as answer:
        return answer.read().decode()


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise SystemExit(f"check_package: {otherwise}")


if __name__ == "__main__":
    main()
