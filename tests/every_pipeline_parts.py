"""Every diffusers pipeline that holds a UNet, from tiny random parts: found by walking, built from its signature."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import string
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers as real_diffusers
import numpy as np
import torch
import transformers as real_transformers
from diffusers import DiffusionPipeline
from PIL import Image
from ticache_models import make_unet
from torch import Tensor, nn

diffusers: Any = real_diffusers  # tiny parts are not what its signatures expect
transformers: Any = real_transformers
STEPS = 8
SIZE = 16  # pixels; latents are half of it


def pipeline_classes() -> dict[str, type[DiffusionPipeline]]:
    """Every pipeline class of the installed diffusers whose constructor takes a UNet, by name."""
    import diffusers.pipelines as root

    for module in pkgutil.walk_packages(root.__path__, "diffusers.pipelines."):
        try:
            importlib.import_module(module.name)
        except ImportError:  # it needs a package that is not installed, and holds no pipeline with a UNet
            continue
    found, waiting = {}, [DiffusionPipeline]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            if kind.__module__.startswith("diffusers.") and any(map(_is_unet, parameters(kind.__init__).values())):
                found[kind.__name__] = kind
    return found


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """A function's own named parameters."""
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("self", "args", "kwargs")
    }


def _is_unet(parameter: inspect.Parameter) -> bool:
    kinds = ("UNet", "WuerstchenDiffNeXt", "WuerstchenPrior", "UniDiffuserModel", "OnnxRuntimeModel")
    named = parameter.name == "unet" or parameter.name.endswith("_unet")
    return named or any(kind in annotation(parameter) for kind in kinds)


def annotation(parameter: inspect.Parameter) -> str:
    """What a parameter is annotated with, as text."""
    kind = parameter.annotation
    return kind.__name__ if inspect.isclass(kind) else str(kind)


def each(names: str, value: Any) -> dict[str, Any]:
    """The same for several pipelines, their names without the word Pipeline at the end."""
    return {f"{name}Pipeline": value for name in names.split()}


def seeded(build: Callable[[], Any], seed: int = 0) -> Any:
    """What `build` makes, its random weights from a seed."""
    torch.manual_seed(seed)
    made = build()
    return made.eval() if isinstance(made, nn.Module) else made


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(size: int = SIZE) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mask() -> Image.Image:
    pixels = np.zeros((SIZE, SIZE), dtype=np.uint8)
    pixels[:, : SIZE // 2] = 255
    return Image.fromarray(pixels)


def tokenizer() -> Any:
    """CLIP's tokenizer with one token a character."""
    letters = string.ascii_letters + string.digits + string.punctuation
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77, pad_token="<|endoftext|>")


VOCABULARY = 190
_TRANSFORMER = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def clip_text(kind: str = "CLIPTextModel", **changes: Any) -> Any:
    ends = {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1, "pad_token_id": VOCABULARY - 1}
    settings = {"vocab_size": VOCABULARY, "projection_dim": 8, **_TRANSFORMER, **ends, **changes}
    return seeded(lambda: getattr(transformers, kind)(transformers.CLIPTextConfig(**settings)))


def clip_vision(kind: str = "CLIPVisionModelWithProjection", **changes: Any) -> Any:
    settings = {"projection_dim": 8, "image_size": SIZE, "patch_size": 8, **_TRANSFORMER, **changes}
    return seeded(lambda: getattr(transformers, kind)(transformers.CLIPVisionConfig(**settings)))


def clip_pictures() -> Any:
    return transformers.CLIPImageProcessor(crop_size=SIZE, size={"shortest_edge": SIZE})


def vae(channels: int = 3, latents: int = 4) -> Any:
    return seeded(
        lambda: diffusers.AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=latents,
        )
    )


def vector_quantizer(latents: int = 4) -> Any:
    return seeded(
        lambda: diffusers.VQModel(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=latents,
        )
    )


def controlnet(kind: str = "ControlNetModel", *, seed: int = 0, **changes: Any) -> Any:
    settings = {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "cross_attention_dim": 8,
        "attention_head_dim": 8,
        "norm_num_groups": 4,
        "conditioning_embedding_out_channels": (8, 8),
        **changes,
    }
    net = seeded(lambda: getattr(diffusers, kind)(**settings), seed)
    for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        nn.init.normal_(block.weight, std=0.2)
    return net


