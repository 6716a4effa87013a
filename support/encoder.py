"""A pre-trained network as the method needs it: its preprocessing T, the way back T⁻¹, its representation R."""

import functools
import math
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from torch import nn
from torch.nn import functional

from support import identity
from support.running import plainly

AXES = ("image", "y", "x", "channel")
SINGLE = ("GREY", "LIGHTNESS")  # of one channel
CHANNELS = ("RGB", "BGR", *SINGLE)
LAYOUTS = ("NCHW", "NHWC")
PREPROCESSING = ("input_size", "scale", "mean", "std", "channels", "grey", "layout")  # the arguments that make T
ROUNDING = 2.0**-22  # relative: what rounding may do to an image in single precision
TOLERANCE = 1e-4  # by how much of its largest unit an image's representation may depend on the size of its batch


@functools.lru_cache(maxsize=64)
def overlap(n_out: int, n_in: int) -> torch.Tensor:
    """How the cells of two grids over one interval overlap: the matrix that T⁻¹ multiplies rows and columns with.

    Parameters
    ----------
    n_out, n_in : int
        Cells of the grid that is wanted, and of the one that is there.

    Returns
    -------
    torch.Tensor
        float32 (n_out, n_in): the share of each input cell that lies in each output cell. Columns sum to 1.

    Examples
    --------
    >>> overlap(2, 3)
    tensor([[1.0000, 0.5000, 0.0000],
            [0.0000, 0.5000, 1.0000]])
    """
    starts_out, starts_in = np.arange(n_out)[:, None] * n_in, np.arange(n_in)[None] * n_out
    shared = np.minimum(starts_out + n_in, starts_in + n_out) - np.maximum(starts_out, starts_in)
    return torch.from_numpy((np.clip(shared, 0, None) / n_out).astype(np.float32))


def lightness(colours: torch.Tensor) -> torch.Tensor:
    """Lightness L* of CIELAB, divided by 100, of sRGB colours (IEC 61966-2-1; CIE 1976, white point D65).

    Parameters
    ----------
    colours : torch.Tensor
        (image, 3, y, x), floats in [0, 1].

    Returns
    -------
    torch.Tensor
        (image, 1, y, x), in [0, 1].

    Examples
    --------
    >>> lightness(torch.tensor([0.0, 0.5, 1.0]).expand(1, 3, 1, 3)).round(decimals=2)
    tensor([[[[0.0000, 0.5300, 1.0000]]]])
    """
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance = torch.einsum("c,ncyx->nyx", linear.new_tensor((0.212671, 0.715160, 0.072169)), linear)[:, None]
    return 1.16 * torch.where(luminance > 0.008856, luminance ** (1 / 3), 7.787 * luminance + 16 / 116) - 0.16


class NotARepresentation(ValueError):
    """What a network was asked for is none: a layer that is not called, or that makes no tensor."""


