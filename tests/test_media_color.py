"""Deep and HDR video as sRGB, against the standards' formulas, on files that are encoded here. Row 12 of the inputs."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from fye_pipeline.media.color import (
    BT2020_TO_BT709,
    HLG,
    PQ,
    colour_note,
    narrow,
    pq_eotf,
    pq_inverse,
    roll_off,
    to_srgb,
    tone_map,
)

SDR, WIDE = (1, 1, 1), (14, 9, 9)  # transfer, primaries and matrix of BT.709 and of BT.2020 with 10 bits
LEVELS = np.array([[0.58, 0.58, 0.58], [0.75, 0.75, 0.75], [0.3, 0.3, 0.3], [0.5, 0.4, 0.35], [0.7, 0.2, 0.2]])


def srgb(linear: float) -> int:
    return round(255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055))


def patches(levels: np.ndarray, side: int = 32) -> np.ndarray:
    """Flat squares beside one another, 16 bits. [n, 3] in 0..1 -> [side, n * side, 3]."""
    return np.repeat(np.repeat((levels * 65535).round().astype(np.uint16)[None], side, 0), side, 1)


def encoded(path: Path, levels: np.ndarray, tags: tuple[int, int, int], bits: int = 10) -> Path:
    """One frame of patches, R'G'B' in 0..1, with transfer, primaries and matrix named."""
    picture = patches(levels)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "2"})
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuv420p10le" if bits == 10 else "yuv420p"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = tags
        context.color_range = 1
        matrix = tags[2]
        frame = av.VideoFrame.from_ndarray(picture, format="rgb48le")
        frame = frame.reformat(format=stream.pix_fmt, src_colorspace=matrix, dst_colorspace=matrix, dst_color_range=1)
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decoded(path: Path) -> av.VideoFrame:
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


def middles(picture: np.ndarray, side: int = 32) -> np.ndarray:
    return picture[side // 2, side // 2 :: side].astype(int)


@pytest.mark.parametrize(("tags", "bits"), [(SDR, 10), (SDR, 8), ((2, 2, 2), 10)])
def test_row_12_ten_bits_of_sdr_are_rounded_not_shifted(tmp_path: Path, tags: tuple[int, int, int], bits: int) -> None:
    frame = decoded(encoded(tmp_path / "a.mp4", LEVELS, tags, bits))
    assert np.abs(middles(to_srgb(frame)) - LEVELS * 255).max() <= (2.5 if bits == 8 else 1.0)
    assert (colour_note(frame, "a.mp4") is None) == (bits == 8)


def test_row_12_pq_in_a_file_is_tone_mapped(tmp_path: Path) -> None:
    light = np.array([5, 20, 50, 80])  # cd/m2, below the knee: kept
    grey = np.repeat(pq_inverse(np.array([*light, 203, 400, 1000]))[:, None], 3, 1)
    frame = decoded(encoded(tmp_path / "hdr.mp4", grey, (PQ, 9, 9)))
    assert "PQ HDR; it is tone-mapped" in str(colour_note(frame, "hdr.mp4"))
    seen = middles(to_srgb(frame))
    assert np.ptp(seen, axis=1).max() <= 2, "greys stay grey"
    assert np.abs(seen[:4, 1] - [srgb(each / 203) for each in light]).max() <= 2
    bright = seen[3:, 1]
    assert (np.diff(bright) >= 2).all(), "bright parts are told apart"
    assert bright[-1] == 255
    flat = frame.reformat(format="rgb24", src_colorspace=9, dst_colorspace=9).to_ndarray()
    assert np.abs(middles(flat) - seen).max() > 20, "read as SDR it would look flat"


def test_row_12_hlg_in_a_file_is_tone_mapped(tmp_path: Path) -> None:
    frame = decoded(encoded(tmp_path / "hlg.mp4", np.full((2, 3), [[0.5], [0.75]]), (HLG, 9, 9)))
    seen = middles(to_srgb(frame))
    assert abs(seen[0, 1] - srgb(1000 * (1 / 12) ** 1.2 / 203)) <= 2
    white = float(roll_off(np.array(203.0), 1000))  # three quarters of the signal are reference white, BT.2408
    assert abs(seen[1, 1] - srgb(white / 203)) <= 2


def test_row_12_wide_colours_become_narrow_and_greys_stay(tmp_path: Path) -> None:
    frame = decoded(encoded(tmp_path / "wide.mp4", LEVELS, WIDE))
    seen = middles(to_srgb(frame))
    assert np.abs(seen[:3] - LEVELS[:3] * 255).max() <= 1
    assert seen[4, 0] > 0.7 * 255 + 20, "the same code is a redder red in BT.2020"
    assert "BT.2020" in str(colour_note(frame, "wide.mp4"))


def test_a_colour_of_bt709_inside_bt2020_comes_back(tmp_path: Path) -> None:
    inside = np.linalg.inv(BT2020_TO_BT709.astype(np.float64))
    for colour in ((40.0, 0.0, 0.0), (10.0, 40.0, 5.0), (60.0, 30.0, 20.0)):
        signal = pq_inverse(np.maximum(inside @ np.array(colour), 0))
        seen = tone_map(patches(signal[None], 1), PQ)[0, 0]
        assert np.abs(seen.astype(int) - [srgb(each / 203) for each in colour]).max() <= 1, colour
    assert (narrow(patches(np.array([[0.5, 0.5, 0.5]]), 1))[0, 0] == 128).all()


def test_the_curves_are_those_of_the_standards() -> None:
    assert np.allclose(pq_eotf(np.array([0.0, 0.5081, 0.7518, 1.0])), [0, 100, 1000, 10000], rtol=2e-3)
    assert np.allclose(pq_eotf(pq_inverse(np.array([0.1, 203, 4000]))), [0.1, 203, 4000])
    light = np.linspace(0, 1000, 500)
    mapped = roll_off(light, 1000)
    assert (np.diff(mapped) > 0).all()
    assert np.isclose(mapped[-1], 203)
    assert np.allclose(mapped[light < 80], light[light < 80])
    assert (mapped <= light + 1e-9).all()
    assert np.isclose(roll_off(np.array(5000.0), 1000), 203)
