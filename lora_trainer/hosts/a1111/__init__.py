"""AUTOMATIC1111's WebUI (v1.10.1) as a host: importing this costs nothing, and works without the WebUI."""

from lora_trainer.hosts.a1111.access import admit
from lora_trainer.hosts.a1111.host import A1111

__all__ = ["A1111", "admit"]
