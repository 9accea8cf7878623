"""The page: the tabs, what goes between them, and links to their settings."""

from typing import Any

import gradio as gr

from align.demo import (
    handlers,
    links,
    parts,
    tab_about,
    tab_align,
    tab_compare,
    tab_generate,
    tab_nar,
    tab_optimize,
)
from align.demo.parts import APPEARANCE as APPEARANCE
from align.demo.parts import QUIET, send, with_choice

TABS = {
    "generate": ("Generate", tab_generate.build),
    "optimize": ("Optimize noise", tab_optimize.build),
    "align": ("Align", tab_align.build),
    "nar": ("NAR", tab_nar.build),
    "compare": ("Compare", tab_compare.build),
}


def build(allow_any_model: bool = False) -> gr.Blocks:
    """The demo's page; launch it with `APPEARANCE`.

    With `allow_any_model` visitors may name folders of this machine, files and Hub ids.
    """
    with gr.Blocks(title="align", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(
            "# align\nAlign text-to-image models with rewards. The small models here know a world "
            "of coloured shapes: circles, squares, triangles, stars, crosses and rings."
        )
        fields = {}
        with gr.Tabs(elem_id="tabs") as tabs:
            for name, (label, lay_out) in TABS.items():
                with gr.Tab(label, id=name):
                    fields[name] = lay_out(page, allow_any_model)
            with gr.Tab("About", id="about") as about:
                tab_about.build(about)
        connect(tabs, fields)
        restore_links(page, tabs, fields)
    return page


def connect(tabs: gr.Tabs, fields: dict[str, dict]) -> None:
    """The buttons that send a tab's prompt, LoRA or picture to another one."""
    to = {name: fields[name] for name in fields}
    same = ("prompt", "model", "lora", "seed", "randomize")

    def copy(button: gr.Button, source: str, target: str) -> None:
        sources = [to[source][key] for key in same[:-1]]
        targets = [to[target][key] for key in same]
        send(button, tabs, target, sources, targets, copied)

    copy(to["generate"]["buttons"]["optimize"], "generate", "optimize")
    copy(to["generate"]["buttons"]["compare"], "generate", "compare")
    copy(to["optimize"]["buttons"]["generate"], "optimize", "generate")
    copy(to["optimize"]["buttons"]["compare"], "optimize", "compare")
    send(
        to["nar"]["buttons"]["compare"], tabs, "compare",
        [to["nar"]["prompt"], to["nar"]["seed"]],
        [to["compare"][key] for key in ("prompt", "seed", "randomize")],
        lambda prompt, seed: (prompt, seed, False),
    )  # fmt: skip
    send(to["align"]["buttons"]["generate"], tabs, "generate", [], [to["generate"]["lora"]], newest)
    compare = to["compare"]
    send(
        to["align"]["buttons"]["compare"], tabs, "compare", [],
        [compare["lora"], compare["methods"]], lambda: (*newest(), ["base", "lora"]),
    )  # fmt: skip
    to["generate"]["buttons"]["nar"].click(
        None,
        [to["generate"]["prompt"], to["generate"]["gallery"]],
        [tabs, to["nar"]["prompt"], to["nar"]["picture"]],
        js="(...given) => alignDemo.toNar(...given)",
    )


def copied(prompt: Any, model: Any, lora: Any, seed: Any) -> tuple:
    """A tab's picture for another tab: the seed is the one that was used."""
    return prompt, model, with_choice(lora), seed, False


def newest() -> tuple:
    """The LoRA of the training that is shown."""
    from align.demo import training

    view = training.newest()
    return (with_choice(str(view.folder) if view and view.lora else ""),)


def restore_links(page: gr.Blocks, tabs: gr.Tabs, fields: dict[str, dict]) -> None:
    """Fill in the settings of a link as the page is opened with one; else leave all alone."""
    named = {
        tab: {n: c for n, c in those.items() if n not in ("buttons", "gallery", "picture")}
        for tab, those in fields.items()
    }
    components = [component for those in named.values() for component in those.values()]

    def opened(request: gr.Request) -> tuple:
        tab, found, wrong = links.restore(dict(request.query_params), named)
        for problem in wrong[:3]:
            gr.Warning(handlers.escape(problem))
        chosen = [
            found.get(name, gr.skip()) if at == tab else gr.skip()
            for at, those in named.items()
            for name in those
        ]
        return (gr.skip() if tab is None else gr.Tabs(selected=tab), *chosen)

    page.load(opened, None, [tabs, *components], **QUIET)


__all__ = ["APPEARANCE", "build", "parts"]
