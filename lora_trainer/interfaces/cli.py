"""The command line: `python -m lora_trainer` with one of the words train, caption, check, class-images, generate,
export, merge, inspect, demo and ui.

Other people's scripts depend on the words and the exit codes below, so they change slowest of all.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple, Protocol

from lora_trainer import __version__
from lora_trainer.config.load import load, load_yaml
from lora_trainer.config.surfaces import add_flags, flags_of
from lora_trainer.config.sweep import Variant, variants
from lora_trainer.contracts import PlainError
from lora_trainer.interfaces.caption_command import add_caption
from lora_trainer.interfaces.check_command import add_check
from lora_trainer.interfaces.class_images_command import add_class_images
from lora_trainer.interfaces.generate_command import add_generate

DONE, FAILED, BAD_INPUT = 0, 1, 2
STOPPED_BY_HAND = 130  # 128 + SIGINT, as shells count
UNREAD = 141  # 128 + SIGPIPE

_EXAMPLE = """\
example:
  python -m lora_trainer train --config my_lora.yaml --dry-run
  python -m lora_trainer train --config my_lora.yaml --network.rank 8

exit codes: 0 done, 2 bad input, 130 stopped by hand, 1 anything else"""


class _Stoppable(Protocol):
    def stop(self) -> None: ...


class WeightedLora(NamedTuple):
    """A LoRA file and how strongly it is taken."""

    path: Path
    weight: float


def main(argv: list[str] | None = None) -> int:
    """Do what the arguments say and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a Windows console that lacks a letter shows "?" instead of failing
    given = _parser().parse_args(argv)
    if not given.debug:
        sys.excepthook = _in_one_line
    try:
        code = given.do(given)
        sys.stdout.flush()  # what nobody reads any more is found out here, and not after the end
        return code
    except BrokenPipeError:
        # The reader has seen enough, as `head` has. What is left to be written goes nowhere, so that the end is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except PlainError as error:
        print(f"Error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\nStopped at once. What was saved before is whole; train --resume goes on from it.", file=sys.stderr)
        return STOPPED_BY_HAND


def weighted_lora(text: str) -> WeightedLora:
    """Read FILE or FILE:WEIGHT; the colon of a Windows drive belongs to the file."""
    path, colon, weight = text.rpartition(":")
    names_a_file = Path(path).suffix.lower() in (".safetensors", ".pt", ".ckpt", ".bin")
    try:
        value = float(weight) if colon else 1.0
    except ValueError:
        if names_a_file:
            raise argparse.ArgumentTypeError(
                f"{text!r} has {weight!r} where a weight is wanted; write for example {path}:0.8"
            ) from None
        return WeightedLora(Path(text), 1.0)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} has the weight {weight}; write for example {path}:0.8")
    return WeightedLora(Path(path if colon else text), value)


def name_and_password(text: str) -> tuple[str, str]:
    """Read NAME:PASSWORD; the password may hold colons."""
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise argparse.ArgumentTypeError("a name and a password are wanted; write for example --auth anna:secret")
    return name, password


# --- the grammar -----------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m lora_trainer",
        description="Train LoRA for Stable Diffusion 1, 2 and XL and for language models, and look after LoRA files.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"lora_trainer {__version__}")
    verbs = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_train(verbs)
    add_caption(_verb(verbs, "caption", "describe the images of a folder in captions"), _stopped_by_hand)
    add_check(_verb(verbs, "check", "find what spoils a folder of images and captions, and mend it on request"))
    add_class_images(_verb(verbs, "class-images", "draw pictures of a class with the base model"), _stopped_by_hand)
    add_generate(_verb(verbs, "generate", "ask a language model, without and with an adapter"), _stopped_by_hand)
    _add_export(verbs)
    _add_merge(verbs)
    _add_inspect(verbs)
    _add_demo(verbs)
    _add_ui(verbs)
    return top


