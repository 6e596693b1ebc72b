"""What the parts of the page say agrees with the embeddings."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dmlap_kernels.data import Split
from dmlap_kernels.report import runs as reading
from dmlap_kernels.report.class_pairs import hardest_pairs, render_pairs
from dmlap_kernels.report.comparison import (
    best_runs,
    groups_of_seeds,
    mean_interval,
    render_comparison,
)
from dmlap_kernels.report.embedding_map import project
from dmlap_kernels.report.gallery import choose_queries, render_gallery
from dmlap_kernels.report.page import build_page
from dmlap_kernels.report.run_curves import render_curves
from dmlap_kernels.report.runs import Embedded, NoPictures, embed_test, read_runs
from dmlap_kernels.report.thumbnails import thumbnail
from tests.report.conftest import Page

pil = pytest.importorskip("PIL.Image")


def _embedded(classes: int = 6, samples: int = 10, distance: str = "euclidean") -> Embedded:
    """Noise around class means, so wide that many neighbours are wrong."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(samples)
    means = torch.randn(classes, 5, generator=random)
    x = means[labels] + torch.randn(len(labels), 5, generator=random)
    images = torch.randint(256, (len(labels), 1, 8, 8), generator=random, dtype=torch.uint8)
    split = Split(images, labels, tuple(f"class {i}" for i in range(classes)))
    return Embedded(split, x, {"distance": distance})


def test_marks_agree_with_labels(runs: list[Path]) -> None:
    for embedded in (embed_test(read_runs(runs[2:])[0]), _embedded()):
        labels = embedded.split.labels
        x = embedded.comparable().double()
        distances = torch.cdist(x, x).fill_diagonal_(float("inf"))
        chosen = choose_queries(embedded)
        assert len({query.row for query in chosen}) == len(chosen) == 12
        for row, neighbors, right in chosen:
            got = distances[row, neighbors]
            torch.testing.assert_close(got, distances[row].sort().values[:8], atol=1e-5, rtol=1e-4)
            assert right == (labels[neighbors] == labels[row]).tolist()
        assert [query.right[0] for query in chosen] == [False] * 6 + [True] * 6


def test_the_page_shows_the_marks() -> None:
    embedded = _embedded()
    chosen = choose_queries(embedded)
    page = Page(render_gallery(embedded))
    expected = [right for query in chosen for right in query.right]
    figures = [a["class"] for tag, a in page.tags if tag == "figure" and a["class"] != "query"]
    assert figures == ["right" if right else "wrong" for right in expected]
    signs = [word for word in page.words if word in ("✓", "✗")]
    assert signs == ["✓" if right else "✗" for right in expected]


