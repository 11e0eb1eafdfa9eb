"""Strange pictures and videos of people, each told in one sentence. Numbers name rows of the table of inputs."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from fye_command import Fye, assert_same_pictures, make_video
from PIL import Image, ImageCms

from fye_pipeline.animate.config import DEMO_PORTRAIT
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.media.image import read_picture
from fye_pipeline.media.video import read_frames
from fye_pipeline.media.writer import Matte, write_video
from fye_pipeline.progress import collected_notes

FAST = ("--steps", 2, "--frames", 2, "--quiet")


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    return np.asarray(Image.open(DEMO_PORTRAIT).convert("RGB").resize((256, 256)))


def png(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds one byte of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_row_14_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(60_000, 60_000))
    with pytest.raises(UserError, match=r"60000 x 60000 pixels, more than 100,000,000.*--max-pixels"):
        read_picture(tmp_path / "bomb.png")


def test_row_15_a_small_face_is_refused_with_its_size(
    fye: Fye, tmp_path: Path, face_landmarker_path: Path, random_model: Path
) -> None:
    detector = ("--face-landmarker", face_landmarker_path, "--model", random_model)
    arguments = ("--reference", DEMO_PORTRAIT, "--min-face", 1000, "--output", tmp_path / "a.mp4")
    sentence = fye.refused("animate", *arguments, *detector, *FAST)
    assert "at least 1000" in sentence
    Image.new("RGB", (20, 80)).save(tmp_path / "tiny.png")
    with pytest.raises(UserError, match="20 x 80"):
        read_picture(tmp_path / "tiny.png")


def test_row_16_a_turned_picture_is_upright(tmp_path: Path) -> None:
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:, :40] = (200, 30, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to show
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    turned = read_picture(tmp_path / "turned.png")
    assert turned.shape == (80, 60, 3)
    assert (turned[:40] == (200, 30, 30)).all()


def test_row_17_transparency_lies_over_the_chosen_background(tmp_path: Path) -> None:
    layered = Image.new("RGBA", (60, 60), (200, 30, 30, 0))
    layered.paste((200, 30, 30, 255), (0, 0, 30, 60))
    layered.save(tmp_path / "alpha.png")
    assert (read_picture(tmp_path / "alpha.png")[:, 30:] == 255).all()
    shown = read_picture(tmp_path / "alpha.png", background="#204060")
    assert (shown[:, 30:] == (0x20, 0x40, 0x60)).all()
    assert (shown[:, :30] == (200, 30, 30)).all()


@pytest.mark.parametrize("kind", ["webm", "mov"])
def test_row_17_alpha_comes_back(
    fye: Fye, tmp_path: Path, face: np.ndarray, face_landmarker_path: Path, random_model: Path, kind: str
) -> None:
    cover = np.full((256, 256), 255, np.uint8)
    cover[:, :60], cover[:, 60:80] = 0, 128
    Image.fromarray(np.dstack([face, cover])).save(tmp_path / "cut out.png")
    driver = make_video(tmp_path / "driver.mp4", [face] * 3, sound="aac", seconds=1)
    files = ("--reference", tmp_path / "cut out.png", "--driving", driver, "--background", "#20a040")
    options = ("--model", random_model, "--face-landmarker", face_landmarker_path, "--json", *FAST)
    output = tmp_path / f"out.{kind}"
    code, out, err = fye("animate", *files, "--alpha", "--output", output, *options)
    assert code == 0, err
    with av.open(str(output)) as container:
        stream, found = container.streams.video[0], []
        own = av.CodecContext.create("libvpx-vp9", "r") if kind == "webm" else stream.codec_context
        for packet in container.demux(stream):  # FFmpeg's own VP9 decoder leaves the alpha channel out
            found += own.decode(packet)
        assert container.streams.audio[0].codec_context.name == ("opus" if kind == "webm" else "aac")
    picture = np.asarray(found[0].to_ndarray(format="rgba"), np.uint8)
    assert len(found) == json.loads(out)["frames"] == 2
    assert picture.shape == (256, 256, 4)
    assert np.abs(picture[:200, :, 3].astype(int) - cover[:200]).mean() < 2
    assert picture[-8:, -60:, 3].max() > 250, "the mark is seen"
    sentence = fye.refused("animate", *files, "--alpha", "--output", tmp_path / "out.mp4", *options[:-3])
    assert "ends in .webm or .mov" in sentence
    arguments = ("--reference", DEMO_PORTRAIT, "--alpha", "--output", tmp_path / "b.webm", *options[:4], *FAST)
    assert "has no transparency" in fye.refused("animate", *arguments)


def test_row_17_a_matte_gives_the_frame_again_over_its_background() -> None:
    rng = np.random.default_rng(0)
    cover = rng.integers(0, 256, (8, 8)).astype(np.uint8)
    under = np.array([0x20, 0xA0, 0x40], np.float64)
    share = cover[..., None] / 255
    frame = np.round(share * rng.integers(0, 256, (8, 8, 3)) + (1 - share) * under).astype(np.uint8)
    marked = frame.copy()
    marked[6:, 6:] = 255 - frame[6:, 6:]
    laid = Matte(cover, "#20a040").lay(frame, marked)
    again = laid[..., 3:] / 255 * laid[..., :3] + (1 - laid[..., 3:] / 255) * under
    assert np.abs(again - marked)[cover > 8].max() <= 1
    assert (laid[6:, 6:, 3] == 255).all()
    assert (laid[:6, :, 3] == cover[:6]).all()


def test_row_18_print_colours_palettes_and_profiles_become_srgb(tmp_path: Path) -> None:
    picture = Image.new("RGB", (60, 60), (200, 30, 30))
    picture.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert np.abs(read_picture(tmp_path / "print.jpg")[30, 10].astype(int) - (200, 30, 30)).max() < 12
    picture.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    assert np.abs(read_picture(tmp_path / "palette.png")[30, 10].astype(int) - (200, 30, 30)).max() < 4
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    picture.save(tmp_path / "profile.png", icc_profile=linear)
    assert read_picture(tmp_path / "profile.png").shape == (60, 60, 3)
    picture.save(tmp_path / "damaged.png", icc_profile=b"no profile")
    assert (read_picture(tmp_path / "damaged.png") == (200, 30, 30)).all()


def test_row_19_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    for level, shown in ((32768, 128), (200, 1), (65535, 255)):
        Image.fromarray(np.full((60, 60), level, np.uint16)).save(tmp_path / "deep.png")
        assert abs(int(read_picture(tmp_path / "deep.png")[0, 0, 0]) - shown) <= 1


def test_row_20_of_an_animation_the_first_frame_is_the_portrait_and_this_is_said(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (60, 60), colour) for colour in ("red", "blue", "green")]
    for kind in ("gif", "webp"):
        path = tmp_path / f"moving.{kind}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        with collected_notes() as notes:
            assert read_picture(path)[0, 0, 0] > 200
        assert "3 frames; the first" in notes[0]


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"hevc"])
def test_row_21_heic_names_what_to_install(
    fye: Fye, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brand: bytes
) -> None:
    """An iPhone's file: ftyp, then meta; without pillow-heif nothing here can read it, whatever its name."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)

    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", 8 + len(content)) + kind + content

    meta = box(b"meta", bytes(4) + box(b"hdlr", bytes(8) + b"pict" + bytes(13)))
    data = box(b"ftyp", brand + bytes(4) + b"mif1heic") + meta + box(b"mdat", bytes(200))
    for name in ("phone.heic", "phone.jpg"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=r"is a HEIC picture: `pip install pillow-heif`, or save it as JPEG"):
            read_picture(tmp_path / name)
    arguments = ("--reference", tmp_path / "phone.heic", "--output", tmp_path / "a.mp4")
    assert "pip install pillow-heif" in fye.refused("animate", *arguments, *FAST)


