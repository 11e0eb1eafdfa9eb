"""The two models that caches are measured on: how a run is made, and what of it is measured.

Both keep a pipeline that nothing is ever put on (`plain`) and a copy of it that methods are put on (`pipe`).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from benchmarks import sd_like
from fye_pipeline.animate.config import SHIPPED_MODEL
from fye_pipeline.animate.detail import BentPortraits
from fye_pipeline.evaluation import metrics
from fye_pipeline.evaluation.metric_networks import Lpips
from fye_pipeline.evaluation.rendered import model_hash
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.landmarks.drawing import draw_sequence, expression_mask, facial_mask
from fye_pipeline.pipeline import FollowYourEmojiPipeline
from fye_pipeline.sampling.clip_plan import plan_windows
from fye_pipeline.sampling.denoise import cut_clip, denoise, encode_bent, encode_landmarks, prepare_conditions
from fye_pipeline.storage.files import weights_hash
from fye_pipeline.world import World

RECORDED = 50  # the head, or batch of pictures, that schedules are fitted on: more than are ever measured

SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}),
    "dpm-solver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": (UniPCMultistepScheduler, {"solver_order": 2}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler-a": (EulerAncestralDiscreteScheduler, {}),
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured. clips: videos, or batches of pictures; frames: of a video; pictures: of a batch."""

    clips: int
    frames: int
    pictures: int
    seed: int = 0


class BenchmarkModel(ABC):
    """A model with its inputs. A clip is one video, or one batch of pictures."""

    name: str
    plain: Any
    pipe: Any
    masks: list[NDArray[np.float32]]  # of each clip's face, [F, H, W]
    regions: list[NDArray[np.float32]]  # of each clip's expression, for Eq. 4, as `ticache.apply` takes them
    sizes: Sizes
    lpips: Lpips | None = None

    def renew(self) -> None:
        """Throw away the pipeline that methods were put on."""
        self.pipe = copy.deepcopy(self.plain)

    def set_sampler(self, sampler: str, pipe: Any = None) -> None:
        kind, options = SAMPLERS[sampler]
        pipe = pipe or self.pipe
        pipe.scheduler = kind.from_config(self._scheduler_config, **options)

    @property
    @abstractmethod
    def _scheduler_config(self) -> Any: ...

    @abstractmethod
    def run(self, clip: int, steps: int, pipe: Any = None, *, guidance: float = 1.0) -> Tensor:
        """Denoise one clip, always from the same noise. -> latents, as `decode` takes them.

        clip: from 0; the one after the last is measured nowhere: schedules that are fitted record it.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> NDArray[np.floating]:
        """Latents -> frames or pictures [F, H, W, 3] in [0, 1]."""

    @abstractmethod
    def truth_figures(self, clip: int, video: NDArray[np.floating]) -> dict[str, float | None]:
        """Against the rendered truth, where there is one."""

    @abstractmethod
    def conditions(self) -> dict[str, Any]:
        """What decides this model's numbers."""

    def figures(self, clip: int, video: NDArray[np.floating], reference: NDArray[np.floating]) -> dict[str, Any]:
        """Fidelity to the uncached run, over all and in the face, and to the truth."""
        mask = self.masks[clip]
        found = [self._fidelity(video[part], reference[part], mask[part]) for part in self._parts(len(video))]
        means = {name: float(np.mean([each[name] for each in found])) for name in found[0]}
        perceived = None if self.lpips is None else self.lpips(video, reference)
        return means | {"lpips": perceived} | self.truth_figures(clip, video)

    def psnrs(self, video: NDArray[np.floating], reference: NDArray[np.floating]) -> list[float]:
        """Of each part that counts by itself."""
        return [metrics.psnr(video[part], reference[part]) for part in self._parts(len(video))]

    @staticmethod
    def _fidelity(video: Any, reference: Any, mask: Any) -> dict[str, float]:
        face = np.broadcast_to(mask[..., None] > 0, video.shape)
        error = float(((video[face] - reference[face]) ** 2).mean())
        return {
            "psnr": metrics.psnr(video, reference),
            "psnr_region": float(-10 * np.log10(max(error, 1e-10))),
            "ssim": metrics.ssim(video, reference),
        }

    def _parts(self, count: int) -> Sequence[slice]:
        """What is measured as one: the whole video."""
        return [slice(0, count)]


