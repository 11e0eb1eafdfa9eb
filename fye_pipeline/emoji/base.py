"""The tiny base that ships: a Stable Diffusion pipeline of 128 pixels with a vocabulary of some forty words."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from fye_pipeline.emoji.people import BACKGROUNDS

WORDS = (
    *("a", "an", "the", "of", "with", "in", "on", "and", "portrait", "picture", "photo", "painting", "ink", "drawing"),
    *("cartoon", "sculpture", "statue", "man", "woman", "person", "face", "glasses", "background", "style"),
    *BACKGROUNDS,
)
START, END, UNKNOWN = "<start>", "<end>", "<unknown>"
TOKENS = (START, END, UNKNOWN, *WORDS)
PROMPT_LENGTH = 16
CROSS = 64

UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (32, 64, 96),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": CROSS,
    "attention_head_dim": 4,  # diffusers calls the number of heads so
    "norm_num_groups": 16,
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, small letters, no punctuation; a word that is not known becomes `<unknown>`."""
    numbers = {word: number for number, word in enumerate(TOKENS)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    split: Any = [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("removed")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, numbers[START]), (END, numbers[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        model_max_length=PROMPT_LENGTH,
    )


def build_base(vae: AutoencoderKL, seed: int = 0) -> StableDiffusionPipeline:
    """The pipeline with random UNet and text encoder; torch's global generator is left as it was."""
    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(**UNET).eval()
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=CROSS,
            intermediate_size=2 * CROSS,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=PROMPT_LENGTH,
            bos_token_id=TOKENS.index(START),
            eos_token_id=TOKENS.index(END),
            pad_token_id=TOKENS.index(END),
        )
        text_encoder = CLIPTextModel(config).eval()
    none: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,  # pyright: ignore[reportArgumentType]
        unet=unet,
        scheduler=DDIMScheduler(**SCHEDULER),  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
        **none,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
