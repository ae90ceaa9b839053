"""What SD1, SD2 and SDXL have in common: UNet, VAE and text towers over lent tensors, behind `contracts.BaseModel`.

A family answers the questions in which they differ; nothing here asks which one it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lora_trainer.contracts import (
    FamilyDefaults,
    LdmPlace,
    LentModel,
    ModelFacts,
    PlainError,
    TensorInfo,
    TextStates,
)
from lora_trainer.families.few_bits import Bits
from lora_trainer.families.fingerprint import fingerprint
from lora_trainer.families.ldm_names import UNET_PREFIX, VAE_PREFIX, UnetNames, VaeNames
from lora_trainer.families.lending import Loan
from lora_trainer.families.lora_names import find_module, kohya_text_name
from lora_trainer.families.noise_schedule import alphas_cumprod
from lora_trainer.families.text import TextTower, build_text_encoder, canonical_path, read_tower
from lora_trainer.families.tokenizer import Layout, Tokenizer
from lora_trainer.families.unet import build_unet
from lora_trainer.families.vae import build_vae


class TowerPlace(NamedTuple):
    """Where a text tower stands in the family's checkpoints."""

    prefix: str
    layout: Layout
    lora_prefix: str  # of its modules in kohya's files
    projection: bool = False  # whether its pooled output is used
    drop_last: int = 0  # layers at the end that are never run


class DiffusionFamily(ABC):
    """A kind of latent diffusion model; implements `contracts.Family`."""

    name: str
    title: str
    defaults: FamilyDefaults
    metadata_version: str
    modelspec_architecture: str
    latent_scale: float  # latents are the VAE's times this
    towers: ClassVar[Mapping[str, TowerPlace]]
    text_parts: tuple[str, ...]
    # Part by the prefix that its modules have in LoRA files, in any spelling.
    lora_spellings: ClassVar[Mapping[str, str]]
    unet_names: UnetNames  # of the full-size model: how LDM names in LoRA files are read

    @abstractmethod
    def recognise(self, header: Mapping[str, TensorInfo]) -> ModelFacts | None:
        """Facts if the header is this family's, from names and shapes alone; None if it is another's."""

    @abstractmethod
    def heads(self, channels: int) -> int:
        """How many attention heads the UNet has where it is `channels` wide."""

    @abstractmethod
    def encode(self, text: TextSide, captions: Sequence[str], clip_skip: int) -> TextStates:
        """Captions to the states the UNet wants; differentiable."""

    @abstractmethod
    def conditions(self, text: TextStates, sizes: Tensor, dtype: torch.dtype) -> dict[str, Tensor] | None:
        """What the UNet is told besides the text; `sizes` (B, 6) pixels as in `contracts.Batch`."""

    @abstractmethod
    def lora_unet_path(self, names: UnetNames, path: str) -> str:
        """The spelling of a UNet module's path that the hosts read in this family's LoRA files."""

    def adopt(
        self, lent: LentModel, device: torch.device, dtype: torch.dtype, parts: Iterable[str] | None = None,
        bits: Bits | None = None,
    ) -> DiffusionBase:  # fmt: skip
        """Build modules on `meta` and assign the lent tensors; nothing is copied where device and dtype agree.

        All parts by default; of an owned model the UNet with so few `bits` a weight as are asked for. Raises
        PlainError where the checkpoint is not whole, or its facts contradict each other.
        """
        if lent.facts.zero_terminal_snr and lent.facts.prediction == "epsilon":
            raise PlainError(
                f"{lent.name} is said to predict noise with zero terminal SNR, where the last step would have nothing "
                "to tell; set model.prediction to v_prediction, or model.zero_terminal_snr to no."
            )
        base = DiffusionBase(self, lent, device, dtype)
        for part in ("unet", "vae", *self.text_parts) if parts is None else parts:
            precision = torch.float32 if part == "vae" else dtype  # in fp16 SDXL's VAE overflows
            loan = Loan(lent.tensors, device, precision, owned=lent.owned, bits=bits if part == "unet" else None)
            base.put(part, self._build(part, lent.header, loan), loan)
        return base

    def _build(self, part: str, header: Mapping[str, TensorInfo], loan: Loan) -> nn.Module:
        if part == "unet":
            return build_unet(loan, header, self.heads)
        if part == "vae":
            return build_vae(loan, header)
        return build_text_encoder(loan, self.tower(header, part))

    def tower(self, header: Mapping[str, TensorInfo], part: str) -> TextTower:
        """One text tower as it stands in a checkpoint."""
        place = self.towers[part]
        return read_tower(header, place.prefix, place.layout, projection=place.projection, drop_last=place.drop_last)

    def module_of(self, kohya_name: str) -> tuple[str, str] | None:
        """(part, diffusers module path) of a module name found in a LoRA file (kohya, LDM or diffusers spelling)."""
        return find_module(kohya_name, self.unet_names, self.lora_spellings)


class TextSide(NamedTuple):
    """The text encoders of a base with their tokenizers, by part."""

    encoders: Mapping[str, nn.Module]
    tokenizers: Mapping[str, Tokenizer]


