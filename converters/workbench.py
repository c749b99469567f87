"""The workbench of one conversion: makes candidates, runs them, looks into them, tells their layers apart.

Composes the workshop, the verifier and the estimates into what a search asks for. Decides which runtimes a candidate is
run on: all that can be reached here of those that the profiles have which get files written so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgeml.errors import BackendError, BudgetError, ConfigError
from edgeml.manifest import RuntimeFamily
from edgeml.profile import DeviceRuntime, HardwareProfile

from .calibration import Observed, observe, spread
from .candidate import Placement
from .estimate.graph import Graph
from .explain.sensitivity import LayerSensitivity, Trial, exclusions, samples_of, scan
from .explain.tflite_sensitivity import scan_tflite
from .order import DeviceMeasurement
from .placement import graph_of, place
from .plan import RUNTIMES
from .recipe import Export, Recipe, StaticInteger
from .select import Floor
from .turns import in_turns, rivals_of
from .verify import Venue, Verified, Verifier, not_made
from .workshop import Workshop


@dataclass(slots=True)
class Workbench:
    """One conversion's candidates."""

    workshop: Workshop
    verifier: Verifier
    venues: Mapping[Export, Sequence[Venue]]
    measurements: tuple[DeviceMeasurement, ...] = ()
    layers: dict[Recipe, tuple[LayerSensitivity, ...]] = field(default_factory=dict)
    unscanned: dict[Recipe, str] = field(default_factory=dict)
    """Why the layers of a recipe could not be told apart."""
    uncompared: str = ""
    """Why latencies on this host could not be measured in turns."""
    _turns_ms: dict[tuple[Recipe, DeviceRuntime], float] = field(default_factory=dict)
    _graphs: dict[Recipe, Graph | None] = field(default_factory=dict)

    def candidate(self, recipe: Recipe) -> Verified:
        """Make a recipe's result and run it on every runtime that it is for."""
        try:
            model = self.workshop.make(recipe)
        except (BackendError, BudgetError, ConfigError) as error:
            if recipe.is_plain:
                raise  # Without the plain export there is nothing to compare with, and the error says what to do.
            return not_made(recipe, error.message)
        return self.verifier.verify(recipe, model, self._venues(recipe.export))

    def exclusions(self, recipe: Recipe) -> tuple[tuple[str, ...], ...]:
        """Growing sets of layers to leave in float, worst first; empty where nothing can tell."""
        return exclusions(self.sensitivity(recipe))

    def sensitivity(self, recipe: Recipe) -> tuple[LayerSensitivity, ...]:
        """What quantizing each layer alone costs; empty for what cannot be scanned."""
        if recipe not in self.layers:
            self.layers[recipe] = self._scanned(recipe)
        return self.layers[recipe]

    def place(self, verified: Verified, profile: HardwareProfile) -> Placement:
        """Say how a profile sees a candidate."""
        candidate = verified.candidate
        record = next(
            (
                one.record
                for one in self.measurements
                if one.profile == profile.name and one.record.model_sha256 == candidate.sha256
            ),
            None,
        )
        turns = (self.turns_ms(candidate.recipe, run.runtime) for run in candidate.runs)
        turns_ms = next((one for one in turns if one is not None), None)
        return place(candidate, self.graph(verified), profile, record, turns_ms)

    def measure_in_turns(self, found: Sequence[Verified], floor: Floor) -> None:
        """Measure again, in turns, what is to be compared on this host: candidates of one export."""
        if not found:
            return
        # Runtimes in other interpreters are not compared so.
        here = [one for one in self._venues(found[0].candidate.recipe.export) if one.place.python is None]
        rivals = rivals_of(found, floor)
        if not (rivals and here):
            return
        try:
            runtime = here[0].runtime
            latencies_ms = in_turns(rivals, self.verifier.samples, runtime)
            self._turns_ms.update({(recipe, runtime): one for recipe, one in latencies_ms.items()})
        except (BackendError, BudgetError) as error:
            # Told in the report; each candidate has a figure of its own.
            self.uncompared = error.message

    def turns_ms(self, recipe: Recipe, runtime: DeviceRuntime) -> float | None:
        """Latency of a candidate on this host as it was measured in turns with others; None where it was not."""
        return self._turns_ms.get((recipe, runtime))

    def graph(self, verified: Verified) -> Graph | None:
        """What a candidate's file computes; None where it cannot be read."""
        recipe = verified.candidate.recipe
        if recipe not in self._graphs:
            self._graphs[recipe] = graph_of(verified)
        return self._graphs[recipe]

    def _venues(self, export: Export) -> list[Venue]:
        return [venue for venue in self.venues[export] if venue.runtime in RUNTIMES[export.family]]

    def _scanned(self, recipe: Recipe) -> tuple[LayerSensitivity, ...]:
        step = recipe.compression
        if not isinstance(step, StaticInteger):
            return ()
        rows = samples_of(len(self.verifier.samples))
        trial = Trial(self.verifier.samples[rows], self.verifier.judge.of_rows(rows).worth)
        try:
            if recipe.family is RuntimeFamily.ONNX:
                prepared = self.workshop.prepared(recipe.export, recipe.training)
                return scan(prepared, self.observed(recipe), step, trial)
            plain = self.workshop.make(Recipe(recipe.export, recipe.training))
            return scan_tflite(plain, self.workshop.data.calibration_x, step, trial, recipe.export.layout)
        except (BackendError, BudgetError) as error:
            self.unscanned[recipe] = (
                error.message
            )  # Told in the report: a conversion does not end for want of a picture.
            return ()

    def observed(self, recipe: Recipe) -> tuple[Observed, ...]:
        """What the float model's tensors hold on the calibration samples, of an ONNX recipe."""
        samples = self.workshop.data.calibration_x
        prepared = self.workshop.prepared(recipe.export, recipe.training)
        return observe(prepared, samples[spread(len(samples))])
