"""The model families that are tested, without loading any library."""

PREFIXES = {
    "bert": "bert",
    "deberta-v2": "deberta",
    "distilbert": "distilbert",
    "electra": "electra",
    "modernbert": "model",
    "mpnet": "mpnet",
    "roberta": "roberta",
    "t5": "",
}
"""What stands before a body's names in a file that has a head, too; T5 is all body."""

OWN_ATTENTION = ("deberta-v2", "mpnet", "t5")
"""Those that keep transformers' attention on cores: positions enter its scores."""

FIRST_TOKEN = ("bert", "electra", "roberta")
"""Those whose last layer computes the first token alone (`cold_flower.models.first_token`)."""
