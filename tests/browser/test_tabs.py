"""Optimize noise, NAR and Compare as a visitor uses them, in a real browser."""

import io
import re

import pytest
import torch
from demo_helpers import SHIPPED_NAR
from PIL import Image
from playwright.sync_api import expect
from safetensors.torch import load_file

from .helpers import fill, open_tab, picture, quiet, unfold

pytestmark = pytest.mark.slow
PROMPT = "two green stars"


def write_prompt(page, name, text=PROMPT):
    page.locator(f"#{name} textarea, #{name} input").first.fill(text)


def test_a_search_shows_its_best_and_stop_keeps_it(open_page, server, artifacts, tmp_path):
    page = open_page()
    open_tab(page, "Optimize noise")
    write_prompt(page, "optimize-prompt")
    fill(page, "optimize-budget", 200)  # longer than anybody waits
    page.locator("#optimize-run").click()
    status = page.locator("#optimize-status")
    expect(status).to_contain_text(re.compile(r"\d+ of 200 images, best"))
    expect(page.locator("#optimize-best img")).to_be_visible()
    expect(page.locator("#optimize-initial img")).to_be_visible()
    expect(page.locator("#optimize-curves svg").first).to_be_visible()
    expect(page.locator("#optimize-explained")).to_contain_text("numeracy 100%")
    page.locator("#optimize-stop").click()
    expect(status).to_contain_text("Stopped. Weighted score")
    page.screenshot(path=artifacts / "optimize-stopped.png", full_page=True)
    _, info, settings = picture(page, "#optimize-best img")
    assert info["prompt"] == PROMPT
    assert settings["method"] == "carinox"
    with page.expect_download() as download:
        page.locator("#optimize-noise").click()
    noise = tmp_path / "noise.safetensors"
    download.value.save_as(noise)
    assert load_file(noise)["noise"].dtype == torch.float32
    page.get_by_role("button", name="Generate with its seed").click()
    expect(page.locator("#prompt textarea, #prompt input").first).to_have_value(PROMPT)
    unfold(page, "settings")
    expect(page.locator("#generate-seed input")).to_have_value(info["seed"])
    expect(page.locator("#generate-randomize input")).not_to_be_checked()
    quiet(page, server[1])


def test_nar_draws_continues_a_picture_and_measures_raster_order(
    open_page, nar_server, artifacts, tmp_path
):
    address, log, model = nar_server
    query = "" if model.startswith("embedded/") else f"?tab=nar&model={model}"
    page = open_page(address=address, query=query)
    open_tab(page, "NAR")
    unfold(page, "nar-settings")
    expect(page.locator("#nar-model input")).to_have_value(model)
    write_prompt(page, "nar-prompt")
    fill(page, "nar-count", 2)
    page.locator("#nar-run").click()
    status = page.locator("#nar-status")
    expect(status).to_contain_text("times as fast")
    expect(page.locator("#nar-gallery .caption-label")).to_have_count(2)
    page.screenshot(path=artifacts / "nar-done.png", full_page=True)
    _, info, settings = picture(page, "#nar-gallery .grid-container img")
    assert info["prompt"] == PROMPT
    assert "corner_kept" not in settings

    page.locator("#nar-compare input").uncheck()
    unfold(page, "nar-outpaint")
    own = tmp_path / "own.png"
    Image.new("RGB", (300, 200), (210, 40, 40)).save(own)
    page.locator("#nar-picture input[type=file]").set_input_files(own)
    expect(page.locator("#nar-picture img")).to_be_visible()
    fill(page, "nar-count", 1)
    page.locator("#nar-run").click()
    expect(page.locator("#nar-gallery .caption-label")).to_have_count(1)
    expect(status).to_contain_text(re.compile("1 picture in .* s · Link"))
    image, _, settings = picture(page, "#nar-gallery .grid-container img")
    assert settings["corner_kept"] == 0.5
    if SHIPPED_NAR.joinpath("model_index.json").is_file():  # the corner is red, as uploaded
        red, green, blue = image.convert("RGB").getpixel((10, 10))
        assert red > 150
        assert max(green, blue) < 110
    quiet(page, log)


