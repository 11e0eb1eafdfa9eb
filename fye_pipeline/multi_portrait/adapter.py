"""The expression branch of a host model: added to the cross-attention of its blocks, and taken off exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fye_pipeline.errors import UserError
from fye_pipeline.multi_portrait.attention import Isolation, people_attention
from fye_pipeline.multi_portrait.ownership import token_shares
from fye_pipeline.storage.files import atomic_target, existing_file

WEIGHTS, CONFIG = "expression_adapter.safetensors", "expression_adapter.json"


@dataclass
class ExpressionInputs:
    """What one denoising call's branches share; set by whoever calls the model, and empty between calls.

    tokens: [B, P, F, N, c]. masks: whose pixels are whose, [B, P, F, H, W]; F, H and W are those of the latents.
    scale: of the branch, for each of the B samples; 0 for guidance's half without expression. key_mask: [F, N] bool,
    False where a token is padding. muted: the branch is left out altogether, whatever else is given.
    """

    tokens: Tensor | None = None
    masks: Tensor | None = None
    scale: Tensor | None = None
    key_mask: Tensor | None = None
    isolation: Isolation = "exclusive"
    muted: bool = False
    _shares: dict[int, Tensor] = field(default_factory=dict)

    @contextmanager
    def given(
        self,
        tokens: Tensor,
        masks: Tensor,
        *,
        scale: float | Sequence[float] = 1.0,
        key_mask: Tensor | None = None,
        isolation: Isolation = "exclusive",
    ) -> Iterator[None]:
        """Hold these for the length of a block; they are gone after it, on an error too.

        Raises ValueError where tokens and masks are not of the same samples, people and frames.
        """
        if tokens.ndim != 5 or masks.ndim != 5 or tokens.shape[:3] != masks.shape[:3]:
            raise ValueError(
                "tokens [B, P, F, N, c] and masks [B, P, F, H, W] must agree in B, P and F, "
                f"got {list(tokens.shape)} and {list(masks.shape)}"
            )
        self.tokens, self.masks, self.key_mask, self.isolation = tokens, masks, key_mask, isolation
        self.scale = torch.as_tensor(scale, dtype=torch.float32, device=tokens.device).expand(len(tokens))
        self._shares = {}
        try:
            yield
        finally:
            self.tokens = self.masks = self.scale = self.key_mask = None
            self._shares = {}

    def shares(self, places: int) -> Tensor:
        """Ownership of the tokens of the grid that has so many places, [B * F, P, places]; worked out once a grid."""
        assert self.masks is not None
        if places not in self._shares:
            height, width = self.masks.shape[-2:]
            every_frame = self.masks.transpose(1, 2).flatten(0, 1)
            self._shares[places] = token_shares(every_frame, grid_of(places, height, width)).flatten(-2)
        return self._shares[places]


def grid_of(places: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of the level of a UNet that has so many places, for latents of a size; halved, rounded up.

    Raises ValueError where no level has.
    """
    grid = height, width
    while math.prod(grid) > places and max(grid) > 1:
        grid = (grid[0] + 1) // 2, (grid[1] + 1) // 2
    if math.prod(grid) != places:
        raise ValueError(f"{places} places are no level of a {height} x {width} grid")
    return grid