class Encoder:
    """A pre-trained network with its preprocessing T, its way back T⁻¹ and the place of its representation R.

    The constructor puts the network in evaluation mode and freezes its parameters.

    Parameters
    ----------
    name : str
        What `zoo.load` calls it, e.g. ``"package:mobilenet_v2"``; for the task bank and Taskonomy the bare
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
    channels : {"RGB", "BGR", "GREY", "LIGHTNESS"}, optional
        The network's input channels, in their order; the last two are single ones: a weighted sum of the colours, and
        what the function `lightness` makes of them.
    grey : sequence of three floats, optional
        Of "GREY": the weights of red, green and blue in it, positive with the sum 1. A third each by default, as always
        for "LIGHTNESS", where they serve T⁻¹ alone.
    layout : {"NCHW", "NHWC"}, optional
        Axes of the network's inputs: (image, channel, y, x) or (image, y, x, channel).
    card : dict, optional
        title, trained_on, licence, package, version, file, sha256, parameters (trained values, with the statistics of
        batch normalisation), representation (what R is, in a sentence).
    sources : mapping of str to str, optional
        What else decides what the network computes: the SHA-256 of files with code, the versions of packages. It is
        part of the `fingerprint`.

    Attributes
    ----------
    network : torch.nn.Module
        As given.
    representation : callable
        What `represent` calls.
    modules : tuple of torch.nn.Module
        The network, and the representation where that is a module too.
    mixing : torch.Tensor
        (channel of the network, colour): T multiplies colours with it, T⁻¹ with its transpose. Of lightness T is not
        linear, and this is the matrix of T⁻¹ alone.
    scale, mean, std : float, torch.Tensor, torch.Tensor
        As given; the tensors are float32 (channel of the network, 1, 1).

    Raises
    ------
    ValueError
        An argument of another kind: `channels`, `layout` or `grey` other than described, no module, a network that
        was compiled into TorchScript or by torch.export, a `std` of zero. The message has the encoder's name.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 3 * 3, 2))
    >>> encoder = Encoder("mine", network, task="none", family="toy", input_size=(8, 8), represent=network[:2])
    >>> encoder.represent(encoder.preprocess(np.zeros((5, 16, 16, 3)))).shape
    torch.Size([5, 4, 3, 3])
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        task: str,
        family: str,
        input_size: Sequence[int],
        represent: Callable[[torch.Tensor], torch.Tensor] | None = None,
        scale: float = 1.0,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        channels: str = "RGB",
        grey: Sequence[float] = (1 / 3, 1 / 3, 1 / 3),
        layout: str = "NCHW",
        card: Mapping | None = None,
        sources: Mapping[str, str] | None = None,
    ):
        self.sources = {} if sources is None else sources  # first, so that it is unpickled before what needs it
        if not isinstance(name, str):
            raise ValueError(f"the name of an encoder is a {type(name).__name__}, expected a string")
        self.name, self.task, self.family = name, task, family
        if channels not in CHANNELS:
            raise self._refused(f"channels is {channels!r}, expected {', '.join(map(repr, CHANNELS))}")
        if layout not in LAYOUTS:
            raise self._refused(f"layout is {layout!r}, expected {' or '.join(map(repr, LAYOUTS))}")
        weights = self._numbers("grey", grey)
        if len(weights) != 3 or min(weights) <= 0 or abs(sum(weights) - 1) > 1e-6:
            raise self._refused(f"grey is {grey}, expected positive weights of red, green and blue with the sum 1")
        self.channels, self.layout = channels, layout
        if channels == "LIGHTNESS" and len(set(weights)) > 1:
            raise self._refused(f"grey is {grey}: lightness is no weighted sum of the colours, leave it out")
        single = channels in SINGLE
        self.mixing = torch.tensor([weights]) if single else torch.eye(3)[["RGB".index(c) for c in channels]]
        self.input_size = self._size(input_size)
        (self.scale,) = self._numbers("scale", scale, 1)
        if self.scale == 0:
            raise self._refused("scale is 0: every image would become the same")
        n_channels = len(self.mixing)
        if 0 in self._numbers("std", std, n_channels):
            raise self._refused(f"std is {std}, expected what the channels can be divided by: no zero")
        self.mean, self.std = (
            torch.tensor(self._numbers(key, value, n_channels)).expand(n_channels).view(-1, 1, 1)
            for key, value in (("mean", mean), ("std", std))
        )
        if card is not None and not isinstance(card, Mapping):
            raise self._refused(f"card is a {type(card).__name__}, expected a dictionary")
        self.card = dict(card or {})
        self.network = network
        self._check_network()
        self.representation = getattr(network, "represent", network) if represent is None else represent
        if not callable(self.representation):
            raise self._refused(f"represent is a {type(self.representation).__name__}, expected a function of inputs")
        for module in self.modules:
            module.eval().requires_grad_(False)
        self._probe_size: tuple[int, ...] | None = None
        self._device = torch.device("cpu")
        self.to(next((tensor.device for tensor in network.parameters()), self._device))

    def __repr__(self):
        return f"Encoder({self.name}: {self.task}, {self.family})"

    def _refused(self, what):
        return ValueError(f"{self.name}: {what}" if self.name else what)

    def _numbers(self, key, value, n_most=None):
        """One finite number, or several, as a list."""
        values = np.ravel(np.asarray(value.tolist() if hasattr(value, "tolist") else value, object)).tolist()
        if not all(isinstance(one, numbers.Real) and math.isfinite(one) for one in values):
            raise self._refused(f"{key} is {value!r}, expected finite numbers")
        if n_most and len(values) not in {1, n_most}:
            raise self._refused(f"{key} has {len(values)} values, expected 1 or {n_most}")
        return [float(one) for one in values]

    def _size(self, size):
        lengths = list(size) if isinstance(size, Sequence | np.ndarray) and not isinstance(size, str) else [size]
        if len(lengths) != 2 or not all(isinstance(one, numbers.Integral) and one > 0 for one in lengths):
            raise self._refused(f"input_size is {size!r}, expected (height, width) in whole pixels")
        return tuple(int(one) for one in lengths)

    def _check_network(self):
        kind = type(self.network)
        if not isinstance(self.network, nn.Module):
            raise self._refused(f"the network is a {kind.__name__}, expected a torch.nn.Module")
        modules = list(self.network.modules())
        if any(isinstance(module, torch.jit.ScriptModule) for module in modules):
            raise self._refused("a TorchScript network cannot be looked into: give the network that it was made from")
        if any(base.__module__.startswith("torch.export") for module in modules for base in type(module).__mro__):
            raise self._refused("a network of torch.export is fixed as it is: give the network that it was made from")
        if any(type(module).__name__ == "OptimizedModule" for module in modules):
            raise self._refused("a network of torch.compile cannot be looked into: give the network itself")

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The network, and the representation where that is a module too."""
        return (self.network, *([self.representation] if isinstance(self.representation, nn.Module) else []))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._device

    def to(self, device: str | torch.device) -> "Encoder":
        """Move the network; inputs are made there from then on.

        Parameters
        ----------
        device : str or torch.device
            E.g. ``"cpu"`` or ``"cuda"``.

        Returns
        -------
        Encoder
            This one.

        Raises
        ------
        ValueError
            There is no such device here.

        Examples
        --------
        >>> Encoder("mine", nn.Identity(), task="none", family="toy", input_size=(8, 8)).to("cpu").device
        device(type='cpu')
        """
        try:
            device = torch.device(device)
            for module in self.modules:
                module.to(device)
        except (RuntimeError, AssertionError, TypeError) as error:
            if "out of memory" in str(error):
                raise
            raise self._refused(f"device {str(device)!r} cannot be used here: {_first_line(error)}") from error
        self._device = device
        return self

    def preprocess(self, images: xr.DataArray | np.ndarray | torch.Tensor) -> torch.Tensor:
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

        Examples
        --------
        >>> encoder = Encoder("mine", nn.Identity(), task="none", family="toy", input_size=(4, 6), mean=0.5, std=0.5)
        >>> inputs = encoder.preprocess(np.ones((1, 8, 12, 3)))
        >>> inputs.shape, inputs.min().item()
        (torch.Size([1, 3, 4, 6]), 1.0)
        """
        values = _as_images(images).to(self._device).permute(0, 3, 1, 2)
        self._probe_size = tuple(values.shape[2:])
        if self._probe_size != self.input_size:
            values = functional.interpolate(
                values, self.input_size, mode="bilinear", align_corners=False, antialias=True
            )
        if self.channels == "LIGHTNESS":
            values = lightness(values)
        elif self.channels != "RGB":
            values = torch.einsum("oc,ncyx->noyx", self.mixing.to(self._device), values)
        values = (values * self.scale - self.mean.to(self._device)) / self.std.to(self._device)
        return (values.permute(0, 2, 3, 1) if self.layout == "NHWC" else values).contiguous()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image as the network gets it, in the order of `layout`."""
        n_channels = len(self.mixing)
        return (*self.input_size, n_channels) if self.layout == "NHWC" else (n_channels, *self.input_size)

    def restore(self, maps: torch.Tensor | np.ndarray, size: Sequence[int] | None = None) -> torch.Tensor:
        """T⁻¹: maps in the shape of the network's inputs, brought back to the probe's size, channels and axes.

        Linear, and the sum over y and x of every map is kept: a probe pixel gets from each input pixel the share of
        its area that they have in common (first-order conservative remapping: Jones, "First- and Second-Order
        Conservative Remapping Schemes for Grids in Spherical Coordinates", Monthly Weather Review 127, 1999).

        The map of a grey channel is shared out over red, green and blue with the weights that made it grey. That is
        the chain rule for a gradient; and it keeps the sum over the channels, so that gradient × input, summed or
        averaged over the colours, is what it would be if the network did the mixing itself. Colour by colour it is
        only for a grey probe, because the input's colours are lost in T.

        The map of lightness is shared out in equal parts. Lightness is not linear in the colours, so that the chain
        rule would weight every pixel by how steep lightness is there, and T⁻¹ would depend on the image. Equal parts
        keep the sum over the channels: the mean over them, which equation (1) compares as published, is the map of the
        one channel, up to a factor that no cosine sees.

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

        Examples
        --------
        >>> encoder = Encoder("mine", nn.Identity(), task="none", family="toy", input_size=(4, 6))
        >>> restored = encoder.restore(torch.ones(1, 3, 4, 6), size=(8, 8))
        >>> restored.shape, restored.sum().item()
        (torch.Size([1, 8, 8, 3]), 72.0)
        """
        maps = torch.as_tensor(maps).to(torch.float32)
        if maps.ndim != 4 or tuple(maps.shape[1:]) != self.input_shape:
            raise ValueError(
                f"maps have the shape {tuple(maps.shape)}, expected (image, {', '.join(map(str, self.input_shape))}): "
                f"the {self.layout} inputs of {self.name}"
            )
        size = size or self._probe_size
        if size is None:
            raise ValueError("the probe's size is not known: preprocess the images first, or give size=(height, width)")
        if self.layout == "NHWC":
            maps = maps.permute(0, 3, 1, 2)
        if self.channels != "RGB":
            maps = torch.einsum("oc,noyx->ncyx", self.mixing.to(maps.device), maps)
        if tuple(size) != self.input_size:
            rows, columns = (overlap(new, old).to(maps.device) for new, old in zip(size, self.input_size, strict=True))
            maps = rows @ maps @ columns.T
        return maps.permute(0, 2, 3, 1).contiguous()

    def represent(self, inputs: torch.Tensor) -> torch.Tensor:
        """R: the representation of preprocessed inputs, differentiable with respect to them.

        Parameters
        ----------
        inputs : torch.Tensor
            As `preprocess` gives them; they stay as they are, also where the network changes its input.

        Returns
        -------
        torch.Tensor
            (image, channel, y, x) or (image, features), float32.

        Examples
        --------
        >>> encoder = Encoder("mine", nn.AvgPool2d(2), task="none", family="toy", input_size=(4, 6))
        >>> encoder.represent(torch.ones(1, 3, 4, 6)).shape
        torch.Size([1, 3, 2, 3])
        """
        return self.representation(inputs.clone())

    def predict(self, inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The network's full output, head included.

        Parameters
        ----------
        inputs : torch.Tensor
            As `preprocess` gives them; they stay as they are.

        Returns
        -------
        torch.Tensor or tuple of torch.Tensor
            Whatever the network was trained to say.

        Examples
        --------
        >>> encoder = Encoder("mine", nn.Flatten(), task="none", family="toy", input_size=(4, 6))
        >>> encoder.predict(torch.ones(1, 3, 4, 6)).shape
        torch.Size([1, 72])
        """
        return self.network(inputs.clone())

    def fingerprint(self) -> str:
        """SHA-256 of what the encoder computes with: to tell networks of one name apart.

        It covers the name, the preprocessing, all weights and buffers, the structure of the network, the choice of the
        representation, `sources` (for a ``python:`` network every file of code as it was loaded), and of a network or a
        function that is in no file listed there its code (see `support.identity.sha256`).

        Returns
        -------
        str
            64 hexadecimal digits; on any device, and in every process of one version of Python, the same.

        Examples
        --------
        >>> one, two = (Encoder("a", nn.ReLU(), task="", family="", input_size=(4, 4), mean=m) for m in (0, 0.5))
        >>> one.fingerprint() == two.fingerprint()
        False
        """
        settings = (self.input_size, self.channels, self.layout, self.scale, self.mean, self.std, self.mixing)
        return identity.sha256(self.name, settings, dict(self.sources), *self.modules, self.representation)

    def trial(self, n_images: int) -> torch.Tensor:
        """Random inputs in the shape of the network's, the same in every call: to try the network with.

        Parameters
        ----------
        n_images : int
            How many.

        Returns
        -------
        torch.Tensor
            float32 (image, …) on the encoder's device, standard normal.

        Examples
        --------
        >>> Encoder("mine", nn.Flatten(), task="none", family="toy", input_size=(4, 6)).trial(2).shape
        torch.Size([2, 3, 4, 6])
        """
        values = np.random.default_rng(0).standard_normal((n_images, *self.input_shape), np.float32)
        return torch.from_numpy(values).to(self._device)

    def cannot_run(self, error: Exception) -> ValueError:
        """What to say of an error that the network raises when it is called: whose it is, and what may help.

        Parameters
        ----------
        error : Exception
            What it raised.

        Returns
        -------
        ValueError
            To be raised from `error`.

        Examples
        --------
        >>> encoder = Encoder("mine", nn.Conv2d(4, 2, 1), task="none", family="toy", input_size=(4, 6))
        >>> print(encoder.cannot_run(RuntimeError("expected 4 channels")))  # doctest: +ELLIPSIS
        mine cannot be run with images of 4 × 6 pixels, RGB, NCHW: its first convolution reads 4 channels, ...
        """
        if isinstance(error, NotARepresentation):
            return self._refused(str(error))
        values = [*self.network.parameters(), *self.network.buffers()]
        kinds = {value.dtype for value in values if value.is_floating_point()} - {torch.float32}
        first = next((module for module in self.network.modules() if isinstance(module, nn.Conv2d)), None)
        n_channels = len(self.mixing)
        if kinds:
            kind = str(kinds.pop()).removeprefix("torch.")
            advice = f"its weights are {kind} and its inputs float32; call .float() on the network where it is made"
        elif first is not None and first.in_channels not in (1, 3):
            advice = (
                f"its first convolution reads {first.in_channels} channels, and an image has three, or one that is "
                "grey; it needs a layer before it that makes its channels of these"
            )
        elif first is not None and first.in_channels != n_channels and self.layout == "NCHW":
            other = "'GREY'" if n_channels == 3 else "'RGB' or 'BGR'"
            advice = f"its first convolution reads {first.in_channels} channels; channels={other} gives it that"
        else:
            advice = "another input_size, channels or layout in its preprocessing can say otherwise"
        sizes = " × ".join(map(str, self.input_size))
        return ValueError(
            f"{self.name} cannot be run with images of {sizes} pixels, {self.channels}, {self.layout}: {advice}. "
            f"It says: {_first_line(error)}"
        )

    def check(self) -> None:
        """Refuse a representation that attribution could do nothing with, or that would give wrong maps.

        Two passes with random images, each with its gradient: one with two images, one with the first alone, which has
        to give what it gives in the batch, to `TOLERANCE`. A network that draws random numbers is refused; one that
        changes its own state has to give the same bits in a third pass.

        Raises
        ------
        ValueError
            The network cannot be run, is in training mode, is random or remembers; the representation is no tensor of
            floats with an axis of images, is not finite, has no gradient, or depends on the other images of the batch.
            The message has the encoder's name.
        MemoryError
            Two images do not fit into memory.

        Warns
        -----
        UserWarning
            The mean of the representation's units does not depend on the image.

        Examples
        --------
        >>> Encoder("mine", nn.Dropout(), task="none", family="toy", input_size=(4, 6)).check()
        >>> Encoder("mine", nn.Softmax(0), task="none", family="toy", input_size=(4, 6)).check()
        Traceback (most recent call last):
        ValueError: mine: the representation of an image depends on the other images of its batch
        """
        training = [name for one in self.modules for name, module in one.named_modules() if module.training]
        if training:
            where = f" ({training[0]})" if training[0] else ""
            raise self._refused(f"the network is in training mode{where}: call its eval()")
        inputs = self.trial(2)
        inputs[1] = 0.5 * inputs[1] + 0.5  # of another contrast and brightness, so that statistics of a batch show
        (units, in_batch, _), drawn, state = self._try(inputs), _random_states(), self.state()
        alone, slope, of_mean = self._try(inputs[:1])
        random = _random_states() != drawn
        if not random and self.state() != state:
            again = self._try(inputs[:1])
            random = not (torch.equal(again[0], alone) and torch.equal(again[1], slope))
        if random:
            raise self._refused(
                "the representation of the same images, or its gradient, differs from call to call: the network is "
                "random at evaluation (dropout without training=self.training, for example), or remembers what it saw"
            )
        if (
            alone.shape[1:] != units.shape[1:]
            or in_batch[1].any()
            or self._differs(inputs, alone, units, slope, in_batch)
        ):
            raise self._refused("the representation of an image depends on the other images of its batch")
        if not slope.any():
            raise self._refused(
                "the representation has no gradient with respect to the image: it was cut on the way (detach, no_grad, "
                "a detour over NumPy), or is flat; name another layer or tensor after a #"
            )
        if of_mean.abs().max() < 1e-5 * slope.abs().max():
            warnings.warn(
                f"{self.name}: the mean of the representation's units does not depend on the image, so that the "
                "methods of the paper have nothing to attribute (so it is after a softmax, and after a layer norm with "
                "random weights); name an earlier layer or tensor after a #",
                stacklevel=3,
            )

    def _differs(self, inputs, alone, units, slope, in_batch):
        """Whether an image gives something else in a batch, by more than rounding explains."""
        factor = 1 if self.device.type == "cpu" else 100  # a GPU's short floats
        apart = (alone[0] - units[0]).abs().max(), (slope[0] - in_batch[0]).norm()
        # a unit that is rounded to the other side of a bend changes single values of the gradient
        most = TOLERANCE * factor * units[0].abs().max(), TOLERANCE * 100 * factor**0.5 * in_batch[0].norm()
        if apart[0] <= most[0] and apart[1] <= most[1]:
            return False
        again, same, _ = self._try(inputs[:1])
        if not (torch.equal(again, alone) and torch.equal(same, slope)):
            return True
        # a deep network with random weights has many bends: how much does it change for an image that only rounding
        # tells from this one?
        signs = torch.from_numpy(np.random.default_rng(1).choice([-1.0, 1.0], inputs[:1].shape)).to(inputs)
        nudged, bent, _ = self._try(inputs[:1] * (1 + ROUNDING * signs))
        rounding = (nudged[0] - alone[0]).abs().max(), (bent[0] - slope[0]).norm()
        return bool(apart[0] > most[0] + 10 * rounding[0] or apart[1] > most[1] + 10 * rounding[1])

    def state(self) -> list:
        """What tells whether the network is still what it was: modes, plain attributes, versions of all tensors.

        Returns
        -------
        list
            Equal to an earlier one unless something was changed, other than by way of `Tensor.data`.

        Examples
        --------
        >>> encoder = Encoder("mine", nn.BatchNorm2d(3), task="none", family="toy", input_size=(4, 6))
        >>> before = encoder.state()
        >>> encoder.network.running_mean += 1
        >>> encoder.state() == before
        False
        """
        found: list = [id(one) for one in (*self.modules, self.representation, vars(self).get("represent"))]
        for path, module in self.network.named_modules():
            found += [(path, k, v) for k, v in vars(module).items() if isinstance(v, bool | int | float | str)]
            tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            found += [(path, k, id(v), 0 if v.is_inference() else v._version) for k, v in tensors]
        return found

    def _try(self, inputs):
        """Representation, which has to be a tensor of finite floats with an axis of images, and two gradients.

        Those of the first image: of its units' sum with signs at random, and, of an image alone, of their sum.
        """
        leaf, n_images = inputs.detach().requires_grad_(), len(inputs)
        try:
            with torch.enable_grad(), plainly():
                units = self.represent(leaf)
            what = f"a {type(units).__name__}"
            if torch.is_tensor(units):
                what = f"a tensor of {str(units.dtype).removeprefix('torch.')} of shape {tuple(units.shape)}"
            expected = torch.is_tensor(units) and units.ndim in (2, 4) and len(units) == n_images and units.numel()
            if not expected or not units.is_floating_point():
                raise NotARepresentation(
                    f"the representation of {n_images} images is {what}, expected floats, (image, channel, y, x) or "
                    f"(image, features), with an axis of {n_images} images"
                )
            if not torch.isfinite(units).all():
                raise NotARepresentation("the representation of random images is not finite")
            signs = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], units.shape[1:])).to(units)
            sums, slopes = [(units[0] * signs).sum()], []
            if n_images == 1:
                sums.append(units.sum())
            for value in sums:
                slope = None
                if units.requires_grad:
                    (slope,) = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)
                slopes.append(torch.zeros_like(leaf) if slope is None else slope)
        except Exception as error:  # whatever the network stumbles over
            if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
                raise MemoryError(f"{self.name}: {n_images} images do not fit into memory") from error
            raise self.cannot_run(error) from error
        if not torch.isfinite(slopes[0]).all():
            raise self._refused("the gradient of the representation is not finite for random images")
        return units.detach(), slopes[0], slopes[-1]


def _first_line(error):
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _random_states():
    """What changes when random numbers of torch or NumPy are drawn."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return [state.numpy().tobytes() for state in states], kind, keys.tobytes(), rest


def _as_images(images):
    """Checked copy of a batch of images as a float32 tensor (image, y, x, channel)."""
    if isinstance(images, xr.DataArray):
        if set(images.dims) != set(AXES):
            raise ValueError(f"images have the axes {images.dims}, expected {AXES}")
        images = images.transpose(*AXES).values
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
