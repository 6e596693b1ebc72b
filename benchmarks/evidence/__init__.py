"""Does DMLAP help? Runs on Omniglot with seeds, means and intervals.

    python -m benchmarks.evidence search --data omniglot:PATH
    python -m benchmarks.evidence final --data omniglot:PATH
    python -m benchmarks.evidence table

`search` trains on two thirds of the background alphabets or so and judges on the others; `final`
trains on all of them, with what the search found best, and judges on the evaluation alphabets;
`table` writes what came out. Each run appends a line to a file; runs that are there are not
repeated.
"""
