"""What torch's exporter does with a Ctrl-C: it may come out as an error of the model."""

import numpy as np
import pytest

from converters.sources.torch_model import load_source, parse_source
from converters.steps.onnx_export import export_onnx
from edgeml.errors import ConfigError

pytestmark = pytest.mark.torch
RAISING = """
from torch import nn

class Net(nn.Module):
    def forward(self, x):
        try:
            raise {error}
        except BaseException as error:
            raise RuntimeError("while tracing") from error

def model():
    return Net()
"""


@pytest.mark.parametrize(
    ("error", "raised"), [("KeyboardInterrupt", KeyboardInterrupt), ("ValueError", ConfigError)]
)
def test_an_interrupt_is_no_mistake_of_the_models(tmp_path, error, raised):
    (tmp_path / "net.py").write_text(RAISING.format(error=error))
    model = load_source(parse_source(f"{tmp_path}/net.py:model"))
    with pytest.raises(raised):
        export_onnx(model, np.zeros((2, 3), np.float32), "scores")
