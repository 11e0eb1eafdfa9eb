"""A decoded video frame as sRGB pixels: the matrix that its makers used, 10 bits brought to 8, HDR tone-mapped to SDR.

HDR (PQ or HLG, BT.2020 primaries) is made linear light, rolled off to SDR white at 203 cd/m2 (ITU-R BT.2408's reference
white) by the curve of ITU-R BT.2390 on the largest of the three channels, which keeps the hue, turned to BT.709
primaries and coded as sRGB. Dynamic metadata (HDR10+, Dolby Vision) is not read.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from av import VideoFrame
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

# ITU-T H.273: transfer characteristics, colour primaries and matrix coefficients.
PQ, HLG = 16, 18
TRANSFERS = {PQ: "PQ", HLG: "HLG"}
_BT709, _UNSPECIFIED, _BT2020 = 1, 2, 9
_UNTAGGED_HD = 720  # lines from which video without tags is BT.709, as players take it

REFERENCE_WHITE = 203.0  # cd/m2, BT.2408: what SDR white becomes
HDR_PEAK = 1000.0  # cd/m2, the nominal peak of HLG, and of PQ that names none
_PQ_PEAK = 10_000.0
_LEVELS = 1 << 16
# swscale's quick ways take the nearest chroma and round down: seven levels off on textured colour, and 1 too dark.
EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP | Interpolation.FULL_CHR_H_INT

# Linear BT.2020 -> linear BT.709, ITU-R BT.2407.
BT2020_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
_BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)


def to_srgb(frame: VideoFrame) -> NDArray[np.uint8]:
    """A decoded frame -> uint8 sRGB [H, W, 3], not yet turned by its rotation flag.

    SDR with BT.709 primaries keeps its code values, as players and editors show it.
    """
    wide, transfer = int(frame.color_primaries) == _BT2020, int(frame.color_trc)
    matrix = int(frame.colorspace)
    if matrix in (0, _UNSPECIFIED):
        matrix = _BT2020 if wide else _BT709 if frame.height >= _UNTAGGED_HD else matrix
    options: dict[str, int] = {} if frame.format.is_rgb else {"src_colorspace": matrix, "dst_colorspace": matrix}
    if transfer not in TRANSFERS and not wide and depth_of(frame) == 8:
        return np.asarray(frame.reformat(format="rgb24", interpolation=EXACT, **options).to_ndarray(), np.uint8)
    deep = np.asarray(frame.reformat(format="rgb48le", interpolation=EXACT, **options).to_ndarray(), np.uint16)
    if transfer in TRANSFERS:
        return tone_map(deep, transfer)
    return narrow(deep) if wide else ((deep.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def depth_of(frame: VideoFrame) -> int:
    """Bits a colour."""
    return max(component.bits for component in frame.format.components)


def colour_note(frame: VideoFrame, name: str) -> str | None:
    """What a user is told of a frame that is not plain 8-bit BT.709, None where it is."""
    kind = TRANSFERS.get(int(frame.color_trc))
    if kind:
        return f"{name} is {kind} HDR; it is tone-mapped to SDR, with white at {REFERENCE_WHITE:g} cd/m2."
    if int(frame.color_primaries) == _BT2020:
        return f"{name} has BT.2020 colours; they are brought to sRGB."
    bits = depth_of(frame)
    return f"{name} has {bits} bits a colour; it is read with 8." if bits > 8 else None


def narrow(signal: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """SDR R'G'B' of 16 bits with BT.2020 primaries, [H, W, 3] -> uint8 sRGB [H, W, 3]; greys keep their values."""
    return _coded(_srgb_light()[signal] @ BT2020_TO_BT709.T)


