"""The page of the demo, in Gradio."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from backbones import InputError
from backbones.explain import Attention

from . import overlay
from .networks import Classifier, Finder, Network, Seen, opened

HINTS = {
    Classifier: "Drop a picture, then **click a point** of it to see where the network looks from there. "
    "**Click an answer** to see what speaks for it.",
    Finder: "Drop a picture to see what the network finds in it.",
}
CSS = ".gradio-container {max-width: 1200px !important; margin: auto}"
THEME = gr.themes.Default(font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])

Point = tuple[float, float]
Updates = dict[Any, Any]  # what a component becomes, by component


@dataclass
class Look:
    """What a visitor looks at: a picture in a network, from a point of it."""

    network: Classifier
    seen: Seen
    point: Point
    found: list[Attention]


def serve(loaders: dict[str, Callable[[], Network]], host: str, port: int) -> None:
    """Serve the page until Ctrl-C, asking no other machine for anything.

    Args:
        loaders: what loads each network, by its name on the page.

    Raises:
        InputError: the first network cannot be loaded.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    page = Page(loaders)
    print(f"The demo is at http://{host}:{port}; Ctrl-C ends it.", flush=True)
    address = dict(server_name=host, server_port=port, share=False)
    page.blocks.launch(**address, quiet=True, footer_links=[], run_history=False, theme=THEME, css=CSS)


