"""`python -m fye_pipeline.training.people_recipe`: the two trainings behind several people in one picture.

First `features`, then `adapter`; both go on where they were with `--resume`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from fye_pipeline.training.expression_features import FeatureConfig, measure_gates, train_features
from fye_pipeline.training.scene_adapter import AdapterConfig, train_adapter


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and train; the gates of the features are printed, and written beside the weights."""
    parser = argparse.ArgumentParser(prog="python -m fye_pipeline.training.people_recipe", description=__doc__)
    parser.add_argument("what", choices=("features", "adapter"))
    parser.add_argument("output", type=Path, help="folder of the run")
    parser.add_argument("--steps", type=int, help="default: the recipe's")
    parser.add_argument("--amount", type=int, help="groups of faces (features), scenes (adapter)")
    parser.add_argument("--seed", type=int, default=0, help="of the people and of every draw")
    parser.add_argument("--scenes", type=Path, help="adapter: a folder of scenes that several runs share")
    parser.add_argument("--init", type=Path, help="adapter: the folder of a trained one to go on from")
    parser.add_argument("--no-augmentation", action="store_true", help="adapter: without resamplers")
    parser.add_argument("--single-faces", action="store_true", help="adapter: on scenes of one person only")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    given = parser.parse_args(arguments)
    if given.what == "features":
        first = FeatureConfig()
        config = FeatureConfig(steps=given.steps or first.steps, groups=given.amount or first.groups, seed=given.seed)
        gates = measure_gates(train_features(config, given.output, print, resume=given.resume), print)
        print(gates)
        (given.output / "gates.json").write_text(json.dumps(gates.to_dict(), indent=2), encoding="utf-8")
        return
    own = AdapterConfig()
    train_adapter(
        AdapterConfig(
            steps=given.steps or own.steps,
            scenes=given.amount or own.scenes,
            augment=() if given.no_augmentation else own.augment,
            single=given.single_faces,
            seed=given.seed,
            init=given.init,
        ),
        given.output,
        print,
        data=given.scenes,
        resume=given.resume,
    )


if __name__ == "__main__":
    main()
