"""Small models to convert: a linear classifier that converts in a second, and the sample's digits."""

import textwrap

import numpy as np
import pytest

FACTORY = textwrap.dedent(
    """
    import torch

    def model():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 5))
    """
)


@pytest.fixture(scope="session")
def linear(tmp_path_factory):
    """A directory with `net.py` and a `data.npz` whose labels are the model's own answers but for a few."""
    import torch

    directory = tmp_path_factory.mktemp("linear")
    (directory / "net.py").write_text(FACTORY)
    space: dict = {}
    exec(FACTORY, space)  # our own text, above
    generator = np.random.default_rng(0)
    images = generator.normal(size=(500, 8, 8)).astype(np.float32)
    with torch.no_grad():
        labels = space["model"]()(torch.from_numpy(images)).argmax(1).numpy()
    labels[::25] = (labels[::25] + 1) % 5
    np.savez(
        directory / "data.npz",
        calibration_x=images[:100],
        evaluation_x=images[100:],
        evaluation_y=labels[100:],
    )
    return directory


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The sample's first release."""
    from converters.samples import digits as sample

    directory = tmp_path_factory.mktemp("digits")
    sample.write(directory, sample.find(()), 0, lambda *_: None)
    return directory
