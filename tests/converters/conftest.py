"""Small models to convert: a linear classifier that converts in a second, and the sample's digits."""

import textwrap
import warnings

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


@pytest.fixture(scope="session")
def pooled():
    """Four digits in ONNX without torch: fixed random features, and a last layer by least squares.

    A convolution over one channel, a depthwise one, one over 1x1 with a skip, a mean over the image, a linear layer.
    Gives (model, images [n, 1, 8, 8], labels [n] from 0 to 3); the first 400 were fitted on.
    """
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper
    from sklearn.datasets import load_digits

    width, classes, fitted_on = 48, 4, 400
    generator = np.random.default_rng(0)
    made = helper.make_node
    weights = {
        "stem.weight": generator.normal(size=(width, 1, 3, 3)),
        "stem.bias": generator.normal(size=width),
        "depth.weight": generator.normal(size=(width, 1, 3, 3)) / 2,
        "depth.bias": generator.normal(size=width) / 4,
        "point.weight": generator.normal(size=(width, width, 1, 1)) / 6,
        "point.bias": generator.normal(size=width) / 4,
    }
    nodes = [
        made("Conv", ["input", "stem.weight", "stem.bias"], ["a"], "n1", pads=[1, 1, 1, 1], strides=[2, 2]),
        made("Relu", ["a"], ["b"], "n2"),
        made("Conv", ["b", "depth.weight", "depth.bias"], ["c"], "n3", pads=[1, 1, 1, 1], group=width),
        made("Relu", ["c"], ["d"], "n4"),
        made("Conv", ["d", "point.weight", "point.bias"], ["e"], "n5", kernel_shape=[1, 1], dilations=[1, 1]),
        made("Add", ["e", "d"], ["f"], "n6"),
        made("Relu", ["f"], ["g"], "n7"),
        made("ReduceMean", ["g", "axes"], ["h"], "n8", keepdims=0),
    ]
    digits = load_digits()
    easy = digits.target < classes  # with ten, means of random features are so near that any rounding counts
    images, labels = (digits.images[easy] / 16).astype(np.float32)[:, None], digits.target[easy]

    def model(nodes, weights, output, shape):
        constants = [numpy_helper.from_array(one.astype(np.float32), name) for name, one in weights.items()]
        constants.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
        graph = helper.make_graph(
            nodes, "digits",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", *shape])],
            constants,
        )  # fmt: skip
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(proto)
        return proto.SerializeToString()

    session = onnxruntime.InferenceSession(
        model(nodes, weights, "h", [width]), providers=["CPUExecutionProvider"]
    )
    features = session.run(None, {"input": images})[0]
    spread = features[:fitted_on].std(axis=0) + 0.1
    extended = np.c_[features[:fitted_on] / spread, np.ones(fitted_on)]
    gram = extended.T @ extended + 60 * np.eye(width + 1)
    fitted = np.linalg.solve(gram, extended.T @ np.eye(classes)[labels[:fitted_on]] * 4)
    nodes.append(made("Gemm", ["h", "last.weight", "last.bias"], ["logits"], "n9", transB=1))
    weights |= {"last.weight": fitted[:-1].T / spread, "last.bias": fitted[-1]}
    return model(nodes, weights, "logits", [classes]), images, labels


@pytest.fixture(scope="session")
def desk(pooled, tmp_path_factory):
    """A directory with `net.onnx` and a `data.npz` of the four digits: a source that converts without torch."""
    directory = tmp_path_factory.mktemp("desk")
    model, images, labels = pooled
    (directory / "net.onnx").write_bytes(model)
    np.savez(
        directory / "data.npz", calibration_x=images[:100], evaluation_x=images[400:], evaluation_y=labels[400:]
    )  # fmt: skip
    return directory


ESTIMATORS = textwrap.dedent(
    """
    import numpy as np
    from sklearn.datasets import load_breast_cancer, load_diabetes
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def cancer():
        x, y = load_breast_cancer(return_X_y=True)
        last = MLPClassifier((24,), max_iter=60, random_state=0, tol=0.0, n_iter_no_change=60)
        named = np.array(["ill", "well"])[y]
        return make_pipeline(StandardScaler(), last).fit(x[::2].astype("float32"), named[::2])

    def diabetes():
        x, y = load_diabetes(return_X_y=True)
        last = MLPRegressor(hidden_layer_sizes=(24,), max_iter=80, random_state=0, learning_rate_init=0.05, tol=0.0, n_iter_no_change=80)
        return make_pipeline(StandardScaler(), last).fit(x[::2].astype("float32"), y[::2])
    """
)


@pytest.fixture(scope="session")
def clinic(tmp_path_factory):
    """A directory with `estimators.py` (two fitted pipelines), `cancer.pkl` of one, `cancer.npz` and `diabetes.npz`."""
    import joblib
    from sklearn.datasets import load_breast_cancer, load_diabetes
    from sklearn.exceptions import ConvergenceWarning

    directory = tmp_path_factory.mktemp("clinic")
    text = "import warnings\nwarnings.simplefilter('ignore')\n" + ESTIMATORS
    (directory / "estimators.py").write_text(text)
    space: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        exec(ESTIMATORS, space)  # our own text, above
        joblib.dump(space["cancer"](), directory / "cancer.pkl")
    for name, load in (("cancer", load_breast_cancer), ("diabetes", load_diabetes)):
        x, y = load(return_X_y=True)
        x = x.astype(np.float32)
        np.savez(
            directory / f"{name}.npz", calibration_x=x[::2][:120], evaluation_x=x[1::2], evaluation_y=y[1::2]
        )
    return directory
