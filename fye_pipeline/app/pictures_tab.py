"""The tab for still pictures: one person with another picture's expression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fye_pipeline.app import words
from fye_pipeline.app.controls import Files, command_line
from fye_pipeline.app.jobs import Event
from fye_pipeline.app.parts import PageOptions, Panel, check_given, control_inputs, picture_input
from fye_pipeline.app.pictures import COMMAND, PICTURE, picture_controls, picture_settings_of
from fye_pipeline.emoji.model import EmojiSettings
from fye_pipeline.emoji.pipeline import SHIPPED


def pictures_tab(gradio: Any, options: PageOptions, accepted: Any) -> None:
    """What goes in on the left, what comes out on the right."""
    examples = options.examples
    model = SHIPPED if options.emoji_model is None else Path(options.emoji_model)
    settings = picture_controls(EmojiSettings.read(model))
    first = examples.portraits[1] if len(examples.portraits) > 1 else None
    asked = [str(path) for path in examples.expressions]
    with gradio.Row(equal_height=False):
        with gradio.Column(min_width=320):
            gradio.Markdown(words.SMALL_EMOJI if options.emoji_model is None else words.EMOJI, elem_classes="fye-hint")
            prompt = gradio.Textbox(words.PROMPT, label="What to draw", max_lines=3, elem_id="emoji-prompt")
            identity = picture_input(gradio, "emoji-person", "The person", first, examples.portraits)
            expressions = gradio.Gallery(
                asked or None,
                label="Expressions, a picture for each",
                type="filepath",
                columns=3,
                height=200,
                object_fit="cover",
                interactive=True,
                elem_id="emoji-expressions",
                buttons=[],
            )
            controls = control_inputs(gradio, "emoji", settings)
        panel = Panel(
            gradio,
            "emoji",
            action="Draw",
            report="Report of the cache",
            place_result=lambda: [
                gradio.Image(
                    label="Picture",
                    interactive=False,
                    elem_id="emoji-result",
                    elem_classes="fye-picture",
                    buttons=["download"],
                )
            ],
        )

    def files_of(portrait: str | None, pictures: Sequence[Any] | None) -> Files:
        """pictures: as the gallery has them, each with a caption."""
        return Files.of(
            identity=portrait, expression=[each if isinstance(each, str) else each[0] for each in pictures or ()]
        )

    def command(text: str, portrait: str | None, pictures: Sequence[Any] | None, *values: Any) -> str:
        words_of_it = (*COMMAND, "--prompt", text.strip())
        files = files_of(portrait, pictures).names()
        return command_line(files, values, options.emoji_model, settings, command=words_of_it, output=PICTURE)

    def job(ticket: str, text: str, portrait: str | None, pictures: Any, *values: Any) -> Iterator[Event]:
        check_given((portrait is None, words.NO_PERSON), (not pictures, words.NO_EXPRESSION))
        yield from options.queue.run(
            ticket,
            files_of(portrait, pictures),
            lambda copies: picture_settings_of(copies, text, values, {"model": model}, settings),
            PICTURE,
        )

    panel.connect(
        options.queue,
        accepted,
        [prompt, identity, expressions, *controls],
        job=job,
        command=command,
        show=lambda result: [str(result.output)],
        first=[words.PROMPT, first, asked, *(control.default for control in settings)],
    )
