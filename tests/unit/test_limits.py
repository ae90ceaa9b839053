"""Which folders may be named by whom: over HTTP those that the host allows, at the machine's own page any."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.config.load import ConfigError
from lora_trainer.contracts import HostPaths
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.limits import load_allowed


class Narrow(Standalone):
    """A host that allows one folder."""

    def __init__(self, folder: Path, *, at_the_machine: bool) -> None:
        super().__init__()
        self._narrow = HostPaths(
            loras=folder / "loras", allowed=(folder,), widened_by="add yours in the settings",
            at_the_machine=at_the_machine,
        )  # fmt: skip

    def paths(self) -> HostPaths:
        return self._narrow


@pytest.mark.parametrize(
    ("at_the_machine", "by_page", "passes"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, False)],
)
def test_only_the_machines_own_page_names_any_folder(
    tmp_path: Path, at_the_machine: bool, by_page: bool, passes: bool
) -> None:
    host = Narrow(tmp_path / "allowed", at_the_machine=at_the_machine)
    raw = {"train_data_dir": str(tmp_path / "pictures")}
    if passes:
        assert load_allowed(raw, host, by_page=by_page).data.folder == str(tmp_path / "pictures")
        return
    with pytest.raises(ConfigError) as caught:
        load_allowed(raw, host, by_page=by_page)
    (fault,) = caught.value.faults
    assert fault.path == "data.folder"
    assert fault.text.endswith("choose one below these, or add yours in the settings")


def test_a_name_cannot_lead_out_of_the_folder_of_lora_from_any_page(tmp_path: Path) -> None:
    host = Narrow(tmp_path, at_the_machine=True)
    with pytest.raises(ConfigError, match="without a folder"):
        load_allowed({"output_name": "../elsewhere"}, host, by_page=True)
