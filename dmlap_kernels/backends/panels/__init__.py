"""The `torch` backend: panels of products in plain PyTorch, in bounded memory, on any device."""

from dmlap_kernels.backends.panels.torch_backend import TorchBackend

__all__ = ["TorchBackend"]
