"""Searches without Ray: studies, search spaces, the journal of trials, and results.

`studies` defines what is varied and optimised; `space` makes a search space around an experiment; `journal` keeps every
trial of a search in one file; `metrics`, `front` and `importance` judge them. `diffplan.cluster.tune.search` runs the
trials.
"""
