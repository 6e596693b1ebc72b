"""faiss on GPUs, where its build has some (``pip install 'dmlap-kernels[faiss-gpu]'``)."""

from __future__ import annotations

from typing import Any

# What a search on GPUs returns for a query, and lists that it visits.
MOST_NEIGHBORS = 2048


def gpus(faiss: Any) -> int:
    """How many GPUs this build of faiss uses; builds for CPUs have none, or no such question."""
    count = getattr(faiss, "get_num_gpus", None)
    return 0 if count is None else int(count())


def trained(faiss: Any, index: Any, rows: Any, neighbors: int) -> Any:
    """An inverted file of L2 distances, trained on ``rows`` (N, D) and empty.

    Where faiss has GPUs, its k-means ran there, from the same seed, and it searches there: if so
    many ``neighbors`` and lists are within what they do.
    """
    if not gpus(faiss):
        index.train(rows)
        return index
    # Held here: the index only points to it.
    clusters = faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(index.d))
    index.clustering_index = clusters
    index.train(rows)
    index.clustering_index = None
    if max(neighbors, index.nprobe) > MOST_NEIGHBORS:
        return index
    return faiss.index_cpu_to_all_gpus(index)
