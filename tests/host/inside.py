"""What is looked at within the WebUI's process: called by name through door.py, answered as JSON."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lora_trainer.contracts import LentModel, ModelAway, PlainError, SampleOrder
from lora_trainer.hosts import beside
from lora_trainer.hosts.a1111 import A1111
from tests.host.breaking import break_engine, mend_engine
from tests.host.kinds import compared, of_file

__all__ = ["break_engine", "compared", "mend_engine", "of_file"]  # called by name like what stands here


def ready() -> bool:
    """Whether the server answers and has its model."""
    from modules import sd_models

    return sd_models.model_data.sd_model is not None


def loaded_checkpoint() -> str:
    """The title of the model in memory."""
    from modules import sd_models

    return sd_models.model_data.sd_model.sd_checkpoint_info.title


def weights() -> dict[str, Any]:
    """A digest of every tensor of the loaded model, and what else a guest could leave behind."""
    import torch
    from modules import call_queue, sd_models, shared

    model = sd_models.model_data.sd_model
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    modules = list(model.modules())
    return {
        "digest": digest.hexdigest(),
        "tensors": len(model.state_dict()),
        "trainable": sum(parameter.requires_grad for parameter in model.parameters()),
        "gradients": sum(parameter.grad is not None for parameter in model.parameters()),
        "hooks": sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules),
        "forwards": sum("forward" in vars(module) for module in modules),
        "training": sum(module.training for module in modules),
        "merged": sum(bool(getattr(module, "network_current_names", ())) for module in modules),
        "copies": sum(getattr(module, "network_weights_backup", None) is not None for module in modules),
        "locked": call_queue.queue_lock._lock.locked(),
        "job": shared.state.job,
        "grad mode": torch.is_grad_enabled(),
    }


def find_hypernetworks() -> list[str]:
    """Have the WebUI look into its folder again."""
    from modules import shared

    shared.reload_hypernetworks()
    return sorted(shared.hypernetworks)


def lent() -> dict[str, Any]:
    """What the host lends, beside what the file holds."""
    from lora_trainer.families.registry import lend_file

    host = A1111()
    loan = host.lend()
    assert loan.path is not None
    file = lend_file(loan.path)
    from_file, from_host = set(file.tensors), set(loan.tensors)
    differing = [
        name
        for name in sorted(from_file & from_host)
        if tuple(loan.tensors[name].shape) != file.header[name].shape
        or not bool((loan.tensors[name].float() == file.tensors[name].float()).all())
    ]
    return {
        "facts": vars(loan.facts),
        "facts of the file": vars(file.facts),
        "name": loan.name,
        "owned": loan.owned,
        "missing": sorted(from_file - from_host),
        "more": sorted(from_host - from_file),
        "differing": differing,
        "header": all(loan.header[name].shape == tuple(loan.tensors[name].shape) for name in loan.header),
    }


def adopted() -> dict[str, Any]:
    """How much of what the engine adopts stands on the host's own memory, and what that cost."""
    import torch

    from lora_trainer.families.registry import family_named

    beside.ready()
    host = A1111()
    loan = host.lend()
    family = family_named(loan.facts.family)
    with host.exclusive(loan, ()):  # the imports of diffusers are not the adoption's
        family.adopt(loan, host.device(), torch.float32, ["vae"])
    storages = {tensor.untyped_storage().data_ptr() for tensor in loan.tensors.values()}
    before = _memory()
    with host.exclusive(loan, ()):
        base = family.adopt(loan, host.device(), torch.float32)
    grown = _memory() - before
    parameters = [parameter for part in base.parts.values() for parameter in part.parameters()]
    return {
        "parameters": len(parameters),
        "shared": sum(parameter.untyped_storage().data_ptr() in storages for parameter in parameters),
        "bytes": sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        "grown": grown,
        "trainable": sum(parameter.requires_grad for parameter in parameters),
    }


