"""What flows through the house, and what its rooms promise each other. No behaviour lives here.

    file or host --> LentModel --Family.adopt--> BaseModel --------------+
    folder --> data set --> Batch ---------------------------------------+--> train.loop.fit --> Event, NetworkState
    RunConfig --> Network (injected into the base) ----------------------+
                                         Control (orders) comes down, Event goes up

Shape letters: B images in a batch, H and W pixels, h = H/8 and w = W/8 latent cells, n chunks of 77 tokens,
D width of the text states, P width of the pooled text output, r rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:  # annotations only: reading this page must not cost the host a torch import
    import torch
    from PIL.Image import Image
    from torch import Tensor, nn

PredictionType = Literal["epsilon", "v_prediction"]
Part = Literal["unet", "vae", "text_encoder", "text_encoder_2"]


class PlainError(Exception):
    """Bad input, told in one sentence: what was asked, what was found, what to do. Exit code 2, no traceback."""


class ModelAway(Exception):
    """The lent model is not there for now, in one sentence with what brings it back; a run waits for it."""


# --- base models -----------------------------------------------------------------------------------------------------


class TensorInfo(NamedTuple):
    """What a checkpoint's header says of one tensor."""

    dtype: str  # as safetensors spells it: "F16", "BF16", "F32", ...
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelFacts:
    """What a base model tells of itself; nobody is asked for it."""

    family: str  # name of the Family: "sd1", "sd2", "sdxl"
    prediction: PredictionType
    zero_terminal_snr: bool
    reason: str  # how prediction and ztSNR were told, for the user


@dataclass(frozen=True)
class LentModel:
    """A base model as named tensors and facts, not as modules; from a file (read when asked for) or from the host."""

    tensors: Mapping[str, Tensor]  # keys as in an LDM checkpoint file; a host's are looked up anew at each access
    header: Mapping[str, TensorInfo]
    facts: ModelFacts
    name: str  # file stem, for metadata and messages
    path: Path | None  # the file behind it, if there is one
    owned: bool  # True: tensors are ours to lay out anew (read from a file); False: the host's, never to be changed


@dataclass(frozen=True)
class TextStates:
    """Encoded captions, as the UNet wants them."""

    context: Tensor  # (B, 77 n, D)
    pooled: Tensor | None = None  # (B, P), SDXL only


class LdmPlace(NamedTuple):
    """Where one module's weight stands in an LDM checkpoint."""

    key: str  # full key of the weight tensor, e.g. "model.diffusion_model.input_blocks.1.1.proj_in.weight"
    rows: slice | None = None  # open_clip keeps q, k, v as rows of one tensor


class BaseModel(Protocol):
    """A frozen base model that can be trained upon; its parts are diffusers and transformers modules."""

    facts: ModelFacts
    name: str
    parts: dict[str, nn.Module]  # by Part; a part that was released is absent
    alphas_cumprod: Tensor  # (1000,) float32, already rescaled where zero_terminal_snr is set
    device: torch.device

    def encode_text(self, captions: Sequence[str], clip_skip: int = 1) -> TextStates:
        """Captions of any length, in chunks of 75 tokens as the WebUI does; differentiable."""
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 to scaled latents (B, 4, h, w), float32: the mean of the VAE's posterior."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, 4, h, w) to (B, 3, H, W) in -1..1."""
        ...

    def predict(self, noisy: Tensor, timesteps: Tensor, text: TextStates, sizes: Tensor) -> Tensor:
        """The UNet's output (B, 4, h, w) for `timesteps` (B,); `sizes` (B, 6) as in Batch, used by SDXL only."""
        ...

    def kohya_name(self, part: str, path: str) -> str:
        """Name of a module in a LoRA file that every host reads: ("unet", "mid_block...to_q") to "lora_unet_..."."""
        ...

    def ldm_place(self, part: str, path: str) -> LdmPlace:
        """Where that module's weight stands in the checkpoint file, for merging."""
        ...

    def fingerprint(self, part: str) -> str:
        """Hex digest that changes when the part's weights do; keys the caches."""
        ...

    def release(self, *parts: str) -> None:
        """Forget parts that the run does not need any more."""
        ...

    def join(self, other: Any) -> None:
        """Add the parts of another base over the same model, of the same family."""
        ...

    def take_back(self) -> None:
        """Point the parts at the lent tensors wherever the host has them now; cheap if it has not moved them."""
        ...

    def let_go(self) -> None:
        """Hold no lent tensor until the next `take_back`, so that the host can free its memory; nothing if owned."""
        ...


