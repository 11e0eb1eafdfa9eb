"""Drivers as they come from phones, editors and broken downloads. Numbers name the rows of the table of inputs."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from fye_command import grey_frames, make_video, read_sound
from PIL import Image

from fye_pipeline.errors import UserError
from fye_pipeline.media.source import Source, open_source
from fye_pipeline.media.video import at_constant_rate, probe, read_frames
from fye_pipeline.media.writer import write_video
from fye_pipeline.progress import collected_notes

FAST_START = {"movflags": "faststart"}  # the index before the pictures


def levels(source: Source) -> list[int]:
    """The grey level of every frame, in steps of 10."""
    return [round(float(frame.mean()) / 10) for frame in source.frames()]


def test_row_01_a_video_without_its_index_is_incomplete_and_one_with_it_at_the_end_works(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mp4", grey_frames(8))
    data = whole.read_bytes()
    assert data.rindex(b"moov") > data.index(b"mdat")
    assert levels(open_source(whole)) == list(range(8))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: data.index(b"moov") - 40])
    with pytest.raises(UserError, match=r"cannot be read.*incomplete"):
        open_source(cut)


@pytest.mark.parametrize("fault", ["zeros", "cut"])
def test_row_02_damage_in_the_middle_names_the_second(tmp_path: Path, fault: str) -> None:
    noise = [np.random.default_rng(index).integers(0, 255, (64, 64, 3)).astype(np.uint8) for index in range(20)]
    data = bytearray(make_video(tmp_path / "whole.mp4", noise, options=FAST_START).read_bytes())
    half = len(data) // 2
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data[:half] if fault == "cut" else bytes([*data[:half], *bytes(4000), *data[half + 4000 :]]))
    with pytest.raises(UserError, match=r"after frame \d+ \(0\.\d\d s\): pass --allow-partial"):
        list(open_source(damaged).frames())
    assert len(list(open_source(damaged).frames(3))) == 3
    with collected_notes() as notes:
        part = list(open_source(damaged, allow_partial=True).frames())
    assert 3 < len(part) < 20
    assert len(notes) == 1
    assert f"after frame {len(part)}" in notes[0]


def test_row_03_an_empty_file_and_a_renamed_text_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello\n" * 50)
    with pytest.raises(UserError, match="is empty"):
        open_source(tmp_path / "empty.mp4")
    with pytest.raises(UserError, match="is not a video"):
        open_source(tmp_path / "text.mp4")


def test_row_04_a_folder_without_pictures_and_an_absent_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "whole.mp4", grey_frames(2), Fraction(25))
    with pytest.raises(UserError, match="clips is a folder without pictures"):
        open_source(tmp_path / "clips")
    with pytest.raises(UserError, match=r"did you mean .*whole\.mp4"):
        open_source(tmp_path / "whle.mp4")


def test_row_05_sound_alone_has_no_picture(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match="has no picture"):
        open_source(tmp_path / "song.mp4")


def test_row_06_a_picture_drives_one_frame_and_this_is_said(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "face.mp4", format="PNG")
    with collected_notes() as notes:
        source = open_source(tmp_path / "face.mp4")
    assert source.kind == "picture"
    assert "single picture" in notes[0]
    assert len(list(source.frames())) == 1


def test_row_07_a_variable_rate_follows_its_timestamps(tmp_path: Path) -> None:
    times = [0, 40, 80, 120, 160, 200, 600, 1000, 1040, 1080, 1120, 1160, 1200]  # ms
    path = make_video(tmp_path / "phone.mkv", grey_frames(len(times)), times=times)
    source = open_source(path, fps=Fraction(25))
    seen = levels(source)
    assert seen == [0, 1, 2, 3, 4] + [5] * 10 + [6] * 10 + [7, 8, 9, 10, 11, 12]
    own = open_source(path)
    assert abs(len(levels(own)) / own.fps - Fraction(1240, 1000)) <= 1 / own.fps


def test_row_07_items_stand_at_the_nearest_tick() -> None:
    def ticks(*times: float, fps: int = 10) -> list[int]:
        timed = [(Fraction(time).limit_denominator(1000), Fraction(1, 10), index) for index, time in enumerate(times)]
        return list(at_constant_rate(timed, Fraction(fps)))

    assert ticks(0, 0.1, 0.2) == [0, 1, 2]
    assert ticks(0, 0.133, 0.167) == [0, 1, 2], "jitter under half a tick changes nothing"
    assert ticks(0, 0.3) == [0, 0, 0, 1]
    assert ticks(0, 0.01, 0.02, 0.1) == [2, 3]
    assert ticks(0, fps=5) == [0], "at least one"
    assert ticks() == []


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(12, 5), Fraction(60)])
def test_row_08_fractional_rates_are_kept_exactly(tmp_path: Path, fps: Fraction) -> None:
    path = make_video(tmp_path / "a.mp4", grey_frames(7), fps=fps)
    assert open_source(path).fps == fps
    write_video(tmp_path / "b.mp4", open_source(path).frames(), fps)
    assert probe(tmp_path / "b.mp4").fps == fps
    assert levels(open_source(tmp_path / "b.mp4")) == list(range(7))


def test_row_09_a_phone_video_is_turned_upright(tmp_path: Path) -> None:
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:, :48] = (200, 30, 30)  # as the sensor saw it; shown, this side is on top
    data = bytearray(make_video(tmp_path / "sensor.mp4", [frame] * 3).read_bytes())
    # The matrix in the track's header: (x, y) is shown at (-y, x), a quarter turn clockwise, as phones write it.
    at = data.index(b"tkhd") + 4 + 40
    words = [0, 1 << 16, 0, (-1) % (1 << 16) << 16, 0, 0, 64 << 16, 0, 1 << 30]
    data[at : at + 36] = b"".join(word.to_bytes(4, "big") for word in words)
    (tmp_path / "phone.mp4").write_bytes(data)
    shown = next(open_source(tmp_path / "phone.mp4").frames())
    assert shown.shape == (96, 64, 3)
    assert shown[10:40, :, 0].min() > 150
    assert shown[56:].max() < 60


def test_row_10_a_video_without_sound_has_none(tmp_path: Path) -> None:
    path = make_video(tmp_path / "silent.mp4", grey_frames(5))
    assert open_source(path).sound is None
    write_video(tmp_path / "out.mp4", grey_frames(5), Fraction(25), sound=open_source(path).sound)
    assert not probe(tmp_path / "out.mp4").has_audio


@pytest.mark.parametrize(
    ("name", "codec", "kept"),
    [("a.mp4", "aac", "aac"), ("a.mkv", "libopus", "opus"), ("b.mkv", "pcm_s16le", "aac"), ("c.mkv", "flac", "flac")],
)
def test_row_11_sound_is_copied_or_becomes_aac_and_ends_with_the_picture(
    tmp_path: Path, name: str, codec: str, kept: str
) -> None:
    frames = grey_frames(25)
    driver = make_video(tmp_path / name, frames, sound=codec, seconds=3, tone_at=0.5)
    with collected_notes() as notes:
        write_video(tmp_path / "out.mp4", frames, Fraction(25), sound=open_source(driver).sound)
    found, samples, rate = read_sound(tmp_path / "out.mp4")
    assert found == kept
    assert bool(notes) == (codec == "pcm_s16le")
    loud = np.flatnonzero(np.abs(samples) > 0.2)[0] / rate
    assert abs(loud - 0.5) < 0.04, "the sound is out of step"
    with av.open(str(tmp_path / "out.mp4")) as container:
        for stream in container.streams:
            assert stream.duration is not None
            assert stream.time_base is not None
            assert abs(stream.duration * stream.time_base - 1) <= Fraction(1, 25)


def test_row_11_copied_sound_is_the_same_bytes(tmp_path: Path) -> None:
    driver = make_video(tmp_path / "a.mp4", grey_frames(25), sound="aac", seconds=1)
    write_video(tmp_path / "out.mp4", grey_frames(25), Fraction(25), sound=driver)

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(audio=0) if packet.size]

    assert packets(tmp_path / "out.mp4") == packets(driver)[: len(packets(tmp_path / "out.mp4"))]
    assert len(packets(tmp_path / "out.mp4")) >= 46


def test_row_11_sound_that_is_shorter_than_the_picture_leaves_its_length(tmp_path: Path) -> None:
    driver = make_video(tmp_path / "a.mp4", grey_frames(25), sound="aac", seconds=0.3)
    write_video(tmp_path / "out.mp4", grey_frames(25), Fraction(25), sound=driver)
    assert len(list(read_frames(tmp_path / "out.mp4"))) == 25


def test_row_12_ten_bits_and_hdr_are_never_silent(tmp_path: Path) -> None:
    deep = make_video(tmp_path / "deep.mp4", grey_frames(3), pixel_format="yuv420p10le")
    hdr = make_video(tmp_path / "hdr.mp4", grey_frames(3), pixel_format="yuv420p10le", transfer=16)
    with collected_notes() as notes:
        assert levels(open_source(deep)) == [0, 1, 2]
        open_source(hdr)
    assert "10 bits" in notes[0]
    assert "PQ HDR" in notes[1]
    assert "tone-mapped" in notes[1]
    assert levels(open_source(hdr)) != [0, 1, 2]


def test_row_13_odd_sides_become_even(tmp_path: Path) -> None:
    write_video(tmp_path / "odd.mp4", grey_frames(3, 63, 65), Fraction(25))
    assert next(read_frames(tmp_path / "odd.mp4")).shape == (64, 66, 3)


def test_row_14_a_huge_frame_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", grey_frames(2))
    with pytest.raises(UserError, match="80 x 64 pixels, more than 5,000"):
        open_source(path, max_pixels=5000)


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_row_20_animations_drive_with_their_own_delays(tmp_path: Path, kind: str) -> None:
    frames = [Image.fromarray(frame) for frame in grey_frames(4)]
    path = tmp_path / f"moving.{kind}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[100, 100, 300, 100])
    source = open_source(path, fps=Fraction(10))
    assert source.kind == "animation"
    assert levels(source) == [0, 1, 2, 2, 2, 3]
    own = open_source(path)
    assert own.fps == Fraction(4, Fraction(6, 10))
    assert abs(len(levels(own)) / own.fps - Fraction(6, 10)) <= 1 / own.fps


def test_a_folder_of_pictures_drives_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        Image.new("RGB", (64, 64), (number * 10,) * 3).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    source = open_source(tmp_path, fps=Fraction(12))
    assert source.fps == 12
    assert source.frame_count == 3
    assert levels(source) == [1, 2, 10]


def test_row_40_a_video_of_one_frame_works(tmp_path: Path) -> None:
    assert levels(open_source(make_video(tmp_path / "one.mp4", grey_frames(1)))) == [0]


def test_real_videos_keep_every_frame(driving_dir: Path) -> None:
    for path in sorted(driving_dir.glob("*.mp4")):
        info = probe(path)
        assert sum(1 for _ in read_frames(path)) == info.frame_count
