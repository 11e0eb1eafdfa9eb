"""What a run leaves behind and goes on from: averages, checkpoints, logs, sample sheets, the trained pipeline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from PIL import Image

from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.storage.files import write_json, write_text
from fye_pipeline.training.batches import BatchSource

LAST = "last.json"
RECIPE = "recipe.json"
SAMPLE_STEPS = 10


@dataclass
class Progress:
    """What a checkpoint knows beside the weights."""

    step: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"step": self.step, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.step, self.seconds = int(state["step"]), float(state["seconds"])


class Average(EMAModel):
    """An exponential moving average of parameters in float32, which follows faster early on: (1 + n) / (10 + n)."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float) -> None:
        super().__init__(parameters, decay=decay, update_after_step=-1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint, also one of before `EMAModel`, which named the averages; `decay` stays as it was set."""
        if "shadow" in state_dict:
            state_dict = {"optimization_step": state_dict["steps"], "shadow_params": [*state_dict["shadow"].values()]}
        device = self.shadow_params[0].device
        super().load_state_dict(state_dict | {"decay": self.decay})
        self.to(device)


def export(
    parts: dict[str, Any], folder: Path, *, noise_scale: float = 1.0, recipe: dict[str, Any] | None = None
) -> None:
    """Write a pipeline folder with float16 weights; the parts themselves stay as they are.

    noise_scale: of sampling. recipe: what `recipe.json` tells, such as the guidance that the model was made for.
    """
    pipe = FollowYourEmojiPipeline(**parts, noise_scale=noise_scale)
    models = [part for part in parts.values() if isinstance(part, torch.nn.Module)]
    kept = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    for model in models:
        model.half()
    pipe.save_pretrained(folder, safe_serialization=True)
    for model, state in zip(models, kept, strict=True):
        model.float()
        model.load_state_dict(state)
    if recipe is not None:
        write_json(folder / RECIPE, recipe)


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, keep: int) -> None:
    """Write everything that a resumed run needs; a kill at any moment leaves the former checkpoint valid."""
    name = f"step-{step:07d}"
    partial = folder / f"{name}.partial"
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    target = folder / name
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    write_json(folder / LAST, {"folder": name, "step": step})
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def load_checkpoint(accelerator: Accelerator, folder: Path) -> bool:
    """Go on from the last checkpoint, if there is one. -> whether there was."""
    pointer = folder / LAST
    if not pointer.exists():
        return False
    accelerator.load_state(str(folder / json.loads(pointer.read_text(encoding="utf-8"))["folder"]))
    return True


def cut_log(path: Path, step: int) -> None:
    """Leave out what a killed run logged after its last checkpoint: those steps are taken again."""
    if not path.is_file():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    write_text(path, "".join(f"{line}\n" for line in kept))


@torch.no_grad()
def sample(parts: dict[str, Any], batches: BatchSource, path: Path, *, shown: int = 4, count: int = 4) -> None:
    """Write a sheet: for each head its reference, a few true frames, and what the model makes of their landmarks."""
    pipe = FollowYourEmojiPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    rows = []
    for number, example in enumerate(batches.examples(count, shown)):
        result = pipe(
            example.portrait,
            example.drawn,
            bent=example.bent,
            num_inference_steps=SAMPLE_STEPS,
            guidance_scale=1.5,
            generator=torch.Generator().manual_seed(number),
            output_type="np",
        )
        assert not isinstance(result, tuple)
        made = np.asarray(result.frames[0] * 255, np.uint8)
        rows.append(np.concatenate([example.portrait, *example.frames, *made], axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path)
