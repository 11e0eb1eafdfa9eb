"""Where does the expression of `ours` get lost? One call of the UNet, from noise alone, before anything is decoded.

    python -m benchmarks.branch_signal [--clips 6] [--frames 4] [--json FILE]

Scenes of held-out people as in `fye evaluate rendered --people 2`. Figures are mean squared errors of the clean
latents that the first step predicts, at the places of eyes, brows and mouths in the truth. Rows: `pose`, the own face
in the driver's pose, its bent portrait trusted everywhere; `branch off`, what the branch is added to, with eyes, brows
and mouth not trusted; `mean features`, the mean of all; `another frame's`, features of the same driver half a video
later; `ours`; `landmarks`, the driver's whole landmarks.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import conditions, flags, print_table, write_json
from fye_pipeline.animate.session import load_model
from fye_pipeline.evaluation.people import Case, Plan, make_case
from fye_pipeline.landmarks import topology
from fye_pipeline.landmarks.drawing import expression_mask, reduce_mask
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.models.files import SHIPPED_MODEL
from fye_pipeline.multi_portrait.expression import FACTORS
from fye_pipeline.multi_portrait.group_model import SHIPPED, ExpressionBranch, GroupConditions, conditions_of, reduced
from fye_pipeline.multi_portrait.rendered_features import RenderedExtractor
from fye_pipeline.sampling.denoise import (
    encode_bent,
    encode_image,
    encode_landmarks,
    encode_reference,
    with_given_frames,
)
from fye_pipeline.world import World

ROWS = ("pose", "branch off", "mean features", "another frame's", "ours", "landmarks")
PARTS: Mapping[str, Sequence[int]] = {
    "eyes": (*topology.LEFT_EYE_POINTS, *topology.RIGHT_EYE_POINTS, topology.LEFT_PUPIL, topology.RIGHT_PUPIL),
    "brows": tuple(point for chain in (*topology.LEFT_BROW, *topology.RIGHT_BROW) for point in chain),
    "mouth": topology.INNER_LIPS,
}
COVERED = 0.3  # share of a latent's pixels from which on it counts as a part's place
ELSEWHERE = 9.0  # a coordinate outside every picture

Features = dict[str, Tensor]


def places(case: Case, part: Sequence[int], height: int, width: int) -> Tensor:
    """The latents where a part of anybody's face is in the truth. -> bool [F, height, width]."""
    whole = np.stack([case.scene.landmarks(number) for number in range(len(case.drivers))])
    others = np.setdiff1d(np.arange(whole.shape[-2]), np.asarray(part))
    whole[..., others, :2] = ELSEWHERE
    mask: NDArray[np.float32] = expression_mask(whole, *case.scene.frames.shape[1:3]).max(0)
    return reduce_mask(torch.from_numpy(mask), height, width) > COVERED


def features_of(case: Case) -> Features:
    """Everybody's features, [1, P, F, d] each."""
    return {name: torch.from_numpy(np.stack([one.features[name] for one in case.drivers]))[None] for name in FACTORS}


@torch.no_grad()
def errors(pipe: Any, branch: ExpressionBranch, case: Case, mean: Features, seed: int) -> dict[str, dict[str, float]]:
    """The squared error of every row at every part of a scene."""
    picture = case.portrait.frames[0]
    reference, prompt = encode_reference(pipe, picture), encode_image(pipe, Image.fromarray(picture))
    exported = pipe.appearance_net(reference, prompt)
    clean = torch.cat([encode_reference(pipe, frame) for frame in case.scene.frames]).transpose(0, 1)
    noise = pipe.noise_scale * torch.randn(clean[None].shape, generator=torch.Generator().manual_seed(seed))
    posed, whole = (conditions_of(picture, case.drivers, pose_only=only) for only in (True, False))
    masks = reduced(posed.masks, pipe.vae_scale_factor)[None]
    own = features_of(case)
    half = next(iter(own.values())).shape[2] // 2
    features: dict[str, Features] = {
        "mean features": {name: mean[name].expand_as(value) for name, value in own.items()},
        "another frame's": {name: value.roll(half, dims=2) for name, value in own.items()},
        "ours": own,
    }
    at = {name: places(case, part, *clean.shape[-2:]) for name, part in PARTS.items()}
    timestep = torch.tensor(pipe.scheduler.config["num_train_timesteps"] - 1)  # no signal is left: clean = -v

    def predict(given: GroupConditions, told: Features | None, *, trusted: bool) -> Tensor:
        bent = encode_bent(pipe, given.bent)
        assert bent is not None
        if trusted:
            bent[:, -1] = 1  # trusted everywhere
        with nullcontext() if told is None else branch.given(told, masks):
            velocity = pipe.unet(
                with_given_frames(noise, pipe.unet.config["in_channels"], reference, None, bent),
                timestep,
                encoder_hidden_states=prompt,
                reference_tokens=exported,
                landmark_features=encode_landmarks(pipe, given.drawn),
            ).sample
        return -velocity[0]

    found = {}
    for row in ROWS:
        given = whole if row == "landmarks" else posed
        squares = ((predict(given, features.get(row), trusted=row == "pose") - clean) ** 2).mean(0)
        found[row] = {name: float(squares[place].mean()) for name, place in at.items()}
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.branch_signal",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[flags()],
    )
    parser.add_argument("--clips", type=int, default=6, help="scenes of two people")
    parser.add_argument("--frames", type=int, default=4)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    pipe = load_model(SHIPPED_MODEL, torch.device("cpu"), torch.float32)
    world, extract = World(CanonicalFace.load()), RenderedExtractor()
    plan = Plan(clips=options.clips, frames=options.frames)
    cases = [make_case(world, plan, clip, extract) for clip in range(plan.clips)]
    every = [features_of(case) for case in cases]
    mean = {name: torch.cat([each[name] for each in every]).mean((0, 1, 2)) for name in FACTORS}
    branch = ExpressionBranch.load(SHIPPED, pipe.unet)
    found = [errors(pipe, branch, case, mean, clip) for clip, case in enumerate(tqdm(cases))]
    rows = [
        {"name": row} | {part: float(np.nanmean([each[row][part] for each in found])) for part in PARTS} for row in ROWS
    ]
    print_table(rows, ("name", *PARTS))
    if options.json:
        write_json(options.json, rows, conditions("cpu", clips=plan.clips, frames=plan.frames))


if __name__ == "__main__":
    main()