def scheduler(kinds: str) -> Any:
    """The first scheduler that a parameter's annotation names; DDIM wherever it will do."""
    settings: dict[str, Any] = {}
    if "DDIMScheduler" in kinds or "KarrasDiffusionSchedulers" in kinds or "SchedulerMixin" in kinds:
        kinds, settings = "DDIMScheduler", {"clip_sample": False, "steps_offset": 1}
    return getattr(diffusers, kinds)(**settings)


# What tells a UNet of Stable Diffusion XL from others: sizes and a pooled prompt beside the tokens of two encoders.
XL: dict[str, Any] = {
    "cross_attention_dim": 16,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 8 * 6 + 8,
}


class Builder:
    """Builds one pipeline class and the arguments of its call from the names in its signatures."""

    def __init__(self, kind: type[DiffusionPipeline]):
        self.kind: Any = kind
        self.name = kind.__name__
        self.wanted = parameters(kind.__init__)
        self.xl = "text_encoder_2" in self.wanted and "AudioLDM" not in self.name

    def pipeline(self) -> Any:
        made = {name: self.part(parameter) for name, parameter in self.wanted.items() if self._is_needed(parameter)}
        changes = PARTS.get(self.name, {})
        made |= {name: part() for name, part in changes.items()}
        pipe = self.kind(**made)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _is_needed(self, parameter: inspect.Parameter) -> bool:
        if parameter.name in PARTS.get(self.name, {}):
            return False
        return parameter.default is inspect.Parameter.empty or parameter.name == "requires_safety_checker"

    def part(self, parameter: inspect.Parameter) -> Any:
        name, kinds = parameter.name, annotation(parameter)
        if name in ("requires_safety_checker", "safety_checker", "motion_adapter", "watermarker"):
            return None if name != "requires_safety_checker" else False
        if name.endswith("tokenizer") or name == "tokenizer_2":
            return tokenizer()
        if "scheduler" in name:
            return scheduler(kinds.rpartition(".")[2] if "|" not in kinds else kinds)
        if name.endswith(("feature_extractor", "image_processor")):
            return clip_pictures()
        if "UNet" in kinds:
            return self.unet(kinds)
        if "Onnx" in kinds:
            return onnx_model()
        return self.model(name, kinds)

    def unet(self, kinds: str) -> nn.Module:
        family = "condition"
        for word, found in {
            "Motion": "motion",
            "Spatio": "spatiotemporal",
            "3D": "3d",
            "2DModel": "unconditional",
        }.items():
            if word in kinds and "2DCondition" not in kinds.partition("|")[2]:
                family = found
        changes = (XL if self.xl else {}) | UNETS.get(self.name, {})
        return make_unet(changes.pop("family", family), **changes)

    def model(self, name: str, kinds: str) -> Any:
        if name == "text_encoder_2" or "CLIPTextModelWithProjection" in kinds:
            return clip_text("CLIPTextModelWithProjection")
        if "CLIPTextModel" in kinds:
            return clip_text()
        if "CLIPVisionModelWithProjection" in kinds:
            return clip_vision()
        if "AutoencoderKL" in kinds:
            return vae()
        if "VQModel" in kinds:
            return vector_quantizer()
        if "ControlNetUnionModel" in kinds:
            return controlnet("ControlNetUnionModel", num_trans_channel=16, num_trans_head=2, num_proj_channel=16, **XL)
        if "ControlNetModel" in kinds:
            return controlnet(**(XL if self.xl else {}))
        if "T2IAdapter" in kinds:
            return seeded(lambda: diffusers.T2IAdapter(channels=[16, 32], num_res_blocks=1, downscale_factor=2))
        raise NotImplementedError(f"{self.name} wants {name}: {kinds}")

    def call(self) -> dict[str, Any]:
        """The arguments of one call, with a fresh generator."""
        names = parameters(self.kind.__call__) if self.name not in CALLED_OTHERWISE else {}
        given = {name: value for name, value in _CALL.items() if name in names}
        given |= CALLS.get(self.name, {})
        given["generator"] = torch.Generator().manual_seed(0)
        return {name: value for name, value in given.items() if name in names}


