"""Which tensor of a network is its representation, where nobody says; and how to get it out of a torch network."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from support.encoder import NotARepresentation
from support.sources import shared

# Operations of autograd that mix the units of their input, and which of their operands are multiplied.
_PRODUCTS = dict.fromkeys(("Convolution", "ConvolutionOverrideable", "ConvDepthwise2D", "MkldnnConvolution"), slice(2))
_PRODUCTS |= dict.fromkeys(("Addmm", "Addbmm", "Baddbmm", "Addmv", "Addr"), slice(1, None))  # the first is a summand
_PRODUCTS |= dict.fromkeys(("Mm", "Bmm", "Mv", "Dot", "Vdot", "Inner", "Linear", "MkldnnLinear"), slice(None))
_PRODUCTS |= dict.fromkeys(("Trilinear", "Cdist", "EuclideanDist"), slice(None))
_PRODUCTS |= dict.fromkeys(("MkldnnRnnLayer", "CudnnRnn", "MiopenRnn"), slice(None))
# Those that mix nothing: a parameter is added, put beside the units, or scales each channel.
_UNMIXED = {"Add", "Cat", "Stack", "Where", "IndexPut", "Copy", "CopySlices", "PreluKernel"}
_UNMIXED |= {"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "NativeLayerNorm", "NativeGroupNorm"}
_UNMIXED |= {"FusedRmsNorm"}


class Feature(NamedTuple):
    """What one layer makes (or, `of` "input", reads) for one image."""

    name: str
    shape: tuple[int, ...]  # without the axis of images
    order: int  # when
    of: str = "output"
    goes_on: bool = True  # whether it may reach a learned layer
    call: int = -1  # of a layer that is called more than once, which of the calls

    @property
    def label(self) -> str:
        """The name, and which call it is where that is not the last."""
        return self.name if self.call < 0 else f"{self.name}, call {self.call + 1}"


def _grid(shape, size):
    """Channels and (height, width) of one image's features; the channels may be last."""

    def is_reduced(height, width):  # by the same factor in both directions, up to rounding
        return abs(height - width * size[0] / size[1]) < 1

    channels_last = is_reduced(*shape[:2]) and not is_reduced(*shape[1:])
    return (shape[2], shape[:2]) if channels_last else (shape[0], shape[1:])


def _positions(shape, size):
    return math.prod(_grid(shape, size)[1]) if len(shape) == 3 else 0


