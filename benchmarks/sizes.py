"""Training examples of the paper's 36 datasets, as published."""

SIZES = {
    "20_newsgroups": 11_314, "ag_news": 120_000, "amazon_reviews": 200_000, "anli": 162_865,
    "boolq": 9_427, "cb": 250, "cola": 8_551, "copa": 400, "dbpedia": 560_000, "esnli": 549_367,
    "financial_phrasebank": 3_846, "imdb": 25_000, "isear": 6_132, "mnli": 392_702, "mrpc": 3_668,
    "multirc": 27_243, "poem_sentiment": 892, "qnli": 104_743, "qqp": 363_846,
    "rotten_tomatoes": 8_530, "rte": 2_490, "sst2": 67_349, "sst5": 8_544, "stsb": 5_749,
    "trec_coarse": 5_452, "trec_fine": 5_452, "tweet_emoji": 45_000, "tweet_emotion": 3_257,
    "tweet_hate": 9_000, "tweet_irony": 2_862, "tweet_offensive": 11_916,
    "tweet_sentiment": 45_615, "wic": 5_428, "wnli": 635, "wsc": 554, "yahoo_answers": 1_400_000,
}  # fmt: skip
