"""Pictures of the demo for the README: `docs/images/demo-*.png`, each under 150 kB.

    python scripts/screenshots.py [--out docs/images] [--address http://127.0.0.1:7860]

Needs Debian's Chromium. Without an address it starts `align demo` itself. Each tab is run on the
embedded models with fixed seeds, then photographed at 1280 pixels; Generate on a phone in the dark
too.
"""

import argparse
import contextlib
import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parent / "bench"))
from demo_hostile import demo

MAX_BYTES = 150_000
STARS, SQUARE = "three+green+stars", "a+large+striped+yellow+square"
SHOTS = {  # name -> (link, button, status, what the status says in the end)
    "generate": (f"?tab=generate&seed=11&prompt={STARS}", "generate-run", "status", "pictures in"),
    "optimize": ("?tab=optimize&seed=7&budget=32", "optimize-run", "optimize-status", "Weighted"),
    "nar": (f"?tab=nar&seed=3&prompt={SQUARE}", "nar-run", "nar-status", "times as fast"),
    "compare": ("?tab=compare&seed=7&budget=8", "compare-run", "compare-status", "budget of"),
    "align": ("?tab=align&minutes=8", "align-run", "align-status", "after"),
}


def main() -> None:
    """Make the whole set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--address")
    parser.add_argument("--only", nargs="*", default=list(SHOTS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=600_000)
    with contextlib.ExitStack() as stack:
        address = options.address
        if address is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            address, _ = stack.enter_context(demo(Path(folder)))
        playwright = stack.enter_context(sync_playwright())
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        for name in options.only:
            wide = browser.new_page(viewport={"width": 1280, "height": 800})
            photograph(wide, address, name, options.out / f"demo-{name}.png")
            wide.close()
        if "generate" in options.only:
            narrow = browser.new_page(
                viewport={"width": 390, "height": 844}, color_scheme="dark", device_scale_factor=2
            )
            photograph(narrow, address, "generate", options.out / "demo-phone.png")
        browser.close()


def photograph(page: Page, address: str, name: str, path: Path) -> None:
    """Run a tab and keep a picture of it."""
    link, button, status, ended = SHOTS[name]
    page.goto(f"{address.rstrip('/')}/{link}")
    page.locator(f"#{button}").wait_for()
    page.wait_for_timeout(1500)  # until the link's settings are in their fields
    page.locator(f"#{button}").click()
    expect(page.locator(f"#{status}")).to_contain_text(ended)
    page.wait_for_function("[...document.images].every((image) => image.complete)")
    page.wait_for_timeout(2500)  # what fades in; the network is never idle, the page polls
    save(page.screenshot(full_page=True), path)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def save(content: bytes, path: Path) -> None:
    """Write a screenshot with as many colours as MAX_BYTES allows."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    if picture.width > 1280:
        picture = picture.resize(
            (picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS
        )
    for colors in (256, 128, 64, 32):
        picture.quantize(colors, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size < MAX_BYTES:
            return
    raise ValueError(f"{path} has {path.stat().st_size} bytes; {MAX_BYTES} at most")


if __name__ == "__main__":
    main()
