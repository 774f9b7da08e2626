"""The run directory: the bases with their lineage, and the records beside them.

What a run leaves on disk is written here and nowhere else.
"""
