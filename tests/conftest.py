import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads it when it is imported: without a GPU, its programs are interpreted.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def seeded_torch() -> Iterator[None]:
    """Torch's global generator at a fixed state: ``torch.distributions`` draw from it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def make_vae():
    """Factory of small VAEs whose parameters are all moved away from their initial values."""
    from vae_anomaly.vae import VAE

    def make(event_shape=(5,), latent_dim=2, *, seed=0, dtype=torch.float32, **options):
        generator = torch.Generator().manual_seed(seed)
        vae = VAE(event_shape, latent_dim, generator=generator, **{"hidden": (8, 8), **options})
        with torch.no_grad():
            for value in vae.parameters():
                value.add_(0.2 * torch.randn(value.shape, generator=generator))
        return vae.to(dtype)

    return make
