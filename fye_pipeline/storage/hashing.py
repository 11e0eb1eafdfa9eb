"""What tells contents apart: hashes of files, folders and arrays."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest_of_path(path: Path) -> str:
    """SHA-256 of a file's contents, or of the names and contents of a folder's files; "absent" where there is none."""
    path = Path(path).expanduser()
    total = hashlib.sha256()
    if path.is_dir():
        for file in sorted(each for each in path.iterdir() if each.is_file()):
            total.update(f"{file.name} {digest_of_path(file)}\n".encode())
    elif path.is_file():
        with path.open("rb") as file:
            total = hashlib.file_digest(file, "sha256")
    else:
        return "absent"
    return total.hexdigest()
