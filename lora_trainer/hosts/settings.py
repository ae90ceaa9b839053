"""The extension's own section on the WebUI's Settings page, the same in A1111 and its forks."""

from __future__ import annotations

from lora_trainer.hosts.a1111.host import ROOTS_SETTING

SECTION = ("lora_trainer", "LoRA Trainer")
POLL_SECONDS = "lora_trainer_poll_seconds"


def add() -> None:
    """Add the settings to the WebUI's; for its `on_ui_settings`."""
    from modules import shared

    shared.opts.add_option(
        ROOTS_SETTING,
        shared.OptionInfo(
            "", "Folders besides the WebUI's own that trainings may read images from and write to",
            component_args={"lines": 3, "placeholder": "one folder a line"}, section=SECTION,
        ).info("requests over the network can name no others"),
    )  # fmt: skip
    shared.opts.add_option(  # read by javascript/lora_trainer_run.js
        POLL_SECONDS,
        shared.OptionInfo(
            1, "Seconds after which the page looks again at a training that runs", component_args={"minimum": 1},
            section=SECTION,
        ),
    )  # fmt: skip
