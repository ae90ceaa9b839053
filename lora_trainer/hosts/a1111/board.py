"""The WebUI's own progress bar and Interrupt button, for a training: `modules.shared.state`."""

from __future__ import annotations

import time
from typing import Any

from lora_trainer.contracts import Event, Finished, Prepared, Sampled, Started, Stepped

JOB = "LoRA training"
GRACE = 0.5  # seconds after which a pressed Interrupt is believed: "Reload UI" presses it too, just before it reloads


class Board:
    """What the WebUI shows of one run, and whether its Interrupt was pressed for it.

    The state has room for one job. A generation takes it over and leaves it empty; `take` makes it ours again.
    """

    def __init__(self) -> None:
        self._shown: dict[str, Any] = {}
        self._page = _page()
        self._seen_at: float | None = None  # when a pressed Interrupt was seen that is not believed yet
        self._pressed = False

    def take(self) -> None:
        """Show our job. To be called with the queue lock."""
        from modules import shared

        if shared.state.job != JOB:
            shared.state.begin(job=JOB)  # also forgets an Interrupt that was meant for somebody else
        self._write()

    def leave(self) -> None:
        """Look at the button before whoever is next resets it. To be called with the queue lock."""
        self._look()

    def close(self) -> None:
        """Take our job off, if it is still shown. To be called with the queue lock."""
        from modules import shared

        if shared.state.job == JOB:
            shared.state.interrupted = False
            shared.state.textinfo = None
            shared.state.end()

    def show(self, event: Event) -> None:
        """Move the bar."""
        if isinstance(event, Prepared):
            self._set(event.done, event.total, f"LoRA Trainer: {event.what} {event.done} of {event.total}")
        elif isinstance(event, Started):
            self._shown["time_start"] = time.time()
            self._set(event.step, event.steps, f"LoRA training: step {event.step} of {event.steps}")
        elif isinstance(event, Stepped):
            text = f"LoRA training: step {event.step} of {event.steps}, loss {event.loss:.4f}"
            self._set(event.step, event.steps, text)
        elif isinstance(event, (Sampled, Finished)):
            self._write()

    def interrupted(self) -> bool:
        """Whether Interrupt was pressed while our job was shown, and not by "Reload UI"."""
        self._look()
        if self._seen_at is not None and time.monotonic() - self._seen_at >= GRACE:
            self._pressed, self._seen_at = True, None
        return self._pressed

    def _set(self, done: int, total: int, text: str) -> None:
        self._shown |= {
            "job_count": 1, "job_no": 0, "sampling_step": done, "sampling_steps": total, "textinfo": text,
        }  # fmt: skip
        self._write()

    def _write(self) -> None:
        from modules import shared

        if shared.state.job == JOB:
            for name, value in self._shown.items():
                setattr(shared.state, name, value)

    def _look(self) -> None:
        """Take the flag off the state, and keep it with us until it is believed or known for a reload's."""
        from modules import shared

        state = shared.state
        if state.job == JOB and state.interrupted:
            state.interrupted = False
            self._seen_at = self._seen_at or time.monotonic()
        page = _page()
        if self._seen_at is not None and (
            state.server_command == "restart" or page is not self._page or _is_closing(page)
        ):
            self._seen_at = None
        if self._seen_at is None and not _is_closing(page):
            self._page = page


def _page() -> Any:
    """The WebUI's gradio page, another object after each reload; None with --nowebui."""
    from modules import shared

    return getattr(shared, "demo", None)


def _is_closing(page: Any) -> bool:
    server = getattr(page, "server", None)
    return bool(getattr(server, "should_exit", False))
