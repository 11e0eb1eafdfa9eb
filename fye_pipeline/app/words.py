"""What the page says: the terms, and how a job stands, as text and as HTML."""

from __future__ import annotations

import html

from fye_pipeline.animate.output import AnimationResult
from fye_pipeline.app.jobs import Event, Result, Waiting, Working, without_folders
from fye_pipeline.app.pictures import PictureResult
from fye_pipeline.multi_portrait.output import GroupResult

TITLE = "Follow your emoji"
INTRODUCTION = (
    "A face in a picture does what another face does: in a video, among several people, or in a still picture."
)
EMPTY = "The result will appear here."
TERMS = """An animated portrait does what that person never did. Use it only

1. with portraits of people who agreed to it, of yourself, of the dead in works that are free to use, or of nobody
   (drawings, statues, rendered faces);
2. where nobody is deceived: say that the video is generated wherever it is shown;
3. within the law of your country on likeness, privacy, elections and defamation. Not for harassment, for sexual
   content with real people, for fraud, for getting past an identity check, or for putting words into a mouth.

Every video carries the visible mark "AI-generated" and the same words in its metadata."""
SMALL_MODEL = (
    "At work is the small model that ships. For the published weights, run `fye models get follow-your-emoji` once, "
    "then `fye app --model follow-your-emoji`."
)
ACCEPT = "I have read the terms and keep to them"
NOT_ACCEPTED = "Read the terms of use at the top and tick the box below them first."
NO_PORTRAIT = "Choose a portrait first: a picture of your own, or one of the examples."
POINTS = (
    "For animals, drawings and masks. Click the five points in their order, left and right as you see them, the head "
    "upright. They hold for this portrait alone."
)
POINTS_MISSING = "Place all five points, or press Begin anew and leave them out."
NO_DRIVER = "Choose a driving video first, or take the movement that ships."
PEOPLE = (
    "Each face of the picture is moved by a driver of its own: a video, or a landmark file (`.npz`). The faces of one "
    "video drive too: give that video alone, and say below who is moved by which."
)
NO_GROUP = "Choose a picture of several people first."
NO_DRIVERS = "Choose the drivers first: a video for each face, the leftmost face's first."
EMOJI = "A picture of this person with that expression, drawn as you say. Several expressions give a sheet."
SMALL_EMOJI = (
    f"{EMOJI} At work is the tiny model that ships: it draws rendered heads of 128 pixels and knows some thirty words "
    "(photo, painting, ink, drawing, cartoon, sculpture; man, woman; glasses, background and colours)."
)
PROMPT = "a photo of a woman"
NO_PERSON = "Choose a picture of the person first."
NO_EXPRESSION = "Choose a picture of an expression first."
CANCELLED = "Cancelled."
KEPT = "Uploads and results stay on this machine and are deleted after an hour."
_STAGES = {
    "starting": "Reading the files and loading the model",
    "detecting": "Finding the face in the driver",
    "keyframes": "Making keyframes",
    "denoising": "Making the frames",
    "uncached": "Making them again without the cache",
    "decoding": "Writing the video",
    "drawing": "Drawing",
}


def duration(seconds: float) -> str:
    """`8 s`, `2 min`, `1 h 20 min`, rounded up to what is worth saying."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def sentence(event: Event) -> str:
    """How a job stands, in one line."""
    if isinstance(event, Waiting):
        return f"Waiting: {event.ahead} job{'' if event.ahead == 1 else 's'} before yours"
    if not isinstance(event, Working):
        return "Done"
    text = _STAGES.get(event.stage, event.stage.capitalize())
    if event.total:
        text += f": {event.done} of {event.total} {'steps' if event.stage == 'drawing' else 'frames'}"
    if event.seconds_left is not None:
        text += f", about {duration(event.seconds_left)} left"
    return text


def progress(event: Event) -> str:
    """How a job stands, as a bar with a line of text."""
    share = None
    if isinstance(event, Working) and event.total:
        share = min(100, round(100 * event.done / event.total))
    now = "" if share is None else f' aria-valuenow="{share}"'
    fill = '<i class="moving"></i>' if share is None else f'<i style="width:{share}%"></i>'
    return (
        f'<div class="fye-status"><div class="fye-bar" role="progressbar" aria-valuemin="0" aria-valuemax="100"{now}>'
        f"{fill}</div><p>{html.escape(sentence(event))}</p></div>"
    )


def message(text: str, kind: str = "note") -> str:
    """A sentence in the place of the bar. kind: note, done or fault."""
    return f'<div class="fye-status fye-{kind}" role="status"><p>{html.escape(text)}</p></div>'


def outcome(result: Result) -> str:
    """What was made, in a sentence or two."""
    size, took = f"{result.size[0]} x {result.size[1]}", duration(result.seconds)
    if isinstance(result, PictureResult):
        return f"{result.pictures} picture{'' if result.pictures == 1 else 's'}, {size} pixels, in {took}."
    text = f"{result.frames} frames of {size} at {float(result.fps):g} fps in {took}."
    if isinstance(result, GroupResult):
        text += f" {len(result.people)} of {result.faces} faces are moved."
    if result.psnr is not None and result.time_ratio is not None:
        text += f" {result.time_ratio:.1f} times as fast as without the cache, {result.psnr:.1f} dB from it."
    return text


def report(result: Result) -> str:
    """The cache's report, or who was moved, and the run's notes, as plain text."""
    if isinstance(result, GroupResult):
        lines = [str(result)]
    else:
        lines = [str(result.report) if result.report is not None else "The cache was off: every step ran in full."]
    if isinstance(result, AnimationResult) and result.frames_without_face:
        gaps = ", ".join(f"{start}-{stop - 1}" for start, stop in result.frames_without_face)
        lines.append(f"frames without a face, filled in: {gaps}")
    text = "\n".join([*lines, *(f"note: {note}" for note in result.notes)])
    return without_folders(text, result.output.parent)