def _verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, says: str) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=says, description=f"{says[0].upper()}{says[1:]}.", allow_abbrev=False)
    verb.add_argument("--debug", action="store_true", help="show the whole trace of an unexpected error")
    return verb


def _add_train(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = _verb(verbs, "train", "train a LoRA as a YAML file, flags or both say")
    verb.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings; flags win over it")
    verb.add_argument("--dry-run", action="store_true", help="show what would be done, and do nothing")
    verb.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint in output_dir")
    verb.usage = "%(prog)s [--config FILE] [--dry-run] [--resume] [--SETTING VALUE ...]"
    verb.epilog = 'A switch takes a word (--data.flip true), a list several, and "" empties what the file sets.'
    add_flags(verb)
    verb.set_defaults(do=_train)


def _add_export(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = _verb(verbs, "export", "write a LoRA file in another naming or precision, or as a plain LoRA")
    verb.add_argument("--input", type=Path, required=True, metavar="FILE", help="LoRA file to read")
    verb.add_argument("--output", type=Path, required=True, metavar="FILE", help="file to write")
    verb.add_argument("--format", choices=("kohya", "peft", "lora"), required=True,
                      help="names of the tensors: kohya for the WebUIs, peft for diffusers; lora: a plain LoRA of "
                      "--rank out of any kind, in kohya's names")  # fmt: skip
    verb.add_argument("--rank", type=int, metavar="N", help="rank of the plain LoRA, with --format lora")
    verb.add_argument("--base", type=Path, metavar="FILE",
                      help="checkpoint it was trained on, with --format lora for a DoRA or an OFT")  # fmt: skip
    verb.add_argument("--precision", choices=("fp16", "bf16", "fp32"), help="number format (default: as it is)")
    verb.set_defaults(do=_export)


def _add_merge(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = _verb(verbs, "merge", "write a model with one or more LoRA worked into it")
    verb.add_argument("--base", type=Path, required=True, metavar="FILE",
                      help="checkpoint or language model to start from; not changed")  # fmt: skip
    verb.add_argument("--lora", type=weighted_lora, required=True, action="append", metavar="FILE[:WEIGHT]",
                      help="LoRA file, or adapter's folder, and its weight (default: 1); may be repeated")  # fmt: skip
    verb.add_argument("--output", type=Path, required=True, metavar="FILE", help="checkpoint or folder to write")
    verb.add_argument("--precision", choices=("fp16", "bf16", "fp32"), help="number format (default: the base's)")
    verb.set_defaults(do=_merge)


def _add_inspect(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = _verb(verbs, "inspect", "tell what a LoRA file or adapter's folder holds: kind, rank, recipe, norms")
    verb.add_argument("file", type=Path, metavar="FILE", help="LoRA file to read")
    verb.set_defaults(do=_inspect)


def _add_demo(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = _verb(verbs, "demo", "train a LoRA on the embedded base model and draw before and after")
    verb.add_argument("--output", type=Path, default=Path("output/demo"), metavar="DIR",
                      help="folder for the LoRA and the picture (default: output/demo)")  # fmt: skip
    verb.set_defaults(do=_demo)


def _add_ui(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = _verb(verbs, "ui", "serve the page and the HTTP routes, without a WebUI")
    verb.add_argument("--port", type=int, default=7870, metavar="N", help="port to listen at (default: 7870)")
    verb.add_argument("--listen", action="store_true", help="let other machines in too, not this one alone")
    verb.add_argument("--loras", type=Path, default=Path("output/loras"), metavar="DIR",
                      help="folder for finished LoRA (default: output/loras)")  # fmt: skip
    verb.add_argument("--checkpoints", type=Path, action="append", default=[], metavar="DIR",
                      help="folder with base models to pick from; may be given several times")  # fmt: skip
    verb.add_argument("--allow", type=Path, action="append", default=[], metavar="DIR",
                      help="folder that may be named in the page and over HTTP, besides those above; may be given "
                      "several times (default: any folder, and with --listen the current one)")  # fmt: skip
    verb.add_argument("--auth", type=name_and_password, metavar="NAME:PASSWORD", help="ask everybody for these")
    verb.set_defaults(do=_ui)


# --- the commands ----------------------------------------------------------------------------------------------------


def _train(given: argparse.Namespace) -> int:
    raw = load_yaml(given.config) if given.config else {}
    if several := variants(raw, flags_of(given)):
        return _sweep(several, given)
    config = load(raw, flags_of(given))

    from lora_trainer.hosts.standalone import Standalone, keep_freed_memory
    from lora_trainer.interfaces.progress import exit_code, follow
    from lora_trainer.jobs.plan import plan_run
    from lora_trainer.jobs.run import Controls, run

    if given.dry_run:
        print(plan_run(config, Standalone(), resume=given.resume).text())
        return DONE
    keep_freed_memory()
    control = Controls()
    with _stopped_by_hand(control):
        return exit_code(follow(run(config, host=Standalone(), control=control, resume=given.resume), sys.stderr))


def _sweep(several: Sequence[Variant], given: argparse.Namespace) -> int:
    from lora_trainer.hosts.standalone import Standalone, keep_freed_memory
    from lora_trainer.interfaces.progress import exit_code, follow
    from lora_trainer.jobs.plan import plan_run
    from lora_trainer.jobs.run import Controls
    from lora_trainer.jobs.sweep import sweep

    if given.dry_run:
        for variant in several:
            plan = plan_run(load(variant.raw), Standalone(), resume=given.resume)
            print(f"--- {variant.label}\n{plan.text()}\n")
        return DONE
    keep_freed_memory()
    control = Controls()
    with _stopped_by_hand(control):
        return exit_code(
            follow(sweep(several, host=Standalone(), control=control, resume=given.resume), sys.stderr)
        )


def _export(given: argparse.Namespace) -> int:
    from lora_trainer.jobs.export import export

    print(export(given.input, given.output, given.format, given.precision, rank=given.rank, base=given.base))
    return DONE


def _merge(given: argparse.Namespace) -> int:
    from lora_trainer.jobs.merge import merge

    print(merge(given.base, given.lora, given.output, given.precision))
    return DONE


def _inspect(given: argparse.Namespace) -> int:
    from lora_trainer.jobs.inspect import inspect

    print(inspect(given.file))
    return DONE


def _demo(given: argparse.Namespace) -> int:
    from lora_trainer.demo.show import demonstrate
    from lora_trainer.hosts.standalone import Standalone, keep_freed_memory
    from lora_trainer.interfaces.progress import exit_code, follow
    from lora_trainer.jobs.run import Controls

    keep_freed_memory()
    control = Controls()
    with _stopped_by_hand(control):
        return exit_code(follow(demonstrate(given.output, host=Standalone(), control=control), sys.stderr))


def _ui(given: argparse.Namespace) -> int:
    from lora_trainer.hosts.standalone import Standalone, keep_freed_memory
    from lora_trainer.interfaces.server import Credentials, serve

    keep_freed_memory()
    runs = Path("output/runs")
    allowed = given.allow or ([Path.cwd()] if given.listen else None)
    if allowed is not None:
        allowed = [*allowed, given.loras, runs, *given.checkpoints]
    host = Standalone(loras=given.loras, runs=runs, checkpoints=given.checkpoints, allowed=allowed)
    serve(host, port=given.port, listen=given.listen, credentials=Credentials(*given.auth) if given.auth else None)
    return DONE


@contextmanager
def _stopped_by_hand(control: _Stoppable) -> Iterator[None]:
    """The first Ctrl-C asks for an orderly end, the second one ends at once."""

    def ask(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        control.stop()
        # Not print: the signal may have come in the middle of one, and streams cannot be entered twice.
        os.write(2, b"\nFinishing the step and saving; press Ctrl-C again to stop at once.\n")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _in_one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What is shown of an error that nobody foresaw."""
    print(f"Error: {kind.__name__}: {error} (unexpected; --debug shows where it came from)", file=sys.stderr)
