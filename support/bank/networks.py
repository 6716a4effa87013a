"""The networks of the task bank: encoders of four families, decoders for images and for vectors, a transfer head."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional

from support.bank.tasks import Task

SIZE = 64  # pixels along a side of the images
CHANNELS, SIDE = 8, 8  # of the plain representation: CHANNELS × SIDE × SIDE values; decoders work on that grid
GREY = (0.2125, 0.7154, 0.0721)  # weights of red, green and blue, those of skimage.color.rgb2gray
Network = TypeVar("Network", bound=nn.Module)
MEAN, STD = 0.5, 0.5  # taken off and divided into images in [0, 1], for every network of the bank


def normalise(images: torch.Tensor) -> torch.Tensor:
    """The networks' inputs for images.

    Parameters
    ----------
    images : torch.Tensor
        (image, channel, y, x): floats in [0, 1], or bytes in [0, 255].

    Returns
    -------
    torch.Tensor
        Floats in [−1, 1] of the same shape; float32 for bytes.

    Examples
    --------
    >>> normalise(torch.tensor([0, 51, 255], dtype=torch.uint8))
    tensor([-1.0000, -0.6000,  1.0000])
    """
    if images.dtype == torch.uint8:
        images = images.to(torch.float32) / 255
    return (images - MEAN) / STD


def _block(inputs, outputs, kernel=3, stride=1):
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class TaskEncoder(nn.Module):
    """What every family says of itself.

    Attributes
    ----------
    family : str
        Its name in `FAMILIES`.
    size : int
        Pixels along a side of its inputs.
    shape : tuple of int
        Of one image's representation: (channels, side, side).
    layers, end : str
        Its layers, and the last one, in words.
    is_signed : bool
        Whether units have both signs.
    has_epsilon_rules : bool
        Whether ε-LRP has a rule for all its layers.
    """

    family: str
    size: int
    shape: tuple[int, int, int]
    layers: str
    end: str
    is_signed: bool
    has_epsilon_rules: bool


class Encoder(TaskEncoder, nn.Sequential):
    """The plain family, and the only one of banks 0 to 3: 64 × 64 images to an 8 × 8 × 8 representation.

    Five 3 × 3 convolutions of 24, 48, 48, 96 and 96 channels and a 1 × 1 convolution to eight, each followed by batch
    normalisation and ReLU. No unit of the representation is therefore negative, as in the published Taskonomy
    encoders, whose last layers are the same: without it a unit's sign is arbitrary, and so is the mean of the units.

    Inputs are (image, 3, 64, 64) floats as `normalise` gives them, outputs (image, 8, 8, 8).

    Examples
    --------
    >>> encoder = FAMILIES["plain"]().eval()
    >>> tuple(encoder(torch.rand(2, 3, encoder.size, encoder.size)).shape)
    (2, 8, 8, 8)
    """

    family, size, shape = "plain", SIZE, (CHANNELS, SIDE, SIDE)
    layers, end = "six convolutions, batch normalisation and ReLU", "after ReLU"
    is_signed, has_epsilon_rules = False, True

    def __init__(self):
        super().__init__(
            _block(3, 24, stride=2),
            _block(24, 48, stride=2),
            _block(48, 48),
            _block(48, 96, stride=2),
            _block(96, 96),
            _block(96, CHANNELS, kernel=1),
        )


class _Bottleneck(nn.Module):
    """1 × 1, 3 × 3 and 1 × 1 convolution beside a short cut (He et al. 2016, Figure 5 right)."""

    def __init__(self, inputs, middle, outputs, stride=1):
        super().__init__()
        self.branch = nn.Sequential(
            _block(inputs, middle, kernel=1),
            _block(middle, middle, stride=stride),
            _block(middle, outputs, kernel=1)[:2],
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _block(inputs, outputs, kernel=1, stride=stride)[:2]
        self.relu = nn.ReLU()

    def forward(self, values):
        return self.relu(self.branch(values) + self.shortcut(values))


class ResidualEncoder(TaskEncoder, nn.Sequential):
    """The residual family: 64 × 64 images to 16 channels of 8 × 8 units, none of them negative.

    A convolution, six bottleneck blocks (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016) and a
    1 × 1 convolution, with batch normalisation and ReLU throughout.

    Inputs are (image, 3, 64, 64) floats as `normalise` gives them, outputs (image, 16, 8, 8).

    Examples
    --------
    >>> ResidualEncoder.size, ResidualEncoder.shape, ResidualEncoder.is_signed
    (64, (16, 8, 8), False)
    """

    family, size, shape = "residual", SIZE, (16, 8, 8)
    layers, end = "six bottleneck blocks with short cuts, batch normalisation and ReLU", "after ReLU"
    is_signed, has_epsilon_rules = False, True

    def __init__(self):
        super().__init__(
            _block(3, 24, stride=2),
            _Bottleneck(24, 24, 64, stride=2),
            _Bottleneck(64, 24, 64),
            _Bottleneck(64, 24, 64),
            _Bottleneck(64, 48, 128, stride=2),
            _Bottleneck(128, 48, 128),
            _Bottleneck(128, 48, 128),
            _block(128, 16, kernel=1),
        )


class _Excitation(nn.Module):
    """Channels weighted by what the whole image holds: squeeze and excitation (Hu et al. 2018)."""

    def __init__(self, channels):
        super().__init__()
        self.squeeze, self.reduce, self.relu = nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels // 4, 1), nn.ReLU()
        self.expand, self.gate = nn.Conv2d(channels // 4, channels, 1), nn.Hardsigmoid()

    def forward(self, values):
        return values * self.gate(self.expand(self.relu(self.reduce(self.squeeze(values)))))


class _Depthwise(nn.Conv2d):
    """One filter a channel, in single precision: on a CPU several times faster than bfloat16 at a stride of two."""

    def __init__(self, channels, kernel, stride):
        super().__init__(channels, channels, kernel, stride, padding=kernel // 2, groups=channels, bias=False)

    def forward(self, values):
        with torch.autocast(values.device.type, enabled=False):
            return super().forward(values.to(self.weight.dtype))


class _Inverted(nn.Module):
    """Wider, depthwise, weighted, narrower: an inverted residual block with a linear end (Howard et al. 2019)."""

    def __init__(self, inputs, middle, outputs, stride=1, kernel=3):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, middle, 1, bias=False),
            nn.BatchNorm2d(middle),
            nn.Hardswish(),
            _Depthwise(middle, kernel, stride),
            nn.BatchNorm2d(middle),
            nn.Hardswish(),
            _Excitation(middle),
            nn.Conv2d(middle, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.is_residual = inputs == outputs and stride == 1

    def forward(self, values):
        return values + self.branch(values) if self.is_residual else self.branch(values)


class SeparableEncoder(TaskEncoder, nn.Sequential):
    """The separable family: 96 × 96 images to 24 channels of 6 × 6 units of both signs.

    A convolution, six inverted residual blocks with depthwise convolutions, squeeze and excitation and hard-swish
    (Howard et al., "Searching for MobileNetV3", ICCV 2019), and a 1 × 1 convolution with batch normalisation and no
    nonlinearity after it.

    Inputs are (image, 3, 96, 96) floats as `normalise` gives them, outputs (image, 24, 6, 6).

    Examples
    --------
    >>> SeparableEncoder.size, SeparableEncoder.shape, SeparableEncoder.is_signed
    (96, (24, 6, 6), True)
    """

    family, size, shape = "separable", 96, (24, 6, 6)
    layers, end = "six inverted residuals: depthwise convolutions, squeeze and excitation, hard-swish", "linear"
    is_signed, has_epsilon_rules = True, True

    def __init__(self):
        super().__init__(
            nn.Sequential(nn.Conv2d(3, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16), nn.Hardswish()),
            _Inverted(16, 32, 24, stride=2),
            _Inverted(24, 64, 40, stride=2),
            _Inverted(40, 128, 40),
            _Inverted(40, 160, 64, stride=2),
            _Inverted(64, 192, 64, kernel=5),
            _Inverted(64, 192, 64, kernel=5),
            nn.Sequential(nn.Conv2d(64, 24, 1, bias=False), nn.BatchNorm2d(24)),
        )


class _Attention(nn.Module):
    """Self-attention of all positions with four heads (Vaswani et al. 2017)."""

    def __init__(self, width, heads=4):
        super().__init__()
        self.heads = heads
        self.mix, self.softmax, self.join = nn.Linear(width, 3 * width), nn.Softmax(-1), nn.Linear(width, width)

    def forward(self, tokens):
        query, key, value = self.mix(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = self.softmax(query @ key.transpose(2, 3) * query.shape[-1] ** -0.5)
        return self.join((weights @ value).transpose(1, 2).flatten(2))


class _TransformerBlock(nn.Module):
    """Attention and two linear layers, each behind a layer norm and beside a short cut."""

    def __init__(self, width):
        super().__init__()
        self.attend = nn.Sequential(nn.LayerNorm(width), _Attention(width))
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens):
        tokens = tokens + self.attend(tokens)
        return tokens + self.think(tokens)


class TransformerEncoder(TaskEncoder):
    """The transformer family: 64 × 64 images to 16 channels of 8 × 8 units of both signs.

    Patches of 8 × 8 pixels, each from four of 4 × 4, as tokens of width 64 with learnt positions; four blocks
    (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021); a linear layer to 16 channels and a layer norm.
    Tokens are the positions of the representation. With one linear layer for a whole patch, room layout and vanishing
    points were hardly learnt from 12,000 images.

    Inputs are (image, 3, 64, 64) floats as `normalise` gives them, outputs (image, 16, 8, 8).

    Examples
    --------
    >>> TransformerEncoder.shape, TransformerEncoder.has_epsilon_rules
    ((16, 8, 8), False)
    """

    family, size, shape = "transformer", SIZE, (16, 8, 8)
    layers, end = "patches, four blocks of attention, layer norm and GELU", "after layer norm"
    is_signed, has_epsilon_rules = True, False

    def __init__(self):
        super().__init__()
        channels, *grid = self.shape
        width = 64
        self.patches = nn.Sequential(
            nn.Conv2d(3, width // 2, 4, 4), nn.BatchNorm2d(width // 2), nn.GELU(), nn.Conv2d(width // 2, width, 2, 2)
        )
        self.positions = nn.Parameter(0.02 * torch.randn(1, width, *grid))
        self.blocks = nn.Sequential(*(_TransformerBlock(width) for _ in range(4)))
        self.readout = nn.Sequential(nn.Linear(width, channels), nn.LayerNorm(channels))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patches(images) + self.positions
        tokens = self.readout(self.blocks(patches.flatten(2).transpose(1, 2)))
        return tokens.transpose(1, 2).unflatten(2, patches.shape[2:])


_ENCODERS: list[type[TaskEncoder]] = [Encoder, ResidualEncoder, SeparableEncoder, TransformerEncoder]
FAMILIES = {encoder.family: encoder for encoder in _ENCODERS}


class Resize(nn.Upsample):
    """Square images of the bank at another size, as T of `support.zoo` resizes them: bilinear, nothing where it fits.

    Parameters
    ----------
    size : int
        Pixels along a side.

    Examples
    --------
    >>> tuple(Resize(96)(torch.rand(2, 3, 64, 64)).shape)
    (2, 3, 96, 96)
    """

    def __init__(self, size: int) -> None:
        super().__init__(size=(size, size), mode="bilinear", align_corners=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if images.shape[2:] == self.size else super().forward(images)


class Resample(nn.Module):
    """Representations on the decoders' 8 × 8 grid: bilinear, averaging where there are more positions than eight.

    One matrix, so that the gradient is the same every time on a GPU, too. Nothing is trained or stored.

    Parameters
    ----------
    side : int
        Positions along a side of the representation.

    Examples
    --------
    >>> tuple(Resample(6)(torch.rand(2, 24, 6, 6)).shape)
    (2, 24, 8, 8)
    """

    weights: torch.Tensor  # (64, side²)

    def __init__(self, side: int) -> None:
        super().__init__()
        lines = functional.interpolate(torch.eye(side)[None, None], (SIDE, side), mode="bilinear", antialias=True)[0, 0]
        self.register_buffer("weights", torch.kron(lines, lines), persistent=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return (values.flatten(2) @ self.weights.T).unflatten(2, (SIDE, SIDE))


class ImageDecoder(nn.Sequential):
    """Representations to images: (image, width, 8, 8) to (image, channels, 64, 64), about 46,000 values at width 8."""

    def __init__(self, channels: int, width: int = CHANNELS) -> None:
        super().__init__(
            _block(width, 64),
            _block(64, 32),
            nn.Upsample(scale_factor=2),
            _block(32, 48),
            nn.Upsample(scale_factor=2),
            _block(48, 16),
            nn.Conv2d(16, 4 * channels, 3, padding=1),
            nn.PixelShuffle(2),
        )


class VectorDecoder(nn.Sequential):
    """Representations to vectors: (image, width, 8, 8) to (image, length), at width 8 the size of an `ImageDecoder`."""

    def __init__(self, length: int, width: int = CHANNELS) -> None:
        super().__init__(nn.Flatten(), nn.Linear(width * SIDE * SIDE, 88), nn.ReLU(), nn.Linear(88, length))


class Head(nn.Sequential):
    """What a transfer trains on top of a frozen encoder: two convolutions and the target's decoder.

    The first convolution is as wide as the representation, which is resampled to the 8 × 8 grid before. All other
    layers are the same for all sources of a target, first weights included.

    Parameters
    ----------
    task : Task
        The target.
    shape : tuple of int, optional
        Of one image's representation: (channels, side, side).

    Examples
    --------
    >>> from support.bank.tasks import TASKS
    >>> tuple(Head(TASKS["edge2d"], (24, 6, 6))(torch.rand(2, 24, 6, 6)).shape)
    (2, 1, 64, 64)
    """

    def __init__(self, task: Task, shape: tuple[int, int, int] = Encoder.shape) -> None:
        super().__init__(_block(CHANNELS, 32), _block(32, CHANNELS), decoder(task))
        if shape != Encoder.shape:  # after the others, whose first weights it leaves as they are
            self[0] = nn.Sequential(*_to_grid(shape), *_block(shape[0], 32))


def _to_grid(shape):
    return [] if shape[1:] == (SIDE, SIDE) else [Resample(shape[1])]


def decoder(task: Task, shape: tuple[int, int, int] = Encoder.shape) -> nn.Module:
    """An untrained decoder for a task.

    Parameters
    ----------
    task : Task
        Its `kind` and `channels` say which.
    shape : tuple of int, optional
        Of one image's representation: (channels, side, side). It is resampled to the 8 × 8 grid where it has another.

    Returns
    -------
    ImageDecoder or VectorDecoder
        The latter for one vector, or one class, an image; behind a `Resample` where the grid is not 8 × 8.

    Raises
    ------
    ValueError
        The task is of no known kind.

    Examples
    --------
    >>> from support.bank.tasks import TASKS
    >>> tuple(decoder(TASKS["class_places"])(torch.rand(2, 8, 8, 8)).shape)
    (2, 8)
    """
    network: nn.Module
    if task.kind in ("image", "pixels"):
        network = ImageDecoder(task.channels, shape[0])
    elif task.kind in ("vector", "classes"):
        network = VectorDecoder(task.channels, shape[0])
    else:
        raise ValueError(f"task {task.name} is of the kind {task.kind!r}, expected image, pixels, vector or classes")
    return nn.Sequential(*_to_grid(shape), network) if _to_grid(shape) else network


def see_grey(encoder: TaskEncoder) -> None:
    """Let an encoder that was trained on grey images take the grey of coloured ones, as a part of itself.

    Grey is a weighted sum of the channels and the first layer is linear in them, so the conversion is a change of the
    first layer's weights. Grey images give the same representation as before.

    Parameters
    ----------
    encoder : TaskEncoder
        Changed in place.

    Examples
    --------
    >>> encoder, images = Encoder().eval(), torch.rand(1, 3, 64, 64)
    >>> see_grey(encoder)
    >>> torch.allclose(encoder(images), encoder(images.flip(1)))  # with weights for red and blue that are not the same
    False
    """
    with torch.no_grad():
        weight = next(module.weight for module in encoder.modules() if isinstance(module, nn.Conv2d))
        weight.copy_(weight.sum(1, keepdim=True) * torch.tensor(GREY, device=weight.device).view(1, 3, 1, 1))


def halved(network: nn.Module) -> dict[str, torch.Tensor]:
    """The values of a network as they are stored.

    Parameters
    ----------
    network : torch.nn.Module

    Returns
    -------
    dict of str to torch.Tensor
        float16, contiguous, on the CPU; without the counters of batch normalisation.

    Raises
    ------
    ValueError
        A value that is not finite in float16: the training diverged.

    Examples
    --------
    >>> {value.dtype for value in halved(Encoder()).values()}
    {torch.float16}
    """
    state = {
        name: value.detach().to("cpu", torch.float16).contiguous()
        for name, value in network.state_dict().items()
        if value.is_floating_point()
    }
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} is not finite in half precision: the training diverged")
    return state


def restore(network: Network, state: dict[str, torch.Tensor]) -> Network:
    """Put stored values into a network, for use and not for training.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place: its values become those of `state` in float32, frozen, and it goes into evaluation mode.
    state : dict of str to torch.Tensor
        As `halved` gives them.

    Returns
    -------
    torch.nn.Module
        The network.

    Raises
    ------
    ValueError
        Names or shapes that are not those of the network.

    Examples
    --------
    >>> restore(Encoder(), halved(Encoder())).training
    False
    """
    counters = {name: value for name, value in network.state_dict().items() if not value.is_floating_point()}
    try:
        network.load_state_dict({name: value.to(torch.float32) for name, value in state.items()} | counters)
    except RuntimeError as error:
        raise ValueError(f"these are not the values of a {type(network).__name__}: {error}") from None
    return network.eval().requires_grad_(False)


def read(path: str | Path, prefix: str) -> dict[str, torch.Tensor]:
    """Some tensors of a safetensors file.

    Parameters
    ----------
    path : str or Path
        The file.
    prefix : str
        Only tensors whose name begins with it and a full stop, e.g. a task.

    Returns
    -------
    dict of str to torch.Tensor
        Names without the prefix.

    Raises
    ------
    FileNotFoundError
        There is no such file; the message gives the command that makes it.
    ValueError
        The file is damaged, or none of its tensors bears the prefix; the message lists the prefixes there are.

    Examples
    --------
    >>> from support.bank import work
    >>> read(work.FOLDER / "encoders_seed0.safetensors", "edge2d")["0.0.weight"].shape
    torch.Size([24, 3, 3, 3])
    """
    with _opened(path) as file:
        found = {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix + ".")}  # noqa: SIM118
        if not found:
            raise ValueError(f"{path} holds nothing for {prefix!r}; it holds {', '.join(_prefixes(file))}")
    return {name.removeprefix(prefix + "."): value for name, value in found.items()}


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {path}: python -m support.bank all") from None
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}): delete it and run python -m support.bank all") from None


def _prefixes(file):
    return sorted({name.split(".")[0] for name in file.keys()})  # noqa: SIM118


def families(path: str | Path) -> dict[str, str]:
    """Family of every encoder of a file.

    Parameters
    ----------
    path : str or Path
        ``encoders_seedS.safetensors`` or ``crossed_encoders_seedS.safetensors``.

    Returns
    -------
    dict of str to str
        Of each name in the file, one of `FAMILIES`: plain where the file does not say.

    Raises
    ------
    FileNotFoundError
        There is no such file; the message gives the command that makes it.
    ValueError
        The file is damaged, or it names an unknown family.

    Examples
    --------
    >>> from support.bank import work
    >>> families(work.FOLDER / "encoders_seed0.safetensors")["edge2d"]
    'plain'
    """
    with _opened(path) as file:
        names = _prefixes(file)
        told = json.loads((file.metadata() or {}).get("families", "{}"))
    unknown = [f"{name} is of the family {family!r}" for name, family in told.items() if family not in FAMILIES]
    if unknown:
        raise ValueError(f"{path}: {', '.join(unknown)}; known are {', '.join(FAMILIES)}")
    return {name: told.get(name, "plain") for name in names}


def load_encoder(path: str | Path, name: str) -> TaskEncoder:
    """A trained encoder of the bank.

    Parameters
    ----------
    path : str or Path
        ``encoders_seedS.safetensors`` or ``crossed_encoders_seedS.safetensors``.
    name : str
        Its task, ``"random"``, or its task and family, as ``"edge2d@residual"``.

    Returns
    -------
    TaskEncoder
        One of `FAMILIES`, in evaluation mode, frozen, float32, on the CPU.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `read` and `families`.

    Examples
    --------
    >>> from support.bank import work
    >>> load_encoder(work.FOLDER / "encoders_seed0.safetensors", "edge2d").family
    'plain'
    """
    state = read(path, name)
    return restore(FAMILIES[families(path)[name]](), state)


def load_decoder(path: str | Path, task: Task, shape: tuple[int, int, int] = Encoder.shape) -> nn.Module:
    """A trained decoder of the bank.

    Parameters
    ----------
    path : str or Path
        ``decoders_seedS.safetensors``.
    task : Task
        Its task.
    shape : tuple of int, optional
        Of the encoder.

    Returns
    -------
    torch.nn.Module
        As `decoder` gives it, in evaluation mode, frozen, float32, on the CPU.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `read`.

    Examples
    --------
    >>> from support.bank import work
    >>> from support.bank.tasks import TASKS
    >>> type(load_decoder(work.FOLDER / "decoders_seed0.safetensors", TASKS["edge2d"])).__name__
    'ImageDecoder'
    """
    return restore(decoder(task, shape), read(path, task.name))