def choose(
    made: list[Feature],
    read: list[Feature],
    results: list[tuple[int, ...]],
    size: tuple[int, int],
    is_passed: Callable[[Feature], bool],
) -> tuple[Feature, dict[str, str]]:
    """The most compact features before the head.

    Features have a place in the image, four axes and more than one position, and a learned layer (a product with
    something that the network holds: convolution or matrix) after them. The coarsest grid is taken. On it, what
    everything has to pass through: where a finer grid follows (a decoder) the narrowest, otherwise (pooling,
    flattening) the last; the last on that grid, where all is bypassed, as in a U-Net. If the last features are tokens,
    (image, token, channel), it is what the next learned layer reads, where that is one vector an image (the class
    token, or a mean), and otherwise the tokens. A network in which nothing has a place: the last vector before a
    learned layer.

    Parameters
    ----------
    made : list of Feature
        What the layers make, in the order in which they run.
    read : list of Feature
        What the learned layers read, in the same order.
    results : list of tuple of int
        Shapes of what the network as a whole gives for one image.
    size : tuple of int
        (height, width) of the images.
    is_passed : callable
        Feature → whether all that the network says depends on the images through it alone.

    Returns
    -------
    Feature, dict of str to str
        The choice, and the last features on every grid, from fine to coarse.

    Raises
    ------
    NotARepresentation
        Nothing comes before a learned layer.

    Examples
    --------
    >>> made = [Feature("body", (16, 6, 8), 0), Feature("pool", (16, 1, 1), 1), Feature("head", (5,), 3)]
    >>> choose(made, [Feature("head", (16,), 2, "input")], [(5,)], (24, 32), lambda feature: True)
    (Feature(name='body', shape=(16, 6, 8), order=0, of='output', goes_on=True, call=-1), {'body': '16 × 6 × 8'})
    """
    last_read = max((feature.order for feature in read), default=0)
    before = [feature for feature in made if feature.order < last_read and feature.goes_on]
    maps = [feature for feature in before if _positions(feature.shape, size) > 1]
    tokens = [feature for feature in before if len(feature.shape) == 2 and feature.shape[0] > 1]
    if not maps and not tokens:
        vectors = [feature for feature in before if math.prod(feature.shape) > 1]
        if not vectors:
            raise NotARepresentation("no layer comes before a learned one: name the representation after a #")
        return vectors[-1], {vectors[-1].label: f"{math.prod(vectors[-1].shape)} features"}
    if not maps or (tokens and tokens[-1].order > maps[-1].order):
        last = tokens[-1]
        head = next(feature for feature in read if feature.order > last.order)
        alternatives = {last.label: "{} tokens of {} channels".format(*last.shape)}
        return (head if len(head.shape) == 1 else last), alternatives
    grids: dict[tuple[int, ...], list[Feature]] = {}
    for feature in maps:
        grids.setdefault(_positions(feature.shape, size), []).append(feature)
    alternatives = {}
    for _, features in sorted(grids.items(), reverse=True):
        channels, (height, width) = _grid(features[-1].shape, size)
        alternatives[features[-1].label] = f"{channels} × {height} × {width}"
    candidates = grids[min(grids)]
    later = [feature.shape for feature in made if feature.order > candidates[-1].order] + list(results)
    if any(_positions(shape, size) > min(grids) for shape in later):  # a decoder: the narrowest, last of equals, first
        order = sorted(candidates, key=lambda feature: (_grid(feature.shape, size)[0], -feature.order))
    else:
        order = candidates[::-1]
    return next((feature for feature in order if is_passed(feature)), candidates[-1]), alternatives


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in what a network gives: one, or lists, tuples, dictionaries and data classes of them.

    Parameters
    ----------
    value : object
        What a network gave.

    Yields
    ------
    torch.Tensor
        Each, in order.

    Examples
    --------
    >>> [len(tensor) for tensor in tensors({"a": torch.ones(2), "b": (torch.ones(3), None)})]
    [2, 3]
    """
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors(one)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from tensors(list(vars(value).values()))


def shape_of_one(value: Any) -> tuple[int, ...] | None:
    """Shape of what is made for one of two images.

    Parameters
    ----------
    value : object
        What was made for both.

    Returns
    -------
    tuple of int or None
        None where it is no tensor with an axis of two images and another.

    Examples
    --------
    >>> shape_of_one(torch.ones(2, 3, 4)), shape_of_one(torch.ones(7, 3))
    ((3, 4), None)
    """
    return tuple(value.shape[1:]) if torch.is_tensor(value) and value.ndim > 1 and len(value) == 2 else None


def orient(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A representation with its channels before its positions; tokens are averaged.

    The two axes that stand to each other as height and width of the image are y and x.

    Parameters
    ----------
    values : torch.Tensor
        (image, channel, y, x), (image, y, x, channel), (image, token, channel) or (image, features).
    size : tuple of int
        (height, width) of the images.

    Returns
    -------
    torch.Tensor
        (image, channel, y, x) or (image, features).

    Examples
    --------
    >>> orient(torch.ones(1, 4, 6, 16), (32, 48)).shape, orient(torch.ones(1, 50, 16), (32, 48)).shape
    (torch.Size([1, 16, 4, 6]), torch.Size([1, 16]))
    """
    if values.ndim == 3:
        return values.mean(1)
    if values.ndim == 4:
        _, grid = _grid(values.shape[1:], size)
        return values if grid == values.shape[2:] else values.permute(0, 3, 1, 2)
    return values


def _first_tensor(args, kwargs):
    return next(tensors([args, kwargs]), None)


