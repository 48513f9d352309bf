"""Searches without Ray: which there are, what they vary and want, the file they are kept in, and what came out.

`studies` says what is varied and what for; `space` makes that a space around an experiment; `journal` keeps every trial
of a search in one file; `metrics`, `front` and `importance` judge them. `diffplan.cluster.tune.search` runs the trials.
"""
