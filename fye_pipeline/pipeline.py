"""FollowYourEmojiPipeline: one portrait and a sequence of landmark pictures become a video of that portrait."""

# No `from __future__ import annotations` here: diffusers reads the constructor's annotations as classes.
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Generator, Tensor
from transformers import CLIPVisionModelWithProjection
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fye_pipeline import presets
from fye_pipeline.errors import UserError
from fye_pipeline.media.image import letterbox
from fye_pipeline.models.conditioning import AppearanceNet, LandmarkEncoder
from fye_pipeline.models.denoising_unet import DenoisingUNet
from fye_pipeline.models.dilation import DILATIONS, Dilation
from fye_pipeline.models.official import SCHEDULER, load_networks
from fye_pipeline.sampling import progressive
from fye_pipeline.sampling.clip_plan import MODES, Window, plan_windows
from fye_pipeline.sampling.denoise import (
    cut_clip,
    decode_frames,
    denoise,
    encode_bent,
    encode_image,
    encode_landmarks,
    encode_reference,
    prepare_conditions,
)
from fye_pipeline.sampling.inputs import as_picture, check_bent, check_landmarks, check_region

if TYPE_CHECKING:
    from ticache import CacheConfig, Session

PARTS = ("vae", "image_encoder", "feature_extractor", "appearance_net", "unet", "landmark_encoder", "scheduler")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
LONG = (*MODES, "progressive")
# What a part's folder must hold: one file of each group.
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json")
_MODEL_FILES = (("config.json",), _WEIGHTS)
_PART_FILES = {
    "scheduler": (("scheduler_config.json",),),
    "feature_extractor": (("preprocessor_config.json", "processor_config.json"),),
}


@dataclass
class FollowYourEmojiOutput(BaseOutput):
    """frames: a list with one list of PIL pictures ("pil"); [1, F, H, W, 3] ("np") or [1, F, 3, H, W] ("pt") in [0, 1];
    or latents [1, C, F, h, w] ("latent").
    """

    frames: Any