class Tap:
    """What a layer of a network makes or reads when the network is called, whatever happens to it afterwards.

    Parameters
    ----------
    network : torch.nn.Module
        The whole network.
    layer : str
        As ``named_modules()`` calls it.
    of : {"output", "input"}
        What the layer makes, or the first tensor that it reads.
    size : tuple of int, optional
        (height, width) of the images, to orient the axes by.
    call : int, optional
        Of a layer that is called more than once: which of the calls; the last one when left out.

    Raises
    ------
    ValueError
        There is no such layer; three that are near are named. When called: the layer is not called, or makes no tensor.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten())
    >>> Tap(network, "0", size=(8, 8))(torch.ones(2, 3, 8, 8)).shape
    torch.Size([2, 4, 6, 6])
    """

    def __init__(
        self, network: nn.Module, layer: str, of: str = "output", size: tuple[int, int] | None = None, call: int = -1
    ):
        modules = dict(network.named_modules())
        if layer not in modules:
            raise NotARepresentation(shared.unknown(layer, [name for name in modules if name], "layer"))
        self.network, self.layer, self.of, self.size, self.call = network, layer, of, size, call
        self.module = modules[layer]

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        caught = []

        def note(value):  # a copy, because what comes next may work in place
            caught.append(value.clone() if torch.is_tensor(value) else value)

        if self.of == "input":
            handle = self.module.register_forward_pre_hook(
                lambda _, args, kwargs: note(_first_tensor(args, kwargs)), with_kwargs=True
            )
        else:
            handle = self.module.register_forward_hook(lambda _, args, made: note(made))
        try:
            self.network(inputs)
        finally:
            handle.remove()
        if not caught or self.call >= len(caught):
            times = f" {self.call + 1} times" if caught else ""
            raise NotARepresentation(f"layer {self.layer!r} is not called{times} when the network is")
        value = caught[self.call]
        if not torch.is_tensor(value):
            what = f"a {type(value).__name__}, expected one tensor"
            raise NotARepresentation(f"layer {self.layer!r} makes {what}: name a layer inside it")
        return orient(value, self.size) if self.size else value


class _Call(NamedTuple):
    """One call of a layer."""

    name: str
    began: int  # the number of the first operation of autograd in it
    ended: int  # and of the first one after it
    read: torch.Tensor | None
    node_read: Any  # of autograd, for what was read, before anything works on it in place
    made: Any
    node: Any  # the same for what was made
    number: int  # which of its calls


def _run(network, inputs):
    """Calls of all layers in the order in which they end, and what the network gives."""
    calls, open_calls, counts, handles = [], [], {}, []

    def entering(_, args, kwargs):
        read = _first_tensor(args, kwargs)
        open_calls.append((torch.autograd._get_sequence_nr(), read, getattr(read, "grad_fn", None)))

    def leaving(name):
        def hook(_, args, made):
            began, read, node_read = open_calls.pop()
            counts[name] = counts.get(name, 0) + 1
            node = made.grad_fn if torch.is_tensor(made) else None
            ended = torch.autograd._get_sequence_nr()
            calls.append(_Call(name, began, ended, read, node_read, made, node, counts[name] - 1))

        return hook

    for name, module in network.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(entering, with_kwargs=True))
            handles.append(module.register_forward_hook(leaving(name)))
    try:
        return calls, list(tensors(network(inputs))), counts
    finally:
        for handle in handles:
            handle.remove()


def _behind(ends):
    """Nodes of autograd's graph behind some results, each after those that it depends on."""
    found, order, waiting = set(), [], [(node, False) for node in ends]
    while waiting:
        node, is_done = waiting.pop()
        if is_done:
            order.append(node)
        elif node is not None and node not in found:
            found.add(node)
            waiting.append((node, True))
            waiting += [(before, False) for before, _ in node.next_functions]
    return order


def _operation(node):
    return node.name().rpartition("::")[2].partition("Backward")[0]


