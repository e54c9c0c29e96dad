"""Names that options take, written out, so that help and a name that is misspelt don't wait seconds for torch."""

__all__ = ["NAMES"]

# A test says that these are the keys of the registries, in their order.
NAMES: dict[str, tuple[str, ...]] = {
    "backbone": (
        *("gabor", "resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d"),
        *("wide_resnet50_2", "wide_resnet101_2"),
    ),
    "baseline": ("knn", "lof", "isolation_forest", "one_class_svm", "pca", "gaussian_mixture", "kde"),
    "label threshold": ("youden", "f_beta", "cost", "recall_at_fpr"),
    "likelihood": (
        *("gaussian", "gaussian_per_feature", "gaussian_shared", "student_t", "bernoulli", "continuous_bernoulli"),
        *("discretised_logistic", "categorical", "mixed"),
    ),
    "net": ("mlp", "conv"),
    "precision": ("auto", "float32", "bfloat16"),
    "prior": ("standard_normal", "gaussian_mixture", "vamp"),
    "score": (
        *("novelty", "neg_log_px_z", "neg_elbo", "neg_log_px", "reconstruction_probability", "reconstruction_error"),
        *("kl", "typicality", "nearest_neighbour", "latent_novelty", "mahalanobis", "patch_novelty", "patch_error"),
        *("likelihood_regret", "input_complexity", "path_statistics"),
    ),
    "threshold": ("conformal", "quantile", "peaks_over_threshold"),
}