class DiffusionBase:
    """A frozen diffusion model; implements `contracts.BaseModel`. Shape letters as in `contracts`."""

    def __init__(self, family: DiffusionFamily, lent: LentModel, device: torch.device, dtype: torch.dtype) -> None:
        self.facts = lent.facts
        self.name = lent.name
        self.parts: dict[str, nn.Module] = {}
        self.alphas_cumprod = alphas_cumprod(zero_terminal_snr=lent.facts.zero_terminal_snr)
        self.device = device
        self.dtype = dtype  # of UNet and text encoders; the VAE is float32
        self._family = family
        self._header = lent.header  # not the tensors: a part that is released must not be kept alive by us
        self._loans: dict[str, Loan] = {}

    def put(self, part: str, module: nn.Module, loan: Loan) -> None:
        """Add a part and the loan that it stands on."""
        self.parts[part] = module
        self._loans[part] = loan

    def join(self, other: DiffusionBase) -> None:
        """Add the parts of another base over the same model."""
        self.parts.update(other.parts)
        self._loans.update(other._loans)

    def encode_text(self, captions: Sequence[str], clip_skip: int = 1) -> TextStates:
        """Captions of any length to states (B, 77 n, D) and, where the family has it, the pooled (B, P)."""
        encoders = {part: self.parts[part] for part in self._family.text_parts}
        with self._precision():
            return self._family.encode(TextSide(encoders, self._tokenizers), captions, clip_skip)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 to scaled latents (B, 4, h, w), float32: the mean of the VAE's posterior."""
        vae: Any = self.parts["vae"]
        with torch.no_grad(), self._no_autocast():
            posterior = vae.encode(pixels.to(self.device, torch.float32), return_dict=False)[0]
            return posterior.mean * self._family.latent_scale

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, 4, h, w) to (B, 3, H, W) in -1..1, float32."""
        vae: Any = self.parts["vae"]
        with torch.no_grad(), self._no_autocast():
            unscaled = latents.to(self.device, torch.float32) / self._family.latent_scale
            return vae.decode(unscaled, return_dict=False)[0].clamp(-1, 1)

    def predict(self, noisy: Tensor, timesteps: Tensor, text: TextStates, sizes: Tensor) -> Tensor:
        """The UNet's output (B, 4, h, w) for `timesteps` (B,); `sizes` (B, 6) as in Batch, used by SDXL only."""
        context = text.context.to(self.device, self.dtype)
        with self._precision():
            return self.parts["unet"](
                noisy.to(self.device, self.dtype),
                timesteps.to(self.device),
                encoder_hidden_states=context,
                added_cond_kwargs=self._family.conditions(text, sizes.to(self.device), self.dtype),
                return_dict=False,
            )[0]

    def kohya_name(self, part: str, path: str) -> str:
        """Name of a module in a LoRA file that every host reads."""
        if part == "unet":
            return "lora_unet_" + self._family.lora_unet_path(self._unet_names, path).replace(".", "_")
        return kohya_text_name(self._family.towers[part].lora_prefix, path)

    def ldm_place(self, part: str, path: str) -> LdmPlace:
        """Where a module's weight stands in the checkpoint file, for merging."""
        name = f"{path}.weight"
        if part == "unet":
            return LdmPlace(UNET_PREFIX + self._unet_names.to_ldm(name))
        if part == "vae":
            return LdmPlace(VAE_PREFIX + self._vae_names.to_ldm(name))
        return self._towers[part].places[canonical_path(name)]

    def fingerprint(self, part: str) -> str:
        """Hex digest that changes when the part's weights do; keys the caches."""
        return fingerprint(self.parts[part])

    def release(self, *parts: str) -> None:
        """Forget parts that the run does not need any more; releasing an absent part does nothing."""
        for part in parts:
            self.parts.pop(part, None)
            self._loans.pop(part, None)

    def take_back(self) -> None:
        """Point the parts at the lent tensors wherever the host has them now; cheap if it has not moved them."""
        for loan in self._loans.values():
            loan.take_back()

    def let_go(self) -> None:
        """Hold no lent tensor until the next `take_back`, so that the host can free its memory; nothing if owned."""
        for loan in self._loans.values():
            loan.let_go()

    def _precision(self) -> AbstractContextManager[Any]:
        """Autocast to the weights' own dtype (another would keep a cast copy of them for the backward pass)."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _no_autocast(self) -> AbstractContextManager[Any]:
        """The VAE stays in float32 inside a caller's autocast too."""
        return torch.autocast(self.device.type, enabled=False)

    @cached_property
    def _tokenizers(self) -> dict[str, Tokenizer]:
        return {part: Tokenizer(place.layout) for part, place in self._family.towers.items()}

    @cached_property
    def _unet_names(self) -> UnetNames:
        return UnetNames.of_ldm(k[len(UNET_PREFIX) :] for k in self._header if k.startswith(UNET_PREFIX))

    @cached_property
    def _vae_names(self) -> VaeNames:
        return VaeNames.of_ldm(k[len(VAE_PREFIX) :] for k in self._header if k.startswith(VAE_PREFIX))

    @cached_property
    def _towers(self) -> dict[str, TextTower]:
        return {part: self._family.tower(self._header, part) for part in self._family.text_parts}