class Stub(nn.Module):
    """Stands where a model is required but not used: its outputs are passed in, or the pipeline is refused."""

    dtype = torch.float32
    device = torch.device("cpu")
    config = SimpleNamespace(model_type="t5", hidden_size=8, num_query_tokens=4)
    text_model = SimpleNamespace(dtype=torch.float32)
    prefix_inner_dim = prefix_hidden_dim = 8


class LanguageModel(Stub):
    """Stands in for a language model: an embedding of each token as its only hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(hidden_states=(self.embedding(input_ids),))


class QueryModel(Stub):
    """Stands in for BLIP's Q-former: the same queries for every picture."""

    def forward(self, **_: Any) -> Tensor:
        return random(1, 4, 8, seed=7)


class Mel:
    """Stands in for the spectrograms of AudioDiffusion, which need librosa."""

    x_res, hop_length = 8, 1

    def get_sample_rate(self) -> int:
        return 8

    def image_to_audio(self, image: Image.Image) -> Any:
        return np.asarray(image, dtype=np.float32).reshape(-1)


_CALL: dict[str, Any] = {
    "prompt": "a cat",
    "image": picture(),
    "mask_image": mask(),
    "control_image": picture(),
    "video": [picture()] * 3,
    "conditioning_frames": [picture()] * 3,
    "num_frames": 3,
    "video_length": 3,
    "height": SIZE,
    "width": SIZE,
    "strength": 0.75,
    "num_inference_steps": STEPS,
    "prior_num_inference_steps": 2,
    "decoder_num_inference_steps": STEPS,
    "super_res_num_inference_steps": 2,
    "output_type": "np",
    "control_mode": 0,
    "image_embeds": random(1, 8, seed=3),
    "negative_image_embeds": random(1, 8, seed=4),
    "hint": random(1, 3, 4 * SIZE, 4 * SIZE, seed=5),
    "gligen_phrases": ["cat"],
    "gligen_boxes": [[0.1, 0.1, 0.6, 0.6]],
    "gligen_images": [picture()],
    "clip_skip": None,
    "audio_length_in_s": 0.016,
}
EMBEDS: dict[str, Any] = {
    "prompt": None,
    "prompt_embeds": random(1, 5, 8, seed=1),
    "negative_prompt_embeds": random(1, 5, 8, seed=2),
}
POOLED: dict[str, Any] = {
    "pooled_prompt_embeds": random(1, 8, seed=3),
    "negative_pooled_prompt_embeds": random(1, 8, seed=4),
}
NO_TEXT: dict[str, Callable[[], Any]] = {"text_encoder": lambda: None, "tokenizer": lambda: None}
PIXELS: dict[str, Any] = {"in_channels": 3, "out_channels": 3}


def prior() -> Any:
    return seeded(
        lambda: diffusers.PriorTransformer(num_attention_heads=2, attention_head_dim=4, embedding_dim=8, num_layers=1)
    )


def unclip_scheduler(**settings: Any) -> Any:
    return diffusers.UnCLIPScheduler(**settings)


def solver() -> Any:
    return diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=2)


def prior_scheduler() -> Any:
    return unclip_scheduler(prediction_type="sample", clip_sample_range=5.0)


def multilingual_clip() -> Any:
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    config = MCLIPConfig(transformerDimSize=8, imageDimSize=8, vocab_size=VOCABULARY, **_TRANSFORMER)
    return seeded(lambda: MultilingualCLIP(config))


def kandinsky3_unet() -> Any:
    return seeded(
        lambda: diffusers.Kandinsky3UNet(
            time_embedding_dim=16,
            groups=2,
            attention_head_dim=4,
            layers_per_block=3,
            block_out_channels=(16, 16, 32, 32),
            cross_attention_dim=8,
            encoder_hid_dim=8,
        )
    )


def i2vgen_unet() -> Any:
    return seeded(
        lambda: diffusers.I2VGenXLUNet(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            norm_num_groups=2,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            cross_attention_dim=8,
            attention_head_dim=4,
            num_attention_heads=None,
        )
    )


