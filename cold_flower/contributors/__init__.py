"""What runs where the data are, and what may leave from there.

A site's settings, its trainer and its log; nothing here knows Flower or the server.
"""
