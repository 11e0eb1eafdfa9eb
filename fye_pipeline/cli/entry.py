"""Where the command `fye` begins: with the animator's packages, or, of what needs none of them, without."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `fye`; without its packages only `--version` and `doctor` run, and the rest says what to install."""
    try:
        from fye_pipeline.cli.main import main as run
    except ModuleNotFoundError as error:
        sys.exit(_without_packages(sys.argv[1:], error))
    run()


def _without_packages(arguments: list[str], missing: ModuleNotFoundError) -> int:
    """What can be said without typer and rich -> the exit code."""
    from fye_pipeline.cli import doctor

    if arguments[:1] == ["doctor"] and set(arguments[1:]) <= {"--json", "--debug"}:
        doctor.tell(as_json="--json" in arguments)
        return 0
    if arguments == ["--version"]:
        print(doctor.versions())
        return 0
    print(f"fye: {doctor.install_line(missing)}", file=sys.stderr)
    return 2
