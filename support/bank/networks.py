"""The networks of the task bank: one encoder for all tasks, decoders for images and for vectors, a transfer head."""

import itertools

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

SIZE = 64  # pixels along a side of the images
CHANNELS, SIDE = 8, 8  # of the representation: CHANNELS × SIDE × SIDE values
GREY = (0.2125, 0.7154, 0.0721)  # weights of red, green and blue, those of skimage.color.rgb2gray
MEAN, STD = 0.5, 0.5  # taken off and divided into images in [0, 1], for every network of the bank


def normalise(images):
    """The networks' inputs for images.

    Parameters
    ----------
    images : torch.Tensor
        (image, channel, y, x): floats in [0, 1], or bytes in [0, 255].

    Returns
    -------
    torch.Tensor
        Floats in [−1, 1] of the same shape; float32 for bytes.
    """
    if images.dtype == torch.uint8:
        images = images.to(torch.float32) / 255
    return (images - MEAN) / STD


def _block(inputs, outputs, kernel=3, stride=1):
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Encoder(nn.Sequential):
    """The encoder of every task: 64 × 64 images to an 8 × 8 × 8 representation.

    Five 3 × 3 convolutions of 24, 48, 48, 96 and 96 channels and a 1 × 1 convolution to eight, each followed by batch
    normalisation and ReLU. No unit of the representation is therefore negative, as in the published Taskonomy
    encoders, whose last layers are the same: without it a unit's sign is arbitrary, and so is the mean of the units.

    Inputs are (image, 3, 64, 64) floats as `normalise` gives them, outputs (image, 8, 8, 8).
    """

    size, shape = SIZE, (CHANNELS, SIDE, SIDE)
    is_signed = False

    def __init__(self):
        super().__init__(
            _block(3, 24, stride=2),
            _block(24, 48, stride=2),
            _block(48, 48),
            _block(48, 96, stride=2),
            _block(96, 96),
            _block(96, CHANNELS, kernel=1),
        )


class ImageDecoder(nn.Sequential):
    """Representations to images: (image, 8, 8, 8) to (image, channels, 64, 64), about 46,000 values to train."""

    def __init__(self, channels):
        super().__init__(
            _block(CHANNELS, 64),
            _block(64, 32),
            nn.Upsample(scale_factor=2),
            _block(32, 48),
            nn.Upsample(scale_factor=2),
            _block(48, 16),
            nn.Conv2d(16, 4 * channels, 3, padding=1),
            nn.PixelShuffle(2),
        )


class VectorDecoder(nn.Sequential):
    """Representations to vectors: (image, 8, 8, 8) to (image, length), about as many values as an `ImageDecoder`."""

    def __init__(self, length):
        super().__init__(nn.Flatten(), nn.Linear(CHANNELS * SIDE * SIDE, 88), nn.ReLU(), nn.Linear(88, length))


class Head(nn.Sequential):
    """What a transfer trains on top of a frozen encoder: two convolutions and the target's decoder.

    Parameters
    ----------
    task : Task
        The target.
    """

    def __init__(self, task):
        super().__init__(_block(CHANNELS, 32), _block(32, CHANNELS), decoder(task))


def decoder(task):
    """An untrained decoder for a task.

    Parameters
    ----------
    task : Task
        Its `kind` and `channels` say which.

    Returns
    -------
    ImageDecoder or VectorDecoder
        The latter for one vector, or one class, an image.

    Raises
    ------
    ValueError
        The task is of no known kind.
    """
    if task.kind in ("image", "pixels"):
        return ImageDecoder(task.channels)
    if task.kind in ("vector", "classes"):
        return VectorDecoder(task.channels)
    raise ValueError(f"task {task.name} is of the kind {task.kind!r}, expected image, pixels, vector or classes")


def see_grey(encoder):
    """Let an encoder that was trained on grey images take the grey of coloured ones, as a part of itself.

    Grey is a weighted sum of the channels and the first layer is linear in them, so the conversion is a change of the
    first layer's weights. Grey images give the same representation as before.

    Parameters
    ----------
    encoder : Encoder
        Changed in place.
    """
    with torch.no_grad():
        weight = encoder[0][0].weight
        weight.copy_(weight.sum(1, keepdim=True) * torch.tensor(GREY, device=weight.device).view(1, 3, 1, 1))


def halved(network):
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


def restore(network, state):
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
    """
    counters = {name: value for name, value in network.state_dict().items() if not value.is_floating_point()}
    try:
        network.load_state_dict({name: value.to(torch.float32) for name, value in state.items()} | counters)
    except RuntimeError as error:
        raise ValueError(f"these are not the values of a {type(network).__name__}: {error}") from None
    return network.eval().requires_grad_(False)


def read(path, prefix):
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
    """
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            found = {name: file.get_tensor(name) for name in names if name.startswith(prefix + ".")}
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {path}: python -m support.bank all") from None
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}): delete it and run python -m support.bank all") from None
    if not found:
        known = [name for name, _ in itertools.groupby(sorted(name.split(".")[0] for name in names))]
        raise ValueError(f"{path} holds nothing for {prefix!r}; it holds {', '.join(known)}")
    return {name.removeprefix(prefix + "."): value for name, value in found.items()}


def load_encoder(path, task):
    """A trained encoder of the bank.

    Parameters
    ----------
    path : str or Path
        ``encoders_seedS.safetensors``.
    task : str
        Name of its task, or ``"random"``.

    Returns
    -------
    Encoder
        In evaluation mode, frozen, float32, on the CPU.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `read`.
    """
    return restore(Encoder(), read(path, task))


def load_decoder(path, task):
    """A trained decoder of the bank.

    Parameters
    ----------
    path : str or Path
        ``decoders_seedS.safetensors``.
    task : Task
        Its task.

    Returns
    -------
    ImageDecoder or VectorDecoder
        In evaluation mode, frozen, float32, on the CPU.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `read`.
    """
    return restore(decoder(task), read(path, task.name))
