"""The page itself: two tabs, a chat with one variant and two variants side by side on one prompt."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from serving.engine import Message, Sampling
from serving.web.offers import Offer
from serving.web.talk import Stops, answered, asked, shown, side_by_side

CSS = """
.answer { white-space: pre-wrap; min-height: 8em; padding: .8em; border: 1px solid #d7dde4; border-radius: 6px; }
.answer mark { background: #f6d9b0; color: inherit; border-radius: 2px; }
"""
LIMITS = {"max_tokens": (1, 2048, 200), "temperature": (0.0, 2.0, 0.7), "top_p": (0.05, 1.0, 0.95)}


def build(offers: Sequence[Offer], table: str, title: str = "turbopress") -> gr.Blocks:
    """The page for these models; `table` is the comparison of all variants in markdown."""
    by_name = {offer.name: offer for offer in offers}
    stops = Stops()
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        with gr.Accordion("Parameters", open=False):
            settings = _settings()
        with gr.Tab("Chat"):
            _chat(by_name, table, settings, stops)
        if len(offers) > 1:
            with gr.Tab("Side by side"):
                _pair(by_name, settings, stops)
    return page.queue(default_concurrency_limit=4)


def _settings() -> list[gr.components.Component]:
    system = gr.Textbox("", label="System prompt", elem_id="system")
    with gr.Row():
        sliders = [gr.Slider(low, high, start, label=name) for name, (low, high, start) in LIMITS.items()]
        seed = gr.Number(0, label="seed", precision=0)
    return [system, *sliders, seed]


def _sampling(max_tokens: float, temperature: float, top_p: float, seed: float) -> Sampling:
    return Sampling(int(max_tokens), float(temperature), float(top_p), int(seed))


def _chat(by_name: Mapping[str, Offer], table: str, settings: list[gr.components.Component], stops: Stops) -> None:
    names = list(by_name)
    history = gr.State([])
    with gr.Row():
        with gr.Column(scale=3):
            chatbot = gr.Chatbot(label="Conversation", height=420, elem_id="conversation", buttons=["copy"])
            sees = any(offer.sees_images for offer in by_name.values())
            box = _box(sees, "Message", "message")
            with gr.Row():
                send = gr.Button("Send", variant="primary", elem_id="send")
                stop = gr.Button("Stop", elem_id="stop")
                again = gr.Button("Regenerate", elem_id="again")
                clear = gr.Button("Clear", elem_id="clear")
        with gr.Column(scale=2):
            chosen = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")
            gr.Markdown(lambda name: by_name[name].about().card, inputs=chosen, elem_id="card")
    with gr.Accordion("All variants", open=True):
        gr.Markdown(table or "No comparison here yet: `dvc repro` makes it.", elem_id="table")

    def ask(value: Any, said: list[Message]) -> tuple[Any, list[Message], Any]:
        text, images = _parts(value)
        if not text.strip():
            return value, said, shown(said)
        told = asked(said, text, images)
        return None, told, shown(told)

    def answer(
        said: list[Message], name: str, system: str, max_tokens: float, temperature: float, top_p: float, seed: float,
        request: gr.Request,
    ) -> Iterator[tuple[list[Message], Any]]:  # fmt: skip
        if not said or said[-1]["role"] != "user":
            return
        flag, sampling = stops.begin(str(request.session_hash)), _sampling(max_tokens, temperature, top_p, seed)
        for told in answered(said, by_name[name], system, sampling, flag):
            yield told, shown(told)

    def take_back(said: list[Message], seed: float) -> tuple[list[Message], Any, float]:
        told = said[:-1] if said and said[-1]["role"] == "assistant" else said
        return told, shown(told), seed + 1  # another seed, or the same answer would come again

    speaking = {"fn": answer, "inputs": [history, chosen, *settings], "outputs": [history, chatbot]}
    for trigger in (send.click, box.submit):
        trigger(ask, [box, history], [box, history, chatbot], api_visibility="private").then(
            **speaking, api_visibility="private"
        )
    again.click(take_back, [history, settings[-1]], [history, chatbot, settings[-1]], api_visibility="private").then(
        **speaking, api_visibility="private"
    )
    stop.click(_stopper(stops), None, None, queue=False, api_visibility="private")
    for trigger in (clear.click, chatbot.clear):
        trigger(lambda: ([], []), None, [history, chatbot], api_visibility="private")


def _pair(by_name: Mapping[str, Offer], settings: list[gr.components.Component], stops: Stops) -> None:
    names = list(by_name)
    sees = sum(offer.sees_images for offer in by_name.values()) > 1
    prompt = _box(sees, "One prompt for both", "pair-prompt")
    with gr.Row():
        compare = gr.Button("Compare", variant="primary", elem_id="compare")
        stop = gr.Button("Stop", elem_id="pair-stop")
    verdict = gr.Markdown(elem_id="verdict")
    with gr.Row():
        with gr.Column():
            left = gr.Dropdown(names, value=names[0], label="Left", elem_id="left")
            left_answer = gr.HTML(elem_id="left-answer")
        with gr.Column():
            right = gr.Dropdown(names, value=names[1], label="Right", elem_id="right")
            right_answer = gr.HTML(elem_id="right-answer")

    def both(
        value: Any, one: str, other: str, system: str, max_tokens: float, temperature: float, top_p: float, seed: float,
        request: gr.Request,
    ) -> Iterator[tuple[str, str, str]]:  # fmt: skip
        text, images = _parts(value)
        if text.strip():
            flag, sampling = stops.begin(str(request.session_hash)), _sampling(max_tokens, temperature, top_p, seed)
            yield from side_by_side((by_name[one], by_name[other]), text, images, system, sampling, flag)

    for trigger in (compare.click, prompt.submit):
        trigger(both, [prompt, left, right, *settings], [left_answer, right_answer, verdict], api_visibility="private")
    stop.click(_stopper(stops), None, None, queue=False, api_visibility="private")


def _stopper(stops: Stops) -> Any:
    def stop(request: gr.Request) -> None:
        stops.stop(str(request.session_hash))

    return stop


def _box(sees_images: bool, label: str, elem_id: str) -> gr.components.Component:
    if sees_images:
        return gr.MultimodalTextbox(label=label, file_types=["image"], elem_id=elem_id, submit_btn=False)
    return gr.Textbox(label=label, placeholder="Write something, then Enter", elem_id=elem_id)


def _parts(value: Any) -> tuple[str, list[Path]]:
    """Text and images of either kind of box."""
    if isinstance(value, dict):
        return value.get("text") or "", [Path(file) for file in value.get("files") or []]
    return value or "", []