def test_row_22_a_portrait_without_a_face_names_the_best_score(
    fye: Fye, tmp_path: Path, face_landmarker_path: Path, random_model: Path
) -> None:
    Image.effect_noise((256, 256), 60).convert("RGB").save(tmp_path / "noise.png")
    arguments = ("--reference", tmp_path / "noise.png", "--output", tmp_path / "a.mp4", "--model", random_model)
    sentence = fye.refused("animate", *arguments, "--face-landmarker", face_landmarker_path, *FAST)
    assert "No face" in sentence
    assert "score" in sentence
    assert not (tmp_path / "a.mp4").exists()


def test_row_23_and_row_24_a_driver_without_a_face_is_refused_and_with_gaps_is_filled(
    fye: Fye, tmp_path: Path, face: np.ndarray, face_landmarker_path: Path, random_model: Path
) -> None:
    blank = np.zeros_like(face)
    write_video(tmp_path / "none.mp4", [blank] * 4, Fraction(10))
    write_video(tmp_path / "first.mp4", [blank] + [face] * 3, Fraction(10))
    options = ("--face-landmarker", face_landmarker_path, "--model", random_model, "--steps", 2)
    arguments = ("--driving", tmp_path / "none.mp4", "--output", tmp_path / "a.mp4")
    assert "No face" in fye.refused("animate", *arguments, *options)
    arguments = ("--driving", tmp_path / "first.mp4", "--output", tmp_path / "b.mp4", "--json")
    code, out, err = fye("animate", *arguments, *options)
    assert code == 0, err
    assert json.loads(out)["frames_without_face"] == [[0, 1]]
    assert json.loads(out)["frames"] == 4
    assert any("no sound" in note for note in json.loads(out)["notes"])


