"""A training run of EmojiDiff in one folder: people, networks, base, and an adapter a stage; each step resumes.

people/train, people/metric, people/held    rendered people
model/                                      the model as it is so far, ready for `EmojiPipeline`
adapters/<stage>.safetensors                what each stage has learnt
pairs/                                      what `iterate` has made
stages/<stage>/                             checkpoints and logs
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from fye_pipeline.emoji import expression_adapter as adapter
from fye_pipeline.emoji.alignment import Alignment, Weights, hang_frozen
from fye_pipeline.emoji.base import CROSS, build_base
from fye_pipeline.emoji.evaluate import IDENTITY_METRIC, LANDMARKS_METRIC
from fye_pipeline.emoji.face_nets import IdentityNet, LandmarkNet
from fye_pipeline.emoji.latent_face import ExpressionLoss, LatentFaceNet, expression_points, train_latent_face
from fye_pipeline.emoji.model import (
    BASE,
    ENCODER,
    EXPRESSION,
    IDENTITY,
    IDENTITY_NET,
    LANDMARK_NET,
    EmojiSettings,
    hang,
    load_base,
    load_encoder,
)
from fye_pipeline.emoji.network_training import (
    NetworkConfig,
    train_encoder,
    train_identity,
    train_landmarks,
    train_projection,
)
from fye_pipeline.emoji.pairs import IterateConfig, Iteration, Verdict, read_pairs
from fye_pipeline.emoji.people import CROP, Meta, People, render_people
from fye_pipeline.emoji.pipeline import SHIPPED, EmojiPipeline
from fye_pipeline.emoji.training import TINY, Batches, Examples, Pairs, StageConfig, own_pairs, train_stage, true_pairs
from fye_pipeline.errors import UserError
from fye_pipeline.landmarks.geometry import CanonicalFace
from fye_pipeline.storage.files import digest_of_file
from fye_pipeline.training.checkpointing import LAST
from fye_pipeline.world import World

Stage = Literal["networks", "identity", "base", "refined", "refined_no_swap", "refined_no_filter", "oracle", "align"]
STAGES: tuple[Stage, ...] = (
    *("networks", "identity", "base", "refined", "refined_no_swap", "refined_no_filter", "oracle"),
    "align",
)
# Which people: those that a model learns from, those that its judges learn from, and those it has never seen.
PEOPLE = {
    "train": Meta(seed=0, split="train", first=200_000, people=2400),
    "metric": Meta(seed=0, split="train", first=300_000, people=1200),
    "held": Meta(seed=0, split="held", first=200_000, people=240),
}
IMAGE_PROMPT, LATENT_FACE = "image_prompt.safetensors", "latent_face.safetensors"
WIDTH, STATES, IDENTITY_DIMENSION = 64, 128, 256  # of the tiny resampler, encoder and identity vector
GUIDANCE = 3.0
Report = Callable[[str], None]


class Workspace:
    """One run's folder. share: of the people and steps of every stage, for trials and tests; 1 is the recipe."""

    def __init__(self, folder: Path, *, share: float = 1.0, report: Report = print) -> None:
        self.folder, self.share, self.report = folder, share, report
        self.model, self.adapters = folder / "model", folder / "adapters"
        self.world = World(CanonicalFace.load(), size=128)

    def people(self, name: str) -> People:
        """Rendered people, rendered now where they are not there."""
        meta = PEOPLE[name]
        meta = replace(meta, people=max(round(meta.people * self.share), 8))

        def tell(done: int, total: int) -> None:
            if done % 200 == 0 or done == total:
                self.report(f"people of {name}: {done}/{total}")

        return render_people(self.world, self.folder / "people" / name, meta, tell)

    def config(self, stage: str) -> StageConfig:
        """A stage's settings; the refined ones differ in their pairs only."""
        own = TINY["refined" if stage.startswith("refined") else stage]
        return replace(own, steps=max(round(own.steps * self.share), 2))

    def train(self, stage: Stage) -> None:
        """Run a stage, or go on with it. UserError where an earlier one has not ended."""
        if stage == "networks":
            self.train_networks()
        elif stage == "identity":
            self.train_base()
        elif stage == "align":
            self.align()
        else:
            self.train_expression(stage)

    # The networks

    def train_networks(self) -> None:
        """Identity, landmark and expression networks, and those that only measure; what is there already stays."""
        self.model.mkdir(parents=True, exist_ok=True)
        self.adapters.mkdir(parents=True, exist_ok=True)

        def steps(count: int) -> int:
            return max(round(count * self.share), 2)

        def tell(name: str) -> Callable[[int, float], None]:
            return lambda step, loss: self.report(f"{name} {step}  loss {loss:.4f}")

        def identity(name: str, path: Path, people: str, config: NetworkConfig, **sizes: Any) -> None:
            if not path.exists():
                with _seeded(config.seed):
                    network = IdentityNet(**sizes)
                train_identity(self.people(people), network, config, tell(name)).save(path)

        def landmarks(name: str, path: Path, people: str, seed: int, **sizes: Any) -> None:
            if not path.exists():
                with _seeded(seed):
                    network = LandmarkNet(**sizes)
                config = NetworkConfig(steps(2500), batch=40, lr=2.5e-3, seed=seed)
                train_landmarks(self.people(people), network, config, tell(name)).save(path)

        identity("identity", self.model / IDENTITY_NET, "train", NetworkConfig(steps(2200)))
        if not (self.model / ENCODER).exists():
            encoder = train_encoder(self.people("train"), NetworkConfig(steps(2500)), tell("encoder"))
            encoder.half().save_pretrained(self.model / ENCODER)
        landmarks("landmarks", self.model / LANDMARK_NET, "train", 0)
        sizes: dict[str, Any] = {"widths": (16, 24, 40, 56), "dimension": 128}
        config = NetworkConfig(steps(1800), seed=1)
        identity("identity metric", self.adapters / IDENTITY_METRIC, "metric", config, **sizes)
        sizes = {"widths": (20, 28, 36, 48), "hidden": 80}
        landmarks("landmarks metric", self.adapters / LANDMARKS_METRIC, "metric", 1, **sizes)

    # The base and the stages

    def train_base(self) -> None:
        """The tiny base with both branches: what Stable Diffusion and two published IP-Adapters are to the paper.

        A frozen base that has never been trained beside an image prompt can hardly be steered by one.
        """
        encoder = load_encoder(self._made(self.model / ENCODER, "networks"))
        people = self.people("train")
        config = self.config("identity")
        folder = self.folder / "stages" / "identity"
        if (self.model / EXPRESSION).is_file() and (self.model / BASE).is_dir():
            pipe = load_base(self.model / BASE, torch.float32)
            hang(pipe.unet, *(adapter.read_branch(self.model / name) for name in (IDENTITY, EXPRESSION)))
        else:
            vae = AutoencoderKL.from_pretrained(SHIPPED / BASE / "vae", torch_dtype=torch.float32)
            pipe = build_base(vae.eval())
            with _seeded(0):
                expression = adapter.expression_projection(CROSS, STATES, WIDTH)
                adapter.attach(pipe.unet, [adapter.identity_projection(CROSS, IDENTITY_DIMENSION), expression])
            if not (folder / LAST).exists():
                steps = NetworkConfig(max(round(1000 * self.share), 2), batch=32)
                report = self.report
                train_projection(people, encoder, expression, steps, lambda n, loss: report(f"tokens {n}  {loss:.4f}"))
        examples = self.examples(pipe)
        batches = Batches(examples, own_pairs(people), encoder, config)
        watch = self.expression_loss(examples, pipe.scheduler, folder / LATENT_FACE)
        train_stage("identity", pipe, batches, folder, config, more_loss=watch, report=self.report)
        self.adapters.mkdir(parents=True, exist_ok=True)
        adapter.write_branch(self.adapters / IMAGE_PROMPT, pipe.unet, 1)
        self.write_base(pipe)

    def expression_loss(self, examples: Examples, scheduler: Any, path: Path) -> ExpressionLoss:
        """What shows the tiny model where expressions matter; its network is trained first, and kept."""
        wanted = expression_points(examples.people)
        if path.exists():
            network = LatentFaceNet()
            network.load_state_dict(load_file(path))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            steps = NetworkConfig(max(round(2500 * self.share), 2))
            report = self.report
            network = train_latent_face(
                *(examples.people, examples.latents, wanted, steps), lambda n, loss: report(f"latents {n}  {loss:.4f}")
            )
            save_file(network.state_dict(), path)
        return ExpressionLoss(scheduler, network.requires_grad_(False).eval(), examples.people, wanted)

    def begin_from(self, folder: Path) -> None:
        """Let `identity` go on from a finished model, its networks too. UserError where this run has begun."""
        EmojiSettings.read(folder)
        if self.model.exists():
            raise UserError(f"{self.folder} holds a run already; --init begins a new one: choose another folder.")
        shutil.copytree(folder, self.model)

    def write_base(self, pipe: Any) -> None:
        """The identity branch and, without it, the base into the model's folder, in float16."""
        adapter.write_branch(self.model / IDENTITY, pipe.unet, 0)
        adapter.detach(pipe.unet)
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            part.half()
        pipe.save_pretrained(self.model / BASE, safe_serialization=True)

    def examples(self, pipe: Any) -> Examples:
        """What the stages draw from."""
        network = IdentityNet.load(self.model / IDENTITY_NET)
        return Examples.make(self.people("train"), self.folder / "people" / "train", pipe, network)

    def train_expression(self, stage: Stage) -> None:
        """An expression branch on the frozen base and identity branch."""
        pairs = self.pairs(stage)
        pipe = self.attached()
        config = self.config(stage)
        examples, stages = self.examples(pipe), self.folder / "stages"
        batches = Batches(examples, pairs, load_encoder(self.model / ENCODER), config)
        watch = self.expression_loss(examples, pipe.scheduler, stages / "identity" / LATENT_FACE)
        train_stage(stage, pipe, batches, stages / stage, config, more_loss=watch, report=self.report)
        self.write_adapter(stage, pipe)

    def attached(self) -> Any:
        """The base with both branches; the expression's begins as the image prompt's, as in the paper."""
        pipe = load_base(self._made(self.model / BASE, "identity"), torch.float32)
        image_prompt = self._made(self.adapters / IMAGE_PROMPT, "identity")
        hang(pipe.unet, adapter.read_branch(self.model / IDENTITY), adapter.read_branch(image_prompt))
        return pipe

    def pairs(self, stage: Stage) -> Pairs:
        """Which expression pictures a stage shows for which targets."""
        if stage == "base":
            return own_pairs(self.people("train"))
        if stage == "oracle":
            return true_pairs(self.people("train"))
        folder = self.folder / "pairs"
        return read_pairs(folder, judged=stage != "refined_no_filter", swapped=stage != "refined_no_swap")

    def write_adapter(self, stage: str, pipe: Any) -> None:
        """A stage's branch beside the others', and into the model, so that it can be tried at once."""
        self.adapters.mkdir(parents=True, exist_ok=True)
        adapter.write_branch(self.adapters / f"{stage}.safetensors", pipe.unet, 1)
        self.use(stage)

    def use(self, stage: str) -> None:
        """Make a stage's adapter the model's."""
        path = self._made(self.adapters / f"{stage}.safetensors", "align" if stage == "aligned" else stage)
        shutil.copyfile(path, self.model / EXPRESSION)
        weights = self.model / BASE / "unet" / "diffusion_pytorch_model.safetensors"
        settings = EmojiSettings(
            crop=CROP, guidance=GUIDANCE, base=digest_of_file(weights)[:16], stage=stage, licence="Apache-2.0"
        )
        settings.write(self.model)

    def iterate(self, config: IterateConfig, on_progress: Callable[[int, int], None]) -> list[Verdict]:
        """Make the pairs of `refined` by the base adapter, with the cache on."""
        self.use("base")
        pipe = EmojiPipeline.from_pretrained(self.model)
        config = replace(config, count=max(round(config.count * self.share), config.batch))
        iteration = Iteration(pipe.model, self.people("train"), self.folder / "pairs", config)
        with pipe.enable_cache(N=config.interval):
            return iteration.run(on_progress)

    def align(self) -> None:
        """Go on from `refined` with the losses of identity and expression."""
        pipe = self.attached()
        path = self._made(self.adapters / "refined.safetensors", "refined")
        adapter.load_branch(pipe.unet, 1, adapter.read_branch(path), str(path))
        hang_frozen(pipe.unet)
        config = self.config("align")
        encoder = load_encoder(self.model / ENCODER)
        batches = ThreeBranches(self.examples(pipe), self.pairs("refined"), encoder, config)
        networks = IdentityNet.load(self.model / IDENTITY_NET), LandmarkNet.load(self.model / LANDMARK_NET)
        alignment = Alignment(pipe, *networks, np.asarray(self.people("train").landmarks), Weights())
        train_stage(
            "align", pipe, batches, self.folder / "stages" / "align", config, more_loss=alignment, report=self.report
        )
        self.write_adapter("aligned", pipe)

    def export(self, output: Path, table: Path | None = None, stage: str = "aligned") -> None:
        """The finished model, and what only the table needs, into folders of their own."""
        self.use(stage)
        shutil.copytree(self.model, output, dirs_exist_ok=True)
        for path in (*output.rglob("config.json"), *output.rglob("model_index.json")):
            # where a part once lay is nobody's business
            told = json.loads(path.read_text(encoding="utf-8"))
            if told.pop("_name_or_path", None) is not None:
                path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        if table is not None:
            table.mkdir(parents=True, exist_ok=True)
            for path in self.adapters.glob("*.safetensors"):
                if path.stem in (stage, "image_prompt"):
                    continue
                shutil.copyfile(path, table / path.name)

    @staticmethod
    def _made(path: Path, stage: str) -> Path:
        if not path.exists():
            raise UserError(f"{path} is not there yet; run `fye emoji train --stage {stage}` first.")
        return path


class ThreeBranches(Batches):
    """Batches for a UNet that carries the expression twice: the branch that learns, and the frozen one."""

    def __getitem__(self, step: int) -> Any:
        batch = super().__getitem__(step)
        batch.embeds.append(batch.embeds[1])
        return batch


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random weights from a seed; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
