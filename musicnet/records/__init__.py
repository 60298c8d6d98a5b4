"""What a run leaves: its folder, its provenance, its log; every file whole or not there.

Nothing here knows of a trainer, so any program may use it.
"""
