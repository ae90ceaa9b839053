"""Pictures drawn while a run goes on, with the weights of the moment."""

from __future__ import annotations

from dataclasses import dataclass

from lora_trainer.contracts import BaseModel, Sampled
from lora_trainer.families.sampling import draw
from lora_trainer.jobs.plan import Plan
from lora_trainer.weights.write import write_whole


@dataclass(frozen=True)
class SampleMaker:
    """Draws the prompts of the configuration."""

    plan: Plan
    base: BaseModel

    @property
    def wanted(self) -> bool:
        return bool(self.plan.config.samples.prompts)

    def draw(self, step: int) -> Sampled | None:
        """One PNG for each prompt beside the LoRA; None where no prompt is given."""
        plan, options = self.plan, self.plan.config.samples
        if not self.wanted:
            return None
        images = draw(
            self.base, options.prompts, options.negative, size=options.size or plan.resolution,
            steps=options.sampling_steps, guidance=options.guidance, seed=options.seed, clip_skip=plan.clip_skip,
        )  # fmt: skip
        paths = tuple(plan.files.sample(step, index) for index in range(len(images)))
        for path, image in zip(paths, images, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda file, image=image: image.save(file, format="PNG"))
        return Sampled(step, paths, options.prompts)
