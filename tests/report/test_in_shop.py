"""Queries of In-shop are looked up in its gallery, on the page as in the metrics."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch

from dmlap_kernels.data import load_data
from dmlap_kernels.report import runs as reading
from dmlap_kernels.report.gallery import choose_queries
from dmlap_kernels.report.page import build_page
from dmlap_kernels.report.runs import Run, embed_test, read_runs
from dmlap_kernels.trainer import TrainConfig, Trainer
from tests.data.photo_layouts import make_inshop, photo, pil
from tests.report.conftest import Page


@pytest.fixture(scope="module")
def in_shop(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("in-shop")
    folder = make_inshop(root / "data", classes=8, images=5)
    # Colours that say nothing of the item: some neighbours are wrong.
    for number, file in enumerate(sorted(folder.rglob("*.jpg"))):
        photo(file, number)
    config = TrainConfig(
        data=f"inshop:{folder}",
        image_size=16,
        steps=2,
        classes_per_batch=4,
        samples_per_class=2,
        embedding_dim=8,
    )
    Trainer(config, out=root / "run").run()
    return read_runs([root / "run"])[0]


@pytest.fixture(autouse=True)
def real_data(data: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the digits of the other tests."""
    monkeypatch.setattr(reading, "load_data", load_data)


def test_neighbours_are_of_the_gallery(in_shop: Run) -> None:
    embedded = embed_test(in_shop)
    assert embedded.gallery is not None
    split, embeddings = embedded.gallery
    # Three queries and two images of the gallery for each of four items.
    assert (len(embedded.split), len(split)) == (12, 8)
    distances = torch.cdist(embedded.embeddings.double(), embeddings.double())
    chosen = choose_queries(embedded)
    assert len({query.row for query in chosen}) == len(chosen) == 12
    for row, neighbors, right in chosen:
        # All of the gallery, which has no more.
        assert sorted(neighbors) == list(range(8))
        got = distances[row, neighbors]
        torch.testing.assert_close(got, distances[row].sort().values, atol=1e-5, rtol=1e-4)
        assert right == (split.labels[neighbors] == embedded.split.labels[row]).tolist()
    first = [query.right[0] for query in chosen]
    assert sum(first) / 12 == pytest.approx(in_shop.results["test"]["recall@1"])
    assert 0 < sum(first) < 12


def test_the_page_shows_images_of_the_gallery(in_shop: Run) -> None:
    embedded = embed_test(in_shop)
    assert embedded.gallery is not None
    page = Page(build_page([in_shop]))
    assert "its nearest images of the gallery" in page.text
    assert "gallery split" in page.text and "8 images of 4 classes" in page.text
    shown = [
        attrs for tag, attrs in page.tags if tag == "img" and "sample" in (attrs["class"] or "")
    ]
    queries = choose_queries(embedded)
    for query, row in zip(queries, range(0, 9 * len(queries), 9), strict=True):
        split, index = embedded.gallery[0], query.neighbors[0]
        name = split.class_names[int(split.labels[index])]
        assert (shown[row + 1]["alt"] or "").endswith(f": class {name}")
        content = base64.b64decode((shown[row + 1]["src"] or "").partition(",")[2])
        image = torch.from_numpy(np.array(pil.open(io.BytesIO(content))))
        assert torch.equal(image.permute(2, 0, 1), split.images[torch.tensor([index])].read()[0])