def dreamlite_unet() -> Any:
    return seeded(
        lambda: diffusers.DreamLiteUNetModel(
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32),
            down_block_types=("DreamLiteDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
            up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=8,
            attention_head_dim=8,
        )
    )


def audioldm2_unet() -> Any:
    return seeded(
        lambda: diffusers.AudioLDM2UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=(None, 8, 8),
        )
    )


def vocoder() -> Any:
    config = transformers.SpeechT5HifiGanConfig(
        model_in_dim=8,
        sampling_rate=16000,
        upsample_initial_channel=8,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        normalize_before=False,
    )
    return seeded(lambda: transformers.SpeechT5HifiGan(config))


def motion_vae() -> Any:
    return seeded(
        lambda: diffusers.AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4
        )
    )


def tiny_vae() -> Any:
    return seeded(
        lambda: diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
    )


def paint_by_example_encoder() -> Any:
    from diffusers.pipelines.deprecated.paint_by_example.image_encoder import PaintByExampleImageEncoder

    config = transformers.CLIPVisionConfig(projection_dim=8, image_size=SIZE, patch_size=8, **_TRANSFORMER)
    return seeded(lambda: PaintByExampleImageEncoder(config, proj_size=8))


def ldm_bert() -> Any:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    config = LDMBertConfig(
        vocab_size=VOCABULARY, encoder_layers=1, encoder_ffn_dim=8, encoder_attention_heads=2, head_dim=4, d_model=8
    )
    return seeded(lambda: LDMBertModel(config))


def text_projection() -> Any:
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    return seeded(lambda: UnCLIPTextProjModel(clip_embeddings_dim=8, time_embed_dim=64, cross_attention_dim=8))


def image_normalizer() -> Any:
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    return StableUnCLIPImageNormalizer(embedding_dim=8)


def controlnet_xs(changes: dict[str, Any]) -> Any:
    unet = make_unet(**XS_BLOCKS, **changes)
    return seeded(lambda: diffusers.ControlNetXSAdapter.from_unet(unet, size_ratio=1.0))


def from_diffusers(kind: str, **settings: Any) -> Callable[[], Any]:
    return lambda: seeded(lambda: getattr(diffusers, kind)(**settings))


def wuerstchen(kind: str, **settings: Any) -> Callable[[], Any]:
    def build() -> Any:
        from diffusers.pipelines.deprecated import wuerstchen as module

        return getattr(module, kind)(**settings)

    return lambda: seeded(build)


def unidiffuser_unet() -> Any:
    from diffusers.pipelines.deprecated.unidiffuser.modeling_uvit import UniDiffuserModel

    return seeded(
        lambda: UniDiffuserModel(
            text_dim=8,
            clip_img_dim=8,
            num_text_tokens=5,
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            norm_num_groups=4,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=10,
        )
    )


def context_clip_text() -> Any:
    from diffusers.pipelines.deprecated.blip_diffusion.modeling_ctx_clip import ContextCLIPTextModel

    config = transformers.CLIPTextConfig(vocab_size=VOCABULARY, **_TRANSFORMER)
    return seeded(lambda: ContextCLIPTextModel(config))


def blip_pictures() -> Any:
    from diffusers.pipelines.deprecated.blip_diffusion.blip_image_processing import BlipImageProcessor

    return BlipImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def onnx_model() -> Any:
    from diffusers.pipelines.onnx_utils import OnnxRuntimeModel

    return OnnxRuntimeModel(model=None)


def clip_image_projection() -> Any:
    from diffusers.pipelines.stable_diffusion.clip_image_project_model import CLIPImageProjection

    return seeded(lambda: CLIPImageProjection(hidden_size=8))


XS_BLOCKS: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
}


ADDED_KEYS: dict[str, Any] = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
}
KANDINSKY_BLOCKS: dict[str, Any] = {**ADDED_KEYS, "out_channels": 8, "encoder_hid_dim": 8}
KANDINSKY = {**KANDINSKY_BLOCKS, "addition_embed_type": "text_image", "encoder_hid_dim_type": "text_image_proj"}
KANDINSKY22 = {**KANDINSKY_BLOCKS, "addition_embed_type": "image", "encoder_hid_dim_type": "image_proj"}
HINTED = {**KANDINSKY22, "addition_embed_type": "image_hint", "in_channels": 8}

