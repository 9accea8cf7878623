"""The Align tab in a real browser: a training that outlives reloads and that others see."""

import json
import re

import pytest
from playwright.sync_api import expect
from safetensors.torch import load_file

from .helpers import fill, open_tab, picture, quiet, unfold

pytestmark = pytest.mark.slow


def test_a_training_survives_a_reload_is_seen_by_others_and_gives_a_lora(
    open_page, server, artifacts, tmp_path
):
    page = open_page()
    open_tab(page, "Align")
    fill(page, "align-minutes", 30)
    page.locator("#align-prompts input").click()
    page.get_by_role("option", name="My own, one a line").click()
    page.locator("#align-own textarea").fill("a red circle\ntwo green stars")
    unfold(page, "align-settings")
    fill(page, "align-updates", 1000)
    page.locator("#align-run").click()
    status, under_way = page.locator("#align-status"), re.compile(r"Update \d+ of 1000")
    expect(status).to_contain_text(under_way)
    page.reload()
    open_tab(page, "Align")
    expect(status).to_contain_text(under_way)
    expect(page.locator("#align-curves svg").first).to_be_visible()
    expect(page.locator("#align-before img")).to_be_visible()
    page.screenshot(path=artifacts / "align-running.png", full_page=True)

    other = open_page()
    open_tab(other, "Align")
    expect(other.locator("#align-status")).to_contain_text(under_way)
    other.locator("#align-stop").click()
    expect(other.get_by_test_id("toast-body")).to_contain_text("Only the browser that started")

    page.locator("#align-stop").click()
    ended = re.compile(r"after \d+ updates?")
    expect(status).to_contain_text(ended)
    expect(other.locator("#align-status")).to_contain_text(ended)
    expect(page.locator("#align-lora")).to_be_enabled()
    with page.expect_download() as download:
        page.locator("#align-lora").click()
    file = tmp_path / "lora.safetensors"
    download.value.save_as(file)
    assert load_file(file)

    page.get_by_role("button", name="Generate with it").click()
    unfold(page, "settings")
    expect(page.locator("#generate-lora input")).to_have_value(re.compile("^demo/train-"))
    fill(page, "steps", 1)
    fill(page, "count", 1)
    page.locator("#generate-run").click()
    expect(page.locator("#status")).to_contain_text("1 picture in")
    _, _, settings = picture(page, "#gallery .grid-container img")
    assert json.dumps(settings["lora"]).startswith('["runs/demo/train-')
    quiet(page, server[1])
    quiet(other, server[1])
