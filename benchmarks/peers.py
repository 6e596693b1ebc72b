"""Libraries at the settings of the fused losses.

A peer is a function of a `Batch` and the options of the loss that returns the loss as a function of
the tensors of a batch. It raises `Absent` where it cannot take part: not installed, or more memory
than `MEMORY_LIMIT`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.batch import Absent, Batch

Loss = Callable[..., Tensor]
MEMORY_LIMIT = 12 * 2**30


def _pml() -> Any:
    try:
        import pytorch_metric_learning
        from pytorch_metric_learning import distances, losses, miners, reducers  # noqa: F401
    except ImportError as error:
        raise Absent("pytorch-metric-learning is not installed") from error
    return pytorch_metric_learning


def _mean(loss: str, *, euclidean: bool = False, **options: Any) -> Any:
    """A loss of pytorch-metric-learning that averages over all of its terms."""
    pml = _pml()
    if euclidean:
        options["distance"] = pml.distances.LpDistance(normalize_embeddings=False)
    return getattr(pml.losses, loss)(reducer=pml.reducers.MeanReducer(), **options)


def _must_fit(batch: Batch, elements: float, bytes_each: int, what: str) -> None:
    needed = elements * bytes_each
    if needed > MEMORY_LIMIT:
        raise Absent(f"{what}: about {needed / 2**30:,.0f} GiB for {len(batch.x):,} rows")


def _pairs_by_pairs(batch: Batch) -> None:
    """Losses that compare every positive with every negative pair of the whole batch."""
    positives, negatives = batch.pairs()
    # A mask, its float copy, the masked similarities and their exponentials.
    _must_fit(batch, positives * negatives, 13, "it builds (positive pairs) x (negative pairs)")


def _every_triplet(batch: Batch) -> None:
    triplets = batch.triplets()
    # Three indices, twice while they are joined, and eight vectors of floats and their gradients.
    _must_fit(batch, triplets, 80, "it lists every triplet")


def _with_miner(loss: Any, miner: Any) -> Loss:
    return lambda x, labels: loss(x, labels, miner(x, labels))


def none(batch: Batch, **options: Any) -> Loss:
    raise Absent("no library that we know of has it")


def triplet_hard(batch: Batch, *, margin: float) -> Loss:
    loss = _mean("TripletMarginLoss", euclidean=True, margin=margin)
    return _with_miner(loss, _pml().miners.BatchHardMiner(distance=loss.distance))


def triplet_easy_positive(batch: Batch, *, margin: float) -> Loss:
    return _easy_positive("hard", margin)


def triplet_easy_positive_semihard(batch: Batch, *, margin: float) -> Loss:
    return _easy_positive("semihard", margin)


def _easy_positive(negatives: str, margin: float) -> Loss:
    loss = _mean("TripletMarginLoss", euclidean=True, margin=margin)
    strategies = {"pos_strategy": "easy", "neg_strategy": negatives}
    miner = _pml().miners.BatchEasyHardMiner(**strategies, distance=loss.distance)
    return _with_miner(loss, miner)


def triplet_semihard(batch: Batch, *, margin: float) -> Loss:
    try:
        from sentence_transformers.sentence_transformer.losses import BatchSemiHardTripletLoss
    except ImportError as error:
        raise Absent("sentence-transformers is not installed") from error
    loss = BatchSemiHardTripletLoss(model=None, margin=margin)
    return lambda x, labels: loss.batch_semi_hard_triplet_loss(labels, x)


def triplet_all(batch: Batch, *, margin: float) -> Loss:
    _every_triplet(batch)
    return _mean("TripletMarginLoss", euclidean=True, margin=margin)


def triplet_distance_weighted(
    batch: Batch, *, margin: float, cutoff: float, nonzero_loss_cutoff: float
) -> Loss:
    miner = _pml().miners.DistanceWeightedMiner(cutoff, nonzero_loss_cutoff)
    return _with_miner(_mean("TripletMarginLoss", margin=margin), miner)


def contrastive(batch: Batch, *, neg_margin: float) -> Loss:
    return _mean("ContrastiveLoss", euclidean=True, pos_margin=0.0, neg_margin=neg_margin)


def margin(batch: Batch, *, margin: float, beta: float) -> Loss:
    _every_triplet(batch)
    return _mean("MarginLoss", euclidean=True, margin=margin, beta=beta)


def multi_similarity(batch: Batch, *, epsilon: float | None = None, **options: float) -> Loss:
    loss = _mean("MultiSimilarityLoss", **options)
    if epsilon is None:
        return loss
    return _with_miner(loss, _pml().miners.MultiSimilarityMiner(epsilon))


def lifted_structure(batch: Batch, **options: float) -> Loss:
    return _mean("GeneralizedLiftedStructureLoss", euclidean=True, **options)


def lifted_structure_original(batch: Batch, **options: float) -> Loss:
    _pairs_by_pairs(batch)
    return _mean("LiftedStructureLoss", euclidean=True, **options)


def n_pairs(batch: Batch) -> Loss:
    distance = _pml().distances.DotProductSimilarity(normalize_embeddings=False)
    return _mean("NPairsLoss", distance=distance)


def nt_xent(batch: Batch, *, temperature: float) -> Loss:
    _pairs_by_pairs(batch)
    return _mean("NTXentLoss", temperature=temperature)


def info_nce(batch: Batch, *, temperature: float) -> Loss:
    """Inf-CL's fused kernels: NT-Xent of anchors and references of which each anchor has one
    positive, from the anchors' side, cosine similarities, products in TF32."""
    try:
        from inf_cl import cal_flash_loss
    except ImportError as error:
        raise Absent("inf-cl is not installed") from error
    if not torch.cuda.is_available():
        raise Absent("Inf-CL needs a GPU")
    # Features are taken in parts of equal length, a power of two.
    part = math.gcd(batch.x.shape[1], 256)
    if part < 16:
        raise Absent(f"Inf-CL does not take {batch.x.shape[1]} features")

    def loss(x: Tensor, labels: Tensor, y: Tensor, y_labels: Tensor) -> Tensor:
        sides = F.normalize(x), F.normalize(y)
        return cal_flash_loss(*sides, labels, scale=1 / temperature, head_dim=part).mean()

    return loss


