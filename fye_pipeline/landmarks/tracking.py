"""One face through a video: choice, gaps, interpolation; whatever detector finds the faces."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.faces import Box, Face, FindFaces, check_picture, choose
from fye_pipeline.landmarks.sequence import LandmarkSequence, runs_of

NoFace = Literal["interpolate", "hold", "error"]
DEFAULT_MAX_GAP = 0.5  # seconds
_RANGES_NAMED = 8  # in an error's sentence


def track(
    find_faces: FindFaces,
    frames: Iterable[NDArray[np.uint8]],
    fps: Fraction | float,
    *,
    on_progress: Callable[[int], None] | None = None,
    no_face: NoFace = "interpolate",
    max_gap: float = DEFAULT_MAX_GAP,
    face_index: int | None = None,
) -> LandmarkSequence:
    """Follow one face through frames uint8 RGB [H, W, 3], which are taken one at a time and not kept.

    The face is the largest (or the `face_index`-th from the left) of the first frame that has one, then the one that
    overlaps its last place. `on_progress` is called with the count of frames done. Frames without it are filled as
    `no_face` says: `interpolate` (linear, at the ends the nearest frame), `hold` (the last frame), or `error`.

    Raises `UserError`, naming the ranges in seconds and frames, where the face is missing for longer than `max_gap`
    seconds, in every frame, or at all with `no_face="error"`; and where frames differ in size or there are none.
    """
    if no_face not in get_args(NoFace):
        raise UserError(f"no_face must be one of {', '.join(get_args(NoFace))}, got {no_face!r}.")
    if fps <= 0 or max_gap < 0:
        raise UserError(f"fps must be > 0 and max_gap >= 0 seconds, got {fps} and {max_gap}.")
    seen: list[Face | None] = []
    last_box: Box | None = None
    shape: tuple[int, ...] | None = None
    for image in frames:
        shape = shape or image.shape
        if image.shape != shape:
            raise UserError(f"Frame {len(seen)} of the video is {image.shape[:2]} (H, W), the first is {shape[:2]}.")
        face = choose(find_faces(check_picture(image)), face_index=face_index, last_box=last_box)
        last_box = face.box if face else last_box
        seen.append(face)
        if on_progress:
            on_progress(len(seen))
    found = np.array([face is not None for face in seen], bool)
    fps = Fraction(fps).limit_denominator(1_000_000)
    check_gaps(found, fps, no_face=no_face, max_gap=max_gap)
    return _fill(seen, found, fps, hold=no_face == "hold")


def check_gaps(found: NDArray[np.bool_], fps: Fraction, *, no_face: NoFace, max_gap: float) -> None:
    """Raise `UserError` where frames without a face (`found` [F] False) are more than the rule allows."""
    if not len(found):
        raise UserError("The video has no frames.")
    length = f"{len(found)} frames ({float(len(found) / fps):.2f} s)"
    if not found.any():
        raise UserError(f"No face was found in any of the video's {length}.")
    gaps = runs_of(~found)
    if no_face == "error" and gaps:
        raise UserError(f"No face was found in {_ranges(gaps, fps)} of the video's {length}.")
    limit = Fraction(max_gap).limit_denominator(1_000_000)  # 0.6 seconds at 10 frames a second are 6 frames
    long_gaps = [gap for gap in gaps if (gap[1] - gap[0]) / fps > limit]
    if long_gaps:
        raise UserError(
            f"No face was found for longer than {max_gap:g} s in {_ranges(long_gaps, fps)} of the video's {length}: "
            "cut these parts out or allow a longer gap."
        )


def _ranges(gaps: list[tuple[int, int]], fps: Fraction) -> str:
    """Such as "frames 3-9 (0.12-0.40 s)": first and last frame, and when the first begins and the last ends."""
    named = []
    for start, stop in gaps[:_RANGES_NAMED]:
        frames = f"frame {start}" if stop - start == 1 else f"frames {start}-{stop - 1}"
        named.append(f"{frames} ({float(start / fps):.2f}-{float(stop / fps):.2f} s)")
    more = f" and {len(gaps) - _RANGES_NAMED} more ranges" if len(gaps) > _RANGES_NAMED else ""
    return ", ".join(named) + more


def _fill(seen: list[Face | None], found: NDArray[np.bool_], fps: Fraction, *, hold: bool) -> LandmarkSequence:
    """The sequence with every gap filled from the frames around it."""
    faces = [face for face in seen if face is not None]
    times = np.flatnonzero(found)
    frames = np.arange(len(found)).clip(times[0], times[-1])  # before the first and after the last: the nearest
    before = np.searchsorted(times, frames, side="right") - 1  # [F], numbers among the found frames
    after = before if hold else np.searchsorted(times, frames, side="left")
    # [F] in 0..1: how far a frame lies between the two; 0 where they are one
    share = np.where(after > before, (frames - times[before]) / np.maximum(times[after] - times[before], 1), 0.0)

    def blend(name: str) -> NDArray:
        values = np.stack([getattr(face, name) for face in faces])
        part = share.reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)
        return values[before] + part * (values[after] - values[before])

    return LandmarkSequence(
        landmarks=blend("landmarks"),
        mesh=blend("mesh"),
        transforms=_blend_poses(np.stack([face.transform for face in faces]), before, after, share),
        blendshapes=blend("blendshapes"),
        found=found,
        width=faces[0].width,
        height=faces[0].height,
        fps=fps,
    )


def _blend_poses(poses: NDArray, before: NDArray, after: NDArray, share: NDArray) -> NDArray[np.float64]:
    """Poses [K, 4, 4] -> [F, 4, 4]: found frames as they are, between them linear in place and along the arc."""
    blended = poses[before] + share[:, None, None] * (poses[after] - poses[before])
    between = share > 0
    if between.any():
        turn = Slerp(np.arange(len(poses)), Rotation.from_matrix(poses[:, :3, :3]))
        blended[between, :3, :3] = turn((before + share)[between]).as_matrix()
    return blended
