"""Which files hold the published weights, by whose names, and what a file that does not fit looks like.

Two layouts are known. The official one is `lmk_guider`, `referencenet` and `unet`, each .pth or .safetensors, with bare
key names. The community's is fp16 safetensors for ComfyUI: `FYE_unet`, `FYE_referencenet`, `FYE_lmk_guider`, with or
without `-fp16`, beside `fye_motion_module` (for AnimateDiff-Evolved) and `FYE_clip_fc` (a bare linear layer). Names and
sizes of those files are public, and their sizes fit a UNet file that is whole; their key names could not be checked, as
the files were not in reach. So a UNet file may lack its motion modules or its `clip_fc`, which then come from the files
of their own; a prefix that all keys of a file share is taken off; and everything is loaded strictly, with an error that
names what differs and says what the file looks like.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fye_pipeline.errors import UserError
from fye_pipeline.storage.files import is_pointer

FILES = {"landmark_encoder": "lmk_guider", "appearance_net": "referencenet", "unet": "unet"}
MOTION, CLIP_FC = "motion_module", "clip_fc"
_HALVES = ("", "-fp16", "_fp16")
_BEGINNINGS = ("down_blocks", "up_blocks", "mid_block", "blocks", "conv_in", "conv_out", "clip_fc", "time_embedding")
_LISTED = 12  # keys that an error names of each kind


def find_weights(folder: str | Path, name: str) -> Path:
    """Find a part's file by its official or its community name in a folder. Raises UserError that names them."""
    path = find_optional(folder, name)
    if path is None:
        raise UserError(
            f"{folder} has neither {name}.safetensors nor {name}.pth (nor FYE_{name}.safetensors, the community's "
            "name); put the published weights there"
        )
    return path


def find_optional(folder: str | Path, name: str) -> Path | None:
    """As `find_weights`, None where there is none; capitals in community names do not count."""
    for suffix in (".safetensors", ".pth"):
        if (path := Path(folder) / f"{name}{suffix}").is_file():
            return path
    wanted = {f"fye_{name}{half}.safetensors" for half in _HALVES}
    found = [path for path in sorted(Path(folder).glob("*.safetensors")) if path.name.lower() in wanted]
    return found[0] if found else None


def is_published_folder(folder: Path) -> bool:
    """Whether a folder holds the three networks in either layout."""
    return folder.is_dir() and all(find_optional(folder, name) for name in FILES.values())


def read_part(folder: str | Path, part: str, prefix: str = "") -> tuple[dict[str, Tensor], Path]:
    """The state dict of one network under its official key names, whatever files it is spread over.

    part: a key of `FILES`. prefix: before an official file's name. Raises `UserError` for absent or unreadable files.
    """
    path = find_weights(folder, prefix + FILES[part])
    state = without_shared_prefix(read_weights(path))
    lacks_motion = part == "unet" and not any(".motion_modules." in key for key in state)
    if lacks_motion and (extra := find_optional(folder, MOTION)) is not None:
        motion = without_shared_prefix(read_weights(extra))
        state |= {key: value for key, value in motion.items() if ".motion_modules." in key}
    lacks_linear = part != "landmark_encoder" and "clip_fc.weight" not in state
    if lacks_linear and (extra := find_optional(folder, CLIP_FC)) is not None:
        state |= {f"clip_fc.{key.rpartition('.')[2]}": value for key, value in read_weights(extra).items()}
    return state, path


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict without running any code that a file may hold. Raises UserError when it is not one."""
    if is_pointer(path):
        raise UserError(f"{path} is a Git-LFS pointer file, not the weights: run `git lfs pull` in that folder.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Mapped, not read: the published files are larger than many machines' memory. Old files are no archives.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        raise UserError(f"{path} cannot be read as weights: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} must hold a flat dictionary of tensors, got {type(state).__name__}")
    return dict(state)


def without_shared_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what tools put before every key (`module.`, `unet.`): components of the name that all keys share."""
    while len(state) > 1:
        first = {key.split(".", 1)[0] if "." in key else None for key in state}
        (shared,) = first if len(first) == 1 else (None,)
        if shared is None or shared in _BEGINNINGS:
            break
        state = {key.split(".", 1)[1]: value for key, value in state.items()}
    return state


def looks_like(keys: Collection[str]) -> str | None:
    """What a file with these key names probably is, None where they say nothing."""

    def has(*parts: str) -> bool:
        return any(part in key for key in keys for part in parts)

    def all_have(part: str) -> bool:
        return bool(keys) and all(part in key for key in keys)

    unet = has("down_blocks.") and has("up_blocks.")
    kinds = (
        (has("lora_", ".lora.", "lora_up", "lora_A"), "a LoRA"),
        (has("control_model.", "controlnet_"), "a ControlNet"),
        (has("model.diffusion_model.", "input_blocks."), "a Stable Diffusion checkpoint in its original layout"),
        (all_have("motion_modules."), "an AnimateDiff motion module alone"),
        (has("vision_model.", "text_model."), "a CLIP model"),
        (has("encoder.down_blocks.", "decoder.up_blocks.", "quant_conv."), "a VAE"),
        (unet and has(".motion_modules.") and has("clip_fc."), "the denoising UNet of Follow-Your-Emoji"),
        (unet and has(".motion_modules."), "a UNet of AnimateDiff, without the image prompt's clip_fc"),
        (unet and has("clip_fc.") and not has("conv_out."), "the ReferenceNet of Follow-Your-Emoji"),
        (unet and has("clip_fc."), "the denoising UNet of Follow-Your-Emoji without its motion modules"),
        (unet, "a plain Stable Diffusion UNet"),
        (has("conv_in.") and all(key.startswith(("conv_in.", "blocks.", "conv_out.")) for key in keys), "a guider"),
    )
    return next((name for fits, name in kinds if fits), None)


def describe_difference(
    name: str, network: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor], file_keys: Collection[str]
) -> str | None:
    """One sentence on how a state dict differs from a network's own, None where it fits.

    own, state: of our key names. file_keys: as the file has them, by which its kind is told.
    """
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{key} (expected {list(own[key].shape)}, got {list(state[key].shape)})"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    faults = {"missing keys": missing, "unexpected keys": unexpected, "other shapes": shapes}
    if not any(faults.values()):
        return None
    kind = looks_like(file_keys)
    guess = f"; it looks like {kind}" if kind else ""
    listed = "; ".join(f"{len(keys)} {what}: {_some(keys)}" for what, keys in faults.items() if keys)
    return f"{name} does not fit {network}{guess}: {listed}"


def _some(keys: list[str]) -> str:
    more = len(keys) - _LISTED
    return ", ".join(keys[:_LISTED]) + (f" and {more} more" if more > 0 else "")