class FollowYourEmojiPipeline(DiffusionPipeline):
    """Animate a portrait (Follow-Your-Emoji-Faster); it loads and saves as one folder, as any diffusers pipeline.

    vae: pictures <-> latents. image_encoder, feature_extractor: the vision tokens of the image prompt.
    appearance_net: the reference's token maps. unet: the denoiser, which `ticache` accelerates.
    landmark_encoder: features of the landmark pictures. scheduler: DDIM with zero terminal SNR and v-prediction for the
    published and the shipped weights; any diffusers scheduler works. noise_scale: see the property.
    """

    __module__ = "fye_pipeline"  # the library that model_index.json names
    model_cpu_offload_seq = "image_encoder->appearance_net->landmark_encoder->unet->vae"
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        vae: AutoencoderKL,
        image_encoder: CLIPVisionModelWithProjection,
        feature_extractor: BaseImageProcessor,
        appearance_net: AppearanceNet,
        unet: DenoisingUNet,
        landmark_encoder: LandmarkEncoder,
        scheduler: SchedulerMixin,
        noise_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= noise_scale <= 1:
            raise UserError(f"noise_scale must be from 0 to 1, got {noise_scale}")
        self.vae: AutoencoderKL
        self.image_encoder: CLIPVisionModelWithProjection
        self.feature_extractor: BaseImageProcessor
        self.appearance_net: AppearanceNet
        self.unet: DenoisingUNet
        self.landmark_encoder: LandmarkEncoder
        self.scheduler: Any
        self.register_modules(
            vae=vae,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            appearance_net=appearance_net,
            unet=unet,
            landmark_encoder=landmark_encoder,
            scheduler=scheduler,
        )
        self.register_to_config(noise_scale=noise_scale)
        self.vae_scale_factor = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        self.guidance_scale = 1.0
        self._interrupt = False
        self._session: Session | None = None
        self._lent_region: Tensor | None = None  # what the session's region was last set to by a run

    # Loading

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """Load a pipeline folder, in float32 unless `dtype` says otherwise; parts may be passed by name instead.

        Raises UserError, in one sentence that lists them, when parts are absent; and when a part cannot be read.
        """
        folder = Path(pretrained_model_name_or_path)
        check_folder(folder, [part for part in PARTS if kwargs.get(part) is None])
        older = kwargs.pop("torch_dtype", None)  # the name that diffusers is leaving behind
        kwargs["dtype"] = kwargs.get("dtype") or older or torch.float32
        try:
            return super().from_pretrained(str(folder), **kwargs)
        except Exception as error:
            raise UserError(f"{folder} cannot be loaded as a FollowYourEmojiPipeline: {error}") from error

    @classmethod
    def from_official(
        cls,
        folder: str | Path,
        *,
        vae: AutoencoderKL | str | Path | None = None,
        image_encoder: CLIPVisionModelWithProjection | str | Path | None = None,
        config: dict[str, Any] | None = None,
        in_channels: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Load the published weights: `lmk_guider`, `referencenet` and `unet`, each .pth or .safetensors.

        vae, image_encoder: a model, a folder, or None for `vae` (else `sd-vae-ft-mse`) and `image_encoder` in `folder`.
        config: sizes in the official code's terms (default: the published ones). in_channels: 9 for progressive
        generation; the new columns are zero.
        Raises UserError for absent or unreadable files, and lists missing and unexpected keys.
        """
        folder = Path(folder)
        networks: dict[str, Any] = load_networks(folder, config, in_channels=in_channels, dtype=dtype)
        vaes, encoders = [folder / "vae", folder / "sd-vae-ft-mse"], [folder / "image_encoder"]
        own = folder / "feature_extractor"
        feature_extractor = CLIPImageProcessorPil.from_pretrained(own) if own.is_dir() else CLIPImageProcessorPil()
        return cls(
            vae=_load_or_keep(AutoencoderKL, vae, vaes, dtype),
            image_encoder=_load_or_keep(CLIPVisionModelWithProjection, image_encoder, encoders, dtype),
            feature_extractor=feature_extractor,
            scheduler=DDIMScheduler(**SCHEDULER),
            **networks,
        )

    # Caching

    def enable_cache(self, config: "CacheConfig | None" = None, **options: Any) -> "Session":
        """Accelerate the UNet with `ticache.apply(self, config, **options)`; the session gets each run's `region`.

        `preset="fast"`, "balanced" or "faithful" without N is the model's own, if its folder holds one tuned on
        these weights (`fye tune`); else it is ticache's generic one, and a note in the log says so. Where a folder
        holds a calibration of these weights (`fye tune --calibrate`) and no schedule is asked for, or "auto" is, the
        full steps are those that it says are best, from the first run on.
        """
        import ticache
        from ticache.calibration import Calibration

        name = self.config.get("_name_or_path")  # none where the pipeline was built in memory
        folder = Path(name) if name else None
        if config is None and options.get("preset") is not None:
            tuned, options = presets.resolve(options, folder)
            config = None if tuned is None else ticache.CacheConfig.from_json(tuned)
        tells = folder is not None and (folder / presets.FILE).is_file()
        if config is None and tells and (recordings := presets.calibration(options, folder)) is not None:
            # Its files were compared with the folder's: the weights fit, in whatever precision they are loaded.
            calibration = Calibration(recordings=Calibration.from_dict(recordings).recordings)
            # A run of another scheduler would be made in full: that must be asked for.
            cut = {key: value for key, value in options.items() if key in ("cut", "depth", "resnets")}
            if options.get("schedule") == "auto" or calibration.covers(self.scheduler, **cut):
                options = {**options, "schedule": "auto", "calibration": calibration}
        self._session, self._lent_region = ticache.apply(self, config, **options), None
        return self._session

    def disable_cache(self) -> None:
        """Take the cache off again; where there is none, nothing happens."""
        import ticache

        ticache.remove(self)
        self._session, self._lent_region = None, None

    @property
    def session(self) -> "Session | None":
        """The cache that `enable_cache` has put on the UNet; None where there is none."""
        return self._session

    # Running

    @property
    def noise_scale(self) -> float:
        """What the initial noise is multiplied by, from `model_index.json`.

        Below 1 samples lie nearer to the mean of what the model holds possible: a model that is not sure of flat
        areas then draws no clouds into them. 1 is the sampler as published; given `latents` are taken as they are.
        """
        return self.config["noise_scale"]

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` (from a callback, another thread) to leave out the steps that remain."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | np.ndarray,
        landmarks: Sequence[np.ndarray] | np.ndarray,
        *,
        num_inference_steps: int = 30,
        guidance_scale: float = 3.5,
        long: str = "uniform",
        window: int | None = None,
        overlap: int = 4,
        dilation: Dilation = "auto",
        region: np.ndarray | Tensor | None = None,
        bent: Sequence[np.ndarray] | np.ndarray | None = None,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        image_tokens: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        decode_chunk_size: int = 1,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Animate `image` with `landmarks`; the video has as many frames as there are landmark pictures.

        Returns a FollowYourEmojiOutput, or a tuple of its one field with `return_dict=False`.

        image: the portrait, PIL or uint8 [H, W, 3]; letterboxed to the size of the landmark pictures.
        landmarks: drawn landmark pictures, uint8 [F, H, W, 3], H and W multiples of the smallest latent cell.
        guidance_scale: classifier-free guidance, off at 1 or below.
        long: what to do with more than `window` frames: "uniform" (windows side by side, the last one wraps around),
            "tiles" (Gaussian tiles that share `overlap` frames) or "progressive" (keyframes first, then the gaps, for a
            UNet of 9 input channels; `sampling.progressive.generate` does the same to disk, in flat memory).
        window: frames that the UNet sees together; 24 for "uniform" and 16 for the others by default.
        dilation: "auto": where the picture is larger than the trained one, the deepest convolutions see as much of it
            in the early steps as they have learned to (`models.dilation`); "none": they stay as they are.
        region: [F, H, W] in [0, 1], the landmark region of every frame, for an enabled cache.
        bent: the portrait bent to every frame's landmarks (`landmarks.bend`), uint8 RGBA [F, H, W, 4] whose alpha says
            where it can be trusted, for a UNet with `bent_hint`; without it such a UNet paints everything itself.
        latents: initial noise [1, C, F, h, w], which progressive clips draw for themselves.
        image_tokens: vision tokens [1, L, D] in place of the image encoder's.
        output_type: "pil", "np", "pt" or "latent"; `FollowYourEmojiOutput` has the shapes.
        callback_on_step_end(pipe, step, timestep, tensors) may return new `latents`; of the clip, if progressive.
        Raises UserError on inputs that do not fit.
        """
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}")
        if long not in LONG:
            raise UserError(f"long must be one of {LONG}, got {long!r}")
        if dilation not in DILATIONS:
            raise UserError(f"dilation must be one of {DILATIONS}, got {dilation!r}")
        pictures = check_landmarks(landmarks, self.vae_scale_factor)
        region = check_region(region, len(pictures))
        bent = check_bent(bent, pictures)
        frames, height, width = pictures.shape[:3]
        portrait = letterbox(as_picture(image), width, height)
        self._interrupt = False

        def after_step(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
            if callback_on_step_end is None:
                return latents
            tensors = {"latents": latents} if "latents" in callback_on_step_end_tensor_inputs else {}
            return (callback_on_step_end(self, step, timestep, tensors) or {}).get("latents", latents)

        if long == "progressive":
            if latents is not None:
                raise UserError("latents must be None with long='progressive': every clip draws its own noise")
            video = progressive.Video(
                portrait=portrait,
                image_tokens=image_tokens,
                landmarks=pictures,
                region=region,
                bent=bent,
                plan=progressive.plan_video(self, frames, window),
                seed=progressive.draw_seed(generator),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                dilation=dilation,
            )
            with self._bar(frames, "frames") as bar:
                latents = progressive.denoise_video(self, video, after_step, bar.update)
        else:
            windows = self._plan_windows(frames, long, window, overlap)
            self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
            noise = self._prepare_latents(frames, height, width, generator, latents)
            features = encode_landmarks(self, pictures).to(self.unet.dtype)
            hints = encode_bent(self, bent)
            clips = [cut_clip(each, features, region, hints) for each in windows]
            options: Any = {"guided": guidance_scale > 1, "dilation": dilation}
            conditions = prepare_conditions(self, portrait, image_tokens, clips, **options)
            with self._bar(len(self.scheduler.timesteps), "denoising") as bar:

                def with_bar(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
                    bar.update()
                    return after_step(step, timestep, latents)

                latents = denoise(self, noise, conditions, guidance_scale, generator, with_bar)
        output = latents if output_type == "latent" else self._decode(latents, output_type, decode_chunk_size)
        self.maybe_free_model_hooks()
        return FollowYourEmojiOutput(frames=output) if return_dict else (output,)

    def encode_image(self, portrait: Image.Image) -> Tensor:
        """Encode a picture into vision tokens: the last hidden state, class token included. -> [1, L, D]."""
        return encode_image(self, portrait)

    def encode_reference(self, portrait: Image.Image) -> Tensor:
        """Encode a picture into its scaled latent, the posterior's mean. -> [1, C, h, w]."""
        return encode_reference(self, portrait)

    def encode_landmarks(self, pictures: np.ndarray, chunk: int = 32) -> Tensor:
        """Encode landmark pictures, uint8 [F, H, W, 3], `chunk` frames at a time. -> [1, C, F, h, w]."""
        return encode_landmarks(self, pictures, chunk)

    def decode_frames(self, latents: Tensor, chunk: int = 1) -> Iterator[Tensor]:
        """Decode latents [1, C, F, h, w] `chunk` frames at a time. Yields float32 [n, 3, H, W] in [0, 1]."""
        return decode_frames(self, latents, chunk)

    def _decode(self, latents: Tensor, output_type: str, chunk: int) -> Any:
        """Decode with a progress bar and bring the frames into the form that was asked for."""
        parts = []
        with self._bar(latents.shape[2], "decoding") as bar:
            for part in decode_frames(self, latents, chunk):
                parts.append(part.cpu())
                bar.update(len(part))
        video = torch.cat(parts)
        if output_type == "pt":
            return video[None]
        array = VaeImageProcessor.pt_to_numpy(video)
        return array[None] if output_type == "np" else [VaeImageProcessor.numpy_to_pil(array)]

    def _plan_windows(self, frames: int, long: str, window: int | None, overlap: int) -> list[Window]:
        """Plan windows of the length that was asked for, or of the mode's own as far as the UNet takes it."""
        limit = self.unet.config["motion_max_seq_length"]
        length = window or min(24 if long == "uniform" else 16, limit)
        return plan_windows(frames, long, length=length, overlap=overlap, limit=limit)

    def _prepare_latents(
        self,
        frames: int,
        height: int,
        width: int,
        generator: Generator | list[Generator] | None,
        latents: Tensor | None,
    ) -> Tensor:
        """Draw the initial noise, or check the given one. -> [1, C, F, h, w]."""
        device, dtype, factor = self._execution_device, self.unet.dtype, self.vae_scale_factor
        shape = (1, self.vae.config["latent_channels"], frames, height // factor, width // factor)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype) * self.noise_scale
        elif tuple(latents.shape) != shape:
            raise UserError(f"latents must be {list(shape)} for these landmark pictures, got {list(latents.shape)}")
        return latents.to(device, dtype) * self.scheduler.init_noise_sigma

    def _bar(self, total: int, what: str) -> Any:
        """Open the pipeline's progress bar (`set_progress_bar_config` governs it) under a name."""
        open_bar: Any = self.progress_bar
        bar = open_bar(total=total)
        bar.set_description(what)
        return bar

    def tell_region(self, region: Tensor | None) -> None:
        """Set the session's region to that of the clip at hand; one that the user set stays where a run brings none."""
        if self._session is not None and region is not self._lent_region:
            self._session.region = region
            self._lent_region = region


def _load_or_keep(kind: Any, given: Any, places: list[Path], dtype: torch.dtype) -> Any:
    """Keep a model that was passed, else load it from the folder that was passed or from its usual places."""
    if isinstance(given, kind):
        return given if given.dtype == dtype else given.to(dtype)
    return load_part(kind, [given] if given else places, dtype)


def check_folder(folder: Path, parts: Iterable[str]) -> None:
    """Raise UserError unless `folder` has an index and every one of `parts` with the files that it needs."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"{folder} is not a model folder: it has no model_index.json; give one that save_pretrained wrote"
        )
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{index} is not valid JSON: {error}") from error
    faults = [fault for part in parts if (fault := _fault(folder, part, entries))]
    if faults:
        raise UserError(f"{folder} lacks {'; '.join(faults)}; copy the whole model folder again")


def _fault(folder: Path, part: str, entries: dict[str, Any]) -> str | None:
    """Say what is absent of one part, or None."""
    if not entries.get(part) or entries[part][0] is None:
        return f"the part {part} in model_index.json"
    if not (folder / part).is_dir():
        return f"the part {part}"
    for group in _PART_FILES.get(part, _MODEL_FILES):
        if not any(path for pattern in group for path in (folder / part).glob(pattern)):
            return f"{' or '.join(group)} in {part}"
    return None


def load_part(kind: Any, places: Sequence[str | Path], dtype: torch.dtype) -> Any:
    """Load a model (`kind.from_pretrained`) from the first of `places` that is a folder. Raises UserError."""
    for place in places:
        if Path(place).is_dir():
            try:
                return kind.from_pretrained(str(place), dtype=dtype).eval()
            except Exception as error:
                raise UserError(f"{place} cannot be loaded as {kind.__name__}: {error}") from error
    raise UserError(f"no {kind.__name__} found at {' or '.join(map(str, places))}; put its folder there, or pass it")


def check_cache_options(options: dict[str, Any]) -> None:
    """Raise `UserError` where `ticache.apply` would not take these options."""
    import ticache

    try:
        ticache.CacheConfig(**{name: value for name, value in options.items() if name != "preset"})
    except (ValueError, TypeError) as error:
        raise UserError(f"Cache: {error}.") from error
