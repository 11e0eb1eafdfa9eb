"""The tab for several people in one picture, each with a driver of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fye_pipeline.app import words
from fye_pipeline.app.controls import GROUP_CONTROLS, Files, command_line, group_settings_of
from fye_pipeline.app.jobs import Event
from fye_pipeline.app.parts import (
    PageOptions,
    Panel,
    check_given,
    control_inputs,
    picture_input,
    show_videos,
    videos_output,
)


def people_tab(gradio: Any, options: PageOptions, accepted: Any) -> None:
    """What goes in on the left, what comes out on the right."""
    examples = options.examples
    drivers_first = [str(path) for path in examples.drivers]
    with gradio.Row(equal_height=False):
        with gradio.Column(min_width=320):
            gradio.Markdown(words.PEOPLE, elem_classes="fye-hint")
            group = picture_input(gradio, "people-picture", "Picture of several people", examples.group)
            drivers = gradio.File(
                drivers_first or None,
                label="Drivers, the leftmost face's first (drag to reorder)",
                file_count="multiple",
                allow_reordering=True,
                elem_id="people-drivers",
            )
            controls = control_inputs(gradio, "people", GROUP_CONTROLS)
        panel = Panel(
            gradio,
            "people",
            action="Animate",
            report="Who was moved",
            place_result=lambda: videos_output(
                gradio, "people", "Animated picture", "Side by side: picture, landmarks, with the cache, without it"
            ),
        )

    def command(reference: str | None, driving: Sequence[str] | None, *values: Any) -> str:
        files = Files.of(reference=reference, driving=driving)
        return command_line(files.names(), values, options.model, GROUP_CONTROLS)

    def job(ticket: str, reference: str | None, driving: Sequence[str] | None, *values: Any) -> Iterator[Event]:
        check_given((reference is None, words.NO_GROUP), (not driving, words.NO_DRIVERS))
        base = {} if options.model is None else {"model": options.model}
        files = Files.of(reference=reference, driving=driving)
        yield from options.queue.run(ticket, files, lambda copies: group_settings_of(copies, values, base))

    panel.connect(
        options.queue,
        accepted,
        [group, drivers, *controls],
        job=job,
        command=command,
        show=lambda result: show_videos(gradio, result),
        first=[examples.group, drivers_first, *(control.default for control in GROUP_CONTROLS)],
    )
