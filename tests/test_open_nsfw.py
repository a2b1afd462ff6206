"""benchmarks/open_nsfw.py: a network for `features.extractor: module`, and its weights."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.evaluation.features import module_extractor

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import open_nsfw

FILE = Path(open_nsfw.__file__)


@pytest.fixture(scope="module")
def network():
    """With weights that keep the activations of a random network at one size."""
    torch.manual_seed(0)
    made = open_nsfw.OpenNsfwResNet50().eval()
    for name, value in made.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.normal_(value, std=(1 / value[0].numel()) ** 0.5)
    return made


def test_it_is_an_extractor_of_the_project(network, tmp_path):
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    extractor = module_extractor(f"{FILE}:OpenNsfwResNet50", tmp_path / "weights.safetensors")
    assert (extractor.name, extractor.dimension) == ("module OpenNsfwResNet50", 1024)
    grey = np.random.default_rng(0).integers(0, 256, (3, 1, 16, 16), np.uint8)
    found = extractor.features(grey)
    assert found.shape == (3, 1024) and np.ptp(found, axis=0).max() > 0
    assert np.array_equal(found, extractor.features(np.repeat(grey, 3, axis=1)))


def test_colours_are_those_of_the_network_and_images_of_its_size_stay_as_they_are(network):
    """A change of red alone moves what the last of its three input channels gives."""
    image = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    seen = []
    hook = network.conv_1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        network(image)
    hook.remove()
    blue_first = image[0].flip(0).float() - torch.tensor(open_nsfw.MEAN)[:, None, None]
    assert torch.equal(seen[0][0], blue_first)


def onnx_of(network) -> bytes:
    """The network as the package's file has it, by the names of its nodes."""
    import onnx
    from onnx import helper, numpy_helper

    nodes, values = [], []

    def add(kind, inputs, output, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def convolved(x, layer, name):
        given = [x]
        for kind in ("weight", "bias"):
            array = getattr(layer, kind).detach().numpy()
            values.append(numpy_helper.from_array(array, f"{name}_{kind}"))
            given.append(f"{name}_{kind}")
        around = [*layer.padding, *layer.padding]
        output = f"bn_{name}/FusedBatchNormV3:0"
        return add("Conv", given, output, strides=list(layer.stride), pads=around)

    def relu(x):
        return add("Relu", [x], f"{x}+")

    x = add("Transpose", ["input:0"], "first", perm=[0, 3, 1, 2])
    x = relu(convolved(x, network.conv_1, "1"))
    x = add("MaxPool", [x], "pooled", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
    for name, block in network.blocks.named_children():
        stem = "stage{}_block{}".format(*name.split("_"))
        beside = x
        if block.proj_shortcut is not None:
            beside = convolved(x, block.proj_shortcut, f"{stem}_proj_shortcut")
        for branch in ("branch2a", "branch2b", "branch2c"):
            x = convolved(x, getattr(block, branch), f"{stem}_{branch}")
            x = x if branch == "branch2c" else relu(x)
        x = relu(add("Add", [x, beside], f"{stem} sum"))
    add("ReduceMean", [x], open_nsfw.POOLED, axes=[2, 3], keepdims=0)
    add("Identity", [open_nsfw.POOLED], "outputs")
    shape = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "open_nsfw",
        [shape("input:0", onnx.TensorProto.FLOAT, ["n", 224, 224, 3])],
        [shape("outputs", onnx.TensorProto.FLOAT, ["n", 1024])],
        values,
    )
    version = helper.make_opsetid("", 9)
    model = helper.make_model(graph, opset_imports=[version], ir_version=4)
    return model.SerializeToString()


def test_weights_are_those_of_the_file_and_other_ones_are_noticed(network):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = onnx_of(network)
    other = open_nsfw.OpenNsfwResNet50()
    found, largest = open_nsfw.difference(model, other, 2)
    assert found > 0.1 * largest
    other.load_state_dict(open_nsfw.converted(model))
    found, largest = open_nsfw.difference(model, other, 2)
    assert found < 1e-5 * largest
