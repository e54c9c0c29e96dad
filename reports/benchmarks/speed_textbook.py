"""The VAE of a hundred tutorials, trained by their loop and by ours, for speed.py."""

import argparse
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from speed_measuring import Case, Figures, fitted, in_turn, n_learned, seconds
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

from vae_anomaly import VAEDetector
from vae_anomaly.affine import ProcessorProducts, RoundedProducts, affine_maps
from vae_anomaly.data.image_arrays import read_idx
from vae_anomaly.products import precision_fault

BATCH = 128
WIDTHS = (784, 400, 200)
N_LATENT = 20
# Images of MNIST's training set, which has to be made of fewer where it is not at hand.
N_IMAGES = 60_000


def read_mnist(folder: Path, stem: str) -> np.ndarray | None:
    # Copied, as torch wants no array that can't be written to.
    return next((read_idx(str(path)).images.copy() for path in sorted(folder.glob(f"*{stem}-images*"))), None)


def digits(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, str]:
    """Images of 28 x 28 to train on and to test with, and what they are."""
    if options.mnist is not None:
        train, test = read_mnist(options.mnist, "train"), read_mnist(options.mnist, "t10k")
        if train is not None and test is not None:
            return train, test, "MNIST, 60,000 images"
        if test is not None:
            return test[:9000], test[9000:], "9,000 of MNIST's test images"
    small = torch.from_numpy(load_digits().images)[:, None] / 16
    large = F.interpolate(small, size=(28, 28), mode="bilinear")[:, 0].clamp(0, 1).mul(255).byte().numpy()
    return large[:1500], large[1500:], "1,500 of scikit-learn's digits, enlarged"


def moved(images: np.ndarray) -> np.ndarray:
    """As many images as MNIST has, if there are: these, and the same moved by a pixel or two."""
    shifts = sorted(itertools.product(range(-2, 3), repeat=2), key=lambda shift: max(map(abs, shift)))
    return np.concatenate([np.roll(images, shift, axis=(1, 2)) for shift in shifts])[:N_IMAGES]


class TextbookVAE(nn.Module):
    """784-400-200-20 and back, ReLU, Bernoulli."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 200), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(200, N_LATENT), nn.Linear(200, N_LATENT)
        self.decoder = nn.Sequential(
            nn.Linear(N_LATENT, 200), nn.ReLU(), nn.Linear(200, 400), nn.ReLU(), nn.Linear(400, 784), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return self.decoder(z), mean, log_variance

    def loss(self, x: Tensor) -> Tensor:
        """Negative ELBO, summed over the images."""
        shown, mean, log_variance = self(x)
        reconstruction = F.binary_cross_entropy(shown, x, reduction="sum")
        return reconstruction - 0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())


class SingleImages(Dataset):
    """One image at a time, from an array."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.transform = images, ToTensor()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.images[index]).view(-1)


class SinglePictures(SingleImages):
    """One image at a time, as most tutorials get it from ``torchvision.datasets.MNIST``: a PIL image made a tensor."""

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.fromarray(self.images[index])).view(-1)


# What the loop reads.
READ: dict[str, type[SingleImages]] = {"arrays": SingleImages, "PIL images": SinglePictures}


def textbook_fit(images: np.ndarray, n_epochs: int, device: str, read: str) -> TextbookVAE:
    torch.manual_seed(0)
    model = TextbookVAE().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(READ[read](images), batch_size=BATCH, shuffle=True)
    for _ in range(n_epochs):
        for x in loader:
            x = x.to(device)
            optimizer.zero_grad()
            loss = model.loss(x)
            loss.backward()
            optimizer.step()
    return model


def product_seconds(n_steps: int, device: str, precision: str) -> float | None:
    """What the products of so many steps take by themselves, forward and back.

    None for a GPU, which takes less time for products as small as these than it takes to ask for them.
    """
    if device != "cpu":
        return None
    widths = [*WIDTHS, 2 * N_LATENT], [N_LATENT, *WIDTHS[::-1]]
    pairs = [pair for own in widths for pair in itertools.pairwise(own)]
    x = [torch.randn(1, BATCH, n_in) for n_in, _ in pairs]
    maps = affine_maps([torch.randn(1, *shape) for n_in, n_out in pairs for shape in ((n_out, n_in), (n_out,))])
    gradients = [torch.randn(1, BATCH, n_out) for _, n_out in pairs]
    products = RoundedProducts() if precision == "bfloat16" else ProcessorProducts()
    some = min(n_steps, 50)

    def steps() -> None:
        for _ in range(some):
            for samples, own, g in zip(x, maps, gradients, strict=True):
                inputs, factors = products.factors(samples, own)
                products.mapped(inputs, factors)
                factor = products.factor(g, inputs)
                products.of_weight(factor, inputs, None)
                # Nobody asks for the gradient of the images.
                products.back(factor, factors) if samples is not x[0] else None

    steps()
    return min(seconds(steps, device)[0] for _ in range(5)) * n_steps / some