def _learned(order, start):
    """Nodes that depend on the images, and those of them that mix units by something that the network holds."""
    of_images, axes, learned = {start}, {}, set()  # axes: of the largest parameter that a node depends on
    for node in order:
        before = [one for one, _ in node.next_functions]
        if not of_images.intersection(before):
            variable = getattr(node, "variable", None)
            own = 0 if variable is None else sum(length > 1 for length in variable.shape)
            axes[node] = max([own, *(axes.get(one, 0) for one in before)])
            continue
        of_images.add(node)
        name = _operation(node)
        is_function = isinstance(node, torch.autograd.function.FunctionCtx)
        operands = before[_PRODUCTS.get(name, slice(None))]
        held = [one for one in operands if one not in of_images]
        if name in _PRODUCTS or is_function:  # a checkpoint hides what is in it
            mixes = bool(held) or name == "CheckpointFunction"
        else:
            mixes = name not in _UNMIXED and max((axes.get(one, 0) for one in held), default=0) > 1
        if mixes and of_images.intersection(operands):
            learned.add(node)
        if name in ("Sum", "Mean"):  # a product with a vector, written out
            learned.update(
                one
                for one in before
                if _operation(one) == "Mul" and max(axes.get(two, 0) for two, _ in one.next_functions) > 0
            )
    return of_images, learned


class Trace:
    """What the layers of a torch network make, what its learned layers read, and what all depends on.

    Learned layers are read off the graph that autograd keeps, in which no product can hide: neither one of a function
    with a parameter, nor of a parametrised weight, nor of a layer that is called in an unusual way.

    Parameters
    ----------
    network : torch.nn.Module
        Frozen, in evaluation mode.
    inputs : torch.Tensor
        Two images, as the network takes them.

    Attributes
    ----------
    made, read, results
        As `choose` takes them.

    Raises
    ------
    NotARepresentation
        What the network gives has no gradient with respect to the images.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).requires_grad_(False)
    >>> trace = Trace(network, torch.ones(2, 3, 8, 8))
    >>> [feature.name for feature in trace.made], [feature.name for feature in trace.read], trace.results
    (['0', '1', '2', '3'], ['0', '3'], [(2,)])
    """

    def __init__(self, network: nn.Module, inputs: torch.Tensor):
        calls, given, counts, self._start = self._run_with_gradients(network, inputs)
        self._ends = [tensor.grad_fn for tensor in given]
        self._order = _behind(self._ends)
        self._of_images, self._learned = _learned(self._order, self._start)
        if not self._of_images.intersection(self._ends):
            raise NotARepresentation("what it gives has no gradient with respect to the image")
        self._goes_on = set(_behind(before for node in self._learned for before, _ in node.next_functions))
        self.results = [shape for tensor in given if (shape := shape_of_one(tensor))]
        self.made, self.read, self._nodes = [], [], {}
        for call in calls:
            shape = shape_of_one(call.made)
            if call.node in self._of_images and shape:
                number = -1 if call.number == counts[call.name] - 1 else call.number
                goes_on = call.node in self._goes_on
                feature = Feature(call.name, shape, call.ended - 1, "output", goes_on, number)
                self.made.append(feature)
                self._nodes[feature] = call.node
        for node in sorted(self._learned, key=lambda node: node._sequence_nr()):
            number, feature = node._sequence_nr(), Feature("", (), node._sequence_nr(), "input")
            within = [call for call in calls if call.began <= number < call.ended]
            if within:  # otherwise the network itself multiplies
                owner = max(within, key=lambda call: call.began)
                which = -1 if owner.number == counts[owner.name] - 1 else owner.number
                feature = Feature(owner.name, shape_of_one(owner.read) or (), number, "input", True, which)
                self._nodes[feature] = owner.node_read
            self.read.append(feature)

    @staticmethod
    def _run_with_gradients(network, inputs):
        frozen = [value for value in network.parameters() if value.is_floating_point() and not value.requires_grad]
        for are_seen in (True, False):  # parameters, in the graph: not where the network changes its own
            try:
                for value in frozen:
                    value.requires_grad_(are_seen)
                with torch.enable_grad():
                    images = inputs.detach().clone().requires_grad_().clone()
                    start = images.grad_fn
                    return *_run(network, images), start
            except RuntimeError:
                if not are_seen:
                    raise
            finally:
                for value in frozen:
                    value.requires_grad_(False)

    def is_passed(self, feature: Feature) -> bool:
        """Whether every way back through autograd's graph, from the results to the images, goes through a feature."""
        seen, waiting = {None, self._nodes[feature]}, list(self._ends)
        while waiting:
            node = waiting.pop()
            if node is self._start:
                return False
            if node not in seen:
                seen.add(node)
                waiting += [before for before, _ in node.next_functions]
        return True

    def choose(self, size: tuple[int, int]) -> tuple[Feature, dict[str, str]]:
        """As the function `choose`, unless what it would choose is made by no layer.

        Parameters
        ----------
        size : tuple of int
            (height, width) of the images.

        Returns
        -------
        Feature, dict of str to str

        Raises
        ------
        NotARepresentation
            Nothing comes before a learned layer; or every layer that could be taken has learned layers after it that
            come before the features that should be taken, and those are made by a function.
        """
        operations = []
        for node in self._order:
            shape = tuple(node._input_metadata[0].shape) if node in self._of_images and node._input_metadata else ()
            if len(shape) > 1 and shape[0] == 2 and node is not self._start:
                name, order = f"operation {node._sequence_nr()}", node._sequence_nr()
                operations.append(Feature(name, shape[1:], order, "output", node in self._goes_on))
                self._nodes[operations[-1]] = node
        operations.sort(key=lambda feature: feature.order)
        wanted, _ = choose(operations, self.read, self.results, size, self.is_passed)
        hidden = NotARepresentation(
            "the last features before the head are made by a function and not by a layer: give the network a method "
            "`represent` that returns them, or name a layer after a #"
        )
        try:
            chosen, alternatives = choose(self.made, self.read, self.results, size, self.is_passed)
        except NotARepresentation:
            raise hidden from None
        before = [self._learned.intersection(_behind([self._nodes[feature]])) for feature in (chosen, wanted)]
        if before[0] < before[1] and self.is_passed(wanted):
            raise hidden
        return chosen, alternatives


