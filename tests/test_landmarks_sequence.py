"""The sequence file, every way it can be wrong, and the import of official templates without running them."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from landmark_faces import face, sequence

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.sequence import LandmarkSequence, load_official_npy, runs_of
from fye_pipeline.storage.files import DiskArray

ARRAYS = ("landmarks", "mesh", "transforms", "blendshapes", "found")


@pytest.fixture
def made() -> LandmarkSequence:
    frames = sequence([face(shift) for shift in (0.0, 1.0, 2.0, 3.0)], Fraction(30000, 1001))
    frames.found[1:3] = False
    return frames


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), Fraction(25), None])
def test_what_is_saved_is_loaded(made: LandmarkSequence, tmp_path: Path, fps: Fraction | None) -> None:
    path = tmp_path / "a name with spaces.npz"
    replace(made, fps=fps).save(path)
    loaded = LandmarkSequence.load(path)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(made, name))
        assert getattr(loaded, name).dtype == getattr(made, name).dtype
    assert (loaded.width, loaded.height, loaded.fps) == (64, 64, fps)
    assert os.listdir(tmp_path) == [path.name]


def test_the_file_is_plain_numpy(made: LandmarkSequence, tmp_path: Path) -> None:
    made.save(tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz", allow_pickle=False) as archive:
        header = json.loads(str(archive["header"]))
    assert header == {
        "schema": "fye.landmarks",
        "version": 1,
        "frames": 4,
        "points": 478,
        "width": 64,
        "height": 64,
        "fps": "30000/1001",
    }


def test_frames_are_taken_by_number_and_by_slice(made: LandmarkSequence) -> None:
    assert len(made) == 4
    assert len(made[1:3]) == 2
    assert made[1:3].fps == made.fps
    np.testing.assert_array_equal(made[-1].landmarks[0], made.landmarks[3])
    with pytest.raises(IndexError):
        made[4]


def test_gaps_are_runs_of_frames_without_a_face(made: LandmarkSequence) -> None:
    assert made.gaps() == [(1, 3)]
    assert runs_of(np.array([True, False, True, True])) == [(0, 1), (2, 4)]
    assert runs_of(np.zeros(0, bool)) == []


def test_shapes_are_checked(made: LandmarkSequence) -> None:
    with pytest.raises(UserError, match=r"mesh must have shape \(4, 468, 3\), got \(3, 468, 3\)"):
        replace(made, mesh=made.mesh[:3])
    with pytest.raises(UserError, match="must be positive, got 0x64"):
        replace(made, width=0)


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    with np.load(path) as archive:
        content = dict(archive)
    change(content)
    np.savez_compressed(path, **content)


def header_with(**values: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        header = {**json.loads(str(content["header"])), **values}
        content["header"] = np.array(json.dumps(header))

    return change


def array_as(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update({name: value})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (header_with(version=2), "version 2; this program reads version 1"),
        (header_with(points=468), "has 468 landmarks a frame; 478 are needed"),
        (header_with(schema="other"), "expected the schema 'fye.landmarks'"),
        (header_with(fps="1/0"), "no usable width, height and fps"),
        (header_with(width=None), "no usable width, height and fps"),
        (header_with(frames=9), r"landmarks must have shape \(9, 478, 3\)"),
        (lambda content: content.pop("header"), "it has no header"),
        (lambda content: content.pop("mesh"), "lacks mesh"),
        (array_as("header", np.array("{")), "its header is not JSON"),
        (array_as("header", np.array("[1]")), "expected the schema"),
        (array_as("landmarks", np.zeros((4, 468, 3))), r"landmarks must have shape .* got float64 \(4, 468, 3\)"),
        (array_as("found", np.zeros(4)), "found must have shape .* got float64"),
        (array_as("mesh", np.full((4, 468, 3), np.nan)), "mesh has values that are not finite"),
    ],
)
def test_a_wrong_file_is_named(
    made: LandmarkSequence, tmp_path: Path, change: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    path = tmp_path / "s.npz"
    made.save(path)
    rewrite(path, change)
    with pytest.raises(UserError, match=sentence) as caught:
        LandmarkSequence.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95, 0.999])
def test_a_file_cut_short_is_named(made: LandmarkSequence, tmp_path: Path, share: float) -> None:
    path = tmp_path / "s.npz"
    made.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="cut short or damaged"):
        LandmarkSequence.load(path)


def test_a_damaged_file_is_named(made: LandmarkSequence, tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    made.save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(UserError, match="cut short or damaged"):
        LandmarkSequence.load(path)


def test_other_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "template.npy", np.zeros(3))
    for name, sentence in {
        "text.npz": "is not an .npz landmark sequence",
        "empty.npz": "is empty",
        "template.npy": "official .npy template is read by the importer",
        "absent.npz": "does not exist",
        ".": "is a folder",
    }.items():
        with pytest.raises(UserError, match=sentence):
            LandmarkSequence.load(tmp_path / name)


def test_a_pickle_inside_an_npz_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez(path, header=np.array([Trap(tmp_path / "sprung")], object))
    (tmp_path / "sprung").unlink(missing_ok=True)
    with pytest.raises(UserError):
        LandmarkSequence.load(path)
    assert not (tmp_path / "sprung").exists()


def test_a_folder_that_is_not_there_is_named(made: LandmarkSequence, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent/s\.npz cannot be written"):
        made.save(tmp_path / "absent" / "s.npz")


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


def official_frames(made: LandmarkSequence) -> list[dict[str, Any]]:
    return [
        {
            "lmks": made.landmarks[number].astype(np.float64),
            "lmks3d": made.mesh[number].astype(np.float64),
            "trans_mat": made.transforms[number],
            "faces": np.ones((898, 3), int),
            "bs": [float(score) for score in made.blendshapes[number, 1:]],
            "width": np.int64(64),
            "height": 64,
        }
        for number in range(len(made))
    ]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_an_official_template_is_imported(made: LandmarkSequence, tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "template.npy"
    write_npy(path, official_frames(made), protocol)
    read = load_official_npy(path, fps=Fraction(30))
    np.testing.assert_array_equal(read.landmarks, made.landmarks.astype(np.float64))
    np.testing.assert_array_equal(read.mesh, made.mesh.astype(np.float64))
    np.testing.assert_array_equal(read.transforms, made.transforms)
    np.testing.assert_array_equal(read.blendshapes[:, 1:], made.blendshapes[:, 1:].astype(np.float64))
    assert not read.blendshapes[:, 0].any()
    assert read.found.all()
    assert (read.width, read.height, read.fps) == (64, 64, Fraction(30))


def test_a_template_of_an_older_numpy_is_imported(made: LandmarkSequence, tmp_path: Path) -> None:
    path = tmp_path / "template.npy"
    write_npy(path, official_frames(made), 2)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.", b"numpy.core."))
    assert b"numpy.core.multiarray" in path.read_bytes()
    assert len(load_official_npy(path)) == len(made)


def write_npy(path: Path, content: Any, protocol: int = 4) -> None:
    """An object `.npy` as numpy writes it, with the pickle protocol of one's choice."""
    array = np.empty(len(content), object)
    array[:] = content
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    path.write_bytes(header.getvalue() + pickle.dumps(array, protocol=protocol))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_template_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    path, sprung = tmp_path / "template.npy", tmp_path / "sprung"
    write_npy(path, [{"lmks": Trap(sprung)}], protocol)
    with pytest.raises(UserError, match=r"is refused as a landmark template: it asks for (posix|nt)\.system"):
        load_official_npy(path)
    assert not sprung.exists()
    np.load(path, allow_pickle=True)  # the trap is a real one
    assert sprung.exists()