def siglip_pairs(batch: Batch, *, scale: float, bias: float) -> Loss:
    """siglip-kernel: rows of unit length, row i of one side belongs to row i of the other."""
    try:
        from siglip_kernel import fused_siglip_loss
    except ImportError as error:
        raise Absent("siglip-kernel is not installed") from error
    if not torch.cuda.is_available():
        raise Absent("siglip-kernel needs a GPU")
    numbers = (torch.tensor(number, device=batch.x.device) for number in (math.log(scale), bias))
    log_scale, shift = numbers

    def loss(x: Tensor, labels: Tensor, y: Tensor, y_labels: Tensor) -> Tensor:
        return fused_siglip_loss(F.normalize(x), F.normalize(y)[labels], log_scale, shift)

    return loss


def sup_con(batch: Batch, *, temperature: float) -> Loss:
    return _mean("SupConLoss", temperature=temperature)


def angular(batch: Batch, *, alpha: float) -> Loss:
    """On unit rows: the library normalises anchors and positives, but not negatives."""
    loss = _mean("AngularLoss", alpha=alpha)
    return lambda x, labels: loss(F.normalize(x), labels)


def circle(batch: Batch, *, m: float, gamma: float) -> Loss:
    return _mean("CircleLoss", m=m, gamma=gamma)


def _with_proxies(loss: Any, name: str, transposed: bool = False) -> Loss:
    """Calls ``loss`` with the proxies of the batch in place of its own parameter ``name``."""
    delattr(loss, name)

    def call(x: Tensor, labels: Tensor, proxies: Tensor, proxy_labels: Tensor) -> Tensor:
        setattr(loss, name, proxies.T if transposed else proxies)
        return loss(x, labels)

    return call


def proxy_nca(batch: Batch, *, softmax_scale: float) -> Loss:
    sizes = {"num_classes": batch.classes, "embedding_size": batch.x.shape[1]}
    return _with_proxies(_mean("ProxyNCALoss", softmax_scale=softmax_scale, **sizes), "proxies")


def proxy_anchor(batch: Batch, *, margin: float, alpha: float) -> Loss:
    # Its own reducer divides by the number of proxies.
    loss = _pml().losses.ProxyAnchorLoss(batch.classes, batch.x.shape[1], margin, alpha)
    return _with_proxies(loss, "proxies")


def cosface(batch: Batch, *, scale: float, margin: float) -> Loss:
    return _with_margin("CosFaceLoss", batch, scale, margin)


def arcface(batch: Batch, *, scale: float, margin: float) -> Loss:
    return _with_margin("ArcFaceLoss", batch, scale, margin)


def _with_margin(name: str, batch: Batch, scale: float, margin: float) -> Loss:
    sizes = {"num_classes": batch.classes, "embedding_size": batch.x.shape[1]}
    return _with_proxies(_mean(name, scale=scale, margin=margin, **sizes), "W", transposed=True)


def soft_triple(batch: Batch, *, la: float, gamma: float, margin: float) -> Loss:
    assert batch.proxies is not None
    centers = len(batch.proxies) // batch.classes
    sizes = {"num_classes": batch.classes, "embedding_size": batch.x.shape[1]}
    loss = _mean(
        "SoftTripleLoss", centers_per_class=centers, la=la, gamma=gamma, margin=margin, **sizes
    )
    return _with_proxies(loss, "fc", transposed=True)


def cross_batch_memory(loss: str, rows: Tensor, labels: Tensor, anchors: int) -> Loss:
    """The library's memory of past batches around its loss, filled with these rows; ``anchors`` of
    them at a time are compared with it."""
    # It lists the pairs, 16 bytes each, compares the indices, and copies the distances.
    needed = anchors * len(rows) * 100
    if needed > MEMORY_LIMIT // 4:
        raise Absent(f"it lists every pair: about {needed / 2**30:,.0f} GiB")
    losses = _pml().losses
    memory = losses.CrossBatchMemory(getattr(losses, loss)(), rows.shape[1], len(rows))
    memory.add_to_memory(rows, labels, len(rows))
    return memory


def faiss_nearest(queries: Tensor, references: Tensor, k: int) -> Callable[[], Tensor]:
    """Squared distances (Q, k) by an exact index that is built anew at each call."""
    search = faiss_search(queries, references, k)
    return lambda: search()[0]


def faiss_search(
    queries: Tensor, references: Tensor, k: int
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Squared distances and indices, (Q, k) each."""
    try:
        import faiss
    except ImportError as error:
        raise Absent("faiss is not installed") from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    q, r = queries.numpy(), references.numpy()

    def search() -> tuple[Tensor, Tensor]:
        index = faiss.IndexFlatL2(r.shape[1])
        index.add(r)
        distances, indices = index.search(q, k)
        return torch.from_numpy(distances), torch.from_numpy(indices)

    return search
