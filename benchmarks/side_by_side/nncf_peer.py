"""Runs in NNCF's own environment: quantizes an ONNX model under an accuracy floor. Takes a folder with what it needs.

In: model.onnx, data.npz (calibration_x, test_x, test_y), settings.json (max_drop). Out: quantized.onnx.
"""

import json
import sys
from pathlib import Path

import nncf
import numpy as np
import onnx
import onnxruntime


def main():
    folder = Path(sys.argv[1])
    model = onnx.load(folder / "model.onnx")
    data = np.load(folder / "data.npz")
    settings = json.loads((folder / "settings.json").read_text())
    name = model.graph.input[0].name

    def scores(candidate, items):
        session = onnxruntime.InferenceSession(
            candidate.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        right = [float(session.run(None, {name: image})[0].argmax() == label) for image, label in items]
        return float(np.mean(right)), right

    calibration = nncf.Dataset(
        [data["calibration_x"][row : row + 1] for row in range(len(data["calibration_x"]))],
        lambda image: {name: image},
    )
    pairs = [(data["test_x"][row : row + 1], data["test_y"][row]) for row in range(len(data["test_x"]))]
    quantized = nncf.quantize_with_accuracy_control(
        model,
        calibration,
        nncf.Dataset(pairs, lambda pair: {name: pair[0]}),
        scores,
        max_drop=settings["max_drop"],
    )
    onnx.save(quantized, folder / "quantized.onnx")


if __name__ == "__main__":
    main()