@pytest.mark.parametrize(
    ("shape", "kind", "size"),
    [
        ((1, 28, 28), "PNG", (28, 28)),
        ((3, 128, 96), "PNG", (96, 128)),
        ((3, 224, 224), "JPEG", (128, 128)),
        ((3, 200, 100), "JPEG", (64, 128)),
    ],
)
def test_photographs_are_reduced(shape: tuple[int, ...], kind: str, size: tuple[int, int]) -> None:
    """To 128 pixels; 156 photographs of 224 made a page of 17 MB."""
    slope = torch.linspace(0, 255, shape[-1]).to(torch.uint8)
    split = Split(slope.expand(2, *shape), torch.tensor([0, 1]), ("a", "b"))
    (tag,) = Page(thumbnail(split, 1, "an image")).tags
    content = base64.b64decode((tag[1]["src"] or "").partition(",")[2])
    image = pil.open(io.BytesIO(content))
    assert (image.format, image.size) == (kind, size)
    assert f"data:image/{kind.lower()};" in (tag[1]["src"] or "")
    # The slope is still there, from left to right.
    row = np.array(image.convert("L"))[size[1] // 2].astype(int)
    assert np.abs(row - np.linspace(0, 255, size[0])).max() < 8


def test_the_comparison_names_what_differs(runs: list[Path]) -> None:
    def shown(folders: list[Path]) -> tuple[list[str], str]:
        read = read_runs(folders)
        page = Page(render_comparison(read))
        columns = page.words[page.words.index("run") : page.words.index("recall@1")]
        return columns, page.text + Page(render_curves(read)).text

    columns, text = shown(runs)
    assert columns == ["run", "method", "seed"]
    assert "All runs: data digits, loss contrastive." in text
    assert "sums over different terms" in text
    columns, text = shown(runs[:2])
    assert columns == ["run", "seed"]
    assert "loss contrastive, method dmlap." in text
    assert "sums over different terms" not in text


def test_queries_without_wrong_neighbours_fill_the_gallery() -> None:
    embedded = _embedded()
    far = embedded.split.labels[:, None].float() * 100 + torch.rand(60, 5)
    chosen = choose_queries(replace(embedded, embeddings=far))
    assert [query.right[0] for query in chosen] == [True] * 12


@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean", "cosine"])
def test_hardest_pairs(distance: str) -> None:
    embedded = _embedded(distance=distance)
    pairs, margin = hardest_pairs(embedded, 5)
    x, labels = embedded.comparable().double(), embedded.split.labels
    d = torch.cdist(x, x)
    d = {"euclidean": d, "sqeuclidean": d**2, "cosine": d**2 / 2}[distance]
    between = d[labels[:, None] != labels]
    assert margin == pytest.approx(between.mean().item(), rel=0.05)
    scores = {
        (a, b): (margin - d[labels == a][:, labels == b]).clamp_min(0).mean().item()
        for a in range(6)
        for b in range(a + 1, 6)
    }
    expected = sorted(scores, key=lambda pair: -scores[pair])[:5]
    assert [pair[:2] for pair in pairs] == expected
    assert [pair.score for pair in pairs] == pytest.approx([scores[p] for p in expected], rel=1e-4)


def test_the_map_is_bounded_and_deterministic() -> None:
    embedded = _embedded(classes=8)
    found = project(embedded, samples=30, classes=5)
    labels = embedded.split.labels[found.rows]
    assert found.positions.shape == (len(found.rows), 2) == (30, 2)
    assert len(labels.unique()) <= 5
    again = project(embedded, samples=30, classes=5)
    assert (found.positions == again.positions).all()


def test_a_map_of_degenerate_embeddings() -> None:
    embedded = _embedded(classes=2, samples=3)
    for x in (embedded.embeddings[:, :1], torch.zeros(6, 4)):
        assert project(replace(embedded, embeddings=x)).positions.shape == (6, 2)


def test_runs_that_differ_in_their_seed(runs: list[Path]) -> None:
    read = read_runs(runs)
    assert groups_of_seeds(read) == [read[:2], read[2:]]
    # scipy.stats.ttest_1samp(...).confidence_interval(): 0.7 ± 4.302653 * 0.1 / sqrt(3).
    assert mean_interval([0.6, 0.7, 0.8]) == pytest.approx((0.7, 0.2484138))


def test_the_best_of_the_same_data(runs: list[Path]) -> None:
    read = read_runs(runs)
    for run, recall, seconds in zip(read, (0.5, 0.9, 0.9), (2.0, 1.0, 3.0), strict=True):
        run.results["test"]["recall@1"] = recall
        run.results["seconds_per_step"] = seconds
    best = best_runs(read)
    assert best["recall@1"] == {1, 2}
    assert best["seconds"] == {1}
    read[1].config["data_seed"] = 7
    assert best_runs(read)["recall@1"] == {2}
    assert best_runs(read[:1])["recall@1"] == set()


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ((), "Classes that the encoder, which has never seen them, puts closest."),
        (("class 0", "class 3"), "Test classes (2 of the 6 also in training) that the encoder"),
        (tuple(f"class {i}" for i in range(6)), "Test classes (all also in training) that the"),
    ],
)
def test_classes_in_training_are_not_called_unseen(seen: tuple[str, ...], said: str) -> None:
    text = Page(render_pairs(replace(_embedded(), seen=seen))).text
    assert text.startswith(said)
    assert ("never seen" in text) == (not seen)


def test_the_page_counts_classes_in_training(runs: list[Path]) -> None:
    run = read_runs(runs[2:])[0]
    assert "also in training" not in Page(build_page([run])).text
    shared = {"images": 9, "classes": 3, "seen_in_training": ["a", "b"]}
    results = run.results | {"data": run.results["data"] | {"test": shared}}
    text = Page(build_page([replace(run, results=results)])).text
    assert "9 images of 3 classes, 2 of them also in training" in text


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e20])
def test_embeddings_that_cannot_be_compared(
    value: float, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "embed", lambda encoder, split: torch.full((len(split), 4), value))
    with pytest.raises(NoPictures, match="not finite, or too large to be compared"):
        embed_test(read_runs(runs[2:])[0])
