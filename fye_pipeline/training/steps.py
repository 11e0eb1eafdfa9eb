"""One optimizer step as a function of its number: the trainable model, the noise it is given, the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn

from fye_pipeline.training.batches import Batch
from fye_pipeline.training.config import PhaseConfig, TrainConfig
from fye_pipeline.training.losses import LossParts, draw_given_frames, training_loss, with_given_frames


class PortraitModel(nn.Module):
    """Appearance net, denoising UNet, landmark encoder and image encoder under one roof, for the optimizer and DDP."""

    def __init__(self, parts: dict[str, Any]) -> None:
        super().__init__()
        self.image_encoder = parts["image_encoder"]
        self.appearance_net = parts["appearance_net"]
        self.landmark_encoder = parts["landmark_encoder"]
        self.unet = parts["unet"]

    def forward(self, sample: Tensor, timesteps: Tensor, batch: Batch, keep: Tensor) -> Tensor:
        """Predict v. sample [B, inputs, F, h, w], timesteps [B], keep [B] (False: no reference) -> [B, C, F, h, w].

        The F frames of a sample share its reference and timestep.
        """
        assert batch.reference is not None
        tokens = self.image_encoder(batch.prompt_pixels).last_hidden_state
        reference_tokens = self.appearance_net(batch.reference, tokens)
        features = self.landmark_encoder(batch.landmarks)
        return self.unet(
            sample,
            timesteps,
            encoder_hidden_states=tokens * keep[:, None, None].to(tokens),
            reference_tokens=reference_tokens,
            reference_mask=keep,
            landmark_features=features,
        ).sample

    def choose_trainable(self, phase: str, *, image_encoder: bool = True, conv_in: bool = True) -> list[nn.Parameter]:
        """Phase "image": everything but the motion modules; "video": those, and `conv_in` where frames can be given.

        `conv_in` takes part because only clips can teach it the channels of the frames that are given; switch it off to
        train the motion modules alone. image_encoder: False leaves the vision model as it is.
        """
        conv_in = conv_in and self.unet.takes_frames
        for name, parameter in self.named_parameters():
            motion = "motion_modules" in name
            if phase == "image":
                frozen = motion or (name.startswith("image_encoder.") and not image_encoder)
                parameter.requires_grad_(not frozen)
            else:
                parameter.requires_grad_(motion or (conv_in and name.startswith("unet.conv_in")))
        transformer = self.appearance_net.up_blocks[-1].attentions[-1]
        transformer.proj_out.requires_grad_(False)  # behind the last export: never used
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


@contextmanager
def motion_left_out(model: PortraitModel) -> Iterator[None]:
    """Leave the motion modules out, so that frames are pictures by themselves and cost what pictures cost (phase I)."""
    modules = [m for m in model.unet.modules() if isinstance(m, AnimateDiffTransformer3D)]
    for module in modules:
        module.forward = _pass_on
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _pass_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


class Stepper:
    """One optimizer step as a function of its number, so that a resumed run repeats it exactly."""

    def __init__(
        self,
        config: TrainConfig,
        settings: PhaseConfig,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimizer: Any,
        parts: dict[str, Any],
        *,
        clips: bool,
    ) -> None:
        self.config, self.settings, self.accelerator = config, settings, accelerator
        self.model, self.optimizer, self.vae = model, optimizer, parts["vae"]
        self.noises: Any = DDPMScheduler.from_config(parts["scheduler"].config)  # whatever the folder's own sampler is
        self.clips = clips
        self.given, self.hint = parts["unet"].takes_frames, parts["unet"].config["reference_hint"]

    def step(self, number: int, batches: Iterator[Batch]) -> tuple[LossParts, float]:
        """Draw noise from the step's own seed and take the step, part by part. -> the losses and the rate.

        The parts of a batch share one draw of noise and one step of the optimizer: their gradients are the whole's.
        """
        settings, rank = self.settings, self.accelerator.process_index
        rate = settings.lr_at(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pieces = self.config.parts(settings)
        drawn: list[Tensor] | None = None
        losses = []
        for part in range(pieces):
            batch = next(batches).to(self.accelerator.device).encoded(self.vae)
            assert batch.clean is not None
            if drawn is None:
                drawn = self._draw(number, rank, tuple(batch.clean.shape[1:]))
            rows = slice(part * len(batch.clean), (part + 1) * len(batch.clean))
            last = part == pieces - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self._loss(batch, *(values[rows] for values in drawn))
                self.accelerator.backward(loss.total / pieces)
            losses.append(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return mean_loss(losses), rate

    def _draw(self, number: int, rank: int, shape: tuple[int, ...]) -> list[Tensor]:
        """A step's noise [B, *shape], timesteps [B], kept references [B] and given frames [B, F], on the device."""
        settings, count = self.settings, self.settings.batch
        seed = self.config.seed if self.config.data_seed is None else self.config.data_seed
        sequence = np.random.SeedSequence([7, seed, int(self.clips), number, rank])
        generator = torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))
        # One timestep from each of `count` equal ranges: less noisy than independent draws.
        share = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        steps = self.noises.config["num_train_timesteps"]
        timesteps = (share * steps).long().clamp(max=steps - 1)
        noise = torch.randn((count, *shape), generator=generator)
        keep = torch.rand(count, generator=generator) >= settings.cfg_dropout
        given = draw_given_frames(count, settings.frames, none_share=settings.none_given, generator=generator)
        return [values.to(self.accelerator.device) for values in (noise, timesteps, keep, given)]

    def _loss(self, batch: Batch, noise: Tensor, timesteps: Tensor, keep: Tensor, given: Tensor) -> LossParts:
        assert batch.clean is not None
        sample = self.noises.add_noise(batch.clean, noise, timesteps)
        if self.given:
            # Like the landmarks, the hint is never dropped: guidance strengthens the reference's tokens and the prompt.
            sample = with_given_frames(sample, batch.clean, given, batch.reference if self.hint else None, batch.bent)
        with self.accelerator.autocast():
            predicted = self.model(sample, timesteps, batch, keep)
        return training_loss(
            self.noises,
            predicted.float(),
            batch.clean,
            noise,
            timesteps,
            expression_mask=batch.expression if self.config.expression_loss else None,
            facial_mask=batch.face if self.config.facial_loss else None,
            ffg_weight=self.config.ffg_weight,
        )


def mean_loss(losses: Sequence[LossParts]) -> LossParts:
    """The mean over equal parts of a batch, which is the loss of the whole, without gradients."""
    names = ("total", "ldm", "ffg")
    return LossParts(*(torch.stack([getattr(loss, name).detach() for loss in losses]).mean() for name in names))
