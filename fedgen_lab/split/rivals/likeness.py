"""Who is like whom, as a server can tell from the clients' fakes alone: the weights of PFL-GAN.

Lab 07. PFL-GAN (arXiv 2308.12454) compares clients by KL divergence between features of generated data; features and
scale are ours: principal components of all fakes, a Gaussian for each client, and the median divergence as the unit.
"""

import numpy as np

COMPONENTS = 16  # enough to tell drawn domains apart, few enough for 128 fakes a client


def likeness(samples):
    """How much each client should take from each other: (N, N), rows sum to 1, zeros on the diagonal.

    samples: fakes (S, C, H, W) of each client. The weight is exp(-KL / median KL), KL the mean of both directions.
    Raises ValueError for fewer than two clients.
    """
    from sklearn.decomposition import PCA

    if len(samples) < 2:
        raise ValueError("Likeness is between clients; give the fakes of two at least.")
    flat = np.concatenate(
        [sample.flatten(1).double().numpy() for sample in samples]
    )  # (N * S, pixels)
    features = PCA(min(COMPONENTS, *flat.shape), random_state=0).fit_transform(flat)
    features = features.reshape(len(samples), -1, features.shape[1])  # (N, S, F)
    mean, variance = features.mean(1), features.var(1) + 1e-6  # (N, F)
    apart, ratio = mean[:, None] - mean, variance[:, None] / variance  # (N, N, F)
    kl = 0.5 * (ratio + apart**2 / variance - 1 - np.log(ratio)).sum(2)  # KL(row || column)
    kl = (kl + kl.T) / 2
    others = ~np.eye(len(samples), dtype=bool)
    alike = np.exp(-kl / max(np.median(kl[others]), 1e-9)) * others
    return alike / np.maximum(alike.sum(1, keepdims=True), 1e-12)