class Race:
    """The same widths, images, batches and epochs; ours sets images aside, so that the loop gets as many as ours."""

    def __init__(self, options: argparse.Namespace, train: np.ndarray, test: np.ndarray, what: str) -> None:
        self.options, self.train, self.test, self.what = options, train, test, what
        self.n_epochs = 2 if options.quick else 10
        # A fit of no length says how many images one member learns from.
        probe = fitted(options, train[:, None], n_estimators=1, hidden=(8,), latent_dim=2, likelihood="bernoulli",
                       net="mlp", max_steps=1)  # fmt: skip
        self.n_images = n_learned(probe)

    def ours(self, epochs: int, precision: str = "auto") -> VAEDetector:
        return fitted(
            self.options, self.train[:, None], n_estimators=1, hidden=WIDTHS[1:], latent_dim=N_LATENT, net="mlp",
            likelihood="bernoulli", batch_size=BATCH, max_steps=epochs * (self.n_images // BATCH), patience=1.0,
            score_name="neg_elbo", precision=precision,
        )  # fmt: skip

    def loop(self, read: str = "arrays") -> TextbookVAE:
        return textbook_fit(self.train[: self.n_images], self.n_epochs, self.options.device, read)

    def our_elbo(self, detector: VAEDetector) -> float:
        return -float(detector.anomaly_score(self.test[:, None], score_name="neg_elbo").mean())

    def loop_elbo(self, model: TextbookVAE) -> float:
        with torch.no_grad():
            x = torch.from_numpy(self.test.reshape(len(self.test), -1)).to(self.options.device) / 255
            return -float(np.mean([float(model.loss(x)) / len(x) for _ in range(16)]))

    def measure(self, epochs: int | None = None, precision: str = "auto", read: str = "arrays") -> Figures:
        """Our time is all of ``fit``: training, what scores are compared with, and the threshold."""
        epochs, device = epochs or self.n_epochs, self.options.device
        ours, loop = partial(self.ours, epochs, precision), partial(self.loop, read)
        mine, theirs = in_turn(ours, loop, self.options.pairs, device)
        return {
            "data": self.what,
            "epochs": epochs,
            "theirs_epochs": self.n_epochs,
            "theirs_read": read,
            "precision": precision,
            "images": self.n_images,
            "ours_seconds": mine,
            "theirs_seconds": theirs,
            "ratio": theirs / mine,
            "products_seconds": product_seconds(epochs * (self.n_images // BATCH), device, precision),
            "ours_elbo": self.our_elbo(ours()),
            "theirs_elbo": self.loop_elbo(loop()),
        }

    def as_good(self) -> Figures:
        """With as few epochs as give the loop's ELBO or a better one."""
        wanted = self.loop_elbo(self.loop())
        enough = (epochs for epochs in range(1, self.n_epochs) if self.our_elbo(self.ours(epochs)) >= wanted)
        return self.measure(next(enough, self.n_epochs))


def textbook(options: argparse.Namespace) -> Iterator[Case]:
    """With equal epochs, the loop reading arrays or pictures, with an equal ELBO, in bfloat16 where the processor has
    it, and with as many images as MNIST.

    The last only if asked for large sizes, as the loop takes minutes for it.
    """
    train, test, what = digits(options)
    race = Race(options, train[:2000] if options.quick else train, test, what)
    yield Case("textbook", what, race.measure)
    yield Case("textbook", f"{what}, the loop reading PIL images", partial(race.measure, read="PIL images"))
    yield Case("textbook", f"{what}, epochs for the loop's ELBO", race.as_good)
    if not precision_fault("bfloat16", torch.device(options.device)):
        yield Case("textbook", f"{what}, bfloat16", partial(race.measure, precision="bfloat16"))
    if options.large and not options.quick and len(train) < N_IMAGES:
        many = moved(train)
        more = f"{len(many):,}: {what}, moved"
        yield Case("textbook", more, lambda: Race(options, many, test, more).measure())
