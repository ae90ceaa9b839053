"""Python packages of one line, made here: as wheels for pip, or as installed in a folder."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

NOWHERE = "a-package-that-no-index-has"  # what each of them asks for, so that only pip's --no-deps installs it


def write_wheel(folder: Path, name: str, version: str) -> Path:
    """A wheel of a pure package with an `__init__` and one module."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in _files(name, version).items():
            wheel.writestr(file, text)
    return path


def write_installed(folder: Path, name: str, version: str) -> Path:
    """The same, as pip would have installed it into `folder`. Returns the package's own folder."""
    for file, text in _files(name, version).items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return folder / name


def _files(name: str, version: str) -> dict[str, str]:
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f'__version__ = "{version}"\n',
        f"{name}/content.py": f'WHOSE = "{name}"\n',
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: {NOWHERE}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{file},sha256={_digest(text)},{len(text)}" for file, text in files.items()]
    return {**files, f"{info}/RECORD": "\n".join([*record, f"{info}/RECORD,,", ""])}


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
