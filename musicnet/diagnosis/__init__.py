"""Why a model does not learn: what was seen, what was asked for, and the verdict.

Nothing here knows of arrays or of a trainer: plain numbers come in.
"""
