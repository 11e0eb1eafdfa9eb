"""Several people in one picture, each moved by a driver of their own, as a user asks for it; on rendered heads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fye_command import Fye, assert_same_pictures, keep_frames, make_video, read_sound
from PIL import Image

from fye_pipeline.animate import output as written
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.landmarks.faces import box_of
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.landmarks.sequence import LandmarkSequence
from fye_pipeline.media.video import probe, read_comment, read_frames
from fye_pipeline.world import World

SIDE = 128
FAST = ("--steps", 2, "--min-face", 24, "--quiet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, face_landmarker_path: Path) -> Path:
    """group.png (two heads side by side), trio.png, duet.mp4 (both move), and the landmarks of drivers."""
    del face_landmarker_path  # the tests need it
    made = tmp_path_factory.mktemp("group")
    world = World(CanonicalFace.load(), size=SIDE)
    heads = [world.portrait("held", index).frames[0] for index in (0, 1, 2)]
    Image.fromarray(np.concatenate(heads[:2], axis=1)).save(made / "group.png")
    Image.fromarray(np.concatenate(heads, axis=1)).save(made / "trio.png")
    clips = [world.clip("held", index, take=1, frames=6) for index in (0, 1)]
    for number, clip in enumerate(clips):
        clip.sequence.save(made / f"{number}.npz")
    clips[1].sequence[:3].save(made / "short.npz")
    replace(clips[1].sequence, fps=Fraction(24)).save(made / "fast.npz")
    duet = [np.concatenate([one, other], axis=1) for one, other in zip(*(clip.frames for clip in clips), strict=True)]
    make_video(made / "duet.mp4", duet, fps=Fraction(12), sound="aac", seconds=0.5)
    return made


@pytest.fixture
def animate(
    fye: Fye, tmp_path: Path, folder: Path, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[dict[str, Any], np.ndarray]]:
    """Run `fye animate` -> its JSON, and the frames [F, H, W, 3] as they were before they were encoded.

    With random weights, which make noise whatever the driver does; `shipped`: three frames of the model that ships.
    """
    kept = keep_frames(monkeypatch, written)

    def run(
        *drivers: str, reference: str = "group.png", more: tuple[Any, ...] = (), shipped: bool = False
    ) -> tuple[dict[str, Any], np.ndarray]:
        kept.clear()
        files = [part for driver in drivers for part in ("--driving", folder / driver)]
        model = ("--frames", 3) if shipped else ("--model", random_model)
        arguments = ("--reference", folder / reference, *files, *model, *FAST, "--json", "--overwrite")
        code, out, err = fye("animate", *arguments, "--output", tmp_path / "out.mp4", *more)
        assert code == 0, err
        return json.loads(out), np.stack([frame for frame in kept if frame.shape == kept[0].shape])

    return run


Animate = Callable[..., tuple[dict[str, Any], np.ndarray]]


def change(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """How much the left and the right half differ, mean levels of 255."""
    apart = np.abs(one.astype(float) - other)
    return float(apart[:, :, :SIDE].mean()), float(apart[:, :, SIDE : 2 * SIDE].mean())


def still(folder: Path, name: str = "group.png") -> np.ndarray:
    return np.asarray(Image.open(folder / name))


def distance(frames: np.ndarray, wanted: LandmarkSequence, task: Path) -> float:
    """How far the face in frames [F, SIDE, SIDE, 3] is from a sequence, its place aside; mean, in widths."""
    with FaceLandmarkDetector(task) as detector:
        found = [detector.detect(np.ascontiguousarray(frame)) for frame in frames]
    made = np.stack([face.landmarks[:, :2] for face in found if face is not None])
    truth = wanted.landmarks[: len(frames), :, :2]
    assert len(made) == len(truth)
    apart = (made - made.mean(axis=1, keepdims=True)) - (truth - truth.mean(axis=1, keepdims=True))
    return float(np.linalg.norm(apart, axis=-1).mean())


def test_every_face_is_moved_by_its_own_driver_and_by_no_other(
    animate: Animate, folder: Path, face_landmarker_path: Path
) -> None:
    result, frames = animate("0.npz", "1.npz", shipped=True)
    assert [(each["face"], each["driver"]) for each in result["people"]] == [(1, 0), (2, 1)]
    assert (result["frames"], result["size"], result["faces"]) == (3, [2 * SIDE, SIDE], 2)
    assert min(change(frames, still(folder)[None])) > 0.5, "somebody does not move"
    _, others = animate("0.npz", "0.npz", shipped=True)
    left, right = change(frames, others)
    assert left < 0.05
    assert right > 0.5
    wanted = LandmarkSequence.load(folder / "1.npz")
    own, foreign = (distance(each[:, :, SIDE:], wanted, face_landmarker_path) for each in (frames, others))
    assert own < foreign / 2, "the second face does not follow its own driver"


def test_people_in_another_order_with_their_drivers_are_the_same_video(animate: Animate) -> None:
    _, frames = animate("0.npz", "1.npz", shipped=True)
    _, others = animate("1.npz", "0.npz", more=("--assign", "1,0"), shipped=True)
    assert max(change(frames, others)) < 0.05


def test_who_has_no_driver_stays_as_in_the_picture(animate: Animate, folder: Path) -> None:
    result, frames = animate("0.npz", "1.npz", reference="trio.png", more=("--assign", "1,-,0"))
    assert [each["face"] for each in result["people"]] == [1, 3]
    assert any("shows 3 faces, from the left 1: " in note for note in result["notes"])
    trio = still(folder, "trio.png")
    middle = slice(SIDE + SIDE // 4, 2 * SIDE - SIDE // 4)
    assert (frames[:, :, middle] == trio[None, :, middle]).all()
    assert np.abs(frames.astype(float) - trio)[:, :, 2 * SIDE :].mean() > 0.5


def test_drivers_come_at_the_rate_of_the_first_and_end_with_the_shortest(animate: Animate, tmp_path: Path) -> None:
    result, _ = animate("0.npz", "fast.npz")
    assert (result["frames"], result["fps"]) == (3, "12")
    assert probe(tmp_path / "out.mp4").fps == 12
    assert animate("0.npz", "short.npz")[0]["frames"] == 3


def test_the_longest_driver_may_decide_and_the_others_hold_their_last_frame(animate: Animate) -> None:
    result, frames = animate("0.npz", "short.npz", more=("--until", "longest"))
    assert result["frames"] == 6
    assert (frames[3:, :, -SIDE // 2 :] == frames[2, :, -SIDE // 2 :]).all()
    assert (frames[3, :, : SIDE // 2] != frames[5, :, : SIDE // 2]).any()


def test_the_faces_of_one_driver_move_several(animate: Animate, folder: Path, tmp_path: Path) -> None:
    result, frames = animate("duet.mp4", more=("--assign", "1,0"), shipped=True)
    assert [(each["face"], each["driver"]) for each in result["people"]] == [(1, 1), (2, 0)]
    assert min(change(frames, still(folder)[None])) > 0.5
    assert result["sound"]
    assert read_sound(tmp_path / "out.mp4")[0] == "aac"


def test_the_sound_is_of_the_driver_that_was_named(animate: Animate) -> None:
    brief, second = ("--frames", 1), ("--audio-from", 1)
    assert animate("duet.mp4", "0.npz", more=brief)[0]["sound"]
    assert not animate("duet.mp4", "0.npz", more=brief + second)[0]["sound"]
    assert animate("0.npz", "duet.mp4", more=brief + second)[0]["sound"]


def test_a_comparison_shows_picture_landmarks_and_both_runs(animate: Animate, tmp_path: Path) -> None:
    result, frames = animate("0.npz", "short.npz", more=("--compare", "--steps", 4, "--N", 2, "--until", "longest"))
    compared = list(read_frames(tmp_path / "out_compare.mp4"))
    assert result["comparison"] == str(tmp_path / "out_compare.mp4")
    assert (len(compared), compared[0].shape) == (6, (256, 4 * 512, 3))
    assert len(frames) == 6
    assert 0 < result["psnr"] < 100
    assert result["uncached_seconds"] > 0
    drawn = compared[0][:, 512:1024]
    assert (drawn.max(axis=-1) > 60).any()
    assert (drawn.max(axis=-1) < 30).mean() > 0.5, "the landmarks are on black"


def test_the_pictures_transparency_comes_back(animate: Animate, folder: Path, tmp_path: Path) -> None:
    cover = np.full((SIDE, 2 * SIDE), 255, np.uint8)
    cover[:, :20] = 0
    Image.fromarray(np.dstack([still(folder), cover])).save(folder / "clear.png")
    _, frames = animate("0.npz", "1.npz", reference="clear.png", more=("--alpha", "--output", tmp_path / "a.webm"))
    assert frames.shape == (6, SIDE, 2 * SIDE, 4)
    assert (frames[:, :, :20, 3] == 0).all()
    assert (frames[:, :, 20:, 3] == 255).all()
    assert (tmp_path / "a.webm").is_file()


def test_faces_may_be_pointed_to(animate: Animate, fye: Fye, folder: Path, tmp_path: Path) -> None:
    """Five points a face, in any order; no face is sought."""
    places = {"left_eye": (48, 54), "right_eye": (80, 54), "nose": (64, 74), "left_mouth": (52, 92)}
    one = {**places, "right_mouth": (76, 92)}
    other = {name: (x + SIDE, y) for name, (x, y) in one.items()}
    points = tmp_path / "points.json"
    points.write_text(json.dumps([other, one]))
    result, frames = animate("0.npz", "1.npz", more=("--points", points))
    assert [each["crop"]["left"] < SIDE // 2 for each in result["people"]] == [True, False]
    assert min(change(frames, still(folder)[None])) > 0.5
    points.write_text(json.dumps([one, {**other, "nose": 1}]))
    files = ("--driving", folder / "0.npz", "--driving", folder / "1.npz", "--output", tmp_path / "no.mp4")
    refused = fye.refused("animate", "--reference", folder / "group.png", *files, "--points", points, *FAST)
    assert "face 2: nose must be two numbers" in refused


@pytest.mark.parametrize("flags", [("--face", 1), ("--unaligned",), ("--crop-only",), ("--whole",)])
def test_what_is_for_one_face_says_what_to_do_instead(
    fye: Fye, folder: Path, tmp_path: Path, flags: tuple[Any, ...]
) -> None:
    two = ("--driving", folder / "0.npz", "--driving", folder / "1.npz", *FAST, "--output", tmp_path / "out.mp4")
    refused = fye.refused("animate", "--reference", folder / "group.png", *two, *flags)
    assert f"{flags[0]} is for one face: with several drivers " in refused


def test_a_driver_that_moves_nobody_is_not_looked_at(animate: Animate, folder: Path) -> None:
    blank = make_video(folder / "blank.mp4", [np.zeros((SIDE, SIDE, 3), np.uint8)] * 6)
    result, _ = animate("0.npz", blank.name, more=("--assign", "-,0"))
    assert [(each["face"], each["driver"]) for each in result["people"]] == [(2, 0)]


def test_one_driver_moves_the_largest_face_of_a_group(
    fye: Fye, folder: Path, tmp_path: Path, random_model: Path
) -> None:
    arguments = ("--reference", folder / "group.png", "--driving", folder / "0.npz", "--model", random_model, *FAST)
    code, out, err = fye("animate", *arguments, "--output", tmp_path / "one.mp4", "--json")
    assert code == 0, err
    assert json.loads(out)["crop"]["side"] > 0


def test_counts_that_do_not_fit_end_in_one_sentence(fye: Fye, folder: Path, tmp_path: Path) -> None:
    two = ("--driving", folder / "0.npz", "--driving", folder / "1.npz", *FAST, "--output", tmp_path / "out.mp4")
    refused = fye.refused("animate", "--reference", folder / "trio.png", *two)
    assert "shows 3 faces and there are 2 drivers: say with --assign" in refused
    three = ("--driving", folder / "0.npz", *two)
    assert "shows 2 faces and there are 3 drivers" in fye.refused(
        "animate", "--reference", folder / "group.png", *three
    )
    many = ("--assign", "0,1", "--audio-from", 5)
    assert "--audio-from" in fye.refused("animate", "--reference", folder / "group.png", *two, *many)
    assert "--min-face" in fye.refused("animate", "--reference", folder / "group.png", *two, "--min-face", 500)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_broke_off_goes_on(
    animate: Animate, fye: Fye, folder: Path, tmp_path: Path, random_model: Path, stop_at: Callable[[int], list[int]]
) -> None:
    """The first person's clip is finished and kept when the second's fails."""
    animate("0.npz", "1.npz")
    files = ("--driving", folder / "0.npz", "--driving", folder / "1.npz", "--output", tmp_path / "again.mp4")
    arguments = ("animate", "--reference", folder / "group.png", *files, "--model", random_model, *FAST)
    runs = stop_at(2)
    assert fye(*arguments)[0] == 130
    assert "--resume" in fye.refused(*arguments)
    code, _, err = fye(*arguments, "--resume")
    assert code == 0, err
    assert len(runs) == 3, "the finished clip was made again"
    assert_same_pictures(tmp_path / "again.mp4", tmp_path / "out.mp4")
    code, out, _ = fye(*arguments, "--resume", "--json")
    assert json.loads(out)["resumed"]


def test_the_result_tells_how_it_was_made_and_can_be_made_again(
    animate: Animate, fye: Fye, tmp_path: Path, folder: Path
) -> None:
    animate("0.npz", "1.npz", more=("--assign", "1,0"))
    note = json.loads(read_comment(tmp_path / "out.mp4"))
    assert note["people"] == [{"face": 1, "driver": 1}, {"face": 2, "driver": 0}]
    again = tmp_path / "again.mp4"
    code, out, err = fye("animate", "--config", tmp_path / "out.mp4", "--output", again, "--quiet", "--json")
    assert code == 0, err
    assert json.loads(out)["settings"] == note["settings"]


def test_a_manifest_has_rows_of_one_face_and_of_several(
    fye: Fye, folder: Path, tmp_path: Path, random_model: Path
) -> None:
    rows = [
        {"reference": str(folder / "group.png"), "drivers": [str(folder / "0.npz"), str(folder / "1.npz")]},
        {"reference": str(folder / "group.png"), "driving": str(folder / "0.npz")},
        {"reference": str(folder / "trio.png"), "drivers": f"{folder / '0.npz'};{folder / '1.npz'}"},
        {"reference": str(folder / "group.png"), "drivers": str(folder / "duet.mp4")},
    ]
    lines = [json.dumps(row | {"output": f"{number}.mp4"}) for number, row in enumerate(rows)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    arguments = ("--manifest", tmp_path / "m.jsonl", "--model", random_model, "--frames", 2, *FAST)
    code, out, err = fye("animate", *arguments, "--json")
    assert code == 1, err
    summary = json.loads(out)
    assert summary["made"] == [1, 2, 4]
    assert "shows 3 faces and there are 2 drivers" in summary["failed"]["3"]


def test_every_face_of_a_video_becomes_a_landmark_file(fye: Fye, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "duet.npz"
    code, out, err = fye("landmarks", folder / "duet.mp4", "--output", output, "--all-faces", "--json")
    assert code == 0, err
    tracks = [LandmarkSequence.load(row["output"]) for row in json.loads(out)["tracks"]]
    assert [len(track) for track in tracks] == [6, 6]
    assert [box_of(track.landmarks[0])[0] < 0.5 for track in tracks] == [True, False]
    assert "--overwrite" in fye.refused("landmarks", folder / "duet.mp4", "--output", output, "--all-faces", "-q")
    assert "--all-faces goes without" in fye.refused(
        "landmarks", folder / "duet.mp4", "-o", output, "--all-faces", "--smooth"
    )
