"""The coordinator: who takes part, what fuses, who scores it, what is recorded.

The only room with Flower's ServerApp side; it never sees a contributor's data.
"""