def test_row_6_row_25_and_row_26_a_group_picture_with_a_strange_name_driven_by_a_picture(
    fye: Fye,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    face: np.ndarray,
    face_landmarker_path: Path,
    random_model: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    group = np.full((300, 600, 3), 128, np.uint8)
    group[20:276, :256] = face
    group[60:252, 360:552] = np.asarray(Image.fromarray(face).resize((192, 192)))
    Image.fromarray(group).save('it\'s a "group" 画 .png')
    options = ("--face-landmarker", face_landmarker_path, "--model", random_model, "--steps", 2, "--json")
    files = ("--reference", 'it\'s a "group" 画 .png', "--driving", DEMO_PORTRAIT, "--output", '-it\'s "画".mp4')
    code, out, err = fye("animate", *files, *options)
    assert code == 0, err
    assert "2 faces" in err
    assert "single picture" in err
    result = json.loads(out)
    assert result["frames"] == 1
    assert result["size"] == [600, 300], "pasted back into the whole picture"
    left = result["crop"]["left"]
    frame = next(read_frames('-it\'s "画".mp4'))
    assert np.abs(frame[:250, 400:].astype(int) - group[:250, 400:]).mean() < 5, "the other face is left alone"

    code, out, err = fye("animate", *files, *options, "--face", 2, "--crop-only", "--overwrite")
    assert code == 0, err
    assert "2 faces" not in err
    crop = json.loads(Path('-it\'s "画"_crop.json').read_text(encoding="utf-8"))
    assert crop == json.loads(out)["crop"]
    assert crop["left"] > left + 200
    assert json.loads(out)["size"] == [64, 64], "as large as the model makes pictures"


def test_row_27_the_detector_is_given_bytes_so_that_no_path_can_hurt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, face: np.ndarray, face_landmarker_path: Path
) -> None:
    from mediapipe.tasks.python.core import base_options

    given: list[dict[str, Any]] = []
    original = base_options.BaseOptions

    def record(**options: Any) -> Any:
        given.append(options)
        return original(**options)

    monkeypatch.setattr(base_options, "BaseOptions", record)
    strange = tmp_path / "Modèle 顔"
    strange.mkdir()
    path = Path(shutil.copy(face_landmarker_path, strange))
    with FaceLandmarkDetector(path) as detector:
        assert detector.detect(face) is not None
    assert set(given[0]) == {"model_asset_buffer"}


def test_sound_is_carried_over_unless_it_is_not_wanted(
    fye: Fye, tmp_path: Path, face: np.ndarray, face_landmarker_path: Path, random_model: Path
) -> None:
    driver = make_video(tmp_path / "driver.mp4", [face] * 5, sound="aac", seconds=1)
    options = ("--model", random_model, "--face-landmarker", face_landmarker_path, "--steps", 2, "--json")
    for flags, sound in (((), True), (("--no-audio",), False)):
        output = tmp_path / f"{len(flags)}.mp4"
        code, out, err = fye("animate", "--driving", driver, "--output", output, *flags, *options)
        assert code == 0, err
        assert json.loads(out)["sound"] is sound


def test_a_portrait_may_be_a_video_and_a_result_repeats_itself(
    fye: Fye, tmp_path: Path, face: np.ndarray, face_landmarker_path: Path, random_model: Path
) -> None:
    write_video(tmp_path / "me.mp4", [np.zeros_like(face), face, face], Fraction(10))
    options = ("--face-landmarker", face_landmarker_path, "--json")
    first, second, saved = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "a.json"
    flags = ("--model", random_model, "--steps", 2, "--frames", 2, "--regions", "lips,pose", "--save-config", saved)
    code, out, err = fye("animate", "--reference", tmp_path / "me.mp4", "--output", first, *flags, *options)
    assert code == 0, err
    assert "frame 1 (0.10 s) is the portrait" in err
    for config in (first, saved):
        code, _, err = fye("animate", "--config", config, "--output", second, "--overwrite", *options)
        assert code == 0, err
        assert_same_pictures(second, first)
    assert json.loads(out)["settings"] == json.loads(saved.read_text())
    arguments = ("--config", first, "--output", second, "--overwrite", "--reference-frame", 7)
    assert "has no frame 7" in fye.refused("animate", *arguments, *options)


@pytest.mark.parametrize("frames", [1, 5])
def test_row_40_a_driver_shorter_than_a_clip_works(
    fye: Fye, tmp_path: Path, face: np.ndarray, face_landmarker_path: Path, random_model: Path, frames: int
) -> None:
    driver = make_video(tmp_path / "short.mp4", [face] * frames, fps=Fraction(12))
    options = ("--model", random_model, "--face-landmarker", face_landmarker_path, "--steps", 1, "--json")
    code, out, err = fye("animate", "--driving", driver, "--output", tmp_path / "a.mp4", *options)
    assert code == 0, err
    assert json.loads(out)["frames"] == frames == len(list(read_frames(tmp_path / "a.mp4")))
