"""The `cold-flower` command, and what only it does.

A new command goes here, a file each; what a notebook needs too stands in the rooms below.
"""