def tone_map(signal: NDArray[np.uint16], transfer: int, peak: float = HDR_PEAK) -> NDArray[np.uint8]:
    """HDR R'G'B' of 16 bits with BT.2020 primaries, [H, W, 3] -> uint8 sRGB [H, W, 3].

    transfer: `PQ` or `HLG`. peak: cd/m2 of the brightest light that is told from brighter ones.
    """
    light = _pq_light()[signal] if transfer == PQ else _hlg_light(signal, peak)
    brightest = light.max(axis=-1, keepdims=True)
    curve = _roll_off(peak)
    place = np.clip(brightest * ((_LEVELS - 1) / peak), 0, _LEVELS - 1).astype(np.uint16)
    mapped = light * curve[place]  # of SDR white; the gain is the same for all three channels
    return _coded(mapped @ BT2020_TO_BT709.T)


def pq_eotf(signal: NDArray[np.floating]) -> NDArray[np.float64]:
    """PQ signal in 0..1 -> cd/m2. SMPTE ST 2084, ITU-R BT.2100 table 4."""
    power = np.asarray(signal, np.float64) ** (1 / 78.84375)
    return _PQ_PEAK * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)


def pq_inverse(light: NDArray[np.floating] | float) -> NDArray[np.float64]:
    """Light in cd/m2 -> PQ signal in 0..1."""
    power = (np.asarray(light, np.float64) / _PQ_PEAK) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg_scene_light(signal: NDArray[np.floating]) -> NDArray[np.float64]:
    """HLG signal in 0..1 -> scene light in 0..1. ITU-R BT.2100 table 5, inverse OETF."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    signal = np.asarray(signal, np.float64)
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((np.maximum(signal, 0.5) - c) / a) + b) / 12)


def roll_off(light: NDArray[np.floating], peak: float, white: float = REFERENCE_WHITE) -> NDArray[np.float64]:
    """Display light in cd/m2 -> light at most `white`: the EETF of ITU-R BT.2390-11, section 5.4.1, black at 0."""
    source = pq_inverse(peak)
    signal = np.clip(pq_inverse(light) / source, 0, 1)
    top = pq_inverse(white) / source
    knee = 1.5 * top - 0.5
    t = np.clip((signal - knee) / (1 - knee), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * top
    return pq_eotf(np.where(signal < knee, signal, spline) * source)


def _hlg_light(signal: NDArray[np.uint16], peak: float) -> NDArray[np.float32]:
    """HLG R'G'B' -> display light in cd/m2: the OOTF of BT.2100 with system gamma 1.2 at 1000 cd/m2."""
    scene = _hlg_scene()[signal]
    gamma = 1.2 + 0.42 * np.log10(peak / HDR_PEAK)
    luma = scene @ _BT2020_LUMA
    return (peak * luma[..., None] ** np.float32(gamma - 1) * scene).astype(np.float32)


def _coded(linear: NDArray[np.floating]) -> NDArray[np.uint8]:
    return _srgb_code()[np.clip(linear * (_LEVELS - 1) + 0.5, 0, _LEVELS - 1).astype(np.uint16)]


@cache
def _srgb_light() -> NDArray[np.float32]:
    """sRGB in 16 bits -> linear light. IEC 61966-2-1."""
    coded = np.arange(_LEVELS) / (_LEVELS - 1)
    return np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4).astype(np.float32)


@cache
def _pq_light() -> NDArray[np.float32]:
    return pq_eotf(np.arange(_LEVELS) / (_LEVELS - 1)).astype(np.float32)


@cache
def _hlg_scene() -> NDArray[np.float32]:
    return hlg_scene_light(np.arange(_LEVELS) / (_LEVELS - 1)).astype(np.float32)


@cache
def _roll_off(peak: float) -> NDArray[np.float32]:
    """By light in steps of peak / 65535: SDR light (1 is white) over cd/m2."""
    light = np.maximum(np.arange(_LEVELS), 0.5) * (peak / (_LEVELS - 1))
    return (roll_off(light, peak) / (light * REFERENCE_WHITE)).astype(np.float32)


@cache
def _srgb_code() -> NDArray[np.uint8]:
    """Linear light in 16 bits -> sRGB in 8. IEC 61966-2-1."""
    linear = np.arange(_LEVELS) / (_LEVELS - 1)
    coded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(coded * 255).astype(np.uint8)
