"""Each file of results as Markdown: a table for what is compared, its conditions beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.grouping import flops_ratio, groups, slug, uncached
from benchmarks.markdown import conditions, decibels, number, picture, spread, table, without_empty
from fye_pipeline import presets
from fye_pipeline.models.files import SHIPPED_MODEL

Data = dict[str, Any]
Row = dict[str, Any]

ACCELERATION = (
    "Rows are compared with the uncached run of their own model and base (sampler and steps), from the same noise. "
    'PSNR and SSIM: against that run ("same": no difference); L1 and landmark error: against the rendered truth; '
    "operations and time: how many times less than the uncached run (time: median, and least to greatest); held: "
    "memory between steps. Names that begin with `ticache` are ours."
)
ABLATION = (
    "The portrait model, on held-out rendered heads. PSNR: against the uncached run, mean over clips "
    "(least to greatest); L1, SSIM and landmark error: against the rendered truth; operations: how many times "
    "fewer than the uncached run. `ticache N=.. order=..` is the default recipe, `paper` is Eq. 4 with full steps "
    "at every N-th step; `DDIM n` is n steps without a cache."
)
EVALUATION = "Self-reenactment of held-out rendered heads, against the truth; landmark error in picture widths."


@dataclass(frozen=True)
class Pictures:
    """Where the pictures lie, and how a document names that folder."""

    folder: Path
    link: str

    def show(self, name: str, alternative: str) -> list[str]:
        """A picture that has been drawn, as Markdown; nothing for one that has not."""
        drawn = all((self.folder / f"{name}-{theme}.svg").is_file() for theme in ("light", "dark"))
        return [picture(self.link, name, alternative)] if drawn else []


def acceleration(data: Data, pictures: Pictures) -> str:
    """A table and a picture for each model and base, then what was claimed."""
    told = data["conditions"]
    parts = [ACCELERATION, conditions(told)]
    for (model, base), rows in groups(data["rows"]).items():
        more = told.get("models", {}).get(model, {})
        words = facts_in_words(more)
        parts.append(f"### {model}, {base}")
        parts += [f"{words[0].upper()}{words[1:]}."] if words else []
        parts += weights_in_words(more)
        parts += pictures.show(slug(model, base), f"Face PSNR against speed-up, {model}, {base}")
        parts.append(acceleration_table(rows))
        parts += acceleration_notes(rows)
    claims = told.get("claims")
    if claims:
        parts.append("### What was wanted")
        cells = [[c["model"], c["claim"], c["figures"], _verdict(c["met"])] for c in claims]
        parts.append(table(("model", "wanted", "found", ""), cells))
    return "\n\n".join(parts)


def facts_in_words(facts: dict[str, Any], separator: str = "; ") -> str:
    """What decided a model's figures, in one line."""
    return separator.join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())


def weights_in_words(facts: dict[str, Any]) -> list[str]:
    """A sentence where a portrait model was measured whose weights are not those that ship; nothing where they are."""
    shipped = presets.read(SHIPPED_MODEL)
    wanted = None if shipped is None else shipped["conditions"].get("model_hash")
    found = facts.get("model_hash")
    if found is None or wanted is None or found == wanted:
        return []
    return [f"**Measured on earlier weights of the portrait model ({found}); those that ship are {wanted}.**"]


def acceleration_table(rows: Sequence[Row]) -> str:
    """All rows of a group that have figures."""
    head = ["", "calls", "operations", "time", "PSNR", "face", "SSIM", "L1", "landmarks", "held"]
    cells = [
        [
            row["name"],
            count(row["calls"]),
            number(flops_ratio(row, uncached(rows)), 2),
            number(row["time_ratio"], 2) + spread(row.get("time_ratios"), 2),
            decibels(row["psnr"]),
            decibels(row["psnr_region"]),
            number(row["ssim"], 4),
            number(row["l1_truth"], 4),
            number(row.get("landmark_error"), 4),
            size(row.get("bytes_held")),
        ]
        for row in rows
        if not row["error"]
    ]
    return table(*without_empty(head, cells))


def acceleration_notes(rows: Sequence[Row]) -> list[str]:
    """What rows are made with, and why some have no figures."""
    failed = [f"- {row['name']}: {row['error']}" for row in rows if row["error"]]
    settings = [f"- {row['name']}: {row['settings']}" for row in rows if row.get("settings") and not row["error"]]
    parts = ["Without figures:\n\n" + "\n".join(failed)] if failed else []
    if settings:
        parts.append("<details><summary>Settings</summary>\n\n" + "\n".join(settings) + "\n\n</details>")
    return parts


