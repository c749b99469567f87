"""Makes a bundle of each candidate that a profile chose.

Decides what the manifests of one conversion have in common, for whom a bundle is, and what lies beside it for programs
that no agent runs in. What a bundle holds is `assemble.py`'s business, what C source holds `steps/c_source.py`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeml import atomic
from edgeml.manifest import Manifest, Provenance, Quality, RuntimeFamily
from edgeml.probe import ProbeResult
from edgeml.profile import DeviceRuntime

from .assemble import (
    Content,
    Meaning,
    measurement_of,
    members_of,
    path_of,
    stored_bytes,
    warn_of_earlier,
    write,
)
from .candidate import Measured
from .dataset import Dataset
from .estimate.arena import kernels_of
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
class _File:
    """A file that lies beside a bundle."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Made:
    """A bundle that is not written yet."""

    manifest: Manifest
    members: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Bundler:
    """Bundles of one conversion."""

    order: ConversionOrder
    source: Source
    data: Dataset
    judge: Judge
    meaning: Meaning
    explained: Explained

    def make(self, found: Sequence[Verified], views: Sequence[View]) -> tuple[Made, ...]:
        """Make a bundle of each candidate that was chosen; nothing is written yet."""
        chosen = [
            one for one in found if any(view.selection.chosen == one.candidate.recipe for view in views)
        ]
        variants = _variants(one.candidate.recipe for one in chosen)
        return tuple(
            Made(*self._bundle(one, variant, views)) for one, variant in zip(chosen, variants, strict=True)
        )

    def too_large(self, made: Sequence[Made]) -> dict[str, int]:
        """For each profile that has no room for its bundle: the bytes of that beside the model."""
        return {
            profile.name: stored - len(one.members[one.manifest.runtime.model_member])
            for one in made
            for profile in self.order.profiles
            if profile.name in one.manifest.profiles
            and (stored := stored_bytes(one.manifest, one.members, profile)) > profile.model_storage.value
        }

    def write(self, made: Sequence[Made]) -> Conversion:
        """Write the bundles, and what lies beside them.

        Raises:
            BackendError: TensorFlow Lite Micro would not run a model as it is meant. No file is written then.
            StorageError: The disk refused; no half-written bundle is left.
        """
        beside = [file for one in made for file in self._beside(one.manifest, one.members)]
        bundles = [write(self.order.out, one.manifest, one.members) for one in made]
        files = [self.order.out / file.name for file in beside]
        for path, file in zip(files, beside, strict=True):
            atomic.write_bytes(path, file.content, mode=0o644)
        return Conversion(
            report=self.explained.report, bundles=tuple(bundles),
            warnings=(*self.source.warnings, *warn_of_earlier(self.order.out, self.order.release, [one.path for one in bundles])),
            page=str(self.explained.page), files=tuple(map(str, files)),
            for_agents=tuple(one.path for one in bundles if self._is_for_agents(one)),
        )  # fmt: skip

    def _bundle(
        self, one: Verified, variant: str, views: Sequence[View]
    ) -> tuple[Manifest, dict[str, bytes]]:
        recipe = one.candidate.recipe
        takers = [view.selection for view in views if view.selection.chosen == recipe]
        names = tuple(sorted(each.profile for each in takers))
        measured, result = self._ran(one, names)
        specs = result.inputs
        fed = feed(self.data.evaluation_x, specs[0], recipe.export.layout)
        manifest = Manifest(
            model=self.order.release.model,
            version=self.order.release.version,
            variant=variant,
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
        return manifest, members_of(manifest, content)

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

    def _beside(self, manifest: Manifest, members: dict[str, bytes]) -> Iterator[_File]:
        """Make what a device's own program is built with, or loads, to lie next to the bundle."""
        model, stem = members[manifest.runtime.model_member], path_of(Path(), manifest).stem
        if manifest.runtime is RuntimeFamily.TORCHSCRIPT:
            yield _File(f"{stem}.pt", model)
        elif DeviceRuntime.TFLITE_MICRO in self._runtimes(manifest.profiles):
            kernels = [
                kernels_of(one.architecture) for one in self.order.profiles if one.name in manifest.profiles
            ]
            source = write_c_source(model, manifest.model, frozenset().union(*kernels), stem)
            yield _File(f"{source.name}.h", source.header.encode())
            yield _File(f"{source.name}.cc", source.source.encode())


def _variants(recipes: Iterable[Recipe]) -> list[str]:
    """Name the variants of one release, each otherwise: what a name says nothing of (a layout) may differ."""
    seen: Counter[str] = Counter()
    names = []
    for recipe in recipes:
        seen[recipe.name] += 1
        names.append(recipe.name if seen[recipe.name] == 1 else f"{recipe.name}-{seen[recipe.name]}")
    return names
