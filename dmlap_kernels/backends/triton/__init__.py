"""The `triton` backend. Importing this package does not import Triton."""
