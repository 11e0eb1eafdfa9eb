"""What adapters a UNet carries, and how strongly each acts now: IP-Adapters, LoRA, GLIGEN's grounding, T2I-Adapters."""

from __future__ import annotations

from typing import Any

from torch import nn

from ticache.host import RESIDUALS


class Adapters:
    """The modules of one UNet that carry adapters; they are looked for once, and again where others were loaded."""

    def __init__(self, unet: nn.Module):
        self._unet = unet
        self._loaded: tuple[Any, tuple[str, ...]] | None = None
        self._attentions: list[Any] = []
        self._lora: list[Any] = []
        self._grounding: list[Any] = []

    def in_force(self, bound: dict[str, Any]) -> tuple[Any, ...]:
        """What acts in a call with these arguments, and how strongly; equal where nothing has changed."""
        config = getattr(self._unet, "peft_config", None)
        loaded = config, tuple(config or ())
        if self._loaded is None or config is not self._loaded[0] or loaded[1] != self._loaded[1]:
            self._loaded = loaded
            self._look()
        given = bound.get("cross_attention_kwargs") or bound.get("attention_kwargs") or {}
        return (
            given.get("scale"),
            [bound.get(name) is not None for name in RESIDUALS],
            [(each.processor, _copied(getattr(each.processor, "scale", None))) for each in self._attentions],
            [_lora_strength(layer) for layer in self._lora],
            [gate.enabled for gate in self._grounding],
        )

    def _look(self) -> None:
        modules = list(self._unet.modules())
        self._attentions = [module for module in modules if hasattr(module, "processor")]
        self._lora = [module for module in modules if hasattr(module, "merged_adapters") and hasattr(module, "scaling")]
        self._grounding = [module for module in modules if type(module).__name__ == "GatedSelfAttentionDense"]


def _copied(scale: Any) -> Any:
    return list(scale) if isinstance(scale, list) else scale


def _lora_strength(layer: Any) -> tuple[Any, ...]:
    # diffusers multiplies the scales by a call's own and divides them again after it, which leaves rounding errors.
    scales = [round(scale, 6) if isinstance(scale, float) else scale for scale in layer.scaling.values()]
    return tuple(layer.active_adapters), layer.disable_adapters, list(layer.merged_adapters), scales
