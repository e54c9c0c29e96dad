"""Several VAEs as one tensor program."""

import copy
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import stack_module_state

from vae_anomaly.nets import Layers
from vae_anomaly.priors import StandardNormal
from vae_anomaly.vae import VAE

__all__ = ["Ensemble", "each", "same_tensors", "stacked"]

# What shares the tensors, and is made anew when it is needed.
NOT_KEPT = ("_joint", "_shells", "_told", "_views")
# Attributes by which a module holds tensors.
TENSORS = ("_parameters", "_buffers")


class _Shell:
    """A VAE without tensors of its own, which those of a member are put into while a function runs.

    ``torch.func.functional_call`` does so, too, and takes longer for it than the networks take for a row.
    """

    def __init__(self, skeleton: VAE, names: Iterable[str]) -> None:
        self.vae, names = _twin(skeleton), list(names)
        _replace(self.vae, dict.fromkeys(names))
        places = [name.rpartition(".") for name in names]
        self.fuses = not any(isinstance(module, nn.Conv2d) for module in self.vae.modules())
        """Whether one program for all members is faster than one after the other.

        vmap makes grouped convolutions of the members' ones; on a CPU, a step of them took six times as long.
        """
        self.slots = [(vars(self.vae.get_submodule(path)), attribute) for path, _, attribute in places]

    def run(self, function: Callable[..., Any], tensors: Sequence[Tensor | None], *args: Any) -> Any:
        """``function(vae, *args)`` with these tensors, in the order of the names."""
        try:
            self._fill(tensors)
            return function(self.vae, *args)
        finally:
            self._fill([None] * len(self.slots))

    def _fill(self, tensors: Sequence[Tensor | None]) -> None:
        for (attributes, name), value in zip(self.slots, tensors, strict=True):
            attributes[name] = value


