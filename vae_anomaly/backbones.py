"""Networks whose intermediate maps describe the patches of an image; they are taken as they are, and not trained."""

import hashlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vae_anomaly.errors import DataError, look_up
from vae_anomaly.filters import FilterBank

__all__ = ["BACKBONES", "Backbone", "Extractor", "build_extractor", "restore_extractor"]

# More features than this are projected: the numbers of a patch hang together, and so many keep their distances. The 147
# of the filters in colour are kept: their sizes differ so much that a projection would drown the small ones.
MAX_FEATURES = 150
FIRST_PARTS = ("conv1", "bn1", "relu", "maxpool", "layer1")
# Means and standard deviations of the channels that torchvision's networks were trained with.
IMAGENET_CENTER, IMAGENET_SCALE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ResNetStages(nn.Module):
    """The second and third stage of one of torchvision's residual networks; names of its weights are torchvision's.

    The first stage knows little but edges, the last much about the objects of ImageNet and little about where.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        from torchvision.models import get_model

        whole = get_model(name, weights=None)
        for part in (*FIRST_PARTS, "layer2", "layer3"):
            setattr(self, part, getattr(whole, part))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                # A counter for training, which some files of weights have and others do not.
                module.num_batches_tracked = None

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps of both stages, each averaged over 3 x 3 of its places, for images in [0, 1]."""
        center, scale = (images.new_tensor(part)[:, None, None] for part in (IMAGENET_CENTER, IMAGENET_SCALE))
        h = (images.expand(-1, 3, -1, -1) - center) / scale
        for part in FIRST_PARTS:
            h = self.get_submodule(part)(h)
        maps = []
        for part in ("layer2", "layer3"):
            h = self.get_submodule(part)(h)
            maps.append(nn.functional.avg_pool2d(h, 3, stride=1, padding=1, count_include_pad=False))
        return maps


class Backbone(NamedTuple):
    """A network and whether it has weights that were learned."""

    build: Callable[[str, int], nn.Module]
    """From its name and the number of channels of the images."""
    learned: bool


def _resnet(name: str, channels: int) -> nn.Module:
    return ResNetStages(name)


def _filters(name: str, channels: int) -> nn.Module:
    return FilterBank(channels)


class Extractor(nn.Module):
    """Features of all patches of images, from a backbone, at most 150 numbers for each.

    Coarser maps are interpolated to the finest one. More features than 150 are multiplied by a random matrix with
    orthonormal columns, which is made from a seed and kept with the weights.
    """

    projection: Tensor

    def __init__(self, network: nn.Module, projection: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("projection", projection)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Shape (n, rows, columns, n_features), for images in [0, 1]."""
        maps = self.network(images)
        grid = maps[0].shape[-2:]
        joined = torch.cat(
            [
                found
                if found.shape[-2:] == grid
                else nn.functional.interpolate(found, grid, mode="bilinear", align_corners=False)
                for found in maps
            ],
            dim=1,
        ).permute(0, 2, 3, 1)
        return joined @ self.projection if self.projection.numel() else joined

    def fingerprint(self) -> str:
        """SHA-256 of the weights of the network."""
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _projection(n_found: int, seed: int) -> Tensor:
    """Orthonormal columns, or none where all features are kept."""
    if n_found <= MAX_FEATURES:
        return torch.zeros(0)
    gaussian = torch.randn(n_found, MAX_FEATURES, generator=torch.Generator().manual_seed(seed))
    columns: Tensor = torch.linalg.qr(gaussian)[0]
    return columns


def build_extractor(name: str, channels: int, *, seed: int, weights: Mapping[str, Tensor] | None = None) -> Extractor:
    """Extractor with a backbone of ``BACKBONES``.

    Parameters
    ----------
    name : str
    channels : int
        Of the images.
    seed : int
        Of the projection.
    weights : mapping of str to Tensor, optional
        Weights of the network by torchvision's names, if it has learned ones.

    Raises
    ------
    DataError
        If they are not the weights of this network.

    Examples
    --------
    >>> extractor = build_extractor("gabor", 1, seed=0)
    >>> extractor(torch.zeros(2, 1, 64, 32)).shape
    torch.Size([2, 16, 8, 49])
    """
    build = look_up("backbone", name, BACKBONES).build
    network = build(name, channels) if weights is None else with_weights(_skeleton(name, channels), weights, name)
    network = network.requires_grad_(False).eval()
    with torch.no_grad():
        n_found = sum(found.shape[1] for found in network(torch.zeros(1, channels, 32, 32)))
    return Extractor(network, _projection(n_found, seed))


def restore_extractor(name: str, channels: int, state: Mapping[str, Tensor]) -> Extractor:
    """Extractor from its ``state_dict``; ValueError if that is none of this backbone."""
    network = {key.removeprefix("network."): value for key, value in state.items() if key.startswith("network.")}
    return Extractor(with_weights(_skeleton(name, channels), network, name), state["projection"])


def _skeleton(name: str, channels: int) -> nn.Module:
    """The network without numbers: none are drawn only to be replaced."""
    with torch.device("meta"):
        return look_up("backbone", name, BACKBONES).build(name, channels)


def with_weights(network: nn.Module, state: Mapping[str, Tensor], name: str) -> nn.Module:
    """The network with those of the weights that belong to it."""
    for key, wanted in network.state_dict().items():
        found = state.get(key)
        if found is None:
            raise DataError(f"These are not the weights of {name}: there is no {key!r} among them.")
        if found.shape != wanted.shape:
            raise DataError(
                f"These are not the weights of {name}: {key!r} has shape {tuple(found.shape)}, and should have "
                f"{tuple(wanted.shape)}."
            )
        if not bool(torch.isfinite(found).all()):
            raise DataError(f"The weights of {name} can't be used: {key!r} holds numbers that are not finite.")
    kept = {key: state[key].to(wanted.dtype).clone() for key, wanted in network.state_dict().items()}
    # Not strict: all there has to be is there, and torch adds the counters of batches that we dropped.
    network.load_state_dict(kept, strict=False, assign=True)
    return network


BACKBONES: dict[str, Backbone] = {
    "gabor": Backbone(_filters, learned=False),
    "resnet18": Backbone(_resnet, learned=True),
    "resnet34": Backbone(_resnet, learned=True),
    "resnet50": Backbone(_resnet, learned=True),
    "resnet101": Backbone(_resnet, learned=True),
    "resnext50_32x4d": Backbone(_resnet, learned=True),
    "wide_resnet50_2": Backbone(_resnet, learned=True),
    "wide_resnet101_2": Backbone(_resnet, learned=True),
}
