"""Makes a bundle of each candidate that a profile chose.

Decides what the manifests of one conversion have in common, for whom a bundle is, and what lies beside it for programs
that no agent runs in. What a bundle holds is `assemble.py`'s business, what C source holds `steps/c_source.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeml import atomic
from edgeml.manifest import Manifest, Provenance, Quality, RuntimeFamily
from edgeml.probe import ProbeResult
from edgeml.profile import DeviceRuntime

from .assemble import Content, Meaning, check_storage, measurement_of, members_of, write
from .candidate import Measured
from .dataset import Dataset
from .expected_file import expected_of
from .feed import feed
from .metrics import Judge
from .provenance import checkout_of, made_by
from .recipe import Recipe, encode
from .report import Conversion, View, WrittenBundle
from .sources.source import Source
from .sources.torch_model import TorchModel
from .steps.c_source import write_c_source
from .verify import LIMITS, Verified

if TYPE_CHECKING:
    from .explanation import Explained
    from .order import ConversionOrder


@dataclass(frozen=True, slots=True)
class Bundler:
    """Bundles of one conversion."""

    order: ConversionOrder
    source: Source
    data: Dataset
    judge: Judge
    meaning: Meaning
    explained: Explained

    def write(self, found: Sequence[Verified], views: Sequence[View]) -> Conversion:
        """Write a bundle for each candidate that was chosen.

        Raises:
            BudgetError: A bundle does not fit a profile.
            StorageError: The disk refused; no half-written bundle is left.
        """
        chosen = [
            one for one in found if any(view.selection.chosen == one.candidate.recipe for view in views)
        ]
        ready = [self._bundle(one, views) for one in chosen]
        bundles: list[WrittenBundle] = []
        files: list[str] = []
        for manifest, members in ready:
            bundles.append(write(self.order.out, manifest, members))
            model = members[manifest.runtime.model_member]
            if manifest.runtime is RuntimeFamily.TORCHSCRIPT:
                files.append(self._beside(manifest, ".pt", model))
            elif DeviceRuntime.TFLITE_MICRO in self._runtimes(manifest.profiles):
                source = write_c_source(model, manifest.model)
                files.append(self._beside(manifest, ".h", source.header.encode()))
                files.append(self._beside(manifest, ".cc", source.source.encode()))
        return Conversion(
            report=self.explained.report, bundles=tuple(bundles), warnings=self.source.warnings,
            page=str(self.explained.page), files=tuple(files),
            for_agents=tuple(one.path for one in bundles if self._is_for_agents(one)),
        )  # fmt: skip

    def _bundle(self, one: Verified, views: Sequence[View]) -> tuple[Manifest, dict[str, bytes]]:
        recipe = one.candidate.recipe
        takers = [view.selection for view in views if view.selection.chosen == recipe]
        names = tuple(sorted(each.profile for each in takers))
        measured, result = self._ran(one, names)
        specs = result.inputs
        fed = feed(self.data.evaluation_x, specs[0], recipe.export.layout)
        manifest = Manifest(
            model=self.order.release.model,
            version=self.order.release.version,
            variant=recipe.name,
            runtime=recipe.family,
            profiles=names,
            inputs=specs,
            outputs=result.outputs,
            files=(),
            measurement=measurement_of(result, LIMITS.threads),
            provenance=self._provenance(recipe, "; ".join(f"{each.profile}: {each.reason}" for each in takers)),
            task=self.meaning.task,
            scores=self.meaning.scores,
            labels=self.meaning.labels,
            quality=Quality(
                self.judge.metric.name, measured.value, self.judge.baseline, len(self.data.evaluation_x),
                measured.agreement,
            ),
        )  # fmt: skip
        manifest = msgspec.structs.replace(manifest, expected=expected_of(manifest, (fed,), None))
        report = msgspec.json.format(msgspec.json.encode(self.explained.report), indent=2) + b"\n"
        content = Content(one.model, (fed,), (fed,), result, report, with_monitor=True)
        members = members_of(manifest, content)
        check_storage(members, [profile for profile in self.order.profiles if profile.name in names])
        return manifest, members

    def _provenance(self, recipe: Recipe, reason: str) -> Provenance:
        checkout = checkout_of(
            Path(self.order.source.rpartition(":")[0] or self.order.source).absolute().parent
        )
        return Provenance(
            source=Path(self.order.source).name,
            source_sha256=self.source.sha256,
            data_sha256=self.data.sha256,
            recipe=recipe.described,
            reason=reason,
            git_commit=checkout.commit,
            git_dirty=checkout.is_dirty,
            libraries=made_by(recipe.export, is_torch=isinstance(self.source, TorchModel)),
            settings=encode(recipe).decode(),
            parent=self.order.parent,
        )

    def _ran(self, one: Verified, names: Sequence[str]) -> tuple[Measured, ProbeResult]:
        """What the first runtime said that the profiles have of these names."""
        runtimes = self._runtimes(names)
        ran = zip(one.candidate.runs, one.results, strict=True)
        run, result = next(pair for pair in ran if pair[0].runtime in runtimes and pair[1] is not None)
        assert isinstance(run.outcome, Measured)
        assert result is not None
        return run.outcome, result

    def _runtimes(self, names: Sequence[str]) -> set[DeviceRuntime]:
        profiles = [profile for profile in self.order.profiles if profile.name in names]
        return {runtime for profile in profiles for runtime in profile.runtimes}

    def _is_for_agents(self, bundle: WrittenBundle) -> bool:
        return bundle.runtime.is_for_agents and any(
            runtime.is_for_agents for runtime in self._runtimes(bundle.profiles)
        )

    def _beside(self, manifest: Manifest, suffix: str, content: bytes) -> str:
        """Write what a device's own program is built with, or loads, next to the bundle."""
        path = self.order.out / f"{manifest.model}-{manifest.version}-{manifest.variant}{suffix}"
        atomic.write_bytes(path, content, mode=0o644)
        return str(path)
