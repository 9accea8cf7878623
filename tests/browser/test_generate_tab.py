"""The Generate tab as a visitor uses it, in a real browser, on the shipped model."""

import io
import re
import time

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import expect

from .conftest import PATIENCE
from .helpers import fill

PROMPT = "a green star left of a purple ring"


def settings(page, *, seed=None, steps=None, count=None):
    """Open the settings and fill some in."""
    if not page.locator("#steps").is_visible():
        page.locator("#settings").get_by_text("Settings", exact=True).click()
    for name, value in (("steps", steps), ("count", count)):
        if value is not None:
            fill(page, name, value)
    if seed is not None:
        page.locator("#generate-randomize input").uncheck()
        page.locator("#generate-seed input").fill(str(seed))


def prompt_box(page):
    return page.locator("#prompt textarea, #prompt input").first


def pictures(page):
    return page.locator("#gallery .grid-wrap img, #gallery .grid-container img")


def press_run(page):
    """Press Run until a request goes out: while another run is still ending it does nothing."""
    sent = []
    page.on("request", lambda r: sent.append(r) if "queue/join" in r.url else None)
    deadline = time.monotonic() + PATIENCE
    while not sent and time.monotonic() < deadline:
        page.get_by_role("button", name="Run", exact=True).click()
        page.wait_for_timeout(1000)
    assert sent


def finished(page):
    expect(page.locator("#status")).to_contain_text(re.compile("pictures? in "))
    expect(page.locator("#gallery .caption-label").first).to_be_visible()  # previews have none


def quiet(page, log):
    """Nothing went wrong in the page or the server, and nothing came from elsewhere."""
    assert page.faults == []
    assert page.foreign == []
    assert "Traceback" not in log.read_text()


def test_a_prompt_becomes_pictures_that_say_how_they_were_made(open_page, server, artifacts):
    page = open_page()
    page.screenshot(path=artifacts / "generate-start.png")
    settings(page, seed=7, steps=4, count=2)
    prompt_box(page).fill(PROMPT)
    prompt_box(page).press("Enter")
    finished(page)
    expect(pictures(page)).to_have_count(2)
    expect(page.locator("#findings")).to_contain_text("What the verifier sees")
    expect(page.locator("#findings li:not(details li)")).to_have_count(2)
    page.screenshot(path=artifacts / "generate-done.png", full_page=True)

    address = pictures(page).first.get_attribute("src")
    image = Image.open(io.BytesIO(page.request.get(address).body()))
    assert image.format == "PNG"
    assert image.size == (64, 64)
    assert image.info["prompt"] == PROMPT
    assert image.info["seed"] == "7"
    assert "Steps: 4" in image.info["parameters"]

    page.get_by_text("The same on the command line").locator("visible=true").click()
    expect(page.locator("#generate-command textarea")).to_have_value(re.compile("^align generate"))
    quiet(page, server[1])


def test_the_used_seed_is_shown_and_gives_the_same_pictures_again(open_page, server):
    page = open_page()
    settings(page, steps=2, count=1)
    prompt_box(page).fill(PROMPT)
    page.get_by_role("button", name="Run", exact=True).click()
    finished(page)
    seed = int(page.locator("#generate-seed input").input_value())
    first = page.request.get(pictures(page).first.get_attribute("src")).body()
    assert Image.open(io.BytesIO(first)).info["seed"] == str(seed)
    settings(page, seed=seed)
    line = "document.querySelector('#status .status')"
    page.evaluate(f"{line}.dataset.old = 'yes'")  # the next run brings a line of its own
    press_run(page)
    page.wait_for_function(f"{line}.dataset.old === undefined")
    finished(page)
    assert page.request.get(pictures(page).first.get_attribute("src")).body() == first
    quiet(page, server[1])


def test_previews_come_and_stop_stops(open_page, server, artifacts):
    page = open_page()
    settings(page, steps=100, count=4)
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#status")).to_contain_text(re.compile(r"Step \d+ of 100 · \d+ s left"))
    expect(pictures(page)).to_have_count(4)
    drawn = "() => [...document.querySelectorAll('#gallery img')].every(i => i.naturalWidth)"
    page.wait_for_function(drawn)
    page.screenshot(path=artifacts / "generate-preview.png", full_page=True)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#status")).to_contain_text("Stopped.")
    page.wait_for_timeout(1500)  # the job would go on: say so, if it did
    expect(page.locator("#status")).to_have_text(re.compile(r"^\s*Stopped\.\s*$"))
    settings(page, steps=1, count=1)  # and the next one is served
    press_run(page)
    finished(page)
    expect(pictures(page)).to_have_count(1)
    quiet(page, server[1])


def test_bad_input_is_answered_in_a_sentence(open_page, server, artifacts):
    page = open_page()
    prompt_box(page).fill("")
    page.get_by_role("button", name="Run", exact=True).click()
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("The prompt is empty; say what the picture should show.")
    page.wait_for_timeout(500)  # until it has come into view
    page.screenshot(path=artifacts / "generate-error.png")
    page.get_by_test_id("toast-close").click()
    settings(page, steps=1, count=1)
    prompt_box(page).fill("a red dinosaur above a blue square")
    page.get_by_role("button", name="Run", exact=True).click()
    finished(page)
    expect(page.locator("#status .warning")).to_contain_text("dinosaur")
    quiet(page, server[1])


def test_it_fits_a_phone_and_the_dark(open_page, server, artifacts):
    page = open_page(390, 844, color_scheme="light", device_scale_factor=2, has_touch=True)
    settings(page, steps=2, count=4)
    page.locator("#settings").get_by_text("Settings", exact=True).click()
    page.get_by_role("button", name="Run", exact=True).click()
    finished(page)
    page.get_by_text("The same on the command line").locator("visible=true").click()
    expect(page.locator("#generate-command textarea")).to_have_value(re.compile("^align generate"))
    page.screenshot(path=artifacts / "generate-phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.body.classList.contains('dark')")
    page.screenshot(path=artifacts / "generate-phone-dark.png", full_page=True)
    quiet(page, server[1])


def test_the_endpoint_answers_a_client_and_checks_its_values(server, tmp_path):
    client = Client(
        server[0], verbose=False, download_files=tmp_path, httpx_kwargs={"timeout": PATIENCE}
    )
    gallery, seed, status, findings, command = client.predict(
        prompt=PROMPT,
        seed=11,
        randomize_seed=False,
        num_inference_steps=1,
        num_images=1,
        api_name="/generate",
    )
    with Image.open(gallery[0]["image"]) as image:
        assert image.info["seed"] == "11"
    assert (seed, "1 picture in" in status, "verifier" in findings) == (11, True, True)
    assert "--seed 11" in command
    for bad, text in (
        ({"num_images": 10**6}, "images is 1000000; it must be from 1 to 8"),
        ({"num_inference_steps": "many"}, "must be a number"),
        ({"model": "/etc"}, "the model is '/etc'"),
        ({"lora": "../../etc/passwd"}, "the LoRA is"),
    ):
        with pytest.raises(AppError, match=f"(?i){re.escape(text)}"):
            client.predict(prompt=PROMPT, **bad, api_name="/generate")
    assert "Traceback" not in server[1].read_text()
