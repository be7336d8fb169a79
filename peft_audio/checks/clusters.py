"""Suspect groups by clusters of encoder embeddings, where names do not show them.

A speaker, a device or a place colours clips of every class alike. So the average of its class is taken from each
embedding, and clusters count as groups only if they come back in other classes: k-means on one half of the classes has
to divide all clips as k-means on the other half does. They also have to stand further apart than clusters of a normal
distribution with the same spread, because k-means divides any cloud. `benchmarks/validity/clusters.py` measures how
often this is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from peft_audio.audio.decoding import load_audio
from peft_audio.checks.groups import names_class
from peft_audio.config import ModelConfig
from peft_audio.errors import UserError

SECONDS = 5.0  # of each clip
BATCH_CLIPS = 16
MOST_CLIPS = 1_000  # drawn at random from larger collections
FEWEST_CLIPS = 100
# Speakers were clearest after the first of the bundled encoder's six layers.
LAYERS_PER_CUT = 6
COMPONENTS = 10
CLUSTERS = range(3, 9)
# Chosen on other draws of the same recordings than the benchmark's: sets of one speaker reached 0.03 and 0.55, but not
# both beyond these; six speakers 0.07 and 0.42.
LEAST_SEPARATION = 0.05
LEAST_AGREEMENT = 0.4
SLACK = 0.05  # of numbers of clusters that agree nearly as well, the best separated one counts
HALVINGS = 6
NULLS = 3

# A file or the bytes of one, the start in it in seconds, and the length in seconds; None for all that follows.
Part = tuple[Path | bytes, float, float | None]


def embed(parts: Sequence[Part], base: str, advance: Callable[[int], None] = lambda clips: None) -> np.ndarray:
    """Average the states of a lower encoder layer over each clip's first 5 s.

    Args:
        parts: Clips that can be decoded.
        base: Folder or Hub id of an encoder, or the bundled one.
        advance: Called with the number of clips of each batch.

    Returns:
        float32 of shape (clips, channels).

    Raises:
        UserError: The encoder cannot be loaded.
    """
    # Here, because check starts quickly without them.
    import torch

    from peft_audio.data.collate import collate, prepare_clip
    from peft_audio.encoders.family import family_of
    from peft_audio.encoders.loading import load_classifier, load_extractor

    cfg = ModelConfig(name=base)
    extractor = load_extractor(cfg)
    with torch.random.fork_rng():  # the head is drawn at random, and not used
        model = load_classifier(cfg, ["one", "other"])
    family, config = family_of(model.config), model.config
    layers = max(1, family.layer_count(config) // LAYERS_PER_CUT)
    cuts = [cut for cut in family.cuts(config) if not cut.pooled and cut.layers <= layers]
    if not cuts:
        raise UserError(f"--base: {base} has no layers to take embeddings from; leave it out for the bundled encoder.")
    limit = min(SECONDS, family.window(config, None) or SECONDS)
    rows = []
    for first in range(0, len(parts), BATCH_CLIPS):
        batch = parts[first : first + BATCH_CLIPS]
        waveforms = [
            load_audio(source, extractor.sampling_rate, start, min(seconds or limit, limit))
            for source, start, seconds in batch
        ]
        facts = {"label": 0, "index": 0, "weight": 1.0}
        padded = collate([prepare_clip(waveform, extractor, family) | facts for waveform in waveforms], config)
        with torch.inference_mode():
            states = family.run_prefixes(model, padded["inputs"], cuts[-1:])
            rows.append(family.pool(model, [states[cuts[-1]]], padded["samples"])[:, 0].numpy())
        advance(len(batch))
    return np.concatenate(rows)


def find_clusters(embeddings: np.ndarray, labels: Sequence[str]) -> np.ndarray | None:
    """Divide clips into clusters that come back in several classes.

    Args:
        embeddings: Shape (clips, channels).
        labels: Class of each clip.

    Returns:
        The cluster of each clip, the largest first, of shape (clips,); None without clear clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, silhouette_score

    names, classes = np.unique(np.asarray(labels), return_inverse=True)
    if len(classes) < FEWEST_CLIPS or len(names) < 2:
        return None
    points = _principal(embeddings, classes)
    rng = np.random.default_rng(0)

    def divided(values: np.ndarray, count: int) -> KMeans:
        return KMeans(count, n_init=4, random_state=0).fit(values)

    def agreement(count: int) -> float:
        scores = []
        for _ in range(HALVINGS):
            half = np.isin(classes, rng.permutation(len(names))[: len(names) // 2])
            if min(half.sum(), (~half).sum()) <= count:
                return 0.0
            one, other = (divided(points[rows], count).predict(points) for rows in (half, ~half))
            scores.append(adjusted_rand_score(one, other))
        return float(np.mean(scores))

    found: list[tuple[float, float, np.ndarray]] = []
    for count in CLUSTERS:
        clusters = divided(points, count).labels_
        clouds = [rng.normal(size=points.shape) * points.std(axis=0) for _ in range(NULLS)]
        nulls = [silhouette_score(cloud, divided(cloud, count).labels_) for cloud in clouds]
        separation = silhouette_score(points, clusters) - np.mean(nulls)
        if separation < LEAST_SEPARATION or names_class(clusters.tolist(), list(labels)):
            continue
        if (agreed := agreement(count)) >= LEAST_AGREEMENT:
            found.append((agreed, separation, clusters))
    if not found:
        return None
    best = max(agreed for agreed, *_ in found)
    *_, clusters = max((one for one in found if one[0] >= best - SLACK), key=lambda one: one[1])
    largest_first = np.argsort(-np.bincount(clusters), kind="stable")
    return np.argsort(largest_first)[clusters]


def _principal(embeddings: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Take the average of each class away, and keep the principal components of what is left."""
    values = embeddings.astype(np.float64)
    for number in range(classes.max() + 1):
        values[classes == number] -= values[classes == number].mean(axis=0)
    values /= values.std(axis=0) + 1e-9
    left, scales, _ = np.linalg.svd(values, full_matrices=False)
    return left[:, :COMPONENTS] * scales[:COMPONENTS]
