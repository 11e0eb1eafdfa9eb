"""What the page's tabs have in common: inputs, a control for each setting, and the column with what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fye_pipeline.app import words
from fye_pipeline.app.controls import Control
from fye_pipeline.app.jobs import KEPT_SECONDS, Cancelled, Event, Finished, JobQueue, Result
from fye_pipeline.errors import UserError

OWN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}  # of every event: the page's alone


@dataclass(frozen=True)
class Examples:
    """Files of nobody to begin with: portraits, pictures of expressions, two people in one picture, their drivers."""

    portraits: Sequence[Path] = ()
    expressions: Sequence[Path] = ()
    group: Path | None = None
    drivers: Sequence[Path] = ()


@dataclass(frozen=True)
class PageOptions:
    """What the command line says of the page.

    model, emoji_model: as they are named on the command line; None for those that ship. accepted: the terms count as
    read.
    """

    queue: JobQueue
    examples: Examples = Examples()
    model: str | None = None
    emoji_model: str | None = None
    accepted: bool = False


class Panel:
    """A tab's column with what comes out: buttons, how the job stands, the result, its command line and the report.

    name: of the tab, before the names of its elements. shown: the components of the result, made by `place_result`.
    """

    def __init__(
        self, gradio: Any, name: str, *, action: str, report: str, place_result: Callable[[], list[Any]]
    ) -> None:
        self._gradio = gradio
        with gradio.Column(min_width=320, elem_classes="fye-outcome"):
            with gradio.Row(elem_classes="fye-buttons"):
                self.start = gradio.Button(action, variant="primary", elem_id=f"{name}-start", scale=3)
                self.cancel = gradio.Button("Cancel", elem_id=f"{name}-cancel", interactive=False, scale=1)
            self.status = gradio.HTML(
                words.message(words.EMPTY), elem_id=f"{name}-status", elem_classes="fye-place", padding=False
            )
            self.shown = place_result()
            with gradio.Accordion("The same on the command line", open=True):
                self.command = gradio.Code(
                    "",
                    language="shell",
                    interactive=False,
                    show_label=False,
                    wrap_lines=True,
                    show_line_numbers=False,
                    lines=1,
                    buttons=["copy"],
                    elem_id=f"{name}-command",
                    elem_classes="fye-command",
                )
            with gradio.Accordion(report, open=False, elem_id=f"{name}-report"):
                self.report = gradio.Code(
                    "",
                    language=None,
                    interactive=False,
                    show_label=False,
                    show_line_numbers=False,
                    buttons=["copy"],
                    elem_classes="fye-report",
                )

    def connect(
        self,
        queue: JobQueue,
        accepted: Any,
        inputs: Sequence[Any],
        *,
        job: Callable[..., Iterator[Event]],
        command: Callable[..., str],
        show: Callable[[Any], Sequence[Any]],
        first: Sequence[Any],
        watched: Sequence[Any] = (),
    ) -> None:
        """Make the buttons work.

        job: the events of a job, given a ticket and the values of the inputs; it may raise what `JobQueue.run` raises.
        command: the command line of these values. show: what the result's components are given. first: the values that
        the inputs begin with. watched: what changes with an input that cannot be watched itself.
        """
        gradio = self._gradio
        self.command.value = command(*first)
        ticket = gradio.State(None, time_to_live=KEPT_SECONDS)

        def carry_out(name: str, agreed: bool, *values: Any) -> Any:
            """Drive the page through one job; it yields what changes."""
            yield {self.start: gradio.Button(interactive=False), self.cancel: gradio.Button(interactive=True)}
            try:
                if not agreed:
                    raise UserError(words.NOT_ACCEPTED)
                for event in job(name, *values):
                    yield self._told(event, show)
            except Cancelled:
                yield {self.status: words.message(words.CANCELLED)}
            except UserError as error:
                yield {self.status: words.message(str(error), "fault")}
            yield {self.start: gradio.Button(interactive=True), self.cancel: gradio.Button(interactive=False)}

        seen = [each.change for each in (*inputs, *watched) if not isinstance(each, gradio.State)]
        # One event for them all: the answers of several could arrive in another order than the changes.
        gradio.on(seen, command, list(inputs), self.command, queue=False, trigger_mode="always_last", **OWN)
        asked = self.start.click(lambda: queue.ticket(), None, ticket, queue=False, **OWN)
        outputs = [self.status, self.start, self.cancel, self.report, *self.shown]
        asked.then(carry_out, [ticket, accepted, *inputs], outputs, concurrency_limit=None, **OWN)
        self.cancel.click(queue.cancel, ticket, None, queue=False, **OWN)

    def _told(self, event: Event, show: Callable[[Any], Sequence[Any]]) -> dict[Any, Any]:
        if not isinstance(event, Finished):
            return {self.status: words.progress(event)}
        result: Result = event.result
        return {
            self.status: words.message(words.outcome(result), "done"),
            self.report: words.report(result),
            **dict(zip(self.shown, show(result), strict=True)),
        }


def check_given(*lacking: tuple[bool, str]) -> None:
    """Raise `UserError` with the first sentence whose condition holds."""
    for lacks, text in lacking:
        if lacks:
            raise UserError(text)


def picture_input(gradio: Any, name: str, label: str, first: Path | None, examples: Sequence[Path] = ()) -> Any:
    """A picture: uploaded, from the webcam or the clipboard, or an example."""
    picture = gradio.Image(
        None if first is None else str(first),
        label=label,
        type="filepath",
        image_mode=None,
        sources=["upload", "webcam", "clipboard"],
        height=320,
        elem_id=name,
        buttons=[],
    )
    read = picture.preprocess
    # As it was uploaded: it is read elsewhere, within the command line's limits, where what is wrong with it is said.
    picture.preprocess = lambda payload: payload.path if payload is not None and payload.path else read(payload)
    if examples:
        gradio.Examples([[str(path)] for path in examples], [picture], label="Examples", api_name=False)
    return picture


def videos_output(gradio: Any, name: str, label: str, compared: str) -> list[Any]:
    """A video, and one side by side that is shown where there is any."""
    video = gradio.Video(
        label=label, interactive=False, autoplay=True, loop=True, elem_id=f"{name}-video", elem_classes="fye-video"
    )
    beside = gradio.Video(
        label=compared,
        interactive=False,
        loop=True,
        visible=False,
        elem_id=f"{name}-compared",
        elem_classes="fye-video",
    )
    return [video, beside]


def show_videos(gradio: Any, result: Any) -> list[Any]:
    """What `videos_output` is given for a result."""
    beside = None if result.comparison is None else str(result.comparison)
    return [gradio.Video(str(result.output)), gradio.Video(beside, visible=beside is not None)]


def control_inputs(gradio: Any, name: str, controls: Sequence[Control]) -> list[Any]:
    """A component for each control, in their order; the advanced ones are folded away."""
    made: dict[str, Any] = {}
    with gradio.Group():
        for control in controls:
            if not control.advanced:
                made[control.name] = _control_input(gradio, name, control)
    with gradio.Accordion("More settings", open=False, elem_id=f"{name}-more"):
        for control in controls:
            if control.advanced:
                made[control.name] = _control_input(gradio, name, control)
    return [made[control.name] for control in controls]


def _control_input(gradio: Any, name: str, control: Control) -> Any:
    common = {"label": control.label, "info": control.info or None, "elem_id": f"{name}-{control.name}"}
    if control.kind == "choice":
        choices = [(option.label, name) for name, option in control.options.items()]
        return gradio.Dropdown(choices, value=control.default, filterable=False, **common)
    if control.kind == "several":
        choices = [(name.capitalize(), name) for name in control.names]
        return gradio.CheckboxGroup(choices, value=list(control.default), **common)
    if control.kind == "range":
        return gradio.Slider(control.low, control.high, value=control.default, step=control.step, buttons=[], **common)
    if control.kind == "whole":
        return gradio.Number(
            control.default, precision=0, minimum=control.low, maximum=control.high, step=control.step, **common
        )
    if control.kind == "text":
        return gradio.Textbox(control.default, max_lines=1, **common)
    return gradio.Checkbox(control.default, **common)