class Portrait(BenchmarkModel):
    """The shipped portrait model on held-out heads of the rendered world, driven by their own landmarks."""

    name = "portrait"

    def __init__(self, sizes: Sizes, device: torch.device, detector: FaceLandmarkDetector, model: Path = SHIPPED_MODEL):
        self.sizes, self._detector = sizes, detector
        self.plain: Any = FollowYourEmojiPipeline.from_pretrained(model).to(device)
        self.plain.set_progress_bar_config(disable=True)
        size = int(self.plain.unet.config["sample_size"]) * self.plain.vae_scale_factor
        world = World(detector.canonical, size=size)
        heads = [*(sizes.seed * 1000 + index for index in range(sizes.clips)), sizes.seed * 1000 + RECORDED]
        clips = [world.clip("held", head, take=1, frames=sizes.frames) for head in heads]
        landmarks = [clip.sequence.landmarks for clip in clips]
        self.truths = [clip.frames / 255.0 for clip in clips[:-1]]
        self.masks = [facial_mask(each, size, size) for each in landmarks[:-1]]
        self.regions = [expression_mask(each, size, size) for each in landmarks]
        self._seen = [[self._detect(frame) for frame in clip.frames] for clip in clips[:-1]]
        portraits = [world.portrait("held", head) for head in heads]
        self._pictures = list(zip(portraits, landmarks, strict=True))
        self._inputs: dict[tuple[int, bool], Any] = {}
        self.renew()

    @property
    def _scheduler_config(self) -> Any:
        return self.plain.scheduler.config

    def _detect(self, frame: NDArray[np.uint8]) -> NDArray[np.floating] | None:
        face = self._detector.detect(frame)
        return None if face is None else face.landmarks

    def _conditions(self, clip: int, *, guided: bool) -> Any:
        """What the UNet is given beside the noise, made when it is first asked for."""
        if (clip, guided) not in self._inputs:
            seen, landmarks = self._pictures[clip]
            portrait, size, length = seen.frames[0], seen.sequence.width, len(landmarks)
            features = encode_landmarks(self.plain, draw_sequence(landmarks, size))
            bent = BentPortraits(portrait, seen.sequence.landmarks[0], landmarks, size).stack(0, length)
            hints = encode_bent(self.plain, bent)
            (window,) = plan_windows(length, "uniform", length=length, overlap=0, limit=length)
            self._inputs[clip, guided] = prepare_conditions(
                self.plain, Image.fromarray(portrait), None, [cut_clip(window, features, None, hints)], guided=guided
            )
        return self._inputs[clip, guided]

    @torch.no_grad()
    def run(self, clip: int, steps: int, pipe: Any = None, *, guidance: float = 1.0) -> Tensor:
        pipe = pipe or self.pipe
        side = int(pipe.unet.config["sample_size"])
        pipe.scheduler.set_timesteps(steps, device=pipe.device)
        generator = Generator().manual_seed(self.sizes.seed * 1000 + clip)
        noise = torch.randn(
            1, pipe.vae.config["latent_channels"], self.sizes.frames, side, side, generator=generator
        ).to(pipe.device)
        noise = noise * pipe.scheduler.init_noise_sigma
        conditions = self._conditions(clip, guided=guidance > 1)
        return denoise(pipe, noise, conditions, guidance, generator, lambda step, time, latents: latents)

    def decode(self, latents: Tensor) -> NDArray[np.floating]:
        frames = torch.cat([part.cpu() for part in self.plain.decode_frames(latents, 8)])
        return frames.permute(0, 2, 3, 1).numpy()

    def truth_figures(self, clip: int, video: NDArray[np.floating]) -> dict[str, float | None]:
        error, missing = metrics.landmark_error(video, self._seen[clip], self._detect)
        face = np.broadcast_to(self.masks[clip][..., None] > 0, video.shape)
        return {
            "l1_truth": metrics.l1(video, self.truths[clip]),
            "l1_truth_region": float(np.abs(video[face] - self.truths[clip][face]).mean()),
            "ssim_truth": metrics.ssim(video, self.truths[clip]),
            "landmark_error": None if np.isnan(error) else error,
            "frames_without_face": missing,
        }

    def conditions(self) -> dict[str, Any]:
        return {
            "model_hash": model_hash(self.plain),
            "clips": self.sizes.clips,
            "frames": self.sizes.frames,
            "split": "held",
            "psnr": "of each clip's frames together, then the mean over clips",
        }


class SDLike(BenchmarkModel):
    """The small text-free `StableDiffusionPipeline` on where held-out faces are; each picture counts by itself."""

    name = "sd-like"

    def __init__(
        self, sizes: Sizes, device: torch.device, detector: FaceLandmarkDetector, folder: Path = sd_like.ASSETS
    ):
        self.sizes = sizes
        self.plain: Any = sd_like.load_pipeline(folder).to(device)
        world = World(detector.canonical, size=128)
        landmarks = [
            sd_like.held_out(world, sizes.pictures, sizes.seed * 100 + clip + 10)[1]
            for clip in (*range(sizes.clips), RECORDED)
        ]
        self._tokens = [sd_like.prompt_tokens(each).to(device) for each in landmarks]
        self.masks = [facial_mask(each, 128, 128) for each in landmarks[:-1]]
        # Each picture is a sample of its own: [B, 1, H, W].
        self.regions = [expression_mask(each, 128, 128)[:, None] for each in landmarks]
        self.renew()

    @property
    def _scheduler_config(self) -> Any:
        return self.plain.scheduler.config

    def run(self, clip: int, steps: int, pipe: Any = None, *, guidance: float = 1.0) -> Tensor:
        pipe = pipe or self.pipe
        side = int(pipe.unet.config["sample_size"])
        generator = Generator().manual_seed(self.sizes.seed * 1000 + clip)
        noise = torch.randn(self.sizes.pictures, 4, side, side, generator=generator)
        return pipe(
            prompt_embeds=self._tokens[clip],
            negative_prompt_embeds=torch.zeros_like(self._tokens[clip]),
            guidance_scale=guidance,
            num_inference_steps=steps,
            latents=noise,
            generator=generator,
            output_type="latent",
        ).images

    @torch.no_grad()
    def decode(self, latents: Tensor) -> NDArray[np.floating]:
        vae = self.plain.vae
        pictures = vae.decode(latents / vae.config["scaling_factor"], return_dict=False)[0]
        return (pictures / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()

    def truth_figures(self, clip: int, video: NDArray[np.floating]) -> dict[str, float | None]:
        """There is no truth: noise decides who is seen."""
        return dict.fromkeys(("l1_truth", "l1_truth_region", "ssim_truth", "landmark_error", "frames_without_face"))

    def _parts(self, count: int) -> Sequence[slice]:
        return [slice(index, index + 1) for index in range(count)]

    def conditions(self) -> dict[str, Any]:
        return {
            "unet_hash": weights_hash(sorted(self.plain.unet.state_dict().items())),
            "clips": self.sizes.clips,
            "pictures": self.sizes.pictures,
            "split": "held",
            "psnr": "of each picture, then the mean over pictures",
        }
