"""The denoising UNet: diffusers' motion UNet, joined with the reference's tokens and the landmark features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNetMotionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D, UNetMotionOutput
from torch import Tensor, nn

from fye_pipeline.models.conditioning import (
    Reference,
    SelfAttention,
    build_image_prompt,
    has_attention,
    set_processors,
    spatial_blocks,
    take_skips,
)


class FrameGroupNorm(nn.GroupNorm):
    """Group normalisation of every frame by itself. [B, C, F, H, W] -> the same, as Follow-Your-Emoji v1."""

    def forward(self, input: Tensor) -> Tensor:
        batch = len(input)
        return super().forward(input.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, -1)).transpose(1, 2)


def channels_for(groups: int, latents: int) -> int:
    """Input channels for so many groups of latents: noisy alone, with given frames, with bent portraits too.

    Every group but the first has a channel more, which says where it counts.
    """
    return groups * latents + groups - 1


class DenoisingUNet(UNetMotionModel):
    """`UNetMotionModel` with the same module tree, plus an image prompt, reference tokens and landmark features.

    in_channels: of latents of C channels, C (noisy latents), or 2 C + 1 (noisy latents, clean latents of the frames
    that are given, their mask), or 3 C + 2 (with `bent_hint`): 4, 9 and 14 for Stable Diffusion's.
    image_dim: width of the vision tokens. image_prompt: "linear" or "resampler" (see `build_image_prompt`).
    reference_hint: with frames given, the reference's latents stand in the clean-latent channels of frames that are not
    given, instead of zeros: small models learn what stays where it is much sooner.
    bent_hint: C + 1 more channels: the latents of the portrait bent to each frame's landmarks, and where it can be
    trusted; zeros where there is no bent portrait.
    """

    __module__ = "fye_pipeline"  # the library that model_index.json names
    ignore_for_config = (  # arguments of the parent that this model leaves at their defaults
        *("downsample_padding", "mid_block_scale_factor", "act_fn", "transformer_layers_per_block"),
        *("reverse_transformer_layers_per_block", "reverse_temporal_transformer_layers_per_block"),
        *("transformer_layers_per_mid_block", "temporal_transformer_layers_per_mid_block", "use_linear_projection"),
        *("reverse_motion_num_attention_heads", "mid_block_layers", "encoder_hid_dim", "encoder_hid_dim_type"),
        *("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"),
        "time_cond_proj_dim",
    )

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = ("CrossAttnDownBlockMotion",) * 3 + ("DownBlockMotion",),
        up_block_types: tuple[str, ...] = ("UpBlockMotion",) + ("CrossAttnUpBlockMotion",) * 3,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int, ...] = 2,
        num_attention_heads: int | tuple[int, ...] = 8,
        cross_attention_dim: int = 768,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        motion_num_attention_heads: int | tuple[int, ...] = 8,
        motion_max_seq_length: int = 32,
        temporal_transformer_layers_per_block: int | tuple[int, ...] = 1,
        use_motion_mid_block: bool = True,
        image_dim: int = 1024,
        image_prompt: str = "linear",
        prompt_queries: int = 16,
        prompt_layers: int = 4,
        prompt_heads: int = 12,
        reference_hint: bool = False,
        bent_hint: bool = False,
    ) -> None:
        hints = {"reference_hint": (reference_hint, 2), "bent_hint": (bent_hint, 3)}
        for name, (asked, groups) in hints.items():
            needed = channels_for(groups, out_channels)
            if asked and in_channels < needed:
                raise ValueError(f"{name} needs {needed} input channels, got {in_channels}")
        layers: Any = layers_per_block  # the parent's annotation knows tuples of one value only
        motion_layers: Any = temporal_transformer_layers_per_block
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=tuple(down_block_types),
            up_block_types=tuple(up_block_types),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers,
            num_attention_heads=num_attention_heads,
            cross_attention_dim=cross_attention_dim,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            motion_num_attention_heads=motion_num_attention_heads,
            motion_max_seq_length=motion_max_seq_length,
            temporal_transformer_layers_per_block=motion_layers,
            use_motion_mid_block=use_motion_mid_block,
        )
        self.clip_fc = build_image_prompt(
            image_prompt,
            image_dim,
            cross_attention_dim,
            queries=prompt_queries,
            layers=prompt_layers,
            heads=prompt_heads,
        )
        for module in self.modules():
            if isinstance(module, AnimateDiffTransformer3D):
                norm = module.norm
                module.norm = FrameGroupNorm(norm.num_groups, norm.num_channels, eps=norm.eps)
                nn.init.zeros_(module.proj_out.weight)  # a new motion module changes nothing until it is trained
                nn.init.zeros_(module.proj_out.bias)
        blocks = spatial_blocks(self)
        self.num_references = len(blocks)
        set_processors(blocks)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        *,
        reference_tokens: Sequence[Tensor] | None = None,
        reference_mask: Tensor | None = None,
        landmark_features: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNetMotionOutput | tuple[Tensor]:
        """Predict v of a clip. `.sample` is [B, C, F, h, w].

        sample: [B, in_channels, F, h, w]. timestep: a number, a scalar, or [B].
        encoder_hidden_states: vision tokens [B, L, D] or [B*F, L, D]; zeros where there is no prompt.
        reference_tokens: the appearance net's export, one [R, T, C] per spatial block with R <= B. They belong to the
            last R samples; the first B - R (guidance's unconditional half) attend to themselves only.
        reference_mask: [R] bool, False where a sample must not see its reference (dropped in training).
        landmark_features: [B or 1, C, F, h, w], added after `conv_in`.
        Raises ValueError on shapes that do not fit together.
        """
        self._check(sample, encoder_hidden_states, reference_tokens, reference_mask, landmark_features)
        batch, _, frames = sample.shape[:3]
        reference = None
        if reference_tokens is not None:
            reference = Reference(frames, tuple(reference_tokens), reference_mask)
        temb = self._embed_time(timestep, batch, sample.device).repeat_interleave(frames, dim=0)
        attention = {
            "encoder_hidden_states": self.clip_fc(encoder_hidden_states),
            "cross_attention_kwargs": {"reference": reference},
        }

        hidden = self.conv_in(sample.transpose(1, 2).flatten(0, 1))
        if landmark_features is not None:
            hidden = (hidden.unflatten(0, (batch, frames)) + landmark_features.transpose(1, 2)).flatten(0, 1)

        skips = (hidden,)
        for block in self.down_blocks:
            more = attention if has_attention(block) else {}
            hidden, new = block(hidden_states=hidden, temb=temb, num_frames=frames, **more)
            skips += new
        motion = {"num_frames": frames} if self.config["use_motion_mid_block"] else {}
        hidden = self.mid_block(hidden, temb, **attention, **motion)
        for block in self.up_blocks:
            skips, taken = take_skips(skips, block)
            hidden = block(
                hidden_states=hidden,
                temb=temb,
                res_hidden_states_tuple=taken,
                upsample_size=skips[-1].shape[-2:] if skips else None,
                num_frames=frames,
                **(attention if has_attention(block) else {}),
            )

        assert self.conv_norm_out is not None
        assert self.conv_act is not None
        hidden = self.conv_out(self.conv_act(self.conv_norm_out(hidden)))
        prediction = hidden.unflatten(0, (batch, frames)).transpose(1, 2)
        return UNetMotionOutput(sample=prediction) if return_dict else (prediction,)

    def _embed_time(self, timestep: Tensor | float, batch: int, device: torch.device) -> Tensor:
        """Embed the timestep of every sample. -> [B, 4 * C0]."""
        timesteps = torch.as_tensor(timestep, device=device).expand(batch)
        return self.time_embedding(self.time_proj(timesteps).to(self.dtype))

    @property
    def takes_frames(self) -> bool:
        """Whether there are inputs for clean latents of frames that are given."""
        return self.config["in_channels"] > self.config["out_channels"]

    def _check(
        self,
        sample: Tensor,
        image_tokens: Tensor,
        reference_tokens: Sequence[Tensor] | None,
        reference_mask: Tensor | None,
        landmark_features: Tensor | None,
    ) -> None:
        """Refuse inputs that do not fit together, before they fail deep inside or broadcast silently."""
        batch, channels, frames, height, width = sample.shape
        if channels != self.config["in_channels"]:
            raise ValueError(f"sample must have {self.config['in_channels']} channels, got {channels}")
        if frames > self.config["motion_max_seq_length"]:
            raise ValueError(
                f"sample must have at most {self.config['motion_max_seq_length']} frames (motion_max_seq_length), "
                f"got {frames}; split the video into windows"
            )
        if len(image_tokens) not in (batch, batch * frames):
            raise ValueError(f"encoder_hidden_states must have {batch} rows, one per sample, got {len(image_tokens)}")
        if landmark_features is not None:
            rows, *rest = landmark_features.shape
            expected = [self.config["block_out_channels"][0], frames, height, width]
            if rows not in (1, batch) or rest != expected:
                raise ValueError(
                    f"landmark_features must be [{batch} or 1, {', '.join(map(str, expected))}], "
                    f"got {list(landmark_features.shape)}"
                )
        if reference_tokens is None:
            return
        rows = {len(tokens) for tokens in reference_tokens}
        if len(reference_tokens) != self.num_references or len(rows) != 1 or max(rows) > batch:
            raise ValueError(
                f"reference_tokens must be {self.num_references} maps of the same 1 to {batch} rows, "
                f"got {len(reference_tokens)} maps of {sorted(rows)} rows"
            )
        if reference_mask is not None and tuple(reference_mask.shape) != (max(rows),):
            raise ValueError(f"reference_mask must be [{max(rows)}], got {list(reference_mask.shape)}")
        if not all(isinstance(block.attn1.processor, SelfAttention) for block in spatial_blocks(self)):
            raise ValueError(
                "reference_tokens would be ignored: another attention processor was set on the UNet; "
                "load the model afresh"
            )
