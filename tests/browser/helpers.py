"""What the browser tests of several tabs do."""

import io
import json

from PIL import Image
from playwright.sync_api import expect

TABS = ("Generate", "Optimize noise", "Align", "NAR", "Compare", "About")


def open_tab(page, label):
    """Open a tab; its content is there when this returns."""
    page.locator("#tabs [role=tab]:visible").first.wait_for()  # also after a reload
    page.wait_for_timeout(300)  # until it is decided which of them go behind the menu
    tab = page.get_by_role("tab", name=label, exact=True)
    if not tab.is_visible():  # on a phone some are behind the menu
        page.locator("#tabs .overflow-menu > button").click()
        page.locator("#tabs .overflow-dropdown button").get_by_text(label, exact=True).click()
    else:
        tab.click()
    expect(tab).to_have_attribute("aria-selected", "true")


def unfold(page, name):
    """Open an accordion by its id."""
    head = page.locator(f"#{name} > button, #{name} button.label-wrap").first
    if "open" not in (head.get_attribute("class") or "").split():
        head.click()


def fill(page, name, value):
    """Write a number into a slider or number field, and leave it.

    What is typed while the page is still putting a field in place is lost: type it again.
    """
    field = page.locator(f"#{name} input[type=number]").first
    for _ in range(20):
        field.fill(str(value))
        field.press("Tab")
        page.wait_for_timeout(500)
        if field.input_value() == str(value):
            break
    expect(field).to_have_value(str(value))


def picture(page, selector):
    """(the picture, what its PNG says) as the page would download it."""
    shown = page.locator(selector).first
    expect(shown).to_be_visible()
    image = Image.open(io.BytesIO(page.request.get(shown.get_attribute("src")).body()))
    assert image.format == "PNG"
    return image, dict(image.info), json.loads(image.info["settings"])


def quiet(page, log):
    """Nothing went wrong in the page or the server, and nothing came from elsewhere."""
    assert page.faults == []
    assert page.foreign == []
    assert "Traceback" not in log.read_text()
