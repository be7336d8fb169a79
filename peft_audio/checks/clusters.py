"""Suspect groups from clusters of encoder embeddings, for collections whose names do not show them.

A speaker, a device or a place affects clips of every class in the same way. So the mean of its class is subtracted from
each embedding, and clusters count as groups only if they recur in other classes: k-means on one half of the classes
must divide all clips like k-means on the other half. Clusters must also be further apart than those of a normal
distribution with the same spread, because k-means divides any cloud. `benchmarks/validity/clusters.py` measures
precision and recall.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from peft_audio.audio.decoding import load_audio
from peft_audio.checks.groups import names_class
from peft_audio.config import ModelConfig
from peft_audio.errors import UserError

SECONDS = 5.0  # length that is read of each clip
BATCH_CLIPS = 16
MOST_CLIPS = 1_000  # drawn at random from larger collections
FEWEST_CLIPS = 100
# Speakers were separated best after the first of the bundled encoder's six layers.
LAYERS_PER_CUT = 6
COMPONENTS = 10
CLUSTERS = range(3, 9)
# Chosen on other draws of the benchmark's recordings. Sets of one speaker reached 0.03 and 0.55, but never exceeded
# both limits; six speakers reached 0.07 and 0.42.
LEAST_SEPARATION = 0.05
LEAST_AGREEMENT = 0.4
SLACK = 0.05  # among numbers of clusters whose agreement is at most this much lower, the best separated one is used
HALVINGS = 6
NULLS = 3

# Path or bytes of a file, start in seconds, and length in seconds; None up to the end of the file.
Part = tuple[Path | bytes, float, float | None]


def embed(parts: Sequence[Part], base: str, advance: Callable[[int], None] = lambda clips: None) -> np.ndarray:
    """Average the states of a lower encoder layer over each clip's first 5 s.

    Args:
        parts: Clips that can be decoded.
        base: Folder or Hub id of an encoder, or the bundled one.
        advance: Callback that gets the number of clips of each batch.

    Returns:
        float32 of shape (clips, channels).

    Raises:
        UserError: The encoder cannot be loaded.
    """
    # Imported here, so that check starts quickly without --deep.
    import torch

    from peft_audio.data.collate import collate, prepare_clip
    from peft_audio.encoders.family import family_of
    from peft_audio.encoders.loading import load_classifier, load_extractor

    cfg = ModelConfig(name=base)
    extractor = load_extractor(cfg)
    with torch.random.fork_rng():  # the head has random weights and is not used
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
    """Divide clips into clusters that recur in several classes.

    Args:
        embeddings: Embeddings of shape (clips, channels).
        labels: Class of each clip.

    Returns:
        Number of each clip's cluster, 0 for the largest, of shape (clips,); None without clear clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, silhouette_score

    names, classes = np.unique(np.asarray(labels), return_inverse=True)
    if len(classes) < FEWEST_CLIPS or len(names) < 2:
        return None
    points = _principal(embeddings, classes)
    rng = np.random.default_rng(0)

    def divided(values: np.ndarray, count: int) -> KMeans:
        """Divide points into `count` clusters."""
        return KMeans(count, n_init=4, random_state=0).fit(values)

    def agreement(count: int) -> float:
        """Measure how well the clusters of two random halves of the classes agree."""
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
    """Subtract the mean of each class, and return the first principal components, of shape (clips, COMPONENTS)."""
    values = embeddings.astype(np.float64)
    for number in range(classes.max() + 1):
        values[classes == number] -= values[classes == number].mean(axis=0)
    values /= values.std(axis=0) + 1e-9
    left, scales, _ = np.linalg.svd(values, full_matrices=False)
    return left[:, :COMPONENTS] * scales[:COMPONENTS]