def ablation(data: Data, pictures: Pictures) -> str:
    """The error of every step, then a table for each question."""
    told = data["conditions"]
    parts = [
        ABLATION,
        *weights_in_words(told),
        conditions(told),
        *pictures.show("ablation", "Mean squared error of the latents after every step"),
    ]
    for name, title in told["titles"].items():
        rows = sorted((row for row in data["rows"] if name in row["tables"]), key=_place)
        if len(rows) > 1:
            parts += [f"### {title}", ablation_table(rows)]
            commands = [f"- {row['name']}: {row['error']}; `{row['command']}`" for row in rows if row["error"]]
            parts += ["\n".join(commands)] if commands else []
    return "\n\n".join(parts)


def _place(row: Row) -> tuple[float, ...]:
    """Where a row stands: the uncached run, fewer steps, the default recipe, then Eq. 4 and others; each by setting."""
    settings = row.get("settings") or {}
    kind = 0 if row["name"] == "uncached" else 1 if not settings else 3 if "preset" in settings else 2
    return kind, settings.get("N", 0), settings.get("order", 0), settings.get("boundary", 0), -row["steps"]


def ablation_table(rows: Sequence[Row]) -> str:
    """The rows of one question; rows without figures stand below it. Other weights have no uncached run to equal."""
    head = ["", "calls", "operations", "PSNR", "face", "L1", "SSIM", "landmarks", "no face"]
    cells = [
        [
            row["name"],
            count(row.get("calls")),
            number(row.get("flops_ratio"), 2),
            decibels(row.get("psnr")) + spread(row.get("psnr_clips"), 1),
            decibels(row.get("psnr_region")) + spread(row.get("psnr_region_clips"), 1),
            number(row["l1_truth"], 4),
            number(row["ssim_truth"], 3),
            number(row["landmark_error"], 4),
            str(row["frames_without_face"]),
        ]
        for row in rows
        if not row["error"]
    ]
    if any("config" in row for row in rows):
        head, cells = [head[0], *head[5:]], [[line[0].replace("uncached", "as shipped"), *line[5:]] for line in cells]
    return table(*without_empty(head, cells))


def evaluation(data: Data, _pictures: Pictures) -> str:
    """Self-reenactment on held-out heads beside its baselines."""
    head = ["", "L1", "PSNR", "SSIM", "landmarks", "no face"]
    cells = [
        [
            name.replace("_", " "),
            number(row["l1"], 4),
            number(row["psnr"], 1),
            number(row["ssim"], 3),
            number(row["landmark_error"], 4),
            str(row["frames_without_face"]),
        ]
        for name, row in data.items()
        if isinstance(row, dict) and "l1" in row
    ]
    parts = [EVALUATION, conditions(data["conditions"]), table(head, cells)]
    wanted = [
        [c["what"], f"{c['relation']} {c['limit']:.3g}", number(c["value"], 3), _verdict(c["met"])]
        for c in data.get("thresholds", ())
    ]
    return "\n\n".join(parts + ([table(("what is asked of it", "wanted", "found", ""), wanted)] if wanted else []))


def _verdict(met: bool | None) -> str:
    return "not measured" if met is None else "met" if met else "**missed**"


SCHEDULE_COLUMNS = ("auto", "default", "late", "late 1.3", "even", "uniform")
FORECASTERS = ("", " taylor")
SCHEDULES = (
    "`ticache` with as many full steps as `N=3`, PSNR in dB against the uncached run: `auto` recorded on other inputs, "
    "the default (`spread`), and fixed schedules with Newton's weights (`late` with its exponent of 1.5 and with 1.3, "
    "`even` with 1; `uniform`: every third step). Best by hand: the best of these four with Newton's or Taylor's "
    "weights. Equal FLOPs: the best of DDIM, DPM-Solver++ 2M and UniPC with as many steps, rounded up, as `auto` costs."
)


