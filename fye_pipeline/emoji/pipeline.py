"""`EmojiPipeline`: a prompt, one person's portrait and another picture's expression -> a picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fye_pipeline.emoji.expression_crop import expression_crop, face_crop
from fye_pipeline.emoji.face_nets import as_batch, encoder_states
from fye_pipeline.emoji.model import EmojiModel
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.detector import FaceLandmarkDetector
from fye_pipeline.landmarks.faces import Face
from fye_pipeline.landmarks.model_file import find_face_landmarker
from fye_pipeline.progress import logger

if TYPE_CHECKING:
    from ticache import CacheConfig, Session

SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "emoji"

Picture = NDArray[np.uint8]
FindFaces = Callable[[Picture], Sequence[Face]]


class EmojiOutput(BaseOutput):
    """images: PIL pictures, one a prompt, expression and number."""

    images: list[Image.Image]


class EmojiPipeline:
    """Stable Diffusion (XL) with an identity and an expression branch beside the text.

    `pipe.pipe` is the ordinary diffusers pipeline; what `prepare_embeds` returns serves any other one that has loaded
    the two adapter files by `load_ip_adapter`.
    """

    def __init__(self, model: EmojiModel, find_faces: FindFaces | None = None) -> None:
        self.model, self.pipe = model, model.pipe
        self._find_faces = find_faces
        self._session: Session | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str] = SHIPPED,
        *,
        torch_dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        find_faces: FindFaces | None = None,
    ) -> Self:
        """A model's folder: `base/`, `identity.safetensors`, `expression.safetensors`, `emoji.json` and the networks.

        find_faces: finds the faces of a picture (uint8 [H, W, 3]); MediaPipe by default. Raises `UserError` where the
        folder lacks a part, or a part was trained for another base.
        """
        model = EmojiModel.load(Path(folder), dtype=torch_dtype, device=device)
        if model.settings.licence:
            logger.info(f"the weights' licence: {model.settings.licence}")
        return cls(model, find_faces)

    # The cache

    def enable_cache(self, config: CacheConfig | None = None, **options: Any) -> Session:
        """Accelerate the UNet with `ticache.apply`; a changed scale forces a full step."""
        import ticache

        self._session = ticache.apply(self.pipe, config, **options)
        return self._session

    def disable_cache(self) -> None:
        """Take the cache off again; where there is none, nothing happens."""
        import ticache

        ticache.remove(self.pipe)
        self._session = None

    @property
    def session(self) -> Session | None:
        """The cache that `enable_cache` has put on the UNet; None where there is none."""
        return self._session

    # Running

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        identity: Any,
        expression: Any,
        identity_scale: float | None = None,
        expression_scale: float | None = None,
        num_inference_steps: int = 30,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        **more: Any,
    ) -> EmojiOutput:
        """Pictures of a person with an expression.

        prompt: one, or one a picture. identity: a portrait (PIL, uint8 [H, W, 3] or a file). expression: one such
        picture or a list of them, each of which gives pictures. Scales: 0 leaves a branch out, 1 is what was trained.
        seed: of the noise, the same for every expression. more: goes to the diffusers pipeline. Raises `UserError`
        where a picture shows no face.
        """
        expressions = list(expression) if isinstance(expression, list | tuple) else [expression]
        prompts = [prompt] * len(expressions) if isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(expressions):
            raise ValueError(
                f"prompt must be one, or one for each of {len(expressions)} expressions, got {len(prompts)}"
            )
        settings = self.model.settings
        guidance = settings.guidance if guidance_scale is None else guidance_scale
        own = self.encode_identity(identity)
        states = [self.encode_expression(each) for each in expressions]
        self.model.scale(
            settings.identity_scale if identity_scale is None else identity_scale,
            settings.expression_scale if expression_scale is None else expression_scale,
        )
        images: list[Any] = []
        known = {text: self._known_words(text) for text in dict.fromkeys(prompts)}
        for text, each in zip(prompts, states, strict=True):  # a pipeline takes one set of embeddings a call
            noise = None if seed is None else [_generator(seed + k) for k in range(num_images_per_prompt)]
            made = self.pipe(
                known[text],
                ip_adapter_image_embeds=self.model.embeds(own, each, guided=guidance > 1),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance,
                num_images_per_prompt=num_images_per_prompt,
                generator=noise,
                **more,
            )
            images += list(made.images)
        return EmojiOutput(images=images)

    def prepare_embeds(self, *, identity: Any, expression: Any, guided: bool = True) -> list[Tensor]:
        """`ip_adapter_image_embeds` for any diffusers pipeline that has loaded the two adapter files.

        -> identity [2, 1, D] and expression [2, 1, T, S], negatives first; without `guided` one row of each.
        """
        return self.model.embeds(self.encode_identity(identity), self.encode_expression(expression), guided=guided)

    def encode_identity(self, portrait: Any) -> Tensor:
        """Who is seen. -> a unit vector [1, D]."""
        picture, face = self._face(portrait, "the identity picture")
        return self.model.identity_of(face_crop(picture, face.landmarks, self.model.identity_net.size))

    def encode_expression(self, portrait: Any) -> Tensor:
        """The hidden states of what the face expresses. -> [1, T, S]."""
        picture, face = self._face(portrait, "the expression picture")
        crop = expression_crop(picture, face.landmarks, self.model.settings.crop)
        with torch.no_grad():
            return encoder_states(self.model.encoder, as_batch(crop[None]).to(self.model.encoder.device))

    def _face(self, given: Any, what: str) -> tuple[Picture, Face]:
        picture, name = read(given, what)
        return picture, one_face(picture, self._find_faces or _find_once, what if name is None else f"{name}, {what},")

    def _known_words(self, prompt: str) -> str:
        """The prompt; words that a small vocabulary lacks are told and left out."""
        tokenizer = self.pipe.tokenizer
        if tokenizer.unk_token is None or len(tokenizer) > 10_000:
            return prompt  # a vocabulary of pieces spells every word
        words = prompt.replace(",", " ").replace(".", " ").split()
        known = [word for word in words if tokenizer.unk_token_id not in tokenizer(word)["input_ids"]]
        if unknown := [word for word in words if word not in known]:
            logger.info(f"words that this small model does not know are left out: {', '.join(unknown)}.")
        return " ".join(known)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextmanager
def open_finder(task: Path | None = None) -> Iterator[FindFaces]:
    """MediaPipe's detector for many pictures; it must be closed before the interpreter ends."""
    with FaceLandmarkDetector(task or find_face_landmarker()) as detector:
        yield detector.detect_all


