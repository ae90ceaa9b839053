"""The whole examination of a data set, and the report of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from lora_trainer.data.doctor.copies import about_copies
from lora_trainer.data.doctor.findings import KINDS, REMEDIES, Finding, Severity, Wanted, some
from lora_trainer.data.doctor.look import Look
from lora_trainer.data.doctor.pictures import about_pictures
from lora_trainer.data.doctor.words import about_captions
from lora_trainer.data.scan import Scan

_HEADINGS: dict[Severity, str] = {
    "error": "Cannot be trained on",
    "warning": "Spoils the training",
    "advice": "Good to know",
}
_NAMED = 5  # images or groups of a finding that the text names


@dataclass(frozen=True)
class Report:
    """What was found in a data set."""

    scan: Scan
    looked_at: int  # images whose pictures were judged; of the others only header and caption
    findings: tuple[Finding, ...]  # errors first, then warnings, then advice

    @property
    def trainable(self) -> bool:
        """Whether every image can be trained on."""
        return not any(finding.severity == "error" for finding in self.findings)

    def of(self, kind: str) -> Finding | None:
        """The finding of that kind, if there is one."""
        return next((finding for finding in self.findings if finding.kind == kind), None)

    def text(self) -> str:
        """The report for a person to read."""
        return "\n".join(self._lines())

    def form(self, most: int | None = None) -> list[dict[str, Any]]:
        """The findings as plain values; of long lists the first `most`, beside their true `count`."""
        return [
            {
                "kind": finding.kind,
                "severity": finding.severity,
                "count": len(finding.images),
                "images": list(finding.images[:most]),
                "sentence": finding.sentence,
                "remedy": REMEDIES.get(finding.remedy, ""),
                "groups": [list(group) for group in finding.groups[:most]],
            }
            for finding in self.findings
        ]

    def whole(self) -> dict[str, Any]:
        """The report as plain values, with nothing left out."""
        return {
            "folder": str(self.scan.folder),
            "images": len(self.scan.items),
            "captioned": len(self.scan.items) - len(self.scan.missing_captions),
            "excluded": list(self.scan.excluded),
            "looked_at": self.looked_at,
            "trainable": self.trainable,
            "findings": self.form(),
        }

    def summary(self) -> str | None:
        """What a run should not begin without having said, in a sentence; None where the scan has said it all."""
        news = [finding for finding in self.findings if not KINDS[finding.kind].told]
        if not news:
            return None
        told = ", ".join(f"{KINDS[finding.kind].title}: {len(finding.acted_on or finding.images)}" for finding in news)
        more = f'python -m lora_trainer check "{self.scan.folder}"'
        return f"Check of the images: {told}. More: the page's view Data set, or {more}."

    def _lines(self) -> Iterator[str]:
        items = self.scan.items
        captioned = len(items) - len(self.scan.missing_captions)
        yield f"{self.scan.folder}: {len(items)} images, {captioned} with a caption."
        if self.looked_at < len(items):
            yield f"{self.looked_at} of them were looked at; of the others only size and caption were judged."
        if self.scan.excluded:
            yield f"{len(self.scan.excluded)} more are excluded: {some(self.scan.excluded)}."
        if not self.findings:
            yield "Nothing is wrong with them."
        for severity, heading in _HEADINGS.items():
            found = [finding for finding in self.findings if finding.severity == severity]
            if found:
                yield f"\n{heading}"
            yield from chain.from_iterable(_paragraph(finding) for finding in found)


def _paragraph(finding: Finding) -> Iterator[str]:
    yield f"  {finding.kind}: {finding.sentence}"
    if finding.groups:
        for group in finding.groups[:_NAMED]:
            yield f"    {group[0]} = {some(group[1:], _NAMED)}"
        if len(finding.groups) > _NAMED:
            yield f"    and {len(finding.groups) - _NAMED} more groups"
    elif len(finding.images) > 1:
        yield f"    {some(finding.images, _NAMED)}"
    if finding.remedy:
        yield f"    --fix {finding.kind}: {REMEDIES[finding.remedy]}"


def examine(scan: Scan, wanted: Wanted, looks: Mapping[str, Look]) -> Report:
    """Judge a scanned folder; `looks` holds, by name, the images that were looked at, which may be none."""
    found = [
        *about_pictures(scan, wanted.buckets, looks),
        *about_copies(scan.items, looks),
        *about_captions(scan, wanted),
    ]
    weight = list(_HEADINGS)
    ordered = sorted(found, key=lambda finding: weight.index(finding.severity))
    return Report(scan, len(looks), tuple(ordered))
