"""Does DMLAP help? Runs on Omniglot with seeds, means and intervals.

    python -m benchmarks.evidence search --data omniglot:PATH
    python -m benchmarks.evidence final --data omniglot:PATH
    python -m benchmarks.evidence sweep --data omniglot:PATH
    python -m benchmarks.evidence cost --data omniglot:PATH
    python -m benchmarks.evidence table

`search` trains on some of the background alphabets and judges on the others; `final` trains on all
of them with what the search found best, and judges on the evaluation alphabets; `sweep` does so for
several batch sizes; `cost` times a step; `table` writes what came out. Each run appends a line to a
file in the folder of results; runs that are there are not repeated.
"""
