"""The command: train the model, and write a sheet of its samples."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.sd_like import __doc__ as DESCRIPTION
from benchmarks.sd_like.model import ASSETS, load_pipeline, save_samples
from benchmarks.sd_like.training import open_world, train


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sd_like",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--train", action="store_true", help="train it, 15 minutes on one core; goes on where it was")
    parser.add_argument("--data", type=Path, default=Path("runs/world/train"), help="rendered here if it is not there")
    parser.add_argument("--heads", type=int, default=1000, help="how many, where they must be rendered")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--work", type=Path, default=Path("runs/sd_like"), help="where the training state is kept")
    parser.add_argument("--output", type=Path, default=ASSETS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=Path, metavar="FILE", help="write a sheet of samples")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.train:
        train(options.data, options.work, options.output, heads=options.heads, steps=options.steps)
    if options.samples:
        save_samples(options.samples, load_pipeline(options.output), open_world())
    if not options.train and not options.samples:
        parser.error("expected --train, --samples FILE or both")


if __name__ == "__main__":
    main()
