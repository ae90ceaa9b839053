"""The orders of the person at the page and of the host's own Interrupt, as one `contracts.Control`."""

from __future__ import annotations

from lora_trainer.contracts import BaseModel, Control, Host, Orders


class HostControl:
    """Orders for a run that is a guest in a host."""

    def __init__(self, control: Control, host: Host) -> None:
        self.base: BaseModel | None = None  # what is let go of in a pause
        self._control = control
        self._host = host

    def take(self) -> Orders:
        """Orders given since the last call; the host's Interrupt is a stop."""
        orders = self._control.take()
        return orders._replace(stop=True) if self._host.interrupted() else orders

    def stopped(self) -> bool:
        """Whether to stop was ordered, here or there."""
        return self._control.stopped() or self._host.interrupted()

    def paused(self) -> bool:
        return self._control.paused()

    def wait_while_paused(self) -> None:
        """Return when the run may go on, or when there is an order; a host may free its model meanwhile."""
        if self._control.paused() and self.base:
            self.base.let_go()
        self._control.wait_while_paused()

    def forget_base(self) -> None:
        self.base = None
