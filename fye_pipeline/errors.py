"""The one exception that the command line turns into a sentence and exit code 2."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input that the user can mend; its text is one sentence that says what, where and what to do."""
