"""Published models by name: what they are made of, where they lie once fetched, and a name in place of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.model_file import cache_folder


@dataclass(frozen=True)
class Source:
    """Files of one repository. files: role -> names, of which the first that is there is taken."""

    repository: str
    files: dict[str, tuple[str, ...]]
    licence: str  # as far as is known without asking


@dataclass(frozen=True)
class PublishedModel:
    """A model that is fetched and converted into a pipeline folder. bytes: about, of what is fetched."""

    name: str
    sources: tuple[Source, ...]
    bytes: int

    @property
    def folder(self) -> Path:
        """Where the converted pipeline lies, or will."""
        return models_folder() / self.name

    @property
    def is_there(self) -> bool:
        """Whether it was fetched and converted; the folder takes its name only when it is complete."""
        return (self.folder / "model_index.json").is_file()


_UNSTATED = "not stated by its publisher"
PUBLISHED = {
    "follow-your-emoji": PublishedModel(
        "follow-your-emoji",
        (
            Source(
                "YueMafighting/FollowYourEmoji",
                {part: (f"{part}.safetensors", f"{part}.pth") for part in ("lmk_guider", "referencenet", "unet")},
                _UNSTATED,
            ),
            Source(
                "stabilityai/sd-vae-ft-mse",
                {
                    "vae config": ("config.json",),
                    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
                },
                "mit",
            ),
            Source(
                "lambdalabs/sd-image-variations-diffusers",
                {
                    "image encoder config": ("image_encoder/config.json",),
                    "image encoder": ("image_encoder/model.safetensors", "image_encoder/pytorch_model.bin"),
                },
                "creativeml-openrail-m",
            ),
        ),
        10_250_000_000,
    )
}


def models_folder() -> Path:
    """Where published models lie as pipeline folders, within the user's cache folder (not created here)."""
    return cache_folder() / "models"


def published(name: str) -> PublishedModel:
    """The published model of this name. Raises `UserError` that names those there are."""
    if name not in PUBLISHED:
        raise UserError(f"There is no model {name!r} to fetch; there are face-landmarker, {', '.join(PUBLISHED)}.")
    return PUBLISHED[name]


def model_folder(model: Path) -> Path:
    """The folder of a model that is named by its folder, or by a published model's name.

    Raises:
        UserError: it is a published model's name, there is no folder called so, and the model was not fetched.
    """
    known = PUBLISHED.get(str(model))
    if known is None or model.is_dir():
        return model
    if not known.is_there:
        raise UserError(
            f"The model {known.name} was not fetched yet (about {known.bytes / 1e9:.0f} GB): "
            f"run `fye models get {known.name}`."
        )
    return known.folder


def published_name(folder: Path) -> str | None:
    """The name of the published model that lies in a folder, None for any other folder."""
    return next((name for name, model in PUBLISHED.items() if model.folder == folder), None)