def predicted() -> str:
    """A digest of what our UNet over the host's tensors answers: moved by whatever reaches our modules."""
    import torch

    from lora_trainer.contracts import TextStates
    from lora_trainer.families.registry import family_named

    beside.ready()
    host = A1111()
    loan = host.lend()
    family = family_named(loan.facts.family)
    with host.exclusive(loan, ("unet",)), torch.no_grad():
        base = family.adopt(loan, host.device(), torch.float32, ["unet"])
        width = base.parts["unet"].config.cross_attention_dim
        generator = torch.Generator().manual_seed(3)
        latents = torch.randn(2, 4, 8, 8, generator=generator)
        text = TextStates(torch.randn(2, 77, width, generator=generator))
        answer = base.predict(latents, torch.tensor([10, 900]), text, torch.zeros(2, 6))
    return hashlib.blake2b(answer.numpy().tobytes(), digest_size=16).hexdigest()


def refused(base: str = "", **attributes: Any) -> str:
    """The sentence with which the host refuses, with attributes of `modules` set for the time ("devices.fp8")."""
    import importlib

    host, before = A1111(), {}
    try:
        for name, value in attributes.items():
            module, _, path = name.partition("__")
            owner = importlib.import_module(f"modules.{module}")
            *parents, leaf = path.split("__")
            for parent in parents:
                owner = getattr(owner, parent)
            before[name] = owner, leaf, getattr(owner, leaf)
            setattr(owner, leaf, value)
        path = host.base_file(base)
        if path is None:
            host.lend()
        return str(path or "")
    except PlainError as error:
        return str(error)
    finally:
        for owner, leaf, value in before.values():
            setattr(owner, leaf, value)


def away(checkpoint: str) -> list[str]:
    """Borrow, let the checkpoint be changed and changed back, borrow again: what is said, and the digests seen."""
    from modules import sd_models

    host = A1111()
    loan = host.lend()
    seen = [_digest(loan)]
    own = sd_models.model_data.sd_model.sd_checkpoint_info
    with host._turn:
        sd_models.reload_model_weights(info=sd_models.get_closet_checkpoint_match(checkpoint))
    try:
        with host.exclusive(loan, ("unet",)):
            seen.append("no word")
    except ModelAway as error:
        seen.append(str(error))
    with host._turn:
        sd_models.reload_model_weights(info=own)
    with host.exclusive(loan, ("unet",)):
        seen.append(_digest(loan))
    return seen


def drawn(prompts: list[str], lora: str | None = None, size: int = 64, steps: int = 3, seed: int = 5) -> list[Any]:
    """(digest of the pixels, infotext) of each picture the host draws for a training."""
    host = A1111()
    loan = host.lend()
    order = SampleOrder(tuple(prompts), "", size, steps, 7.0, seed, 1)
    with host.visit(), host.exclusive(loan, ()):
        pictures = host.draw(order, Path(lora) if lora else None)
    assert pictures is not None
    return [(hashlib.blake2b(image.tobytes()).hexdigest(), image.info["parameters"]) for image in pictures]


def proved(lora: str) -> list[Any]:
    """What the host says of a LoRA file."""
    host = A1111()
    told = host.prove(Path(lora), SampleOrder(("a red boat",), "", 64, 3, 7.0, 5, 1))
    return [(each.level, each.text) for each in told]


def announced(lora: str) -> dict[str, Any]:
    """What the Lora extension knows after an announcement."""
    host = A1111()
    host.announce(Path(lora))
    networks = sys.modules["networks"]
    return {"available": sorted(networks.available_networks), "in memory": len(networks.networks_in_memory)}


def cards(announce: str) -> list[str]:
    """The cards as a page shows them that is opened after the announcement."""
    A1111().announce(Path(announce))
    return page()


def page() -> list[str]:
    """The HTML of the cards in txt2img and img2img, as a page shows it that is opened now."""
    from modules import shared

    return [
        "".join(function.fn())
        for function in shared.demo.fns
        if getattr(function.fn, "__qualname__", "").endswith("create_ui.<locals>.pages_html")
    ]


def settings() -> dict[str, Any]:
    """The WebUI's settings, and what it keeps of prompts."""
    from modules import paths_internal, shared

    last = Path(paths_internal.data_path) / "params.txt"
    return {
        "settings": {name: repr(value) for name, value in sorted(shared.opts.data.items())},
        "last prompt": last.read_text(encoding="utf-8") if last.exists() else "",
        "state": [shared.state.job, shared.state.job_count, shared.state.interrupted, shared.state.skipped],
        "text": shared.state.textinfo,
    }


