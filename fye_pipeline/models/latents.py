"""Latents of more channels: an autoencoder and the networks of its latents, grown so that they do what they did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers import ModelMixin

from fye_pipeline.models.denoising_unet import channels_for

FIRST_LOG_VARIANCE = -4.0  # of a new channel


@torch.no_grad()
def with_more_latents(parts: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Grow a model's autoencoder, appearance net and denoising UNet to latents of so many channels.

    The former channels keep their places. New ones are random mixtures of what the encoder sees; the decoder and the
    networks do not read them yet, and the UNet's v of them is zero: pictures come out as before, to rounding.
    Raises ValueError where there are that many channels already.
    """
    old = parts["vae"].config["latent_channels"]
    if channels <= old:
        raise ValueError(f"channels must be more than the {old} that there are, got {channels}")
    kept, new = range(old), range(old, channels)
    unet = parts["unet"]
    groups = (unet.config["in_channels"] + 1) // (old + 1)
    grown = rebuilt(unet, in_channels=channels_for(groups, channels), out_channels=channels)
    lay(grown.conv_in, unet.conv_in, columns=_inputs_of_unet(groups, old, channels))
    lay(grown.conv_out, unet.conv_out, rows=kept)
    appearance = rebuilt(parts["appearance_net"], in_channels=channels)
    lay(appearance.conv_in, parts["appearance_net"].conv_in, columns=kept)
    return {**parts, "vae": _grown_autoencoder(parts["vae"], kept, new), "unet": grown, "appearance_net": appearance}


def _grown_autoencoder(vae: Any, kept: range, new: range) -> Any:
    channels, old = new.stop, kept.stop
    grown = rebuilt(vae, latent_channels=channels)
    moments = [*kept, *(channels + k for k in kept)]  # means, then log variances
    mixtures = grown.encoder.conv_out.weight[new.start : new.stop].clone()
    lay(grown.encoder.conv_out, vae.encoder.conv_out, rows=moments)
    grown.encoder.conv_out.weight[new.start : new.stop] = mixtures
    grown.encoder.conv_out.bias[channels + old :] = FIRST_LOG_VARIANCE
    lay(grown.quant_conv, vae.quant_conv, rows=moments, columns=moments)
    lay(grown.post_quant_conv, vae.post_quant_conv, rows=kept, columns=kept)
    for k in new:
        for layer, places in ((grown.quant_conv, (k, channels + k)), (grown.post_quant_conv, (k,))):
            for place in places:
                layer.weight[place, place] = 1
    lay(grown.decoder.conv_in, vae.decoder.conv_in, columns=kept)
    return grown


def _inputs_of_unet(groups: int, old: int, channels: int) -> list[int]:
    """Where a grown UNet takes what it took; the groups are those of `channels_for`."""
    places = [*range(old)]
    for group in range(1, groups):
        start, end = channels_for(group, channels), channels_for(group + 1, channels)
        places += [*range(start, start + old), end - 1]
    return places


@torch.no_grad()
def rebuilt(network: Any, **changes: Any) -> Any:
    """The network with other settings; weights of the same shape in both are the same, others are random."""
    config = {**network.config, **changes}
    config.pop("_use_default_values", None)  # diffusers would put back what an older folder did not name
    made = type(network).from_config(config)
    assert isinstance(made, ModelMixin)
    state = made.state_dict()
    state.update({name: value for name, value in network.state_dict().items() if value.shape == state[name].shape})
    made.load_state_dict(state)
    return made.to(network.device, network.dtype).train(network.training)


@torch.no_grad()
def lay(layer: Any, former: Any, rows: Iterable[int] | None = None, columns: Iterable[int] | None = None) -> None:
    """Lay a former convolution's outputs and inputs at places of a larger one that is zero elsewhere."""
    outputs, inputs = former.weight.shape[:2]
    at = torch.tensor(list(range(outputs) if rows is None else rows))
    layer.weight.zero_()
    layer.weight[at[:, None], torch.tensor(list(range(inputs) if columns is None else columns))] = former.weight
    layer.bias.zero_()
    layer.bias[at] = former.bias
