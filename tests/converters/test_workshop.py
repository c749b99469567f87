"""A source is told from every other one, whatever its module's state holds."""

import numpy as np
import pytest

from converters.sources.torch_model import TorchModel
from converters.workshop import fingerprint_of
from edgeml.ids import digest_of

pytestmark = pytest.mark.torch

ANSWERS = np.zeros((2, 3), np.float32)


def fingerprint(state):
    """Of a module that holds a tensor, or something else as its extra state."""
    import torch

    class Stateful(torch.nn.Module):
        def get_extra_state(self):
            return state

        def set_extra_state(self, state):
            pass

    module = torch.nn.Module() if isinstance(state, torch.Tensor) else Stateful()
    if isinstance(state, torch.Tensor):
        module.register_buffer("held", state)
    return fingerprint_of(TorchModel(module, batch_is_free=True, sha256=digest_of(b"")), ANSWERS)


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "float32", "float64", "complex64", "float8_e4m3fn", "bool", "uint16", "int64"]
)  # fmt: skip
def test_a_number_of_any_type_counts(dtype):
    import torch

    one, other = (torch.tensor([0.0, value, 2.0]).to(getattr(torch, dtype)) for value in (0.0, 1.0))
    assert fingerprint(one) == fingerprint(one.clone())
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) != fingerprint(one[:, None])
    assert fingerprint(one[1]) != fingerprint(other[1])


def test_a_sparse_or_quantized_tensor_counts():
    import torch

    from converters.quiet import quiet

    for change in (torch.Tensor.to_sparse, lambda one: torch.quantize_per_tensor(one, 0.1, 0, torch.qint8)):
        with quiet():  # torch says that quantized tensors will go
            one, other = (change(torch.eye(3) * value) for value in (1.0, 2.0))
        assert fingerprint(one) == fingerprint(one.clone())
        assert fingerprint(one) != fingerprint(other)


def test_what_is_no_tensor_counts():
    import torch

    def states():
        many = torch.arange(5000.0)
        yield from (1, 2.5, "a", b"a", None, (1, 2), [1, [2]], {"a": 1}, {"a": 2}, {"b": 1})
        for value in (0.0, 1.0):
            changed = many.clone()
            changed[2500] = value
            yield {"scales": [changed]}
            yield {"scales": changed.numpy()}

    found = [fingerprint(state) for state in states()]
    assert found == [fingerprint(state) for state in states()]
    assert len(set(found)) == len(found)
