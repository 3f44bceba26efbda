"""The experiments of Denil et al. 2013, *Predicting Parameters in Deep Learning*, with seeds, intervals and baselines.

Run from the root of the checkout: `python -m benchmarks.paper --help`. What came out is in docs/paper.md.
"""