def _find_once(picture: Picture) -> Sequence[Face]:
    with open_finder() as find:
        return find(picture)


def read(given: Any, what: str) -> tuple[Picture, str | None]:
    """A picture as uint8 RGB [H, W, 3], from a file, PIL or an array, and the file's name."""
    from fye_pipeline.media.image import read_picture, to_rgb

    if isinstance(given, str | os.PathLike):
        return cast(Picture, read_picture(Path(given), what=what)), str(given)
    if isinstance(given, Image.Image):
        return cast(Picture, to_rgb(given)), None
    picture = np.asarray(given)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(
            f"{what} must be a file, a PIL picture or uint8 [H, W, 3], got {picture.dtype} {picture.shape}"
        )
    return picture, None


def one_face(picture: Picture, find: FindFaces, name: str) -> Face:
    """The face of a picture. `UserError` where none is found, or several, of which one must be cut out first.

    A small picture is searched at twice its size too: detectors miss faces of few pixels.
    """
    faces = list(find(picture))
    if not faces and max(picture.shape[:2]) < 512:
        scale = int(np.ceil(512 / max(picture.shape[:2])))
        height, width = picture.shape[:2]
        large = np.asarray(Image.fromarray(picture).resize((width * scale, height * scale), Image.Resampling.BICUBIC))
        faces = list(find(large))
    if not faces:
        raise UserError(
            f"{name} shows no face that can be found; use a picture of one person's face, seen from the front."
        )
    if len(faces) > 1 and sorted(face.size for face in faces)[-2] > 0.5 * max(face.size for face in faces):
        raise UserError(f"{name} shows {len(faces)} faces; cut out the one that is meant.")
    return max(faces, key=lambda face: face.size)
