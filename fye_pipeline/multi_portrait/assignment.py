"""Which driver moves which face: faces and drivers count from the left, or in the order in which they were named."""

from __future__ import annotations

from fye_pipeline.errors import UserError

STILL = "-"

Assignment = tuple[int | None, ...]  # for each face from the left its driver, counted from 0; None leaves it as it is


def parse_assignment(text: str) -> Assignment:
    """Such as "1,0,-" -> (1, 0, None). Raises `UserError` for anything else, and where nobody is moved."""
    entries = [entry.strip() for entry in text.split(",")]
    if not all(entry == STILL or (entry.isascii() and entry.isdigit()) for entry in entries):
        raise UserError(f"assign must name a driver (from 0) or - for each face, such as 1,0 or 0,-; got {text!r}.")
    assignment = tuple(None if entry == STILL else int(entry) for entry in entries)
    if not any(driver is not None for driver in assignment):
        raise UserError(f"assign leaves every face as it is, got {text!r}: name a driver (from 0) for one of them.")
    return assignment


def assign(faces: int, drivers: int, asked: Assignment | None, name: str, *, spare: bool = False) -> Assignment:
    """The driver of each face; without `asked` as many drivers as there are faces, left to right.

    name: of the picture, for the sentence. spare: there may be more drivers than faces, as in a video of many people.
    Raises `UserError` where the counts do not fit each other.
    """
    shows = f"{name} shows {_count(faces, 'face')}"
    if drivers > faces and not (spare and asked):
        raise UserError(f"{shows} and there are {_count(drivers, 'driver')}: give one driver a face.")
    if asked is None:
        if drivers < faces:
            example = ",".join([*map(str, range(drivers)), *[STILL] * (faces - drivers)])
            raise UserError(
                f"{shows} and there {'is' if drivers == 1 else 'are'} {_count(drivers, 'driver')}: say with --assign "
                f"which face has which, such as --assign {example}."
            )
        return tuple(range(faces))
    if len(asked) != faces:
        raise UserError(f"{shows} and --assign has {_count(len(asked), 'entry', 'entries')}: give one a face, or -.")
    highest = max(driver for driver in asked if driver is not None)
    if highest >= drivers:
        raise UserError(f"--assign names driver {highest} and there are {drivers}, which count from 0.")
    return asked


def _count(number: int, one: str, several: str | None = None) -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"