class FamilyDefaults(NamedTuple):
    """What a run takes where its configuration is silent."""

    resolution: int  # pixels
    text_encoder_learning_rate: float  # 0: text encoders stay frozen
    clip_skip: int


class Family(Protocol):
    """A kind of base model: how it is recognised, built and named."""

    name: str  # "sd1"
    title: str  # "Stable Diffusion 1.x"
    defaults: FamilyDefaults
    text_parts: tuple[str, ...]
    metadata_version: str  # "sd_v1", "sd_v2", "sdxl_base_v1-0": kohya's ss_base_model_version
    modelspec_architecture: str

    def recognise(self, header: Mapping[str, TensorInfo]) -> ModelFacts | None:
        """Facts if the header is this family's, from names and shapes alone; None if it is another's."""
        ...

    def adopt(
        self, lent: LentModel, device: torch.device, dtype: torch.dtype, parts: Iterable[str] | None = None,
        bits: Literal[8, 4] | None = None,
    ) -> BaseModel:
        """Build modules on `meta` and assign the lent tensors; nothing is copied where device and dtype agree.

        `bits` asks for a UNet held in so few a weight, which only an owned model's can be.
        """
        ...

    def module_of(self, kohya_name: str) -> tuple[str, str] | None:
        """(part, diffusers module path) of a module name found in a LoRA file (kohya, LDM or diffusers spelling)."""
        ...


# --- data ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """One micro-batch: images of one bucket, ready for the loss."""

    positions: tuple[int, ...]  # place of each sample in the endless stream of samples; keys its randomness
    latents: Tensor  # (B, 4, h, w) float32
    captions: tuple[str, ...]
    text: TextStates | None  # None where the text encoders are trained and the loss encodes
    sizes: Tensor  # (B, 6) pixels: original height, width, crop top, left, target height, width (SDXL's time_ids)
    weights: Tensor  # (B,) float32 factor of each sample's loss
    class_captions: tuple[str, ...] = ()  # the captions with the class in the trigger word's place, where it is asked
    class_text: TextStates | None = None  # None where the text encoders are trained, or no class is asked
    mask: Tensor | None = None  # (B, 1, h, w) float32: how much each latent cell counts, 0 to 1; None: all alike
    opposite: Tensor | None = None  # (B, 4, h, w) float32: the pictures without what the slider adds; None: no pairs


@dataclass(frozen=True)
class TextBatch:
    """One micro-batch of texts; T tokens in a row, which may hold several samples."""

    positions: tuple[int, ...]  # place of each row in the endless stream of rows; keys its randomness
    ids: Tensor  # (B, T) int64
    blocks: Tensor  # (B, T) int64: which sample of its row a token belongs to, from 1; 0 is padding
    places: Tensor  # (B, T) int64: place of a token within its sample
    learnt: Tensor  # (B, T) bool: the model is to tell this token from those before it; never the first of a sample
    divisor: float  # the sum of the tokens' losses is divided by it: the mean over all that the step learns


Batch_co = TypeVar("Batch_co", covariant=True)  # Batch or TextBatch
Batch_contra = TypeVar("Batch_contra", contravariant=True)


class Batches(Protocol[Batch_co]):
    """The endless stream of micro-batches: a function of seed and index, so that a resumed run sees the same."""

    def __call__(self, index: int) -> Batch_co: ...


# --- captions --------------------------------------------------------------------------------------------------------


class Captioner(Protocol):
    """Images in, one caption per image out; its model is loaded when the first caption is asked for."""

    name: str  # "blip-base"
    makes: Literal["sentences", "tags"]  # tags: "first_tag, second tag", the surest first, as the model spells them
    batch_size: int  # images at once that suit it

    def caption(self, images: Sequence[Image]) -> list[str]:
        """A caption for each image (upright RGB of any size), in their order; "" where it finds nothing to say.

        Raises PlainError where the model or what it needs is not there, or is no such model.
        """
        ...

    def close(self) -> None:
        """Free the model; a later `caption` loads it again."""
        ...


class Lack(NamedTuple):
    """What is not on this machine, and would have to be fetched."""

    size: str  # "0.9 GB"
    where: str  # the place for it, and its name
    sentence: str  # with what to do


class HostCaptioner(Captioner, Protocol):
    """A captioner of the host's own."""

    def lacks(self) -> Lack | None:
        """What it would have to fetch before the first caption; None where it can begin."""
        ...


# --- networks --------------------------------------------------------------------------------------------------------

# "<part>.<module path>.<what>": lora_down.weight (r, in[, kh, kw]), lora_up.weight (out, r[, 1, 1]), alpha (), and what
# other kinds have instead (networks/changes.py).
NetworkState = dict[str, "Tensor"]


