"""A model small enough to train in milliseconds, and datasets made by hand, for tests of the training code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import AutoencoderKL, DDIMScheduler
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fye_pipeline.models.conditioning import AppearanceNet, LandmarkEncoder
from fye_pipeline.models.denoising_unet import DenoisingUNet
from fye_pipeline.models.official import SCHEDULER
from fye_pipeline.models.tiny import VAE
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.training.dataset import INDEX, KIND, SHARDS, VERSION, ShardWriter, join_parts
from fye_pipeline.training.prepare import PrepareOptions

SIZE = 64
UNET: dict[str, Any] = {
    "sample_size": SIZE // 8,
    "block_out_channels": (16, 16),
    "layers_per_block": 1,
    "num_attention_heads": 2,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
    "image_dim": 16,
}


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps a process's precision in a singleton."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def small_parts(
    seed: int = 0, *, in_channels: int = 9, reference_hint: bool = True, bent_hint: bool = False
) -> dict[str, Any]:
    """Every part, two levels deep and sixteen channels wide; the motion modules are not zero as new ones are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = DenoisingUNet(
            **UNET,
            in_channels=in_channels,
            reference_hint=reference_hint,
            bent_hint=bent_hint,
            motion_num_attention_heads=2,
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        ).eval()
        for name, parameter in unet.named_parameters():
            if "motion_modules" in name and "proj_out" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        encoder = LandmarkEncoder(out_channels=16, hidden_channels=(4, 4, 8, 8)).eval()
        torch.nn.init.normal_(encoder.conv_out.weight, std=0.1)  # zero at first, as the published one's
        vae: dict[str, Any] = VAE | {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "sample_size": SIZE}
        return {
            "vae": AutoencoderKL(**vae).eval(),
            "image_encoder": CLIPVisionModelWithProjection(
                CLIPVisionConfig(
                    hidden_size=16,
                    intermediate_size=16,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    image_size=32,
                    patch_size=16,
                    projection_dim=16,
                )
            ).eval(),
            "feature_extractor": CLIPImageProcessorPil(
                size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
            ),
            "appearance_net": AppearanceNet(
                **UNET,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            ).eval(),
            "unet": unet,
            "landmark_encoder": encoder,
            "scheduler": DDIMScheduler(**SCHEDULER),
        }


def save_small(folder: Path, **options: Any) -> Path:
    """The small model as a pipeline folder."""
    FollowYourEmojiPipeline(**small_parts(**options)).save_pretrained(folder)
    return folder


def assert_same_losses(one: dict[int, float], other: dict[int, float]) -> None:
    """Losses by step of two runs that saw the same batches and noise.

    Not to the bit: weights read from a checkpoint lie elsewhere in memory, and training enlarges the last bits.
    """
    assert one.keys() == other.keys()
    assert list(one.values()) == pytest.approx(list(other.values()), rel=1e-3)


def clip_arrays(frames: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Pictures [F, 64, 64, 3] whose red says which frame it is, and landmarks in the middle of them."""
    rng = np.random.default_rng(seed)
    pictures = np.broadcast_to(rng.integers(0, 255, (SIZE // 8, SIZE // 8, 3)).astype(np.uint8), (frames, 8, 8, 3))
    pictures = pictures.repeat(8, 1).repeat(8, 2)
    pictures[..., 0] = (8 * np.arange(frames) % 256)[:, None, None]
    landmarks = 0.5 + 0.2 * rng.standard_normal((1, 478, 3)) + 0.01 * rng.standard_normal((frames, 478, 3))
    return pictures, {
        "landmarks": landmarks.clip(0.02, 0.98),
        "mesh": rng.standard_normal((frames, 468, 3)),
        "poses": np.tile(np.eye(4), (frames, 1, 1)),
        "blendshapes": rng.random((frames, 52)),
    }


def make_dataset(folder: Path, shards: Sequence[Sequence[int]] = ((6, 5), (8, 6))) -> Path:
    """A dataset of shards of clips of so many frames, as `fye prepare` leaves it."""
    import json

    (folder / SHARDS).mkdir(parents=True)
    names = []
    for number, lengths in enumerate(shards):
        part = folder / "part.tar"
        writer = ShardWriter(part, quality=PrepareOptions().quality)
        for clip, frames in enumerate(lengths):
            pictures, arrays = clip_arrays(frames, 10 * number + clip)
            held = writer.begin(f"video{number}-{clip:04d}", f"video{number}.mp4", "25")
            for picture in pictures:
                held.add(picture)
            held.finish(arrays, {})
        size = writer.size
        writer.close()
        names.append(f"shard-{number:05d}.tar")
        join_parts([(part, size, writer.entries)], folder / SHARDS / names[-1])
        part.unlink()
    note = {"kind": KIND, "version": VERSION, "size": SIZE, "shards": names}
    (folder / INDEX).write_text(json.dumps(note), encoding="utf-8")
    return folder