@pytest.mark.parametrize(
    "name",
    ["builtins eval", "builtins getattr", "os system", "numpy.core.multiarray fromfile", "numpy load", "numpy f2py"],
)
def test_every_other_name_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "template.npy"
    write_npy(path, [{}])
    header = path.read_bytes()[:128]
    path.write_bytes(header + b"c" + name.replace(" ", "\n").encode() + b"\n.")
    with pytest.raises(UserError, match=f"it asks for {name.replace(' ', '.')}"):
        load_official_npy(path)


@pytest.mark.parametrize("shape", [(10**9,), (-1, 7), (2,)])
def test_an_array_that_lies_about_its_size_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    class Liar:
        def __reduce__(self) -> tuple[Any, ...]:
            build, arguments, (version, _, *rest) = np.zeros(3).__reduce__()  # pyright: ignore[reportAssignmentType]
            return build, arguments, (version, shape, *rest)

    write_npy(tmp_path / "template.npy", [{"lmks": Liar()}])
    with pytest.raises(UserError, match="not an official landmark template"):
        load_official_npy(tmp_path / "template.npy")


def test_damage_anywhere_is_a_user_error_or_other_numbers(made: LandmarkSequence, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, write, read in (
        ("s.npz", made[:1].save, LandmarkSequence.load),
        ("t.npy", lambda path: write_npy(path, official_frames(made)[:1]), load_official_npy),
    ):
        path = tmp_path / name
        write(path)
        content = path.read_bytes()
        for _ in range(100):
            damaged = bytearray(content)
            damaged[random.integers(600)] = random.integers(256)
            damaged[-random.integers(1, 600)] = random.integers(256)
            path.write_bytes(damaged)
            with suppress(UserError):
                read(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lmks": np.zeros((468, 3))}, r"frame 1 must have lmks of shape \(478, 3\), got \(468, 3\)"),
        ({"bs": None}, r"frame 1 must have bs of shape \(51,\), got nothing usable"),
        ({"bs": ["x"] * 51}, "got nothing usable"),
        ({"trans_mat": np.full((4, 4), np.inf)}, "got nothing usable"),
        ({"width": 65}, "frame 1 has another picture size"),
    ],
)
def test_a_wrong_template_is_named(
    made: LandmarkSequence, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    frames = official_frames(made)
    frames[1].update(change)
    write_npy(tmp_path / "template.npy", frames)
    with pytest.raises(UserError, match=sentence):
        load_official_npy(tmp_path / "template.npy")


def test_what_is_no_template_is_named(made: LandmarkSequence, tmp_path: Path) -> None:
    path = tmp_path / "template.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(UserError, match="not an official landmark template"):
        load_official_npy(path)
    write_npy(path, [1, 2])
    with pytest.raises(UserError, match="expected a list with one dict a frame"):
        load_official_npy(path)
    write_npy(path, [{"lmks": 1}])
    with pytest.raises(UserError, match="no width and height"):
        load_official_npy(path)
    write_npy(path, official_frames(made))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"template\.npy"):
        load_official_npy(path)
    path.write_bytes(struct.pack("<100B", *range(100)))
    with pytest.raises(UserError, match="not an official landmark template"):
        load_official_npy(path)


def test_row_41_a_long_sequence_stays_on_the_disk(tmp_path: Path) -> None:
    held = sequence([face(number) for number in range(5)])
    held.save(tmp_path / "driver.npz")
    read = LandmarkSequence.load(tmp_path / "driver.npz", folder=tmp_path / "work" / "landmarks")
    assert type(read.landmarks) is type(read.mesh) is DiskArray
    assert (len(read), read.fps, read.gaps()) == (5, held.fps, [])
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(read[1:4], name), getattr(held, name)[1:4])
        assert getattr(read, name).dtype == getattr(held, name).dtype
    held.mesh[4, 7] = np.nan
    held.save(tmp_path / "damaged.npz")
    with pytest.raises(UserError, match="mesh has values that are not finite"):
        LandmarkSequence.load(tmp_path / "damaged.npz", folder=tmp_path / "other")