class ParameterGroup(NamedTuple):
    """Parameters that share a learning rate; a part may have several groups."""

    part: str
    parameters: list[nn.Parameter]
    rate: float = 1.0  # of these, as a multiple of the part's learning rate: LoRA+ gives the up weights more


class Network(Protocol):
    """Trainable layers put on a base model, to be taken off again without a trace."""

    kind: str
    rank: int
    alpha: float

    def groups(self) -> list[ParameterGroup]:
        """Trainable float32 parameters by part, in a fixed order."""
        ...

    def state(self) -> NetworkState:
        """A copy of the weights on the CPU, float32."""
        ...

    def load_state(self, state: NetworkState) -> None:
        """Put weights of the same shapes back, bit for bit; every module must be named."""
        ...

    def scaled(self, weight: float) -> AbstractContextManager[None]:
        """Within it the network acts at `weight`, and dropout rests: 0 is the base model, 1 what is trained."""
        ...

    def drop_by(self, seeds: Sequence[int]) -> None:
        """From now on layers drop what the network's dropouts say, for each sample of the batch by its own seed.

        It holds until the next call, because gradient checkpointing computes the batch again in the backward pass.
        Never called, nothing is dropped. Draws nothing from the process's random state.
        """
        ...

    def weigh_by(self, weights: Sequence[float]) -> None:
        """From now on the network acts on each sample of the batch at its own weight; with none at 1 on all.

        It holds until the next call, as `drop_by` does and for the same reason; `scaled` goes before it.
        """
        ...

    def eject(self) -> None:
        """Take every layer off; modules, flags and weights are as they were before."""
        ...


# --- training --------------------------------------------------------------------------------------------------------


class Loss(Protocol[Batch_contra]):
    def __call__(self, batch: Batch_contra) -> Tensor:
        """Mean loss of the micro-batch, a scalar with a graph to the network's parameters."""
        ...


class Validation(Protocol):
    """Measures how well the network does on what it is not trained on; the same numbers for the same weights."""

    @property
    def count(self) -> int:
        """Measurements that make up one look."""
        ...

    def measure(self, index: int) -> list[float]:
        """Loss of measurement `index` in each of the ranges that it is told by (of timesteps, from little noise)."""
        ...


class Orders(NamedTuple):
    """What the person at the controls wants, as taken by the loop between two steps."""

    stop: bool = False
    save: bool = False
    sample: bool = False


class Control(Protocol):
    def take(self) -> Orders:
        """Orders given since the last call; `save` and `sample` are handed out once, `stop` stays."""
        ...

    def stopped(self) -> bool:
        """Whether `stop` was ordered; takes nothing."""
        ...

    def paused(self) -> bool: ...

    def wait_while_paused(self) -> None:
        """Return when the run may go on, or when there is an order to be carried out in the pause."""
        ...


@dataclass(frozen=True)
class Told:
    """A sentence for the user."""

    text: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True)
class Judged(Told):
    """Whether the run's memory suffices, as its heaviest step has shown that was tried before the first; in bytes."""

    step: int = 0  # what that step takes at its highest, above what the run holds between two steps
    kept: int = 0  # by the optimizer, from the first step on
    network: int = 0  # the trained weights, and their average
    free: int | None = None  # before it; None where the device does not say
    measures: tuple[str, ...] = ()  # what had to be done for it, by the names that a saved state knows them by


@dataclass(frozen=True)
class Prepared:
    """How far the work before the first step has come."""

    what: str  # "latents", "captions", "focal points", "masks"
    done: int
    total: int
    unit: str = ""  # of both, where they are no number of `what`: "MB"


@dataclass(frozen=True)
class Started:
    step: int  # steps already behind, when resumed
    steps: int


@dataclass(frozen=True)
class Stepped:
    step: int  # 1-based: steps done
    steps: int
    loss: float
    rates: Mapping[str, float]  # learning rate by part
    gradient_norm: float
    seconds: float  # this step alone
    memory: int  # bytes of the device in use (peak), or of the process on CPU


@dataclass(frozen=True)
class Skipped:
    """A step whose loss or gradient was not finite; nothing was changed by it."""

    step: int
    steps: int
    loss: float
    in_a_row: int  # of those that count: an overflow that the loss scale can cure does not


@dataclass(frozen=True)
class Saved:
    step: int
    path: Path
    final: bool


@dataclass(frozen=True)
class Validated:
    """A look at the held-out images, whose loss is measured with the same noise and timesteps each time."""

    step: int
    loss: float
    by_timestep: tuple[float, ...]  # its parts, in equal ranges of timesteps from little noise to much
    best: int  # the step that was best so far