# LEDITS++ reads attention maps a quarter as wide as the latents.
ATTENTION_AT_THE_BOTTOM: dict[str, Any] = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}
UNETS: dict[str, dict[str, Any]] = {
    "AudioLDMPipeline": {
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": 8,
        "class_embeddings_concat": True,
        "cross_attention_dim": (16, 32),
    },
    "MusicLDMPipeline": {
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": 8,
        "class_embeddings_concat": True,
        "cross_attention_dim": (16, 32),
    },
    "IFPipeline": {**PIXELS, "out_channels": 6},
    "IFImg2ImgPipeline": {**PIXELS, "out_channels": 6},
    "IFInpaintingPipeline": {**PIXELS, "out_channels": 6},
    "IFSuperResolutionPipeline": {"in_channels": 6, "out_channels": 6, "class_embed_type": "timestep"},
    "IFImg2ImgSuperResolutionPipeline": {"in_channels": 6, "out_channels": 6, "class_embed_type": "timestep"},
    "IFInpaintingSuperResolutionPipeline": {"in_channels": 6, "out_channels": 6, "class_embed_type": "timestep"},
    **each("Kandinsky KandinskyImg2Img KandinskyCombined KandinskyImg2ImgCombined", KANDINSKY),
    **each("KandinskyInpaint KandinskyInpaintCombined", {**KANDINSKY, "in_channels": 9}),
    **each("KandinskyV22 KandinskyV22Img2Img KandinskyV22Combined KandinskyV22Img2ImgCombined", KANDINSKY22),
    **each("KandinskyV22Inpaint KandinskyV22InpaintCombined", {**KANDINSKY22, "in_channels": 9}),
    **each("KandinskyV22Controlnet KandinskyV22ControlnetImg2Img", HINTED),
    **each("Kolors KolorsImg2Img KolorsPAG", {**XL, "cross_attention_dim": 8}),
    "KarrasVePipeline": PIXELS,
    "ScoreSdeVePipeline": PIXELS,
    "RePaintPipeline": {**PIXELS, "sample_size": 32},
    "LEditsPPPipelineStableDiffusion": ATTENTION_AT_THE_BOTTOM,
    "LEditsPPPipelineStableDiffusionXL": ATTENTION_AT_THE_BOTTOM,
    "LDMSuperResolutionPipeline": {"in_channels": 6, "out_channels": 3},
    "LatentConsistencyModelPipeline": {"time_cond_proj_dim": 8},
    "LatentConsistencyModelImg2ImgPipeline": {"time_cond_proj_dim": 8},
    "MarigoldDepthPipeline": {"in_channels": 8},
    "MarigoldNormalsPipeline": {"in_channels": 8},
    "MarigoldIntrinsicsPipeline": {"in_channels": 12, "out_channels": 8},
    "PIAPipeline": {"in_channels": 9},
    "PaintByExamplePipeline": {"in_channels": 9},
    "StableDiffusionDepth2ImgPipeline": {"in_channels": 5},
    "StableDiffusionGLIGENPipeline": {"attention_type": "gated"},
    "StableDiffusionGLIGENTextImagePipeline": {"attention_type": "gated-text-image"},
    "StableDiffusionInstructPix2PixPipeline": {"in_channels": 8},
    "StableDiffusionXLInstructPix2PixPipeline": {"in_channels": 8},
    "StableDiffusionUpscalePipeline": {"in_channels": 7, "num_class_embeds": 1000},
    "StableUnCLIPPipeline": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16},
    "StableUnCLIPImg2ImgPipeline": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16},
    **each(
        "UnCLIP UnCLIPImageVariation",
        {**ADDED_KEYS, "in_channels": 3, "out_channels": 6, "class_embed_type": "identity"},
    ),
    **each("StableDiffusionControlNetXS StableDiffusionXLControlNetXS", XS_BLOCKS),
    "StableDiffusionLatentUpscalePipeline": {
        "down_block_types": ("KDownBlock2D", "KCrossAttnDownBlock2D"),
        "up_block_types": ("KCrossAttnUpBlock2D", "KUpBlock2D"),
        "mid_block_type": None,
        "norm_num_groups": None,
    },
}
_PRIOR = {"prior_prior": prior, "prior_scheduler": prior_scheduler}
_UNCLIP = {
    "text_proj": text_projection,
    "decoder_scheduler": lambda: unclip_scheduler(variance_type="learned_range"),
    "super_res_first": lambda: make_unet("unconditional", in_channels=6, out_channels=3, sample_size=SIZE),
    "super_res_last": lambda: make_unet("unconditional", in_channels=6, out_channels=3, sample_size=SIZE),
}
_CASCADE = from_diffusers(
    "StableCascadeUNet",
    conditioning_dim=8,
    block_out_channels=(8, 8),
    num_attention_heads=(2, 2),
    down_num_layers_per_block=(1, 1),
    up_num_layers_per_block=(1, 1),
    clip_text_pooled_in_channels=8,
)
_DIFFNEXT = wuerstchen(
    "WuerstchenDiffNeXt",
    c_cond=8,
    c_hidden=[8, 8],
    nhead=[-1, 2],
    blocks=[1, 1],
    level_config=["CT", "CTA"],
    inject_effnet=[False, True],
    effnet_embd=8,
    clip_embd=8,
)
_WUERSTCHEN_PRIOR = wuerstchen("WuerstchenPrior", c_in=4, c=8, c_cond=8, depth=1, nhead=2)
PARTS: dict[str, dict[str, Callable[[], Any]]] = {
    "AltDiffusionPipeline": NO_TEXT,
    "AltDiffusionImg2ImgPipeline": NO_TEXT,
    "AnimateDiffSparseControlNetPipeline": {
        "controlnet": lambda: controlnet(
            "SparseControlNetModel",
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            motion_num_attention_heads=2,
            num_attention_heads=2,
        )
    },
    "AudioLDM2Pipeline": {
        "unet": audioldm2_unet,
        "vocoder": vocoder,
        "text_encoder": Stub,
        "text_encoder_2": Stub,
        "projection_model": Stub,
        "language_model": Stub,
        "vae": lambda: vae(1),
    },
    "AudioLDMPipeline": {"vocoder": vocoder, "text_encoder": Stub, "vae": lambda: vae(1)},
    "MusicLDMPipeline": {"vocoder": vocoder, "text_encoder": Stub, "vae": lambda: vae(1)},
    "DreamLitePipeline": {
        "text_encoder": lambda: seeded(LanguageModel),
        "processor": lambda: None,
        "unet": dreamlite_unet,
        "vae": tiny_vae,
    },
    "DreamLiteMobilePipeline": {
        "text_encoder": lambda: seeded(LanguageModel),
        "processor": lambda: None,
        "unet": dreamlite_unet,
        "vae": tiny_vae,
    },
    "I2VGenXLPipeline": {"unet": i2vgen_unet},
    **each("IF IFImg2Img IFInpainting IFSuperResolution IFImg2ImgSuperResolution IFInpaintingSuperResolution", NO_TEXT),
    **each("Kandinsky3 Kandinsky3Img2Img", {**NO_TEXT, "unet": kandinsky3_unet}),
    **each("Kandinsky KandinskyImg2Img KandinskyInpaint", {"text_encoder": multilingual_clip}),
    **each(
        "KandinskyCombined KandinskyImg2ImgCombined KandinskyInpaintCombined",
        {"text_encoder": multilingual_clip, **_PRIOR},
    ),
    **each("KandinskyV22Combined KandinskyV22Img2ImgCombined KandinskyV22InpaintCombined", _PRIOR),
    **each("Kolors KolorsImg2Img KolorsPAG", NO_TEXT),
    "LDMSuperResolutionPipeline": {"vqvae": lambda: vector_quantizer(3)},
    "LDMTextToImagePipeline": {"bert": ldm_bert, "unet": make_unet},
    "PaintByExamplePipeline": {"image_encoder": paint_by_example_encoder},
    "StableDiffusionDepth2ImgPipeline": {"depth_estimator": Stub},
    "StableDiffusionGLIGENTextImagePipeline": {
        "processor": lambda: transformers.CLIPProcessor(clip_pictures(), tokenizer()),
        "image_project": clip_image_projection,
    },
    "StableDiffusionParadigmsPipeline": {"scheduler": lambda: diffusers.DDIMParallelScheduler(clip_sample=False)},
    "StableDiffusionPix2PixZeroPipeline": {"caption_generator": Stub, "caption_processor": Stub},
    "StableUnCLIPPipeline": {"prior": prior, "prior_scheduler": prior_scheduler, "image_normalizer": image_normalizer},
    "StableUnCLIPImg2ImgPipeline": {"image_normalizer": image_normalizer},
    "StableVideoDiffusionPipeline": {
        "vae": motion_vae,
        "image_encoder": lambda: clip_vision(image_size=224, patch_size=112),
    },
    "UnCLIPPipeline": {**_UNCLIP, "prior": prior, "prior_scheduler": prior_scheduler},
    "UnCLIPImageVariationPipeline": _UNCLIP,
    "VersatileDiffusionPipeline": {
        "image_encoder": clip_vision,
        "text_encoder": lambda: clip_text("CLIPTextModelWithProjection"),
    },
    "DanceDiffusionPipeline": {
        "unet": from_diffusers(
            "UNet1DModel",
            sample_size=16,
            sample_rate=16,
            in_channels=2,
            out_channels=2,
            extra_in_channels=16,
            block_out_channels=(8, 8, 16),
        )
    },
    "StableDiffusionControlNetXSPipeline": {"controlnet": lambda: controlnet_xs({})},
    "StableDiffusionXLControlNetXSPipeline": {"controlnet": lambda: controlnet_xs(XL)},
    "AudioDiffusionPipeline": {
        "mel": Mel,
        "vqvae": lambda: None,
        "unet": lambda: make_unet("unconditional", in_channels=1, out_channels=1),
    },
    **each(
        "BlipDiffusion BlipDiffusionControlNet",
        {"qformer": QueryModel, "image_processor": blip_pictures, "text_encoder": context_clip_text},
    ),
    "CycleDiffusionPipeline": {"scheduler": lambda: diffusers.DDIMScheduler(set_alpha_to_one=False, clip_sample=False)},
    "LEditsPPPipelineStableDiffusion": {"scheduler": solver},
    "LEditsPPPipelineStableDiffusionXL": {"scheduler": solver},
    "UniDiffuserPipeline": {"unet": unidiffuser_unet, "text_decoder": Stub},
    "StableCascadeDecoderPipeline": {"decoder": _CASCADE},
    "StableCascadePriorPipeline": {"prior": _CASCADE},
    "StableCascadeCombinedPipeline": {"decoder": _CASCADE, "prior_prior": _CASCADE},
    "WuerstchenDecoderPipeline": {"decoder": _DIFFNEXT, "vqgan": Stub},
    "WuerstchenPriorPipeline": {"prior": _WUERSTCHEN_PRIOR},
    "WuerstchenCombinedPipeline": {"decoder": _DIFFNEXT, "prior_prior": _WUERSTCHEN_PRIOR, "vqgan": Stub},
}
CALLS: dict[str, dict[str, Any]] = {
    "AltDiffusionPipeline": EMBEDS,
    "AltDiffusionImg2ImgPipeline": EMBEDS,
    "AudioDiffusionPipeline": {"steps": STEPS},
    **each(
        "BlipDiffusion BlipDiffusionControlNet",
        {
            "prompt": ["a cat"],
            "reference_image": picture(),
            "source_subject_category": ["cat"],
            "target_subject_category": ["dog"],
            "condtioning_image": picture(),
            "prompt_reps": 1,
        },
    ),
    **each("DreamLite DreamLiteMobile", {"image": None}),
    "StableDiffusionParadigmsPipeline": {"parallel": 4, "tolerance": 1e6},
    "StableUnCLIPImg2ImgPipeline": {"image_embeds": None},
    "AudioLDM2Pipeline": {
        **EMBEDS,
        "generated_prompt_embeds": random(1, 3, 8, seed=5),
        "negative_generated_prompt_embeds": random(1, 3, 8, seed=6),
        "attention_mask": torch.ones(1, 5),
        "negative_attention_mask": torch.ones(1, 5),
    },
    "AudioLDMPipeline": {
        "prompt": None,
        "prompt_embeds": random(1, 8, seed=1),
        "negative_prompt_embeds": random(1, 8, seed=2),
    },
    "MusicLDMPipeline": {
        "prompt": None,
        "prompt_embeds": random(1, 8, seed=1),
        "negative_prompt_embeds": random(1, 8, seed=2),
    },
    "CycleDiffusionPipeline": {"source_prompt": "a dog"},
    **each("IF IFImg2Img IFInpainting IFSuperResolution", EMBEDS),
    **each("IFImg2ImgSuperResolution IFInpaintingSuperResolution", {**EMBEDS, "original_image": picture()}),
    "Kandinsky3Pipeline": {**EMBEDS, "attention_mask": torch.ones(1, 5), "negative_attention_mask": torch.ones(1, 5)},
    "Kandinsky3Img2ImgPipeline": {
        **EMBEDS,
        "attention_mask": torch.ones(1, 5),
        "negative_attention_mask": torch.ones(1, 5),
    },
    **each("Kolors KolorsImg2Img KolorsPAG", {**EMBEDS, **POOLED}),
    "LDMSuperResolutionPipeline": {"image": picture(32)},
    "LatentConsistencyModelPipeline": {"num_inference_steps": 12},
    "LatentConsistencyModelImg2ImgPipeline": {"num_inference_steps": 16},
    **each("MarigoldDepth MarigoldNormals MarigoldIntrinsics", {"processing_resolution": 0}),
    "PaintByExamplePipeline": {"example_image": picture()},
    "RePaintPipeline": {
        "image": picture(32),
        "mask_image": mask().resize((32, 32)),
        "jump_length": 2,
        "jump_n_sample": 2,
    },
    "StableDiffusionAttendAndExcitePipeline": {"token_indices": [2], "attn_res": (8, 8)},
    "StableDiffusionDepth2ImgPipeline": {"depth_map": random(1, SIZE, SIZE, seed=6)},
    "StableDiffusionDiffEditPipeline": {
        "mask_image": mask(),
        "image_latents": random(1, 6, 4, SIZE, SIZE, seed=6),
        "inpaint_strength": 0.75,
    },
    "StableDiffusionPix2PixZeroPipeline": {
        "source_embeds": random(1, 77, 8, seed=5),
        "target_embeds": random(1, 77, 8, seed=6),
    },
    "TextToVideoZeroPipeline": {"t0": 2, "t1": 3},
    "TextToVideoZeroSDXLPipeline": {"t0": 2, "t1": 3},
}


