"""Every tab on a phone, in the dark, and for those who read with other means (axe-core)."""

import json

import pytest
from axe_playwright_python.sync_playwright import Axe

from .helpers import TABS, open_tab, quiet

pytestmark = pytest.mark.slow

FOUND = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_finding_of_axe_in_any_tab(open_page, server, artifacts, scheme):
    page = open_page(color_scheme=scheme)
    options = {"runOnly": {"type": "tag", "values": FOUND}, "resultTypes": ["violations"]}
    serious = []
    for label in TABS:
        open_tab(page, label)
        folded = page.locator("button.label-wrap:not(.open)").locator("visible=true")
        while folded.count():  # each click leaves one less
            folded.first.click()
        response = Axe().run(page, options=options).response
        serious += [
            (label, found["id"], [node["html"][:200] for node in found["nodes"][:3]])
            for found in response["violations"]
            if found["impact"] in ("serious", "critical")
        ]
    (artifacts / f"axe-{scheme}.json").write_text(json.dumps(serious, indent=1))
    assert serious == []
    quiet(page, server[1])


def test_every_tab_fits_a_phone(open_page, server, artifacts):
    page = open_page(390, 844, color_scheme="dark", device_scale_factor=2, has_touch=True)
    for label in TABS:
        open_tab(page, label)
        name = label.split()[0].lower()
        page.screenshot(path=artifacts / f"{name}-phone-dark.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, label
    quiet(page, server[1])
