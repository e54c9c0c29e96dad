"""Obvious, slow versions of what the package computes fast."""

import copy
import itertools
import math
from fractions import Fraction

import numpy as np
import torch
from scipy import stats

# -- probabilistic PCA: x = W z + mean + sigma * noise ----------------------------------------------------------------


def ppca_log_px(x, W, mean, sigma):
    """Closed-form log p(x) of each row."""
    covariance = W @ W.T + sigma**2 * np.eye(len(W))
    return stats.multivariate_normal(mean, covariance).logpdf(x)


def ppca_posterior(x, W, mean, sigma):
    """Mean of p(z | x) for each row, and the covariance, which all rows share."""
    M = W.T @ W + sigma**2 * np.eye(W.shape[1])
    return (x - mean) @ W @ np.linalg.inv(M), sigma**2 * np.linalg.inv(M)


def ppca_fit(x, latent_dim):
    """Maximum-likelihood W, mean and sigma (Tipping and Bishop 1999)."""
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    values, vectors = values[::-1], vectors[:, ::-1]
    variance = values[latent_dim:].mean()
    W = vectors[:, :latent_dim] * np.sqrt(values[:latent_dim] - variance)
    return W, x.mean(axis=0), math.sqrt(variance)


# -- bounds of one Gaussian VAE ---------------------------------------------------------------------------------------


def log_normal(x, mean, scale):
    return -0.5 * ((x - mean) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2.0 * math.pi)


def gaussian_terms(x, mu, sigma, eps, decode):
    """log p(x | z), log p(z) and log q(z | x) of one row for one draw ``eps``; ``decode(z)`` gives means and scales."""
    z = [m + s * e for m, s, e in zip(mu, sigma, eps, strict=True)]
    means, scales = decode(z)
    log_px_z = sum(log_normal(*entry) for entry in zip(x, means, scales, strict=True))
    log_pz = sum(log_normal(value, 0.0, 1.0) for value in z)
    log_qz = sum(log_normal(*latent) for latent in zip(z, mu, sigma, strict=True))
    return log_px_z, log_pz, log_qz


def standard_normal_kl(mu, sigma):
    return sum(0.5 * (m**2 + s**2 - 1.0) - math.log(s) for m, s in zip(mu, sigma, strict=True))


def gaussian_elbo(x, mu, sigma, draws, decode):
    """Evidence lower bound of one row, the KL divergence in closed form."""
    reconstructions = [gaussian_terms(x, mu, sigma, eps, decode)[0] for eps in draws]
    return sum(reconstructions) / len(draws) - standard_normal_kl(mu, sigma)


def importance_weighted_bound(x, mu, sigma, draws, decode):
    """Log of the mean importance weight of one row."""
    weights = []
    for eps in draws:
        log_px_z, log_pz, log_qz = gaussian_terms(x, mu, sigma, eps, decode)
        weights.append(math.exp(log_px_z + log_pz - log_qz))
    return math.log(sum(weights) / len(weights))


# -- thresholds -------------------------------------------------------------------------------------------------------


def conformal(scores, fpr):
    """Smallest calibration score that a new score exceeds with probability at most ``fpr``; None if there is none.

    Among n calibration scores and a new one, all ranks of the new one are equally likely: it exceeds the k-th smallest
    with probability (n + 1 - k) / (n + 1). Counted in fractions, ``fpr`` being the decimal number that was written.
    """
    n = len(scores)
    for k, score in enumerate(sorted(scores), start=1):
        if Fraction(n + 1 - k, n + 1) <= Fraction(repr(fpr)):
            return score
    return None


def p_value(calibration_scores, score):
    """Share of the calibration scores and the new one that are at least as high as the new one."""
    n_at_least = 1
    for other in calibration_scores:
        n_at_least += other >= score
    return n_at_least / (len(calibration_scores) + 1)