def reload_page() -> None:
    """Press "Reload UI"."""
    from modules import shared

    shared.state.request_restart()


def set_roots(lines: str) -> None:
    """Change the setting that names further folders."""
    from modules import shared

    from lora_trainer.hosts.a1111.host import ROOTS_SETTING

    shared.opts.data[ROOTS_SETTING] = lines


def pressed(*, reload: bool = False, before: bool = False) -> list[bool]:
    """Whether Interrupt is believed: at once, and after the grace."""
    from modules import shared

    from lora_trainer.hosts.a1111.board import GRACE

    host = A1111()
    loan = host.lend()
    if before:
        shared.state.interrupted = True  # left by a generation
    with host.visit():
        with host.exclusive(loan, ()):
            pass
        if reload:
            shared.state.request_restart()
        elif not before:
            shared.state.interrupt()
        first = host.interrupted()
        time.sleep(GRACE + 0.1)
        return [first, host.interrupted()]


def turns(count: int) -> dict[str, Any]:
    """A thread that asks for the queue lock while ours takes it again and again: how many of our turns it waits."""
    from modules.call_queue import queue_lock

    host = A1111()
    loan = host.lend()
    asked, waited, contended = threading.Event(), [], []
    ours = [0]

    def other() -> None:
        asked.wait()
        start = ours[0]
        with queue_lock:
            waited.append(ours[0] - start)

    threads = [threading.Thread(target=other) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(count):
        with host.exclusive(loan, ()):
            if turn == 2:
                asked.set()
            time.sleep(0.02)
            contended.append(host.contended())
            ours[0] += 1
    for thread in threads:
        thread.join()
    return {"waited": waited, "contended": contended}


def on_device() -> str | None:
    """The kind of what --medvram has on the device just now."""
    from modules import lowvram

    return None if lowvram.module_in_gpu is None else type(lowvram.module_in_gpu).__name__


def paths() -> dict[str, Any]:
    found = A1111().paths()
    return {
        "loras": str(found.loras),
        "runs": str(found.runs),
        "checkpoints": list(map(str, found.checkpoints)),
        "allowed": list(map(str, found.allowed or ())),
    }


def memory(collect: bool = False) -> int:
    """Bytes of the process, after a collection of garbage if wanted: it takes a second and holds everybody up."""
    import gc

    if collect:
        gc.collect()
    return _memory()


def _memory() -> int:
    """Bytes of the process that are really there."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _digest(loan: LentModel) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(loan.tensors):
        digest.update(loan.tensors[name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def captioned(pictures: int) -> dict[str, Any]:
    """Caption so many pictures one by one, by a captioner of ours, and generate meanwhile: in which order it went."""
    import tempfile

    from modules import call_queue, shared
    from PIL import Image

    from lora_trainer.config.captioning import CaptionConfig
    from lora_trainer.contracts import Prepared
    from lora_trainer.jobs.captioning import Controls, caption_folder

    order: list[str] = []
    locked: list[bool] = []

    def generate() -> None:
        with call_queue.queue_lock:
            order.append("generation")

    class Speaker:
        name, makes, batch_size = "host", "sentences", 1

        def caption(self, images: Any) -> list[str]:
            locked.append(call_queue.queue_lock._lock.locked())
            order.append("captions")
            if len(order) == 2:
                threading.Thread(target=generate).start()
                while not call_queue.queue_lock._pending_threads:
                    time.sleep(0.001)
            return ["a picture" for _ in images]

        def lacks(self) -> None:
            """Nothing."""

        def close(self) -> None:
            order.append("closed")

    class Host(A1111):
        def captioners(self, *, threshold: float | None = None, download: bool = False) -> Any:
            return (Speaker(),)

    with tempfile.TemporaryDirectory() as folder:
        for number in range(pictures):
            Image.new("RGB", (64, 64), (number, 0, 0)).save(Path(folder) / f"{number}.png")
        bars = []
        for event in caption_folder(CaptionConfig(input=folder, model="host"), Host(), Controls()):
            if isinstance(event, Prepared) and event.done:
                bars.append(shared.state.textinfo)
    return {"order": order, "locked": locked, "bars": bars, "outcome": getattr(event, "outcome", None)}