@dataclass(frozen=True)
class Sampled:
    step: int
    paths: tuple[Path, ...]
    prompts: tuple[str, ...]
    texts: tuple[str, ...] = ()  # what a language model answered; of an image model the paths are pictures


@dataclass(frozen=True)
class Finished:
    outcome: Literal["done", "stopped", "failed"]
    step: int
    path: Path | None  # the LoRA to use, if one was written
    text: str


Event = Told | Judged | Prepared | Started | Stepped | Skipped | Saved | Validated | Sampled | Finished


# --- the host --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HostPaths:
    """Where the host keeps things; stand-alone these come from the configuration."""

    loras: Path | None  # where a LoRA goes that is given no folder
    runs: Path | None = None  # states, logs and samples of runs that are given no folder; None: beside the LoRA
    checkpoints: tuple[Path, ...] = field(default=())
    allowed: tuple[Path, ...] | None = None  # folders that requests over the network may name; None: any
    widened_by: str = ""  # how the user adds to `allowed`, as the end of a sentence
    at_the_machine: bool = False  # nobody but people at this machine reaches the page, so that it may name any folder


@dataclass(frozen=True)
class SampleOrder:
    """Pictures to draw: image i takes prompt i and seed + i, with the LoRA at `weight`."""

    prompts: tuple[str, ...]
    negative: str
    size: int  # pixels, both sides
    sampling_steps: int
    guidance: float
    seed: int
    clip_skip: int
    weight: float = 1.0


class Host(Protocol):
    """Who lends the model and shows the result: a WebUI, or nobody (stand-alone)."""

    name: str
    draws: bool  # whether `draw` gives pictures; else the engine draws them

    def base_file(self, base: str) -> Path | None:
        """The file or folder that `base` names; None where the host lends the model it has loaded instead.

        Raises PlainError where `base` names a model that the host would have to load first.
        """
        ...

    def lend(self) -> LentModel:
        """The model that the host has loaded, or loads now; never a copy. Raises PlainError where there is none, or
        where it is of a kind that cannot be trained upon."""
        ...

    def device(self) -> torch.device:
        """Where to train."""
        ...

    def visit(self) -> AbstractContextManager[None]:
        """A whole run: whatever the host's state was before is so again afterwards, however the run ends."""
        ...

    def exclusive(self, lent: LentModel, parts: Iterable[str]) -> AbstractContextManager[None]:
        """The right to use the device and these parts of the lent model, for one step at a time; waits its turn.

        Within it the parts are on the device, and their weights are the checkpoint's own. Raises ModelAway where the
        host has another model loaded by now.
        """
        ...

    def turn(self) -> AbstractContextManager[None]:
        """The right to use the device for a piece of work that borrows no model, a batch of captions; waits its turn.

        Within it the host's own model may be off the device. Whoever asked meanwhile is next after it.
        """
        ...

    def make_room(self) -> str:
        """Free memory of the device that the host holds without need; what it let go of, as the end of a sentence.

        Nothing of the lent model, and nothing that the user told the host to keep.
        """
        ...

    def held(self) -> int:
        """Bytes of the device's memory that the host's own model takes, and that `aside` would free."""
        ...

    def aside(self) -> AbstractContextManager[None]:
        """Within it the host's own model is in the CPU's memory, and whoever wants to use it waits until the end."""
        ...

    def contended(self) -> bool:
        """Whether somebody else holds that right or waits for it just now."""
        ...

    def report(self, event: Event) -> None:
        """Show the course of the run where the host shows its own work."""
        ...

    def interrupted(self) -> bool:
        """Whether the host's own Interrupt was pressed for this run."""
        ...

    def draw(self, order: SampleOrder, lora: Path | None) -> Sequence[Image] | None:
        """Pictures as the host's users would get them, with the LoRA where one is given; None where it draws nothing.

        To be called within `exclusive`. PNG text that the host would save stands in `image.info["parameters"]`.
        """
        ...

    def announce(self, path: Path) -> None:
        """A LoRA was written: make it usable now."""
        ...

    def prove(self, path: Path, order: SampleOrder) -> list[Told]:
        """Let the host's own loader read the finished LoRA, and say what it made of it; empty where there is none."""
        ...

    def captioners(self, *, threshold: float | None = None, download: bool = False) -> Sequence[HostCaptioner]:
        """The host's own interrogators, none loaded yet; empty where there is no host.

        `threshold` (0..1) is the least score of a tag, None the host's own setting; `download` lets the host fetch
        what it has not got, else a PlainError of `caption` names it.
        """
        ...

    def paths(self) -> HostPaths: ...
