"""A network of any form, acting through our layers and through a Forge's own loader, UNet and text encoders.

    python tests/host/forge.py FORGE FOLDER --always-cpu

Prints, as one line of JSON, how the two agree for each kind of model and each form; FOLDER is for the files. Nothing of
Forge's is copied: its modules are imported from FORGE, and the one function that decides what becomes of a file is read
out of its Lora extension, whose module cannot be imported without the whole page.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lora_trainer.contracts import BaseModel, TextStates
from lora_trainer.networks.file import write_lora
from tests.builders.hosted import SLIM
from tests.builders.networks import FORMS, KINDS, base_model, put_on, randomise
from tests.builders.slim import SKETCHES, Kind, slim_checkpoint
from tests.host.kinds import SIZES, TIMES, Answers, conditions, judged, noisy

TOWERS: dict[Kind, dict[str, tuple[str, str]]] = {  # Forge's name of each of our text encoders, and where it stands
    "sd1": {"text_encoder": ("clip_l", "cond_stage_model.transformer.")},
    "sd2": {"text_encoder": ("clip_h", "cond_stage_model.model.")},
    "sdxl": {
        "text_encoder": ("clip_l", "conditioner.embedders.0.transformer."),
        "text_encoder_2": ("clip_g", "conditioner.embedders.1.model."),
    },
}
EVERYWHERE = "everywhere"  # a LoRA on every layer that one can be on, so that every name occurs
TOKENS = torch.tensor([[49406, 320, 736, 4440, 49407] + [49407] * 72])


def compared(forge: Path, folder: Path) -> dict[str, Any]:
    """By kind of model and form: as `tests.host.kinds.compared`, and what Forge said of the file."""
    found: dict[str, Any] = {}
    load = _loader(forge)
    for kind in KINDS:
        base = base_model(kind)
        theirs = Forge(kind, {part: base.parts[part].config for part in TOWERS[kind]})
        plain = _ours(kind, base), theirs.answers()
        for form in (*FORMS, EVERYWHERE):
            path = folder / f"{kind}_{form.replace(' ', '_')}.safetensors"
            network = put_on(base, "all") if form == EVERYWHERE else put_on(base, "few", form=form)
            randomise(network)
            notes = {"ss_output_name": path.stem}
            write_lora(path, network.state(), kohya_name=base.kohya_name, metadata=notes, precision="fp32")
            ours = _ours(kind, base)
            network.eject()
            with_file, said = theirs.with_file(load, path)
            found[f"{kind} {form}"] = {"sizes": judged((plain[0], ours), (plain[1], with_file)), "said": said}
        assert all(torch.equal(plain[1][name], again) for name, again in theirs.answers().items())
    return found


def _ours(kind: Kind, base: BaseModel) -> Answers:
    context, pooled = conditions(base.parts["unet"])
    states = TextStates(context.expand(2, -1, -1), None if pooled is None else pooled.expand(2, -1))
    with torch.no_grad():
        found = {tower: _states(base.parts[part]) for part, (tower, _) in TOWERS[kind].items()}
        return {**found, "unet": base.predict(noisy(), TIMES, states, SIZES)}


def _states(tower: nn.Module) -> Tensor:
    return tower(TOKENS, output_hidden_states=True).hidden_states[-1].clone()


class Forge:
    """Forge's model of one kind, with the slim checkpoint's weights; `configs` of its text encoders."""

    def __init__(self, kind: Kind, configs: dict[str, Any]) -> None:
        from backend.operations import using_forge_operations
        from backend.patcher.clip import CLIP
        from backend.patcher.unet import UnetPatcher

        tensors = slim_checkpoint(kind)
        with using_forge_operations(device=torch.device("cpu"), dtype=torch.float32):
            unet: Any = _unet(kind, tensors)
            towers = {
                tower: _tower(_under(prefix, tensors), configs[part]) for part, (tower, prefix) in TOWERS[kind].items()
            }
        unet.storage_dtype = unet.computation_dtype = torch.float32
        unet.load_device = unet.offload_device = unet.initial_device = torch.device("cpu")
        config = SimpleNamespace(huggingface_repo=kind)
        self.unet = UnetPatcher.from_model(unet, None, config, k_predictor=nn.Identity())
        self.clip = CLIP(towers, {})

    def with_file(self, load: Any, path: Path) -> tuple[Answers, str]:
        """The answers with the file at weight 1, and what was said of it."""
        with contextlib.redirect_stdout(io.StringIO()) as said:
            unet, clip = load(self.unet, self.clip, load_file(path), 1.0, 1.0, filename=path.name)
            _merge(unet, clip)
        found = self.answers()
        _merge(self.unet, self.clip)
        return found, said.getvalue()

    def answers(self) -> Answers:
        unet = self.unet.model.diffusion_model
        context, pooled = conditions(unet)
        more = {}
        if pooled is not None:
            from backend.nn.unet import timestep_embedding

            sizes = timestep_embedding(SIZES.flatten(), 256).reshape(2, -1)
            more["y"] = torch.cat([pooled.expand(2, -1), sizes], dim=1)
        with torch.inference_mode():
            answer = unet(noisy(), TIMES, context=context.expand(2, -1, -1), transformer_options={}, **more)
            towers = self.clip.cond_stage_model.named_children()
            found = {name: _states(tower.transformer) for name, tower in towers}
        return {**{name: one.clone() for name, one in found.items()}, "unet": answer.clone()}


def _merge(unet: Any, clip: Any) -> None:
    unet.refresh_loras()
    clip.patcher.refresh_loras()


def _unet(kind: Kind, tensors: dict[str, Tensor]) -> nn.Module:
    from backend.nn.unet import IntegratedUNet2DConditionModel

    sketch = SKETCHES[kind]
    first, levels = sketch.channels[0], range(len(sketch.channels))
    unet = IntegratedUNet2DConditionModel(
        in_channels=4, out_channels=4, model_channels=first, num_res_blocks=[sketch.blocks for _ in levels],
        channel_mult=[width // first for width in sketch.channels], use_spatial_transformer=True,
        use_linear_in_transformer=sketch.linear, context_dim=sketch.context, transformer_depth_middle=sketch.mid_depth,
        transformer_depth=[depth for depth in sketch.depths for _ in range(sketch.blocks)],
        transformer_depth_output=[depth for depth in sketch.depths for _ in range(sketch.blocks + 1)],
        num_classes="sequential" if sketch.classes else None, adm_in_channels=sketch.classes or None,
        **SLIM[kind].heads,
    )  # fmt: skip
    unet.load_state_dict(_under("model.diffusion_model.", tensors))
    return unet


def _tower(state: dict[str, Tensor], config: Any) -> nn.Module:
    from backend.nn.clip import IntegratedCLIP
    from backend.state_dict import transformers_convert
    from transformers import CLIPTextModel, modeling_utils

    if not any(name.startswith("text_model.") for name in state):
        state = transformers_convert(state, "", "text_model.", 32)
    with modeling_utils.no_init_weights():
        tower = IntegratedCLIP(CLIPTextModel, config)
    missing, _ = tower.transformer.load_state_dict(state, strict=False)  # SD2's last layer is not used
    assert not missing, missing
    return tower.eval()


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor.clone() for name, tensor in tensors.items() if name.startswith(prefix)}


def _loader(forge: Path) -> Any:
    """Forge's `load_lora_for_models`."""
    from backend.patcher import lora

    source = (forge / "extensions-builtin/sd_forge_lora/networks.py").read_text(encoding="utf-8")
    wanted = "load_lora_for_models"
    body = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == wanted]
    names = dict(vars(lora))
    exec(compile(ast.Module(body, []), "networks.py", "exec"), names)
    return names[wanted]


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    print(json.dumps(compared(Path(sys.argv[1]), Path(sys.argv[2]))))