class Page:
    """The components of the page, and what they become at each event; the argument is that of `serve`."""

    def __init__(self, loaders: dict[str, Callable[[], Network]]):
        self.load = lru_cache(maxsize=2)(lambda name: loaders[name]())
        first = next(iter(loaders))
        self.load(first)  # what is wrong with it is said before there is a page
        image = dict(format="png", height=420, buttons=["fullscreen"])
        self.folder = TemporaryDirectory(prefix="demo-")  # of validation pictures
        with gr.Blocks(title="What a network sees", analytics_enabled=False, delete_cache=(600, 3600)) as self.blocks:
            gr.Markdown("# What a network sees in a picture")
            self.hint = gr.Markdown()
            self.name = gr.Dropdown(list(loaders), value=first, label="Network", visible=len(loaders) > 1)
            self.facts = gr.Markdown()
            with gr.Row():
                with gr.Column():
                    self.picture = gr.Image(label="Picture", sources=["upload", "clipboard"], **image)
                    # Its file as it was uploaded: the network's own reader says whether it is a picture.
                    self.picture.preprocess = lambda payload: payload and payload.path
                    self.sample = gr.Button("Take a picture of its validation set", size="md")
                    self.origin = gr.Markdown()
                with gr.Column(visible=False) as self.looks:
                    self.attention = gr.Image(label="Attention of the clicked point", interactive=False, **image)
                    self.block = gr.Dropdown([], label="Block of the network")
                    self.attention_legend = gr.HTML()
                with gr.Column(visible=False) as self.finds:
                    self.drawn = gr.Image(label="What it finds", interactive=False, **image)
                    self.table = gr.HTML()
            with gr.Row(visible=False) as self.answers:
                with gr.Column():
                    self.answer = gr.Label(label="Answer: the likeliest classes", num_top_classes=5)
                with gr.Column() as self.speaks:
                    self.cam = gr.Image(label="Grad-CAM: what speaks for a class", interactive=False, **image)
                    self.cam_legend = gr.HTML()
            self.file, self.look = gr.State(), gr.State()
            self._connect()

    def _connect(self) -> None:
        # One call at a time: a network is asked by one visitor after the other.
        on = dict(concurrency_id="network", concurrency_limit=1, show_progress="minimal")
        self.looking = {self.look, self.block, self.attention, self.attention_legend}
        self.speaking = {self.cam, self.cam_legend}
        self.result = {self.picture, self.answer, self.drawn, self.table} | self.looking | self.speaking
        new = self.result | {self.file, self.origin}
        about = {self.hint, self.facts, self.sample, self.looks, self.finds, self.answers, self.speaks}
        self.blocks.load(self.choose, self.name, about, **on)
        chosen = self.name.input(self.choose, self.name, about, **on)
        chosen.success(self.ask, [self.name, self.file, self.block], self.result, **on)
        self.picture.upload(self.take, [self.name, self.picture, self.block], new, **on)
        self.picture.clear(lambda: dict.fromkeys(new), None, new, **on)
        self.sample.click(self.take_sample, [self.name, self.block], new, **on)
        for picture in (self.picture, self.attention, self.cam):
            picture.select(self.click, [self.look, self.block], self.looking, **on)
        self.block.input(self.choose_block, [self.look, self.block], self.looking, **on)
        self.answer.select(self.choose_class, self.look, self.speaking, **on)

    def choose(self, name: str) -> Updates:
        """A network is chosen."""
        network = self.network_of(name)
        classifies = isinstance(network, Classifier)
        return {
            self.hint: HINTS[type(network)],
            self.facts: network.facts,
            self.sample: gr.update(visible=network.of_run),
            self.looks: gr.update(visible=classifies),
            self.finds: gr.update(visible=not classifies),
            self.answers: gr.update(visible=classifies),
            self.speaks: gr.update(visible=classifies and network.has_cam),
        }

    def network_of(self, name: str) -> Network:
        """The network of a name, loaded now if it was not among the last two."""
        try:
            return self.load(name)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def take(self, name: str, file: str | Path, block: int | None, origin: str = "") -> Updates:
        """There is another picture."""
        return {self.file: str(file), self.origin: origin} | self.ask(name, file, block)

    def take_sample(self, name: str, block: int | None) -> Updates:
        """A picture of the validation set is wanted."""
        try:
            file, origin = self.network_of(name).sample(Path(self.folder.name))
        except InputError as error:
            gr.Warning(str(error))
            return gr.skip()
        return self.take(name, file, block, origin)

    def ask(self, name: str, file: str | Path | None, block: int | None) -> Updates:
        """What a network says of the picture in a file; None: there is no picture yet."""
        network, nothing = self.network_of(name), dict.fromkeys(self.result)
        if file is None:
            return nothing
        try:
            shown = nothing | {self.picture: overlay.canvas_of(opened(file))}
            if isinstance(network, Finder):
                drawn, rows = network.find(file)
                return shown | {self.drawn: drawn, self.table: overlay.table_of(rows)}
            seen = network.see(file)
        except InputError as error:
            gr.Warning(str(error).replace(str(file), Path(file).name))  # nobody knows the folder that it was put in
            return nothing
        look = Look(network, seen, seen.middle, network.attention(seen, seen.middle))
        answer = {network.task.classes[label]: share for label, share in seen.likeliest}
        return shown | {self.answer: answer} | self._looking(look, block) | self._speaking(look, seen.likeliest[0][0])

    def click(self, look: Look | None, block: int | None, event: gr.SelectData) -> Updates:
        """A point is clicked, of the picture or of one that is drawn over it."""
        if look is None:
            return gr.skip()
        point = overlay.point_of(look.seen, event.index)
        if not look.seen.sees(point):
            gr.Warning("The network does not see this point: pictures are cropped before they reach it.")
            return gr.skip()
        return self._looking(replace(look, point=point, found=look.network.attention(look.seen, point)), block)

    def choose_block(self, look: Look | None, block: int) -> Updates:
        """Another block is to be shown."""
        return gr.skip() if look is None else self._looking(look, block)

    def choose_class(self, look: Look, event: gr.SelectData) -> Updates:
        """An answer is clicked."""
        labels = {look.network.task.classes[label]: label for label, _ in look.seen.likeliest}
        return self._speaking(look, labels[event.value]) or gr.skip()

    def _looking(self, look: Look, block: int | None) -> Updates:
        """The attention of a block, counted from 0; None: of one in the middle of the network."""
        blocks = [(f"Stage {f.stage + 1}, block {f.block + 1}: {f.title}", i) for i, f in enumerate(look.found)]
        if not blocks:
            text = "No block of this network has an attention between places."
            return {self.look: look, self.block: gr.update(choices=[], value=None), self.attention_legend: text}
        block = len(blocks) // 2 if block is None else min(block, len(blocks) - 1)
        found = look.found[block]
        return {
            self.look: look,
            self.block: gr.update(choices=blocks, value=block),
            self.attention: overlay.draw_attention(look.network, look.seen, found, look.point),
            self.attention_legend: overlay.attention_legend(look.network, found),
        }

    def _speaking(self, look: Look, label: int) -> Updates:
        """What speaks for a class."""
        if not look.network.has_cam:
            return {}
        cam = look.network.cam(look.seen, label)
        return {
            self.cam: overlay.draw_cam(look.network, look.seen, cam),
            self.cam_legend: overlay.cam_legend(look.network.task.classes[label], cam),
        }
