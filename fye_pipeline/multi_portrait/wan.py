"""The expression branch on Wan's transformer as diffusers has it: time windows, guidance, the published weights.

Nothing of Wan or of the published code is copied; sizes, names and index rules are facts of the release.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.hooks.hooks import BaseState, HookRegistry, ModelHook, StateManager
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from fye_pipeline.errors import UserError
from fye_pipeline.multi_portrait.adapter import WEIGHTS, ExpressionAdapter, ExpressionInputs
from fye_pipeline.multi_portrait.attention import Isolation
from fye_pipeline.multi_portrait.expression import FACTORS
from fye_pipeline.multi_portrait.expression_encoder import ExpressionEncoder
from fye_pipeline.storage.files import existing_file

Windows = Literal["exact", "release"]
STRIDE = 4  # frames that a latent frame after the first stands for
GUIDANCE_HOOK = "fye_expression_guidance"
_HEAD_DIM = 64  # of the published resamplers

# The release's names of the linear layers, and of the resamplers, by factor.
_LINEAR = {"head": "headpose_proj", "eye": "eye_proj", "emotion": "emo_proj", "lip": "mouth_proj"}
_RESAMPLERS = {"lip": "mouth_proj_model", "emotion": "emo_proj_model"}
_IN_LAYER = {
    "0.norm1": "ln0",
    "0.norm2": "ln1",
    "0.to_q": "attn.to_q",
    "0.to_out": "attn.to_out.0",
    "1.0": "ff.0",
    "1.1": "ff.1.net.0.proj",
    "1.3": "ff.1.net.2",
}
_BRANCH = re.compile(r"ip_adapter\.blocks\.(\d+)\..*ip_adapter_single_stream_([kv])_proj\.weight")


def token_windows(tokens: Tensor, windows: Windows = "exact") -> tuple[Tensor, Tensor | None]:
    """The tokens that each latent frame sees, [B, P, 4 k + 1, N, c] -> [B, P, k + 1, M, c], and a mask [k + 1, M].

    exact: latent frame 0 sees frame 0's tokens, latent frame i those of its 4 frames; the first is filled up to the
    same length and the filling is masked. release: as the published code, one token of the frame before is seen as
    well, and the first latent frame's filling is zeros that are not masked (no mask). Raises ValueError for another F.
    """
    frames, count = tokens.shape[2:4]
    if frames % STRIDE != 1:
        raise ValueError(f"tokens must be of {STRIDE} k + 1 frames, got {frames}")
    flat = tokens.flatten(2, 3)  # frames one after the other
    stray = int(windows == "release")
    length = STRIDE * count + stray
    first = functional.pad(flat[:, :, :count], (0, 0, 0, length - count))
    starts = range(count - stray, flat.shape[2] - length + 1, STRIDE * count)
    made = torch.stack([first, *(flat[:, :, start : start + length] for start in starts)], dim=2)
    if windows == "release":
        return made, None
    mask = torch.ones(made.shape[2], length, dtype=torch.bool, device=tokens.device)
    mask[0, count:] = False
    return made, mask


def latent_masks(masks: Tensor) -> Tensor:
    """How much of each latent frame's time a pixel is a person's. [B, P, 4 k + 1, H, W] -> [B, P, k + 1, H, W].

    Raises ValueError for another number of frames.
    """
    if masks.shape[2] % STRIDE != 1:
        raise ValueError(f"masks must be of {STRIDE} k + 1 frames, got {masks.shape[2]}")
    later = masks[:, :, 1:].float().unflatten(2, (-1, STRIDE)).mean(dim=3)
    return torch.cat([masks[:, :, :1].float(), later], dim=2)


class _CallState(BaseState):
    """Nothing is kept from call to call; the hook is stateful so that diffusers tells it the call's name."""

    def reset(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to forget."""


class ExpressionGuidance(ModelHook):
    """Leaves the branch out of the call that the pipeline names `uncond`.

    With equal prompts for both calls the pipeline's guidance scale is then that of the expression.
    """

    _is_stateful = True

    def __init__(self, inputs: ExpressionInputs) -> None:
        super().__init__()
        self.inputs = inputs
        self.calls = StateManager(_CallState)  # pyright: ignore[reportArgumentType]

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before a call of the transformer."""
        context = self.calls._context
        self.inputs.muted = context is not None and context.name == "uncond"
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """After it."""
        self.inputs.muted = False
        return output

    def reset_state(self, module: nn.Module) -> nn.Module:
        """As diffusers asks at the end of a run."""
        self.calls.reset()
        return module


class WanExpression:
    """Encoder and branches on a `WanTransformer3DModel`; between `given` blocks the transformer is what it was."""

    def __init__(self, transformer: nn.Module, encoder: ExpressionEncoder) -> None:
        self.encoder = encoder
        self.adapter = ExpressionAdapter(transformer, encoder.config["width"])
        self._transformer = transformer
        registry = HookRegistry.check_if_exists_or_initialize(transformer)
        registry.register_hook(ExpressionGuidance(self.adapter.inputs), GUIDANCE_HOOK)

    @classmethod
    def from_release(cls, checkpoint: Path, transformer: nn.Module, *, head_dim: int = _HEAD_DIM) -> WanExpression:
        """The published adapter (`.pt` or `.safetensors`), whose every key must fit. Nothing in it is run.

        head_dim: of the resamplers' heads. Raises `UserError` where a key is missing, too many, or of another shape.
        """
        weights = read_release(checkpoint)
        made = cls(transformer, encoder_from_release(weights, head_dim))
        try:
            made.adapter.load_state_dict(branches_from_release(weights))
        except UserError:
            made.remove()
            raise
        return made

    @contextmanager
    def given(
        self,
        features: Mapping[str, Tensor],
        masks: Tensor,
        *,
        scale: float | Sequence[float] = 1.0,
        windows: Windows = "exact",
        isolation: Isolation = "exclusive",
    ) -> Iterator[None]:
        """Move the people of one video for the length of a block.

        features: [B, P, F, d] of every factor, any numbers. masks: whose pixels are whose, [B, P, F, H, W], as large
        as latents.
        """
        own = self.encoder.norm.weight
        tokens, key_mask = token_windows(self.encoder({name: each.to(own) for name, each in features.items()}), windows)
        with self.adapter.inputs.given(
            tokens, latent_masks(masks), scale=scale, key_mask=key_mask, isolation=isolation
        ):
            yield

    def remove(self) -> None:
        """Take branches and hook off; done twice it does nothing."""
        self.adapter.remove()
        HookRegistry.check_if_exists_or_initialize(self._transformer).remove_hook(GUIDANCE_HOOK, recurse=False)

    def save(self, folder: Path) -> None:
        """Write encoder and branches."""
        self.encoder.save_pretrained(folder / "encoder")
        self.adapter.save(folder)

    @classmethod
    def load(cls, folder: Path, transformer: nn.Module) -> WanExpression:
        """Read what `save` wrote. Raises `UserError` where it does not fit the transformer."""
        existing_file(folder / WEIGHTS, "the expression adapter")
        try:
            encoder = ExpressionEncoder.from_pretrained(folder / "encoder")
        except (OSError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())[:300]
            raise UserError(f"{folder / 'encoder'} is no encoder of expressions ({said}).") from error
        made = cls(transformer, encoder)
        try:
            made.adapter.load(folder)
        except UserError:
            made.remove()
            raise
        return made


def read_release(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors under flat names; a pickle is read without running anything. Raises `UserError`."""
    path = existing_file(path, "the expression adapter")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        flat = {
            f"{name}.{key}" if isinstance(value, Mapping) else name: tensor
            for name, value in content.items()
            for key, tensor in (value.items() if isinstance(value, Mapping) else (("", value),))
        }
        if not all(isinstance(tensor, Tensor) for tensor in flat.values()):
            raise TypeError("it holds other things than tensors")
    except Exception as error:  # a foreign file fails in whatever way its bytes lead to
        raise UserError(f"{path} is no expression adapter ({type(error).__name__}: {error}).") from error
    return flat


def encoder_from_release(weights: Mapping[str, Tensor], head_dim: int = _HEAD_DIM) -> ExpressionEncoder:
    """An encoder of the checkpoint's sizes with its weights. Raises `UserError` where a key does not fit."""
    own: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not name.startswith("ip_adapter."):
            own |= _encoder_weights(name, tensor)
    try:
        dims: dict[str, Any] = {f"{factor}_dim": own[f"project.{factor}.weight"].shape[1] for factor in FACTORS}
        inner, dim = own["resample.lip.layers.0.attn.to_q.weight"].shape
        with torch.device("meta"):
            encoder = ExpressionEncoder(
                **dims,
                width=len(own["norm.weight"]),
                queries=tuple(own[f"resample.{factor}.latents"].shape[1] for factor in _RESAMPLERS),
                resampler_dim=dim,
                resampler_depth=len({name.split(".")[3] for name in own if name.startswith("resample.lip.layers.")}),
                resampler_heads=inner // head_dim,
                resampler_head_dim=head_dim,
            )
        encoder.load_state_dict(own, assign=True)
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(
            f"The expression adapter's encoder does not fit: {' '.join(str(error).split())[:300]}"
        ) from error
    return encoder


def _encoder_weights(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of the release under our names; joined keys and values are parted. `UserError` for an unknown name."""
    part, _, rest = name.partition(".")
    if part == "proj_model":
        if rest.startswith("norm."):
            return {rest: tensor}
        linear = {theirs: factor for factor, theirs in _LINEAR.items()}
        layer, _, kind = rest.partition(".")
        if layer in linear:
            return {f"project.{linear[layer]}.{kind}": tensor}
    for factor, theirs in _RESAMPLERS.items():
        if part == theirs:
            return {f"resample.{factor}.{key}": value for key, value in _resampler_weights(rest, tensor).items()}
    raise UserError(f"The expression adapter has a weight that is not known: {name}.")


def _resampler_weights(name: str, tensor: Tensor) -> dict[str, Tensor]:
    inside = re.fullmatch(r"layers\.(\d+)\.(.+?)(\.weight|\.bias)", name)
    if inside is None:
        return {name: tensor}
    number, layer, kind = inside.groups()
    if layer == "0.to_kv":
        keys, values = tensor.chunk(2)
        return {f"layers.{number}.attn.to_{each}{kind}": half for each, half in (("k", keys), ("v", values))}
    if layer not in _IN_LAYER:
        raise UserError(f"The expression adapter has a weight that is not known: {name}.")
    return {f"layers.{number}.{_IN_LAYER[layer]}{kind}": tensor}


def branches_from_release(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The release's keys and values of every block, under the names of `ExpressionAdapter`. Raises `UserError`."""
    own = {}
    for name, tensor in weights.items():
        if name.startswith("ip_adapter."):
            found = _BRANCH.fullmatch(name)
            if found is None:
                raise UserError(f"The expression adapter has a weight that is not known: {name}.")
            own[f"blocks.{found[1]}.attn2.to_{found[2]}.weight"] = tensor
    return own
