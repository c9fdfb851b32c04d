"""The network `small` as one ONNX file, from which OpenCV and ONNX Runtime predict, and which network.load reads.

Weights have the names that they have in Keras, `layer/weight`, and kernels are float16. Input: `pixels`, float32 (n, 48, 48, 1),
0–255. Its one output: probabilities, float32 (n, 7).
"""

from pathlib import Path

from fer_utils import images
from fer_utils.training.network import FEATURES, HEAD_LAYERS, PREPROCESSING, SMALL, backbone_of, weight_names

import keras
import numpy as np
from keras import layers

OPSET, IR_VERSION = 13, 8  # of 2020: old enough for OpenCV 4.10


def write(model: keras.Model, path: Path, temperature: float = 1.0) -> None:
    """Write a model from network.build(48, …, "small") with the scores before softmax divided by `temperature`.

    A dense layer is a 1×1 convolution of pooled features, so that the file holds operators only that OpenCV runs. Raises
    ValueError for another network.
    """
    backbone = backbone_of(model)
    if backbone.name != SMALL or backbone.input_shape[1] != images.SIZE:
        raise ValueError(
            f"the model is a {backbone.name} for {backbone.input_shape[1]} px, expected {SMALL} for {images.SIZE} px"
        )

    import onnx  # takes a while to import
    from onnx import helper, numpy_helper

    nodes, weights = [], []

    def add(operator: str, inputs: list[str], name: str, **attributes) -> str:
        nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def stored(name: str, values: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(values, name))
        return name

    def applied(layer: layers.Layer, inputs: list[str]) -> str:
        name, arrays = layer.name, layer.get_weights()
        if isinstance(layer, layers.BatchNormalization):
            given = [stored(key, values) for key, values in zip(weight_names(layer), arrays, strict=True)]
            return add("BatchNormalization", [*inputs, *given], name, epsilon=layer.epsilon)
        if isinstance(layer, layers.ReLU | layers.Add):
            return add("Add" if isinstance(layer, layers.Add) else "Relu", inputs, name)
        if name == HEAD_LAYERS[-1]:
            arrays = [values / temperature for values in arrays]
        kernel = np.reshape(arrays[0], (1,) * (4 - arrays[0].ndim) + arrays[0].shape).transpose(3, 2, 0, 1)
        half = stored(f"{name}/kernel", kernel.astype(np.float16))
        given = [add("Cast", [half], f"{half}/float32", to=onnx.TensorProto.FLOAT)]
        given += [stored(f"{name}/bias", arrays[1])] if len(arrays) == 2 else []
        size, stride = kernel.shape[2], getattr(layer, "strides", (1, 1))[0]
        before = max(0, size - 1 - stride)  # what Keras' `same` adds before and after an even side
        pads = [before, before, size // 2, size // 2]
        return add("Conv", [*inputs, *given], name, kernel_shape=[size] * 2, strides=[stride] * 2, pads=pads)

    planes = add("Transpose", ["pixels"], "planes", perm=[0, 3, 1, 2])
    centred = add("Sub", [planes, add("ReduceMean", [planes], "mean", axes=[1, 2, 3])], "centred")
    variance = add("ReduceMean", [add("Mul", [centred, centred], "squares")], "variance", axes=[1, 2, 3])
    standardise = model.get_layer(PREPROCESSING).get_layer("standardise")
    epsilon = stored("epsilon", np.array(standardise.epsilon, np.float32))
    deviation = add("Sqrt", [add("Add", [variance, epsilon], "variance_and_epsilon")], "deviation")
    made = {backbone.inputs[0].name: add("Div", [centred, deviation], "standardised")}
    for layer in backbone.layers[1:]:
        made[layer.output.name] = applied(layer, [made[tensor.name] for tensor in keras.tree.flatten(layer.input)])
    dense, norm, _, last = (model.get_layer(name) for name in HEAD_LAYERS)
    x = add("GlobalAveragePool", [made[backbone.output.name]], FEATURES)
    x = applied(norm, [add("Relu", [applied(dense, [x])], "head_relu")])
    output = add("Softmax", [add("Flatten", [applied(last, [x])], "scores")], "softmax", axis=1)

    side, floats = images.SIZE, onnx.TensorProto.FLOAT
    taken = helper.make_tensor_value_info("pixels", floats, ["n", side, side, 1])
    given = helper.make_tensor_value_info(output, floats, ["n", last.units])
    graph = helper.make_graph(nodes, SMALL, [taken], [given], weights)
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(file, full_check=True)
    onnx.save(file, path)
