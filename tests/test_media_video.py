"""Videos and pictures as they come from phones, cameras and broken downloads."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from fye_pipeline.errors import UserError
from fye_pipeline.media.image import read_picture
from fye_pipeline.media.video import probe, read_comment, read_frames
from fye_pipeline.media.writer import VideoWriter, watermark, write_video
from fye_pipeline.storage.files import atomic_target, writable_target


def grey_frames(count: int, height: int = 64, width: int = 80) -> list[np.ndarray]:
    return [np.full((height, width, 3), 20 * index % 256, np.uint8) for index in range(count)]


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001), Fraction(12, 5)])
def test_frame_rate_count_and_levels_survive(tmp_path: Path, fps: Fraction) -> None:
    path = tmp_path / "a b 画.mp4"
    frames = grey_frames(9)
    write_video(path, frames, fps, comment='{"seed": 1}')
    assert probe(path).fps == fps
    decoded = list(read_frames(path))
    assert len(decoded) == 9
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(frames, decoded, strict=True)) <= 3
    assert read_comment(path) == '{"seed": 1}'
    assert len(list(read_frames(path, limit=4))) == 4


def test_colours_survive_but_for_the_encoder(tmp_path: Path) -> None:
    """Written and read, soft colours are where they were, and no darker; by swscale's quick ways they were not."""
    noise = np.random.default_rng(0).integers(40, 216, (2, 8, 8, 3), dtype=np.uint8)
    frames = [np.asarray(Image.fromarray(each).resize((128, 128), Image.Resampling.BICUBIC)) for each in noise]
    write_video(tmp_path / "a.mp4", frames, Fraction(25))
    error = np.stack(list(read_frames(tmp_path / "a.mp4"))).astype(int) - np.stack(frames)
    assert np.abs(error).mean() < 2.8
    assert np.abs(error.mean((0, 1, 2))).max() < 0.5


def test_odd_sides_are_padded_to_even(tmp_path: Path) -> None:
    write_video(tmp_path / "odd.mp4", grey_frames(3, 63, 65), Fraction(25))
    assert next(read_frames(tmp_path / "odd.mp4")).shape == (64, 66, 3)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "x.mp4", Fraction(25)) as writer:
        writer.write(grey_frames(1)[0])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_overwrite_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "old.bin"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_target(target) as temporary:
        temporary.write_bytes(b"new")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def broken_videos(folder: Path) -> dict[str, Path]:
    whole = folder / "whole.mp4"
    write_video(whole, grey_frames(5), Fraction(25))
    (folder / "cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video\n" * 50)
    (folder / "folder.mp4").mkdir()
    with av.open(str(folder / "sound.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return {path.stem: path for path in folder.iterdir()} | {"absent": folder / "whole.mp3"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cut", "cannot be read as a video"),
        ("empty", "is empty"),
        ("text", "cannot be read as a video"),
        ("folder", "is a folder"),
        ("sound", "has no picture"),
        ("absent", "did you mean .*whole.mp4"),
    ],
)
def test_what_is_no_video_is_refused_in_one_sentence(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        list(read_frames(broken_videos(tmp_path)[name]))
    assert "\n" not in str(caught.value)


def test_the_mark_is_in_the_corner_only() -> None:
    frame = np.full((128, 128, 3), 120, np.uint8)
    marked = watermark(frame)
    changed = (marked != frame).any(-1)
    assert changed[100:, 64:].any()
    assert not changed[:100].any()
    assert marked.max() > 220
    assert frame.max() == 120
    for size in ((16, 16), (48, 64), (512, 512)):
        assert watermark(np.zeros((*size, 3), np.uint8)).shape == (*size, 3)


def test_pictures_are_read_as_their_author_saw_them(tmp_path: Path) -> None:
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:, :40] = (200, 30, 30)
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to show
    picture.save(tmp_path / "turned.png", exif=exif)
    turned = read_picture(tmp_path / "turned.png")
    assert turned.shape == (80, 60, 3)
    assert (turned[:40] == (200, 30, 30)).all()

    layered = picture.convert("RGBA")
    layered.putalpha(Image.fromarray(np.where(np.arange(80) < 40, 255, 0).astype(np.uint8)[None].repeat(60, 0)))
    layered.save(tmp_path / "alpha.png")
    assert (read_picture(tmp_path / "alpha.png")[:, 40:] == 255).all()

    deep = Image.fromarray(np.full((60, 60), 32768, np.uint16))
    deep.save(tmp_path / "deep.png")
    assert abs(int(read_picture(tmp_path / "deep.png")[0, 0, 0]) - 128) <= 1

    picture.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert np.abs(read_picture(tmp_path / "print.jpg")[30, 10].astype(int) - (200, 30, 30)).max() < 12


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (20, 80)).save(tmp_path / "tiny.png")
    (tmp_path / "text.png").write_text("hello")
    Image.effect_noise((200, 200), 50).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    Image.new("1", (200, 200)).save(tmp_path / "bomb.png")
    for name, reason in {"tiny.png": "20 x 80", "text.png": "not a picture", "cut.jpg": "cannot be decoded"}.items():
        with pytest.raises(UserError, match=reason):
            read_picture(tmp_path / name)
    with pytest.raises(UserError, match="more than 30,000"):
        read_picture(tmp_path / "bomb.png", max_pixels=30_000)


def test_output_paths_are_checked_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "there.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match="--overwrite"):
        writable_target(tmp_path / "there.mp4")
    assert writable_target(tmp_path / "there.mp4", overwrite=True) == tmp_path / "there.mp4"
    with pytest.raises(UserError, match="does not exist"):
        writable_target(tmp_path / "absent" / "a.mp4")
    with pytest.raises(UserError, match="is a folder"):
        writable_target(tmp_path)


def test_real_videos_decode_upright(driving_dir: Path) -> None:
    counts = {"d12.mp4": 183, "d18.mp4": 216, "temple_video.mp4": 97}
    for name, count in counts.items():
        path = driving_dir / name
        if path.exists():
            assert probe(path).frame_count == count
            assert next(read_frames(path)).dtype == np.uint8
