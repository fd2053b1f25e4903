"""EmojiEval: does a picture show what its prompt says? GenEval's records and rules, a detector of our own.

    python -m simplear_train.emojieval --model default --out runs/emojieval

    records.py         the prompts and what must be seen for each
    rules.py           detections of one picture + a record -> correct or the reason why not
    detector.py        the network that looks at pictures; its weights lie beside it
    train_detector.py  makes those weights, and measures how far they can be trusted
    score.py           the six tasks, their mean, and intervals

The detector knows emoji sprites and nothing else, so a score here is comparable with other scores here only, never
with published GenEval numbers.
"""