def test_nar_draws_a_clip(open_page, server, artifacts):
    page = open_page()
    open_tab(page, "NAR")
    page.locator("td, .gallery-item").get_by_text("a red circle moving right").first.click()
    unfold(page, "nar-settings")
    expect(page.locator("#nar-model input")).to_have_value("embedded/nar-scenes-video")
    expect(page.locator("#nar-temperature input[type=number]")).to_have_value("0.9")
    fill(page, "nar-count", 2)
    page.locator("#nar-run").click()
    expect(page.locator("#nar-status")).to_contain_text(re.compile("2 clips in .* passes"))
    expect(page.locator("#nar-gallery .caption-label")).to_have_count(2)
    expect(page.locator("#nar-findings")).to_contain_text("frames")
    shown = page.locator("#nar-gallery .grid-container img").first
    with Image.open(io.BytesIO(page.request.get(shown.get_attribute("src")).body())) as clip:
        assert (clip.format, clip.n_frames) == ("GIF", 8)
    page.screenshot(path=artifacts / "nar-clip.png", full_page=True)
    quiet(page, server[1])


def test_a_comparison_fills_a_table_with_what_the_verifier_sees(open_page, server, artifacts):
    page = open_page()
    open_tab(page, "Compare")
    write_prompt(page, "compare-prompt")
    for name in ("Optimized noise (CARINOX)", "NAR"):
        box = page.get_by_role("checkbox", name=name)
        if box.count():  # NAR needs its model
            box.uncheck()
    fill(page, "compare-budget", 2)
    page.locator("#compare-run").click()
    expect(page.locator("#compare-status")).to_contain_text("2 methods at a budget of 2 images")
    rows = page.locator("#compare-table tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text("Base model")
    expect(rows.nth(1)).to_contain_text("as asked")
    expect(page.locator("#compare-gallery .caption-label")).to_have_count(2)
    page.screenshot(path=artifacts / "compare-done.png", full_page=True)
    _, info, settings = picture(page, "#compare-gallery .grid-container img")
    assert info["prompt"] == PROMPT
    assert settings["method"] == "base"
    quiet(page, server[1])


def test_a_link_opens_the_tab_with_its_settings_and_nothing_else(open_page, server):
    page = open_page(query="?tab=compare&prompt=three+green+stars&budget=5&steps=1e9&lora=/etc")
    expect(page.get_by_role("tab", name="Compare")).to_have_attribute("aria-selected", "true")
    prompt = page.locator("#compare-prompt textarea, #compare-prompt input").first
    expect(prompt).to_have_value("three green stars")
    expect(page.locator("#compare-budget input[type=number]")).to_have_value("5")
    unfold(page, "compare-settings")
    expect(page.locator("#compare-steps input[type=number]")).to_have_value("8")  # not admitted
    expect(page.locator("#compare-lora input")).to_have_value("none")
    quiet(page, server[1])


def test_ctrl_enter_runs_and_the_link_of_a_run_gives_its_settings_again(open_page, server):
    page = open_page()
    write_prompt(page, "prompt")
    unfold(page, "settings")
    fill(page, "steps", 2)
    fill(page, "count", 1)
    page.locator("#prompt textarea, #prompt input").first.press("Control+Enter")
    link = page.locator("#status a.permalink")
    expect(link).to_be_visible()
    _, info, _ = picture(page, "#gallery .grid-container img")
    link.click()
    expect(link).to_contain_text("Copied")
    assert "tab=generate" in page.url
    page.reload()
    expect(page.locator("#prompt textarea, #prompt input").first).to_have_value(PROMPT)
    unfold(page, "settings")
    expect(page.locator("#generate-seed input")).to_have_value(info["seed"])
    expect(page.locator("#steps input[type=number]")).to_have_value("2")
    expect(page.locator("#generate-randomize input")).not_to_be_checked()
    quiet(page, server[1])


def test_a_second_visitor_waits_in_the_queue_and_is_served(open_page, server):
    first, second = open_page(), open_page()
    for page, steps in ((first, 100), (second, 1)):
        unfold(page, "settings")
        fill(page, "steps", steps)
        fill(page, "count", 8 if page is first else 1)
    first.locator("#generate-run").click()
    expect(first.locator("#status")).to_contain_text(re.compile(r"Step \d+ of 100"))
    second.locator("#generate-run").click()
    expect(second.locator("#gallery")).to_contain_text(re.compile(r"queue: \d+/\d+"))
    first.locator("#generate-stop").click()
    expect(first.locator("#status")).to_contain_text("Stopped.")
    expect(second.locator("#status")).to_contain_text("1 picture in")
    quiet(first, server[1])
    quiet(second, server[1])