def schedules(data: Data, _pictures: Pictures) -> str:
    """One line a model, sampler and guidance scale."""
    cells: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in data["rows"]:
        place = row["model"], f"{row['sampler']} {row['steps']}", f"{row['guidance']:g}"
        cells.setdefault(place, {})[row["name"]] = row["psnr"]
    lines = []
    for place, psnr in cells.items():
        by_hand = [name + more for name in SCHEDULE_COLUMNS[2:] for more in FORECASTERS]
        best = max(psnr[name] for name in by_hand)
        solver = max(value for name, value in psnr.items() if name.startswith("equal FLOPs"))
        lines.append([*place, *(decibels(value) for value in (*map(psnr.get, SCHEDULE_COLUMNS), best, solver))])
    head = ["model", "sampler", "guidance", *SCHEDULE_COLUMNS, "best by hand", "equal FLOPs"]
    told = data["conditions"]
    words = [f"{model}: {facts_in_words(facts)}" for model, facts in told["models"].items()]
    return "\n\n".join([SCHEDULES, conditions(told, *words), table(head, lines)])


def latency(data: Data, _pictures: Pictures) -> str:
    """Time ratios of the UNet alone, with random weights."""
    head = ["model", "mode", "", "steps", "calls", "time", "spread", "peak memory"]
    cells = [
        [
            row["model"],
            row["mode"],
            row["name"],
            count(row["steps"]),
            count(row["calls"]),
            number(row["time_ratio"], 2) + spread(row["time_ratios"], 2),
            number(100 * (row["p80"] - row["p20"]) / row["p50"], 1, suffix=" %"),
            size(row["peak_bytes"]),
        ]
        for row in data["rows"]
        if not row["error"]
    ]
    failed = [f"- {r['model']}, {r['mode']}, {r['name']}: {r['error']}" for r in data["rows"] if r["error"]]
    words = (
        "UNet (and ControlNet) time of a run, published widths, random weights: how many times less than the uncached "
        "run of the same mode (median over turns, least to greatest); spread: 80th minus 20th percentile of the time "
        "over its median."
    )
    parts = [words, conditions(data["conditions"]), table(*without_empty(head, cells))]
    return "\n\n".join(parts + (["Without figures:\n\n" + "\n".join(failed)] if failed else []))


def kernels(data: Data, _pictures: Pictures) -> str:
    """Each operation's bandwidth as a share of a plain copy's, by backend."""
    names = ("eager", "compiled", "triton")
    keys = ("op", "site", "dtype", "order", "mask")
    cases: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in data["rows"]:
        cases.setdefault(tuple(row[key] for key in keys), {})[row["backend"]] = row

    def share(row: Row | None) -> str:
        if row is None or row["error"] or row.get("copy") is None:
            return "-" if row is None or not row["error"] else f"- ({row['error']})"
        # p20 of the time is the fast end
        ends = sorted(100 * row["copy"] * row["p50"] / row[name] for name in ("p20", "p80"))
        return f"{100 * row['copy']:.0f} %{spread(ends, 0)}"

    cells = [[*map(str, key), *(share(found.get(name)) for name in names)] for key, found in cases.items()]
    words = (
        "Bandwidth reached, in percent of a plain copy of as many bytes in the same run: median, and 80th to 20th "
        "percentile of the time. Every tensor is counted once read and once written."
    )
    return "\n\n".join([words, conditions(data["conditions"]), table([*keys, *names], cells)])


def compiled_kernels(data: Data, _pictures: Pictures) -> str:
    """What the compiler made of each kernel, over all sites and types of a target."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in data["rows"]:
        found.setdefault((row["kernel"], row["target"]), []).append(row)
    head = ["kernel", "target", "variants", "registers", "spilled bytes, most", "shared bytes, most", "bits a load"]
    cells = [
        [
            kernel,
            target,
            str(len(rows)),
            between(row["registers"] for row in rows),
            str(max(row["spilled_bytes"] for row in rows)),
            str(max(row["shared_bytes"] for row in rows)),
            between(row["load_bits"] for row in rows),
        ]
        for (kernel, target), rows in found.items()
    ]
    words = "Compiled ahead of time, no GPU needed: variants are sites and types."
    return "\n\n".join([words, conditions(data["conditions"]), table(head, cells)])


def between(values: Iterable[int]) -> str:
    """The least and the greatest, or the one."""
    least, *_, greatest = (found := sorted(values)) * 2
    return str(least) if least == greatest else f"{found[0]} to {greatest}"


def count(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def size(value: int | None) -> str:
    """Bytes in MiB."""
    return "-" if value is None else f"{value / 2**20:.1f} MiB"
