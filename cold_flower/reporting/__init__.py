"""From score rows to means, tables, figures, report.html and trackers; what experiments there are.

A new table or figure goes here; it reads run directories and changes none.
"""
