"""Links to a tab's settings: written after a run, read and checked as the page is opened."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from align.demo import values
from align.demo.choices import loras


def address(tab: str, **settings: Any) -> str:
    """The address, from the page's own on, that opens a tab with settings, by its names of them."""
    pairs = {"tab": tab}
    for name, value in settings.items():
        value = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
        if value not in (None, ""):
            pairs[name] = f"{value:g}" if isinstance(value, float) else str(value)
    return "?" + urlencode(pairs)


def restore(
    query: Mapping[str, str], tabs: Mapping[str, Mapping[str, Any]]
) -> tuple[str | None, dict[str, Any], list[str]]:
    """(the tab, values of its fields by name, what is wrong) of an opened link.

    `tabs` holds each tab's components by their names in links. A value that its component does
    not admit is left out.
    """
    tab = query.get("tab")
    if tab is None or tab not in tabs:
        return None, {}, [] if tab is None else [f"there is no tab {values.short(tab)}"]
    found, wrong = {}, []
    for name, component in tabs[tab].items():
        if name in query:
            try:
                found[name] = admitted(component, query[name])
            except (TypeError, ValueError) as error:
                wrong.append(f"{name} in the link: {error}")
    if "seed" in found and "randomize" in tabs[tab]:
        found["randomize"] = False  # who shares a seed wants the same picture
    return tab, found, wrong


def admitted(component: Any, text: str) -> Any:
    """A value of a link as its component takes it. Raises ValueError where it does not."""
    if isinstance(component, gr.Textbox):
        return values.text("text", text)
    if isinstance(component, gr.Checkbox):
        if text not in ("true", "false"):
            raise ValueError(f"{values.short(text)} must be true or false")
        return text == "true"
    if isinstance(component, gr.Slider | gr.Number):
        low = values.MIN if component.minimum is None else component.minimum
        high = values.MAX if component.maximum is None else component.maximum
        try:
            number = float(text)
        except ValueError:
            raise ValueError(f"{values.short(text)} must be a number") from None
        checked = values.number("it", number, low, high)
        return int(checked) if checked == int(checked) else checked
    if isinstance(component, gr.CheckboxGroup):
        return [choice(component, part) for part in text.split(",")]
    if getattr(component, "elem_id", "") and component.elem_id.endswith("lora"):
        if text not in [value for _, value in loras()]:
            raise ValueError(f"there is no LoRA {values.short(text)} here")
        return gr.update(choices=loras(), value=text)
    return choice(component, text)


def choice(component: Any, text: str) -> str:
    """One of a component's choices, or any text where it admits custom values."""
    if text in [value for _, value in component.choices]:
        return text
    if getattr(component, "allow_custom_value", False):
        return values.text("text", text)
    raise ValueError(f"{values.short(text)} is none of the choices")