class ExpressionProcessor(nn.Module):
    """A block's former cross-attention, and beside it that of the people's tokens, before the output projection.

    The weights of values begin at zero: until they are trained the model is what it was. A reader finds them in the
    model's `state_dict`. The query is worked out a second time. deep: with a query and an output of its own, which
    begin as the model's, and a feed-forward layer behind them, which works where somebody is alone.
    """

    former: Any
    inputs: ExpressionInputs
    keeps_state: bool | None  # False: a cache may leave its calls out; None: nothing is known of the former one

    def __init__(
        self, former: Any, attention: Any, width: int, inputs: ExpressionInputs, *, deep: bool = False
    ) -> None:
        super().__init__()
        inner, channels = attention.to_q.out_features, attention.to_q.in_features
        self.to_k = nn.Linear(width, inner, bias=False)
        self.to_v = nn.Linear(width, inner, bias=False)
        nn.init.zeros_(self.to_v.weight)
        self.deep = deep
        if deep:
            self.to_q = nn.Linear(channels, inner, bias=False)
            self.to_out = nn.Linear(inner, channels, bias=False)
            hidden = nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
            self.feed_forward = nn.Sequential(nn.LayerNorm(channels), *hidden)
            with torch.no_grad():
                self.to_q.weight.copy_(attention.to_q.weight)
                self.to_out.weight.copy_(attention.to_out[0].weight)
                hidden[-1].weight.zero_()
                hidden[-1].bias.zero_()
        object.__setattr__(self, "former", former)  # not a part of this module, even where it is one
        object.__setattr__(self, "inputs", inputs)
        harmless = type(former).__module__.startswith(("diffusers.models.", "fye_pipeline."))
        self.keeps_state = False if harmless else None
        # diffusers asks a processor's `__call__` which arguments it may hand over: those of the former one.
        object.__setattr__(self, "__call__", former.__call__)
        self.to(attention.to_q.weight.device, attention.to_q.weight.dtype)

    def forward(self, attn: Any, hidden_states: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """As the former processor; hidden_states [B * F, L, C], or [B, F * L, C] of models that see all frames."""
        result = self.former(attn, hidden_states, *arguments, **options)
        if self.inputs.tokens is None or self.inputs.muted:
            return result
        added = self._branch(attn, hidden_states)
        return result + added.reshape(result.shape) / getattr(attn, "rescale_output_factor", 1.0)

    def _branch(self, attn: Any, hidden_states: Tensor) -> Tensor:
        inputs = self.inputs
        assert inputs.tokens is not None
        assert inputs.scale is not None
        batch, _, frames = inputs.tokens.shape[:3]
        rows = hidden_states.reshape(batch * frames, -1, hidden_states.shape[-1])
        norm = getattr(attn, "norm_q", None)
        query = (self.to_q if self.deep else attn.to_q)(rows)
        query = _heads(query if norm is None else norm(query), attn.heads)
        tokens = inputs.tokens.transpose(1, 2).flatten(0, 1).to(rows.dtype)  # [B * F, P, N, c]
        keys, values = (_heads(to(tokens), attn.heads) for to in (self.to_k, self.to_v))
        shares = inputs.shares(rows.shape[1])
        mask = None if inputs.key_mask is None else inputs.key_mask.repeat(batch, 1)
        made = people_attention(query, keys, values, shares, isolation=inputs.isolation, key_mask=mask)
        scale = inputs.scale.repeat_interleave(frames).to(made.dtype)[:, None, None]
        weight = self.to_out.weight if self.deep else attn.to_out[0].weight
        added = nn.functional.linear(made.transpose(1, 2).flatten(2), weight)
        if self.deep:
            owned = shares.sum(1)[..., None].to(made.dtype)
            added = added + owned * self.feed_forward(rows + added)
        return added * scale


def _heads(values: Tensor, heads: int) -> Tensor:
    """[..., L, heads * D] -> [..., heads, L, D]."""
    return values.unflatten(-1, (heads, -1)).transpose(-2, -3)


class ExpressionAdapter:
    """The branches of one host, each at a cross-attention; `inputs` is what they read.

    host: a UNet or a transformer of diffusers. width: of the tokens. but: modules whose name contains this are left
    alone. deep: as `ExpressionProcessor` says. Raises ValueError where there is no cross-attention.
    """

    def __init__(self, host: nn.Module, width: int, *, but: str = "motion_modules", deep: bool = False) -> None:
        self.inputs = ExpressionInputs()
        self.width, self.deep = width, deep
        self.processors: dict[str, ExpressionProcessor] = {}
        self._host = host
        for name, module in host.named_modules():
            if name.endswith("attn2") and but not in name:
                attention: Any = module
                self.processors[name] = ExpressionProcessor(
                    attention.processor, attention, width, self.inputs, deep=deep
                )
                attention.set_processor(self.processors[name])
        if not self.processors:
            raise ValueError(f"{type(host).__name__} has no cross-attention attn2")

    def remove(self) -> None:
        """Give every attention its former processor back; done twice it does nothing."""
        for name, processor in self.processors.items():
            attention: Any = self._host.get_submodule(name)
            if attention.processor is processor:
                attention._modules.pop("processor")
                attention.processor = processor.former

    def parameters(self) -> Iterator[nn.Parameter]:
        """The branches' own weights, for an optimiser."""
        for processor in self.processors.values():
            yield from processor.parameters()

    def state_dict(self) -> dict[str, Tensor]:
        """The branches' own weights by the name of their attention."""
        return {
            f"{name}.{part}": value
            for name, processor in self.processors.items()
            for part, value in processor.state_dict().items()
        }

    def load_state_dict(self, weights: dict[str, Tensor]) -> None:
        """Take weights over. Raises `UserError` where a key is missing or too many, or a shape is another."""
        own = self.state_dict()
        wrong = sorted(weights.keys() ^ own.keys()) or sorted(
            name for name in own if own[name].shape != weights[name].shape
        )
        if wrong:
            raise UserError(
                f"The expression adapter does not fit this model: {len(wrong)} weights differ, as {wrong[0]}."
            )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(weights[name])

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write weights (in `dtype`, by default their own) and width; diffusers' own saving leaves processors out."""
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_target(folder / WEIGHTS) as temporary:
            weights = {name: value.detach().to(dtype).contiguous().cpu() for name, value in self.state_dict().items()}
            save_file(weights, temporary)
        with atomic_target(folder / CONFIG) as temporary:
            described = {"width": self.width, "deep": self.deep, "attentions": list(self.processors)}
            temporary.write_text(json.dumps(described, indent=2), encoding="utf-8")

    @staticmethod
    def is_deep(folder: Path) -> bool:
        """Whether a saved branch has layers of its own beside keys and values."""
        described = json.loads(existing_file(folder / CONFIG, "the expression adapter").read_text(encoding="utf-8"))
        return bool(described.get("deep", False))

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. Raises `UserError` where it is absent or of another model."""
        self.load_state_dict(load_file(existing_file(folder / WEIGHTS, "the expression adapter")))
