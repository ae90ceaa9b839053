"""Which folders may be named by whom: over HTTP those that the host allows, at the machine's own page any."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.config.load import ConfigError
from lora_trainer.contracts import HostPaths, PlainError
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


class Lending(Narrow):
    """As a WebUI: the model that is loaded, and none by another name."""

    def base_file(self, base: str) -> Path | None:
        raise PlainError(f"{base} is not loaded.")


def test_a_language_model_is_named_within_the_allowed_folders_too(tmp_path: Path) -> None:
    host = Lending(tmp_path / "allowed", at_the_machine=False)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "allowed" / "llama").mkdir(parents=True)
    raw = {"task_type": "text-generation", "train_data_dir": str(tmp_path / "allowed")}
    with pytest.raises(ConfigError) as caught:
        load_allowed(raw | {"base_model": str(tmp_path / "elsewhere")}, host)
    assert [fault.path for fault in caught.value.faults] == ["model.base"]
    inside = str(tmp_path / "allowed" / "llama")
    assert load_allowed(raw | {"base_model": inside}, host).model.base == inside


def test_a_name_cannot_lead_out_of_the_folder_of_lora_from_any_page(tmp_path: Path) -> None:
    host = Narrow(tmp_path, at_the_machine=True)
    with pytest.raises(ConfigError, match="without a folder"):
        load_allowed({"output_name": "../elsewhere"}, host, by_page=True)
