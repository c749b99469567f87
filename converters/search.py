"""Searches: makes and verifies candidates stage by stage, until every profile has what it needs.

Decides when a stage is needed and when a search ends. What is tried is `plan.py`'s business, what is good enough
`select.py`'s; how a candidate is made and verified is given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edgeml.profile import HardwareProfile

from .candidate import Measured, Placement
from .plan import Effort, Lack, Need, Stage, mixed
from .recipe import Export, Recipe
from .select import Constraints, Floor, Preference, select
from .verify import Verified


@dataclass(frozen=True, slots=True)
class Progress:
    """What is being done, and how much of the search that is known of is done: seconds of about `total_s`."""

    text: str
    done_s: float = 0.0
    total_s: float = 0.0


OnProgress = Callable[[Progress], None]


class Bench(Protocol):
    """Makes, runs and places candidates."""

    def candidate(self, recipe: Recipe) -> Verified:
        """Make a recipe's result and run it on every runtime that it is for. Failures are results."""
        ...

    def exclusions(self, recipe: Recipe) -> tuple[tuple[str, ...], ...]:
        """Growing sets of layers to leave in float, worst first; empty where nothing can tell."""
        ...

    def place(self, verified: Verified, profile: HardwareProfile) -> Placement:
        """Say how a profile sees a candidate."""
        ...


@dataclass(frozen=True, slots=True)
class Aim:
    """One profile of a search, and what is planned for it."""

    profile: HardwareProfile
    stages: tuple[Stage, ...]
    constraints: Constraints

    @property
    def export(self) -> Export:
        """What the profile gets is written so; what is written otherwise for another profile is none of its business."""
        return self.stages[0].recipes[0].export

    def is_for(self, one: Verified) -> bool:
        """Whether a candidate may be chosen for the profile, whichever profile it was made for."""
        return one.candidate.recipe.export == self.export


@dataclass(slots=True)
class Search:
    """A search for several profiles, which share what they can."""

    bench: Bench
    effort: Effort
    on_progress: OnProgress
    _made: dict[Recipe, Verified] = field(default_factory=dict)
    _begun_s: float = field(default_factory=time.monotonic)

    def run(self, aims: Sequence[Aim]) -> tuple[Verified, ...]:
        """Search for all aims; every candidate that was tried, in the order in which they were."""
        depth = max(len(aim.stages) for aim in aims)
        for index in range(depth):
            for aim in aims:
                if index < len(aim.stages) and self._needed(aim.stages[index], aim):
                    self._try(aim, index)
        return tuple(self._made.values())

    def placements(self, aim: Aim) -> tuple[Placement, ...]:
        """Say how a profile sees everything that was tried for it."""
        return tuple(self.bench.place(one, aim.profile) for one in self._made.values() if aim.is_for(one))

    def _needed(self, stage: Stage, aim: Aim) -> bool:
        if self.effort is Effort.EXPLORE:
            return True
        return lack(self.placements(aim), aim.profile, aim.constraints) in stage.helps

    def _try(self, aim: Aim, index: int) -> None:
        stage = aim.stages[index]
        for recipe in self._recipes(stage):
            if recipe not in self._made:
                self.on_progress(self._progress(recipe, aim.stages[index:]))
                self._made[recipe] = self.bench.candidate(recipe)
                if self.effort is Effort.FIRST and stage.need is Need.SENSITIVITY and self._settled(aim):
                    return  # The next one leaves more layers in float: it would only be larger.

    def _recipes(self, stage: Stage) -> Iterator[Recipe]:
        if stage.need is Need.NOTHING:
            yield from stage.recipes
            return
        for recipe in stage.recipes:
            yield from mixed(recipe, self.bench.exclusions(recipe))

    def _settled(self, aim: Aim) -> bool:
        return lack(self.placements(aim), aim.profile, aim.constraints) is Lack.NOTHING

    def _progress(self, recipe: Recipe, left: Sequence[Stage]) -> Progress:
        done_s = time.monotonic() - self._begun_s
        ahead = left if self.effort is Effort.EXPLORE else left[:1]
        left_s = sum(stage.cost_s for stage in ahead for recipe in stage.recipes if recipe not in self._made)
        return Progress(f"making and verifying {recipe.name}", done_s, done_s + left_s)


def lack(placements: Sequence[Placement], profile: HardwareProfile, constraints: Constraints) -> Lack:
    """Say what a profile still misses.

    Nothing, if something other than the plain export is chosen, or that one as long as nothing smaller was tried.
    """
    chosen = select(placements, profile, constraints, Preference.BYTES).chosen
    if chosen is not None and not chosen.is_plain:
        return Lack.NOTHING
    shrunk = [one for one in placements if not one.candidate.recipe.is_plain]
    if not shrunk:
        return Lack.COST if chosen is None else Lack.NOTHING
    enough = [one for one in shrunk if _scores_enough(one, constraints.floor)]
    if not enough:
        return Lack.ACCURACY
    offered = min(profile.model_storage.value, constraints.max_bytes or math.inf)
    return Lack.BYTES if all(one.stored_bytes > offered for one in enough) else Lack.COST


def _scores_enough(one: Placement, floor: Floor) -> bool:
    if not one.runs or one.candidate.failure or one.known_wrong:
        return False
    outcomes = [run.outcome for run in one.runs]
    return all(isinstance(each, Measured) and floor.holds(each.value) for each in outcomes)