def invert_and_edit(pipe: Any, call: dict[str, Any]) -> Any:
    """LEDITS++ first turns a picture into noise."""
    sizes = {"height": 2 * SIZE, "width": 2 * SIZE}
    pipe.invert(picture(2 * SIZE), num_inversion_steps=STEPS, generator=torch.Generator().manual_seed(1), **sizes)
    return pipe(editing_prompt=["a dog"], use_intersect_mask=True, **call)


def with_tokens_of_prompt(pipe: Any, call: dict[str, Any]) -> Any:
    """Kolors' image to image takes the embeddings, but not the pooled ones that it needs."""
    tokens = (EMBEDS["prompt_embeds"], EMBEDS["negative_prompt_embeds"])
    pipe.encode_prompt = lambda *_, **__: (*tokens, *POOLED.values())
    return pipe(**call)


# It has a method for each of its three tasks, and no call of its own.
CALLED_OTHERWISE = ("VersatileDiffusionPipeline",)
CALLERS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "LEditsPPPipelineStableDiffusion": invert_and_edit,
    "LEditsPPPipelineStableDiffusionXL": invert_and_edit,
    "KolorsImg2ImgPipeline": with_tokens_of_prompt,
    "VersatileDiffusionPipeline": lambda pipe, call: pipe.text_to_image(
        "a cat", num_inference_steps=STEPS, height=SIZE, width=SIZE, output_type="np", **call
    ),
}


def run(pipe: Any, builder: Builder) -> Tensor:
    """The first output of a call, as one tensor."""
    torch.manual_seed(0)
    call = builder.call()
    caller = CALLERS.get(builder.name)
    result = pipe(**call) if caller is None else caller(pipe, call)
    found = result[0]
    return torch.as_tensor(np.stack(found) if isinstance(found, list) else found)
