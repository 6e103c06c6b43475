"""The model of a pipeline file: reading it, its channels and its order, and everything that can be wrong with it.

It knows nothing of where a pipeline runs; local runs and deployments stand on it.
"""