class Ensemble:
    """VAEs of the same architecture, their parameters and buffers stacked along a first axis of length n_estimators.

    A VAE never knows that it has siblings: :meth:`map` runs a function of one VAE for all members at once through
    :func:`torch.func.vmap`.

    Examples
    --------
    >>> import torch
    >>> members = [VAE((5,), 2, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    >>> ensemble = Ensemble(members)
    >>> x, eps = torch.zeros(4, 5), torch.zeros(1, 1, 2)
    >>> ensemble.map(VAE.elbo, x, eps).shape
    torch.Size([3, 4])
    """

    def __init__(self, members: Sequence[VAE]) -> None:
        self.n_estimators = len(members)
        self.params, self.buffers = stack_module_state(list(members))
        self.skeleton = _without_memory(members[0])
        self._forget_shared()

    def _forget_shared(self) -> None:
        self._forget_views()
        self._told: dict[tuple[bool, int], Ensemble] = {}
        self._shells = threading.local()

    def _forget_views(self) -> None:
        self._views: tuple[list[Tensor], list[VAE]] = ([], [])
        self._joint: tuple[list[Tensor], VAE | None] = ([], None)

    @classmethod
    def from_tensors(cls, skeleton: VAE, tensors: dict[str, Tensor]) -> "Ensemble":
        """Ensemble with the tensors of :meth:`tensors`; ``skeleton`` gives the architecture, on any device.

        Raises
        ------
        ValueError
            If a tensor is missing, superfluous, or of another shape than the architecture has.
        """
        ensemble = cls.__new__(cls)
        ensemble._forget_shared()
        ensemble.skeleton = _without_memory(skeleton)
        expected = {**dict(skeleton.named_parameters()), **dict(skeleton.named_buffers())}
        if expected.keys() != tensors.keys():
            raise ValueError(f"tensors do not fit the network: {sorted(expected.keys() ^ tensors.keys())[:3]}")
        counts = {value.shape[0] if value.ndim else 0 for value in tensors.values()}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(f"tensors are not stacked along a first axis over the members; its lengths: {counts}")
        (ensemble.n_estimators,) = counts
        for name, wanted in expected.items():
            found, shape = tensors[name], (ensemble.n_estimators, *wanted.shape)
            if found.shape != shape or found.dtype != wanted.dtype:
                raise ValueError(
                    f"tensor {name!r} has shape {tuple(found.shape)} and type {found.dtype}, "
                    f"the network needs {shape} and {wanted.dtype}"
                )
        ensemble.params = {name: tensors[name] for name, _ in skeleton.named_parameters()}
        ensemble.buffers = {name: tensors[name] for name, _ in skeleton.named_buffers()}
        return ensemble

    def tensors(self) -> dict[str, Tensor]:
        """All parameters and buffers by name, each with a first axis over the members."""
        return {**self.params, **self.buffers}

    def to(self, device: torch.device | str) -> "Ensemble":
        """Move all tensors to ``device``, in place."""
        self.params = {
            name: value.detach().to(device).requires_grad_(value.requires_grad) for name, value in self.params.items()
        }
        self.buffers = {name: value.to(device) for name, value in self.buffers.items()}
        # What shares the tensors would keep those of the other device alive.
        self._forget_shared()
        return self

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        device: torch.device = next(iter(self.params.values())).device
        return device

    def map(
        self,
        function: Callable[..., Any],
        *args: Any,
        in_dims: Sequence[int | None] | None = None,
        together: bool = False,
    ) -> Any:
        """``function(vae, *args)`` of every member, stacked along a first axis.

        A score that is marked as ``for_all_members`` is called once, with all of them, where that is faster and no
        gradient is asked for.

        Parameters
        ----------
        function : callable
            Takes a VAE and ``args``; returns a tensor or a (named) tuple or dict of tensors.
        *args
            Shared by all members, unless ``in_dims`` names the axis over members of an argument.
        in_dims : sequence of int or None, optional
            One for each of ``args``; ``None`` (the default) shares the argument.
        together : bool, default=False
            Run members as one program on a CPU, too, without gradients: faster for a few samples, slower for many.
        """
        dims = tuple(in_dims) if in_dims is not None else (None,) * len(args)
        alone, learning = self.device.type == "cpu" and not together, torch.is_grad_enabled()
        if self.runs_as_one(function) and not (alone or learning):
            x, eps = args
            own = x.expand(self.n_estimators, *x.shape) if dims[0] is None else x
            return function(self._joint_view(), own, eps.unsqueeze(1))
        if alone and not learning:
            # What vmap saves in calls it costs in Python, and the numbers of one member stay in the cache.
            return _in_turn([functools.partial(function, vae) for vae in self.views()], args, dims)
        shell, tensors = self._shell(), list(self.tensors().values())
        if not shell.fuses:
            members = ([value[index] for value in tensors] for index in range(self.n_estimators))
            return _in_turn([functools.partial(shell.run, function, member) for member in members], args, dims)
        return torch.func.vmap(functools.partial(shell.run, function), in_dims=(0, *dims))(tensors, *args)

    def joint(self) -> VAE | None:
        """All members as one VAE, for ``elbo_terms`` and what that calls; None if their prior or networks forbid it.

        Its inputs and outputs have an axis over the members before that over the samples: (n_estimators, n_samples,
        ...), and draws of z a further one in front. It shares the parameters of :attr:`params` as they are now, and
        spares what vmap costs, which for small networks is as much as their arithmetic.
        """
        if not (isinstance(self.skeleton.prior, StandardNormal) and isinstance(self.skeleton.encoder, Layers)):
            return None
        return self._joined(self.tensors())

    def _joined(self, tensors: Mapping[str, Tensor]) -> VAE:
        vae, nets = _twin(self.skeleton), ("encoder.", "decoder.")
        shown = ((name, value if name.startswith(nets) else _beside_samples(value)) for name, value in tensors.items())
        _replace(vae, dict(shown))
        return vae

    def runs_as_one(self, function: Callable[..., Any]) -> bool:
        """Whether a function of a VAE is a score that can be called once for all of these members."""
        return bool(getattr(function, "for_all_members", False)) and isinstance(self.skeleton.encoder, Layers)

    def _joint_view(self) -> VAE:
        """As :meth:`joint`, without gradients, whatever the prior."""
        tensors = list(self.tensors().values())
        shown, joint = self._joint
        if joint is None or not same_tensors(shown, tensors):
            joint = self._joined({name: value.detach() for name, value in self.tensors().items()})
            for net in (joint.encoder, joint.decoder):
                if isinstance(net, Layers):
                    net.settle()
            self._joint = tensors, joint
        return joint

    def _shell(self) -> _Shell:
        # Each thread needs its own.
        if not hasattr(self._shells, "own"):
            self._shells.own = _Shell(self.skeleton, self.tensors())
        own: _Shell = self._shells.own
        return own

    def views(self) -> list[VAE]:
        """Each member as a VAE that shares the tensors of the ensemble, without gradients."""
        tensors = list(self.tensors().values())
        shown, views = self._views
        if not same_tensors(shown, tensors):
            views = [_twin(self.skeleton) for _ in range(self.n_estimators)]
            for index, vae in enumerate(views):
                _replace(vae, {name: value.detach()[index] for name, value in self.tensors().items()})
            self._views = tensors, views
        return views

    def told(self, *, complete: bool = False, imputation_steps: int = 0) -> "Ensemble":
        """The same members, which share the tensors of this ensemble, told how the rows to come are.

        Parameters
        ----------
        complete : bool, default=False
            That nothing is missing in them.
        imputation_steps : int, default=0
            How many passes fill what is missing.
        """
        told = self._told.get((complete, imputation_steps))
        if told is None or told.params is not self.params or told.buffers is not self.buffers:
            # One for each way, for threads that come with different rows at the same time.
            told = copy.copy(self)
            told.skeleton = _twin(self.skeleton)
            told._forget_views()
            told.skeleton.complete, told.skeleton.imputation_steps = complete, imputation_steps
            self._told[complete, imputation_steps] = told
        return told

    def __getstate__(self) -> dict[str, Any]:
        # Each view would be written with all it is a view of.
        return {name: value for name, value in self.__dict__.items() if name not in NOT_KEPT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_shared()

    def members(self) -> Iterator[VAE]:
        """Each member as a VAE of its own, with copies of its tensors."""
        for index in range(self.n_estimators):
            member = copy.deepcopy(self.skeleton)
            own = {name: value[index].detach().clone() for name, value in self.tensors().items()}
            # Put in its place: to fill a network that has no memory, torch imports its compiler, for a second.
            member.load_state_dict(own, assign=True)
            yield member


def _without_memory(vae: VAE) -> VAE:
    """A copy whose tensors have shapes alone, for which no number is copied."""
    bare: dict[int, Tensor] = {}
    for value in (*vae.parameters(), *vae.buffers()):
        # By operations that torch knows without memory (see `nets`).
        empty = value.detach().to("meta")
        bare[id(value)] = nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty
    # What a deep copy is told to have copied before.
    return copy.deepcopy(vae, bare)


def _twin(vae: VAE) -> VAE:
    """A VAE with modules of its own, which shares tensors and all else until something is put in their place.

    A seventh of the time of a deep copy that leaves out what is shared, and a fit takes dozens.
    """
    twins: dict[nn.Module, Any] = {}
    for module in vae.modules():
        twins[module] = object.__new__(type(module))
        vars(twins[module]).update(vars(module))
    for module, twin in twins.items():
        own: dict[str, Any] = {name: dict(vars(module)[name]) for name in TENSORS}
        own["_modules"] = {name: twins.get(child) for name, child in vars(module)["_modules"].items()}
        if isinstance(module, Layers):
            own["affine"] = tuple(twins[layer] for layer in module.affine)
        vars(twin).update(own)
    found: VAE = twins[vae]
    return found


def _replace(vae: VAE, tensors: Mapping[str, Tensor | None]) -> None:
    """Put plain tensors, of any shape, in place of parameters and buffers."""
    for name, value in tensors.items():
        path, _, attribute = name.rpartition(".")
        module = vae.get_submodule(path)
        delattr(module, attribute)
        setattr(module, attribute, value)


def same_tensors(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether these are the very same tensors."""
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def _in_turn(calls: Sequence[Callable[..., Any]], args: Sequence[Any], dims: Sequence[int | None]) -> Any:
    """Results of one call for each member, stacked."""
    results = []
    for index, call in enumerate(calls):
        inner = (arg if dim is None else arg.select(dim, index) for arg, dim in zip(args, dims, strict=True))
        results.append(call(*inner))
    return stacked(results)


def _beside_samples(value: Tensor) -> Tensor:
    """A number or a number for each entry, of each member, with an axis over samples, to broadcast along."""
    if not value.is_floating_point():
        # Indices are part of the architecture, the same for all.
        return value[0]
    return value.reshape(len(value), *(1 for _ in range(3 - value.ndim)), *value.shape[1:])


def each(function: Callable[[Any], Any], results: Any) -> Any:
    """``function`` of a result, or of each one of a tuple of results."""
    return tuple(each(function, part) for part in results) if isinstance(results, tuple) else function(results)


def stacked(results: Sequence[Any]) -> Any:
    """Tensors, or tuples or dicts of tensors, along a new first axis."""
    first = results[0]
    if isinstance(first, Tensor):
        return torch.stack(list(results))
    if isinstance(first, dict):
        return {name: stacked([result[name] for result in results]) for name in first}
    parts = [stacked(part) for part in zip(*results, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
