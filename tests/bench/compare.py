"""Time a step of ours beside the bare UNet and beside other trainers, in one run and in turn: A B C, A B C.

    python tests/bench/compare.py CHECKPOINT [--resolution 128] [--batch 1] [--steps 8] [--rounds 2] [--bf16]
        [--kohya "PYTHON SD_SCRIPTS"] [--diffusers "PYTHON SCRIPT MODEL_FOLDER"] [--hub-cache FOLDER]

`make_checkpoint.py` makes CHECKPOINT. Other trainers are run where they are: kohya's sd-scripts as a checkout and the
Python of its environment; diffusers' train_text_to_image_lora.py likewise, with the same weights as a diffusers folder.
Both want CLIP's tokenizer in the Hugging Face cache. Rank 8, UNet only, AdamW, float32, the same images and captions;
with --bf16 ours and kohya's in bfloat16 too.
traintrain runs inside a WebUI only and is not among them.

For each step two numbers: seconds on the clock, and processor seconds of the whole process, which other work on the
machine disturbs less; so that these hold work and no waiting, the threads of every contestant sleep when they wait
(OMP_WAIT_POLICY). The first two steps of each process are left out. Linux only (/proc, wait4).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
WARM_UP = 2  # steps of each process that are not counted
STEP = re.compile(r"(?:step |[Ss]teps:.*\| )(\d+)/\d+")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Sample:
    """What was seen of one contestant, over all its processes."""

    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    until_first_step: list[float] = field(default_factory=list)  # from the start of the process to the end of step 1
    peak_bytes: list[int] = field(default_factory=list)  # of the process, pages of mapped files included
    own_bytes: list[int] = field(default_factory=list)  # at the last step, without pages of mapped files


def write_images(folder: Path, size: int, count: int = 8) -> Path:
    """Random pictures with captions in every spelling the contestants read; returns the folder they are in."""
    inner = folder / f"{count}_bench"  # kohya: repeats_name
    inner.mkdir()
    rows = []
    for index in range(count):
        blocks = np.random.default_rng(index).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((size, size), Image.Resampling.BICUBIC).save(inner / f"{index}.png")
        caption = f"a picture of number {index}, colours"
        (inner / f"{index}.txt").write_text(caption, encoding="utf-8")
        rows.append(json.dumps({"file_name": f"{index}.png", "text": caption}))
    (inner / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return inner


def commands(options: argparse.Namespace, images: Path, out: Path) -> dict[str, list[str]]:
    """The command line of each contestant."""
    size, batch, steps = str(options.resolution), str(options.batch), str(options.steps)
    common = ["--resolution", size, "--batch", batch, "--steps", steps]
    ours = [sys.executable, str(HERE / "step.py"), options.checkpoint, str(images), *common]
    found = {
        "bare": [sys.executable, str(HERE / "bare.py"), options.checkpoint, *common],
        "ours": ours,
    }
    peers = ["--train_batch_size", batch, "--max_train_steps", steps, "--learning_rate", "1e-4", "--seed", "1"]
    if options.kohya:
        python, checkout = options.kohya.split()
        # kohya's default adapts all linear layers of the transformers, as our "linear" does.
        found["ours, linear"] = [*ours, "--targets", "linear"]
        found["kohya"] = [
            python, f"{checkout}/train_network.py", "--pretrained_model_name_or_path", options.checkpoint,
            "--train_data_dir", str(images.parent), "--output_dir", str(out / "kohya"), "--output_name", "bench",
            "--caption_extension", ".txt", "--network_module", "networks.lora", "--network_dim", "8",
            "--network_alpha", "8", "--network_train_unet_only", "--cache_latents", "--optimizer_type", "AdamW",
            "--mixed_precision", "no", "--sdpa", "--max_data_loader_n_workers", "0", "--resolution", size, *peers,
        ]  # fmt: skip
        if options.bf16:
            found["ours, linear, bf16"] = [*found["ours, linear"], "--precision", "bf16"]
            theirs = list(found["kohya"])
            theirs[theirs.index("--mixed_precision") + 1] = "bf16"
            theirs[theirs.index("--output_name") + 1] = "bench16"
            found["kohya, bf16"] = theirs
    if options.diffusers:
        python, script, model = options.diffusers.split()
        found["diffusers"] = [
            python, script, "--pretrained_model_name_or_path", model, "--train_data_dir", str(images),
            "--caption_column", "text", "--resolution", size, "--center_crop", "--rank", "8",
            "--mixed_precision", "no", "--dataloader_num_workers", "0", "--output_dir", str(out / "diffusers"), *peers,
        ]  # fmt: skip
    return {name: command for name, command in found.items() if not options.only or name in options.only.split("/")}


def watch(command: list[str], sample: Sample, environment: dict[str, str]) -> None:
    """Run one process to its end and note each step it reports."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, cwd=Path(command[1]).parent
    )
    assert process.stdout is not None
    marks: list[tuple[float, float]] = []
    last = b""
    for last in _lines(process.stdout):
        found = STEP.search(last.decode(errors="replace"))
        if found and int(found[1]) == len(marks) + 1:
            marks.append((time.perf_counter(), _processor_seconds(process.pid)))
            own = _own_bytes(process.pid)
            if len(marks) == 1:
                sample.own_bytes.append(own)
            sample.own_bytes[-1] = own or sample.own_bytes[-1]
    _, status, usage = os.wait4(process.pid, 0)
    if status or len(marks) <= WARM_UP:
        sys.exit(f"{' '.join(command)}\nended with {status} after {len(marks)} steps: {last.decode(errors='replace')}")
    sample.until_first_step.append(marks[0][0] - began)
    sample.peak_bytes.append(usage.ru_maxrss * 1024)
    counted = list(zip(marks[WARM_UP - 1 :], marks[WARM_UP:], strict=False))
    sample.seconds += [after[0] - before[0] for before, after in counted]
    sample.processor_seconds += [after[1] - before[1] for before, after in counted]


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines as they come, ended by newline or by the carriage return of a progress bar.

    A bar is drawn after its carriage return, so what has come of the next line is given out at once, and again later.
    """
    held = b""
    while chunk := os.read(stream.fileno(), 65536):
        *whole, held = re.split(rb"[\r\n]", held + chunk)
        yield from whole
        yield held


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS  # utime and stime, proc(5)


def _own_bytes(pid: int) -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def table(samples: dict[str, Sample]) -> str:
    """Medians, minima in brackets, and ratios to the bare step."""
    rows = [
        "| | s/step | x bare | processor s/step | x bare | start to first step, s | peak GB | own GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    bare = samples.get("bare")
    for name, sample in samples.items():
        cells = [name]
        for values, floor in (
            (sample.seconds, bare.seconds if bare else None),
            (sample.processor_seconds, bare.processor_seconds if bare else None),
        ):
            cells.append(f"{statistics.median(values):.2f} ({min(values):.2f})")
            ratio = f"{statistics.median(values) / statistics.median(floor):.2f}" if floor else ""
            cells.append(f"{ratio} ({min(values) / min(floor):.2f})" if floor else "")
        cells.append(f"{min(sample.until_first_step):.0f}")
        cells += [f"{max(sample.peak_bytes) / 1e9:.1f}", f"{max(sample.own_bytes) / 1e9:.1f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Run every contestant in turn, as often as there are rounds, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="ours and kohya's in bfloat16 too")
    parser.add_argument("--kohya", help="Python and checkout of kohya's sd-scripts")
    parser.add_argument("--diffusers", help="Python, train_text_to_image_lora.py and the model as a diffusers folder")
    parser.add_argument("--hub-cache", help="Hugging Face cache that holds CLIP's tokenizer")
    parser.add_argument("--only", help="names of contestants, with / between them")
    options = parser.parse_args()
    environment = dict(os.environ, HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", PYTHONUNBUFFERED="1")
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    if options.hub_cache:
        environment["HF_HOME"] = options.hub_cache
    samples: dict[str, Sample] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder), options.resolution)
        for _ in range(options.rounds):
            for name, command in commands(options, images, Path(folder)).items():
                watch(command, samples.setdefault(name, Sample()), environment)
                print(f"{name}: {samples[name]}", file=sys.stderr, flush=True)
    print(f"{options.resolution} px, batch {options.batch}, load {os.getloadavg()[0]:.1f} at the end\n")
    print(table(samples))


if __name__ == "__main__":
    main()