def label_threshold(rule, y, scores, beta=2.0, cost_miss=5.0, cost_alarm=1.0, fpr=0.1):
    """The highest of the best cuts, each of them tried: below all scores, between neighbours, and at the largest."""
    values = sorted(set(scores))
    cuts = [-math.inf, *((low + high) / 2 for low, high in itertools.pairwise(values)), values[-1]]
    n_anomalies, n_normal = sum(y), len(y) - sum(y)
    merits = []
    for cut in cuts:
        caught = sum(1 for label, score in zip(y, scores, strict=True) if label and score > cut)
        alarms = sum(1 for label, score in zip(y, scores, strict=True) if not label and score > cut)
        missed, square = n_anomalies - caught, Fraction(beta) ** 2
        merits.append(
            {
                "youden": Fraction(caught, n_anomalies) - Fraction(alarms, n_normal),
                "f_beta": (1 + square) * caught / ((1 + square) * caught + square * missed + alarms)
                if caught
                else Fraction(0),
                "cost": -(Fraction(cost_miss) * missed + Fraction(cost_alarm) * alarms),
                "recall_at_fpr": caught if Fraction(alarms, n_normal) <= Fraction(repr(fpr)) else -1,
            }[rule]
        )
    return max(cut for cut, merit in zip(cuts, merits, strict=True) if merit == max(merits))


# -- training ---------------------------------------------------------------------------------------------------------


def one_cycle(step, n_steps, peak):
    """Learning rate of a step: up from peak / 25 over the first 30 %, then down to next to nothing, along cosines."""
    start, end = peak / 25.0, peak / 25.0 / 1e4
    top, last = 0.3 * (n_steps + 1) - 1.0, float(n_steps)
    if step <= top:
        return peak + (start - peak) * (1.0 + math.cos(math.pi * step / top)) / 2.0
    return end + (peak - end) * (1.0 + math.cos(math.pi * (step - top) / (last - top))) / 2.0


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), written out."""

    def __init__(self, params, weight_decay):
        self.params, self.weight_decay, self.step_count = list(params), weight_decay, 0
        self.first = [torch.zeros_like(value) for value in self.params]
        self.second = [torch.zeros_like(value) for value in self.params]

    @torch.no_grad()
    def step(self, gradients, learning_rate):
        self.step_count += 1
        for value, gradient, m, v in zip(self.params, gradients, self.first, self.second, strict=True):
            value -= learning_rate * self.weight_decay * value
            m.copy_(0.9 * m + 0.1 * gradient)
            v.copy_(0.999 * v + 0.001 * gradient**2)
            m_hat, v_hat = m / (1.0 - 0.9**self.step_count), v / (1.0 - 0.999**self.step_count)
            value -= learning_rate * m_hat / (v_hat.sqrt() + 1e-8)


def train_one(vae, x, held_out, plan, generator, steps_per_check):
    """Train one VAE; the held-out ELBO of every check, and the weights of the best one.

    Which is best is decided without the tenth of the rows that is rated lowest.
    """
    held_out_eps = torch.randn(plan.n_mc_held_out, vae.latent_dim, generator=generator)[:, None]
    optimizer = AdamW(vae.parameters(), plan.weight_decay)
    batch_size = min(plan.batch_size, len(x))
    limit = plan.max_grad_norm * math.prod(vae.event_shape)
    elbos, trimmed, best, queue = [], [], None, []
    for step in range(plan.n_steps):
        if not queue:
            order = torch.randperm(len(x), generator=generator)
            queue = [order[k * batch_size : (k + 1) * batch_size] for k in range(len(x) // batch_size)]
        batch = x[queue.pop(0)]
        eps = torch.randn(batch_size, vae.latent_dim, generator=generator)[None]
        beta = plan.beta * min(1.0, (step + 1) / max(1.0, plan.warmup * plan.n_steps))
        loss = -vae.elbo(batch, eps, beta).mean()
        gradients = torch.autograd.grad(loss, list(vae.parameters()))
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
        clipped = [gradient * min(1.0, limit / (norm + 1e-6)) for gradient in gradients]
        optimizer.step(clipped, one_cycle(step, plan.n_steps, plan.learning_rate))
        if (step + 1) % steps_per_check == 0 or step + 1 == plan.n_steps:
            rows = sorted(vae.elbo(held_out, held_out_eps, plan.beta).tolist())
            elbos.append(sum(rows) / len(rows))
            usual = rows[len(rows) // 10 :]
            trimmed.append(sum(usual) / len(usual))
            if trimmed[-1] == max(trimmed):
                best = copy.deepcopy(vae.state_dict())
    return np.array(elbos), best
