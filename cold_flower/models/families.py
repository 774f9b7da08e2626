"""The model families that are tested. Loads no library."""

PREFIXES = {
    "albert": "albert",
    "bert": "bert",
    "camembert": "roberta",
    "deberta-v2": "deberta",
    "distilbert": "distilbert",
    "electra": "electra",
    "modernbert": "model",
    "mpnet": "mpnet",
    "roberta": "roberta",
    "t5": "",
    "xlm-roberta": "roberta",
}
"""What stands before the body's names in a file that also holds a head. T5 is all body."""

OWN_ATTENTION = ("deberta-v2", "mpnet", "t5")
"""Their attention adds positions to the scores, so on cores they keep transformers' own."""

FIRST_TOKEN = ("bert", "camembert", "electra", "roberta", "xlm-roberta")
"""Their last layer computes the first token only (`cold_flower.models.first_token`)."""

BEHIND_PADDING = ("camembert", "mpnet", "roberta", "xlm-roberta")
"""Their positions are counted from the padding's id, so there are fewer of them for a text."""
