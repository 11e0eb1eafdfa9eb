"""What the clips of a video took together: seconds, and the cache's report over all of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

_SUMS = ("full_calls", "predicted_calls", "flops_full", "flops_run", "flops_saved", "macs_saved", "seconds_run")
_COUNTS = ("fallbacks", "unattributed")


@dataclass
class Tally:
    """Adds up the records of clips, each `{"seconds": ..., "report": what the cache's report gives as a dict}`."""

    seconds: float = 0.0
    _clips: int = 0
    _last: dict[str, Any] = field(default_factory=dict)
    _sums: Counter[str] = field(default_factory=Counter)
    _peak: int = 0
    _fallbacks: dict[str, Counter[str]] = field(
        default_factory=lambda: {"fallbacks": Counter(), "unattributed": Counter()}
    )
    _full: float = 0.0  # seconds of all full calls, each at its clip's mean
    _notes: dict[str, None] = field(default_factory=dict)

    def add(self, record: dict[str, Any]) -> None:
        """One clip more."""
        self.seconds += record.get("seconds", 0.0)
        values = record.get("report")
        if values is None:
            return
        self._clips += 1
        self._last = values
        self._sums.update({name: values[name] for name in _SUMS})
        self._peak = max(self._peak, values["peak_bytes"])
        self._full += (values["seconds_full"] or 0.0) * values["full_calls"]
        for name, counts in self._fallbacks.items():
            counts.update(values[name])
        self._notes.update(dict.fromkeys(values["notes"]))

    def report(self, empty: Any) -> Any:
        """The figures of all clips as one report of `empty`'s kind."""
        if not self._clips:
            return empty
        sums = dict(self._sums)
        full, predicted = sums["full_calls"], sums["predicted_calls"]
        mean_full = self._full / full if full else None
        mean_predicted = (sums["seconds_run"] - self._full) / predicted if predicted else None
        notes = list(self._notes)
        if self._clips > 1:
            notes.append(f"these are the figures of {self._clips} clips together; steps are those of the last")
        return replace(
            empty,
            values=self._last
            | sums
            | {name: dict(counts) for name, counts in self._fallbacks.items()}
            | {
                "runs": self._clips,
                "total_full_calls": full,
                "total_predicted_calls": predicted,
                "flops_ratio": sums["flops_full"] / sums["flops_run"] if sums["flops_run"] else None,
                "seconds_full": mean_full,
                "seconds_predicted": mean_predicted,
                "speedup": mean_full * (full + predicted) / sums["seconds_run"] if mean_full and predicted else None,
                "peak_bytes": self._peak,
                "notes": notes,
            },
        )