def find(
    network: nn.Module, layer: str, inputs: torch.Tensor, size: tuple[int, int]
) -> tuple[Callable[[torch.Tensor], torch.Tensor], str, dict[str, str]]:
    """R of a torch network: that of a layer, what the network itself says, or what `choose` chooses.

    Parameters
    ----------
    network : torch.nn.Module
        Frozen, in evaluation mode.
    layer : str
        Its path, with ``", call 2"`` behind it for a layer that is called again later; chosen where it is empty.
    inputs : torch.Tensor
        Two images, as the network takes them.
    size : tuple of int
        (height, width) of the images.

    Returns
    -------
    callable, str, dict of str to str
        Inputs → representation; what it is; and of a choice the last features on every grid.

    Raises
    ------
    ValueError
        There is no such layer, or nothing to choose.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).requires_grad_(False)
    >>> find(network, "", torch.ones(2, 3, 8, 8), (8, 8))[1:]
    ('the output of 1', {'1': '4 × 6 × 6'})
    """
    if layer:
        name, _, number = layer.partition(", call ")
        call = int(number) - 1 if number.isdecimal() and int(number) else -1
        return Tap(network, layer if call < 0 else name, "output", size, call), f"the output of {layer}", {}
    if hasattr(network, "represent"):
        return functools.partial(said, network, size), "what the network's `represent` gives", {}
    if hasattr(network, "forward_features") and hasattr(network, "forward_head"):
        return functools.partial(_timm_features, network, size), "the features before timm's forward_head", {}
    chosen, alternatives = Trace(network, inputs).choose(size)
    return Tap(network, chosen.name, chosen.of, size, chosen.call), f"the {chosen.of} of {chosen.label}", alternatives


def said(network: nn.Module, size: tuple[int, int], inputs: torch.Tensor) -> torch.Tensor:
    """What the method ``represent`` of a network gives, its axes put in order.

    Parameters
    ----------
    network : torch.nn.Module
        With that method.
    size : tuple of int
        (height, width) of the images.
    inputs : torch.Tensor
        As the network takes them.

    Returns
    -------
    torch.Tensor
        As `orient` gives it.

    Examples
    --------
    >>> network = nn.Identity()
    >>> network.represent = lambda inputs: inputs.flatten(2).transpose(1, 2)
    >>> said(network, (8, 8), torch.ones(1, 3, 8, 8)).shape
    torch.Size([1, 3])
    """
    represent: Any = network.represent
    return orient(represent(inputs), size)


def _timm_features(network, size, inputs):
    features = network.forward_features(inputs)
    return orient(features, size) if features.ndim == 4 else network.forward_head(features, pre_logits=True)
