"""A small random encoder of texts and some texts: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = (
    *("the", "a", "red", "blue", "old", "new", "cat", "dog", "bird", "train", "city", "river"),
    *("sleeps", "runs", "sings", "arrives", "grows", "shines", "slowly", "today", "again", "now"),
)


def make_encoder(folder: Path, seed: int = 0, features: int = 32, words: Any = WORDS) -> Any:
    """A SentenceTransformer of two layers with mean pooling and without dropout."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=features,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * features,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    encoder = Transformer(str(folder), max_seq_length=16)
    return SentenceTransformer(modules=[encoder, Pooling(features, "mean")], device="cpu")


def sentences(count: int, seed: int = 0) -> list[str]:
    """Of three to six words."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 7, (count,), generator=g).tolist()
    return [
        " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=g))
        for length in lengths
    ]
