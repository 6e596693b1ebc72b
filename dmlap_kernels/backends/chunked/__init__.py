"""The `torch` backend: plain PyTorch over blocks of anchors, in bounded memory, on any device."""

from dmlap_kernels.backends.chunked.backend import TorchBackend

__all__ = ["TorchBackend"]
