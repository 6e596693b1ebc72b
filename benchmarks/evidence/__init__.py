"""Does DMLAP help? Runs on Omniglot with seeds, means and intervals.

    python -m benchmarks.evidence all --data omniglot:PATH --out DIR

runs its stages one after the other, about an hour on two cores; each can be named instead of `all`.

`search` trains on some of the background alphabets and judges on the others; `final` trains on all
of them with what the search found best, and judges on the evaluation alphabets; `cost` times a
step, `clock` gives DMLAP the time of a plain run instead of its steps, `sweep` repeats the runs for
several batch sizes; `table` writes what came out. Each run appends a line to a
file in the folder of results; runs that are there are not repeated.
"""
