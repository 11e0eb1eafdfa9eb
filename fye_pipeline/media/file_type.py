"""What a file is, judged by its first bytes, whatever its name says."""

from __future__ import annotations

from pathlib import Path

_ISO_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # ISO/IEC 14496-12
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_OTHER_VIDEOS = (b"\x1aE\xdf\xa3", b"RIFF", b"FLV\x01")  # Matroska and WebM, AVI, Flash


def first_bytes(path: Path) -> bytes:
    """The first 12 bytes, or what there is."""
    with open(path, "rb") as file:
        return file.read(12)


def is_heic(path: Path) -> bool:
    """Whether a file is a HEIC picture."""
    head = first_bytes(path)
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS


def is_iso_media(path: Path) -> bool:
    """Whether a file begins as mp4, mov and their relatives do, HEIC and AVIF pictures among them."""
    return first_bytes(path)[4:8] in _ISO_FIRST_BOXES


def is_video(path: Path) -> bool:
    """Whether a file that Pillow does not read begins as a video does."""
    head = first_bytes(path)
    if head[4:8] == b"ftyp":
        return head[8:12] != b"avif" and not is_heic(path)
    return head[:4] in _OTHER_VIDEOS or head[4:8] in (b"moov", b"wide", b"mdat")


def is_cut_off(path: Path) -> bool:
    """Whether an mp4 or mov ends before its last top-level box does: a copy or a recording that broke off."""
    if not is_iso_media(path):
        return False
    size, at = path.stat().st_size, 0
    with open(path, "rb") as file:
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:  # the true length follows in 64 bits
                length = int.from_bytes(head[8:16], "big")
            if length < 8:  # 0: the box reaches to the end of the file
                return False
            at += length
    return at > size
