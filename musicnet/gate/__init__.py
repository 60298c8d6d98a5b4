"""The training harness: which steps are taken, at which rate, and what a checkpoint keeps of it.

It knows nothing of arrays or sources and fits any Lightning project.
"""
