"""Backends: who can run a sweep. `registry` says who does."""
