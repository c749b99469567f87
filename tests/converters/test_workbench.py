"""What a candidate that cannot be made does to a conversion: it is refused, and the others are made."""

import numpy as np
import pytest

from converters.recipe import Activations, Export, Recipe, StaticInteger
from converters.verify import Verifier
from converters.workbench import Workbench
from edgeml.errors import BackendError, BudgetError, ConfigError
from edgeml.manifest import RuntimeFamily

PLAIN = Recipe(Export(RuntimeFamily.TFLITE))
INT8 = Recipe(Export(RuntimeFamily.TFLITE), (), StaticInteger(Activations.INT8))
ERRORS = (
    BackendError("the library refuses it"),
    ConfigError("the library cannot"),
    BudgetError("the quantizer took 9 GB", budget=8e9, observed=9e9, unit="bytes"),
)


class Failing:
    """A workshop in which nothing can be made."""

    def __init__(self, error):
        self.error = error

    def make(self, recipe):
        raise self.error


def bench(error):
    return Workbench(Failing(error), Verifier(np.zeros((1, 2), np.float32), None, None), {})


@pytest.mark.parametrize("error", ERRORS)
def test_what_cannot_be_made_is_a_candidate_that_says_why(error):
    made = bench(error).candidate(INT8).candidate
    assert (made.recipe, made.length_bytes, made.runs, made.failure) == (INT8, 0, (), error.message)


@pytest.mark.parametrize("error", ERRORS)
def test_without_the_plain_export_there_is_nothing_to_compare_with(error):
    with pytest.raises(type(error)):
        bench(error).candidate(PLAIN)
