"""Every diffusers pipeline that holds a UNet: cached, run in full with its reason counted, or refused in a sentence."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from every_pipeline_parts import Builder, pipeline_classes, run
from torch import Tensor

import ticache
from ticache import forward_context
from ticache.api import find_unet

pytestmark = [
    # Most of these pipelines are old, and their own warnings about that are none of ours.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:.*ticache.*"),
]

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "pipelines.md"

# What becomes of each class:
# "cached"            steps are predicted, and nothing else is counted;
# "cached; REASON"    steps are predicted, and REASON is counted for calls that were not;
# "full: REASON"      every step runs in full, with REASON counted;
# "refused: SENTENCE" `apply` raises a ValueError with SENTENCE;
# "broken: ERROR"     the class itself raises ERROR in this version of diffusers, with or without a cache.
_NO_LAYOUT = "is no UNet of diffusers' layout"
_STORES_ATTENTION = "refused: stores attention maps at every step"
_KEEPS_ATTENTION = "keeps what it sees of the attention at every call"
_OWN_TIMESTEPS = "full: its timestep is not one of the scheduler's"
_NOT_PYTORCH = "refused: runs its UNet as OnnxRuntimeModel, outside PyTorch"
OUTCOMES: dict[str, str] = {
    "AltDiffusionImg2ImgPipeline": "cached",
    "AltDiffusionPipeline": "cached",
    "AnimateDiffControlNetPipeline": "cached",
    "AnimateDiffPAGPipeline": "cached",
    "AnimateDiffPipeline": "cached",
    "AnimateDiffSDXLPipeline": "cached",
    "AnimateDiffSparseControlNetPipeline": "cached",
    "AnimateDiffVideoToVideoControlNetPipeline": "cached",
    "AnimateDiffVideoToVideoPipeline": "cached",
    "AudioDiffusionPipeline": "cached",
    "AudioLDM2Pipeline": "cached",
    "AudioLDMPipeline": "cached",
    "BlipDiffusionControlNetPipeline": "cached",
    "BlipDiffusionPipeline": "cached",
    "ConsistencyModelPipeline": "cached",
    "CycleDiffusionPipeline": "cached",
    "DDIMPipeline": "cached",
    "DDPMPipeline": "cached",
    "DanceDiffusionPipeline": f"refused: UNet1DModel {_NO_LAYOUT}",
    "DreamLiteMobilePipeline": "cached",
    "DreamLitePipeline": "cached",
    "I2VGenXLPipeline": "cached",
    "IFImg2ImgPipeline": "cached",
    "IFImg2ImgSuperResolutionPipeline": "cached",
    "IFInpaintingPipeline": "cached",
    "IFInpaintingSuperResolutionPipeline": "cached",
    "IFPipeline": "cached",
    "IFSuperResolutionPipeline": "cached",
    "Kandinsky3Img2ImgPipeline": "cached",
    "Kandinsky3Pipeline": "cached",
    "KandinskyCombinedPipeline": "cached",
    "KandinskyImg2ImgCombinedPipeline": "cached",
    "KandinskyImg2ImgPipeline": "cached",
    "KandinskyInpaintCombinedPipeline": "cached",
    "KandinskyInpaintPipeline": "cached",
    "KandinskyPipeline": "cached",
    "KandinskyV22CombinedPipeline": "cached",
    "KandinskyV22ControlnetImg2ImgPipeline": "cached",
    "KandinskyV22ControlnetPipeline": "cached",
    "KandinskyV22Img2ImgCombinedPipeline": "cached",
    "KandinskyV22Img2ImgPipeline": "cached",
    "KandinskyV22InpaintCombinedPipeline": "cached",
    "KandinskyV22InpaintPipeline": "cached",
    "KandinskyV22Pipeline": "cached",
    "KarrasVePipeline": _OWN_TIMESTEPS,
    "KolorsImg2ImgPipeline": "cached",
    "KolorsPAGPipeline": "cached",
    "KolorsPipeline": "cached",
    "LDMPipeline": "cached",
    "LDMSuperResolutionPipeline": "cached",
    "LDMTextToImagePipeline": "cached",
    "LEditsPPPipelineStableDiffusion": _STORES_ATTENTION,
    "LEditsPPPipelineStableDiffusionXL": _STORES_ATTENTION,
    "LatentConsistencyModelImg2ImgPipeline": "cached",
    "LatentConsistencyModelPipeline": "cached",
    "MarigoldDepthPipeline": "cached",
    "MarigoldIntrinsicsPipeline": "cached",
    "MarigoldNormalsPipeline": "cached",
    "MusicLDMPipeline": "cached",
    "OnnxStableDiffusionImg2ImgPipeline": _NOT_PYTORCH,
    "OnnxStableDiffusionInpaintPipeline": _NOT_PYTORCH,
    "OnnxStableDiffusionInpaintPipelineLegacy": _NOT_PYTORCH,
    "OnnxStableDiffusionPipeline": _NOT_PYTORCH,
    "OnnxStableDiffusionUpscalePipeline": _NOT_PYTORCH,
    "PIAPipeline": "cached",
    "PNDMPipeline": "cached",
    "PaintByExamplePipeline": "cached",
    "RePaintPipeline": "cached; its timestep skips ahead of what came before",
    "ScoreSdeVePipeline": _OWN_TIMESTEPS,
    "SemanticStableDiffusionPipeline": "cached",
    "StableCascadeCombinedPipeline": f"refused: StableCascadeUNet {_NO_LAYOUT}",
    "StableCascadeDecoderPipeline": f"refused: StableCascadeUNet {_NO_LAYOUT}",
    "StableCascadePriorPipeline": f"refused: StableCascadeUNet {_NO_LAYOUT}",
    "StableDiffusionAdapterPipeline": "cached",
    "StableDiffusionAttendAndExcitePipeline": f"full: AttendExciteAttnProcessor {_KEEPS_ATTENTION}",
    "StableDiffusionControlNetImg2ImgPipeline": "cached",
    "StableDiffusionControlNetInpaintPipeline": "cached",
    "StableDiffusionControlNetPAGInpaintPipeline": "cached",
    "StableDiffusionControlNetPAGPipeline": "cached",
    "StableDiffusionControlNetPipeline": "cached",
    "StableDiffusionControlNetXSPipeline": f"refused: UNetControlNetXSModel {_NO_LAYOUT}",
    "StableDiffusionDepth2ImgPipeline": "cached",
    "StableDiffusionDiffEditPipeline": "cached",
    "StableDiffusionGLIGENPipeline": "cached; an adapter or its scale changed",
    "StableDiffusionGLIGENTextImagePipeline": "cached",
    "StableDiffusionImageVariationPipeline": "cached",
    "StableDiffusionImg2ImgPipeline": "cached",
    "StableDiffusionInpaintPipeline": "cached",
    "StableDiffusionInpaintPipelineLegacy": "cached",
    "StableDiffusionInstructPix2PixPipeline": "cached",
    "StableDiffusionLDM3DPipeline": "cached",
    "StableDiffusionLatentUpscalePipeline": "refused: UNet2DConditionModel writes 4 skips and reads 2",
    "StableDiffusionModelEditingPipeline": "cached",
    "StableDiffusionOnnxPipeline": _NOT_PYTORCH,
    "StableDiffusionPAGImg2ImgPipeline": "cached",
    "StableDiffusionPAGInpaintPipeline": "cached",
    "StableDiffusionPAGPipeline": "cached",
    "StableDiffusionPanoramaPipeline": "cached",
    "StableDiffusionParadigmsPipeline": "full: its samples are at several timesteps",
    "StableDiffusionPipeline": "cached",
    "StableDiffusionPipelineSafe": "cached",
    "StableDiffusionPix2PixZeroPipeline": f"full: Pix2PixZeroAttnProcessor {_KEEPS_ATTENTION}",
    "StableDiffusionSAGPipeline": f"full: CrossAttnStoreProcessor {_KEEPS_ATTENTION}",
    "StableDiffusionUpscalePipeline": "cached",
    "StableDiffusionXLAdapterPipeline": "cached",
    "StableDiffusionXLControlNetImg2ImgPipeline": "cached",
    "StableDiffusionXLControlNetInpaintPipeline": "cached",
    "StableDiffusionXLControlNetPAGImg2ImgPipeline": "cached",
    "StableDiffusionXLControlNetPAGPipeline": "cached",
    "StableDiffusionXLControlNetPipeline": "cached",
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": "cached",
    "StableDiffusionXLControlNetUnionInpaintPipeline": "cached",
    "StableDiffusionXLControlNetUnionPipeline": "cached",
    "StableDiffusionXLControlNetXSPipeline": f"refused: UNetControlNetXSModel {_NO_LAYOUT}",
    "StableDiffusionXLImg2ImgPipeline": "cached",
    "StableDiffusionXLInpaintPipeline": "cached",
    "StableDiffusionXLInstructPix2PixPipeline": "cached",
    "StableDiffusionXLPAGImg2ImgPipeline": "cached",
    "StableDiffusionXLPAGInpaintPipeline": "cached",
    "StableDiffusionXLPAGPipeline": "cached",
    "StableDiffusionXLPipeline": "cached",
    "StableUnCLIPImg2ImgPipeline": "cached",
    "StableUnCLIPPipeline": "cached",
    "StableVideoDiffusionPipeline": "cached",
    "TextToVideoSDPipeline": "cached",
    "TextToVideoZeroPipeline": "cached",
    "TextToVideoZeroSDXLPipeline": "cached",
    "UnCLIPImageVariationPipeline": "cached",
    "UnCLIPPipeline": "cached",
    "UniDiffuserPipeline": f"refused: UniDiffuserModel {_NO_LAYOUT}",
    "VersatileDiffusionDualGuidedPipeline": "broken: unexpected keyword argument 'encoder_attention_mask'",
    "VersatileDiffusionImageVariationPipeline": "cached",
    "VersatileDiffusionPipeline": "cached",
    "VersatileDiffusionTextToImagePipeline": "cached",
    "VideoToVideoSDPipeline": "cached",
    "WuerstchenCombinedPipeline": f"refused: WuerstchenDiffNeXt {_NO_LAYOUT}",
    "WuerstchenDecoderPipeline": f"refused: WuerstchenDiffNeXt {_NO_LAYOUT}",
    "WuerstchenPriorPipeline": f"refused: WuerstchenPrior {_NO_LAYOUT}",
}


@functools.cache
def classes() -> dict[str, Any]:
    return pipeline_classes()


def test_every_pipeline_with_a_unet_is_in_the_table() -> None:
    """A class that is new in diffusers needs a line, one that is gone needs none."""
    assert sorted(classes()) == sorted(OUTCOMES)


def table() -> str:
    """The table of the document, one line for each outcome."""
    names: dict[str, list[str]] = {}
    for name, outcome in sorted(OUTCOMES.items()):
        names.setdefault(outcome, []).append(f"`{name.removesuffix('Pipeline')}`")
    kinds = ("cached", "full", "refused", "broken")
    outcomes = sorted(names, key=lambda outcome: (kinds.index(outcome.split(":")[0].split(";")[0]), outcome))
    lines = ["| What happens | Pipelines |", "| --- | --- |"]
    lines += [f"| {outcome} ({len(names[outcome])}) | {', '.join(names[outcome])} |" for outcome in outcomes]
    return "\n".join(lines)


def test_the_document_has_the_same_table() -> None:
    assert table() in DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTCOMES)
def test_a_pipeline_does_what_the_table_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, _, reason = OUTCOMES[name].replace("; ", ": ").partition(": ")
    builder = Builder(classes()[name])
    pipe = builder.pipeline()
    if kind == "refused":
        with pytest.raises(ValueError, match=f"{reason}.*; .*"):
            ticache.apply(pipe, N=3)
        return
    if kind == "broken":
        with pytest.raises(Exception, match=reason):
            run(pipe, builder)
        return
    plain = run(pipe, builder)
    assert plain.isfinite().all()
    ticache.apply(pipe, N=1)
    assert torch.equal(run(pipe, builder), plain)
    # Whoever reads what a skipped module should have put out reads NaN; and, as with any class that is not diffusers',
    # the first full call is made again as a predicted one with its own feature, and compared.
    filled = functools.partial(forward_context.placeholder, nan_filled=True)
    monkeypatch.setattr(forward_context, "placeholder", lambda spec, writable=False, _=False: filled(spec, writable))
    monkeypatch.setattr(type(find_unet(pipe)[2]), "__module__", __name__)
    session = ticache.apply(pipe, N=3)
    cached, reasons = with_reasons(pipe, builder, session)
    predicted = session.report().to_dict()["total_predicted_calls"]
    assert reasons == (set(reason.split(" and ")) if reason else set())
    if kind == "full":
        assert predicted == 0
        assert torch.equal(cached, plain)
    else:
        assert predicted > 0
        assert cached.isfinite().all()
        assert 0 < float((cached - plain).double().norm() / plain.double().norm()) < 0.5
    assert session.report().to_dict()["held_bytes"] == 0
    ticache.remove(pipe)
    assert torch.equal(run(pipe, builder), plain)


def with_reasons(pipe: Any, builder: Builder, session: ticache.Session) -> tuple[Tensor, set[str]]:
    """The output of a call, and every reason counted in it, also where the report's last run is only the call's end."""
    reasons: set[str] = set()

    def note(*_: Any) -> None:
        report = session.report().to_dict()
        reasons.update(report["fallbacks"], report["unattributed"])

    unet = find_unet(pipe)[2]
    handle = unet.register_forward_hook(note)
    try:
        return run(pipe, builder), reasons
    finally:
        handle.remove()
