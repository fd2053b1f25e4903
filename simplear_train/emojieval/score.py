"""From verdicts on pictures to the scores of a model: six tasks, their mean, and how far chance may have moved them.

As in GenEval, a task's score is the share of its pictures that are correct, and the overall score is the mean of the
tasks, not of the pictures. Pictures of one prompt succeed and fail together, so intervals resample prompts, not
pictures.
"""

import numpy as np

from simplear_engine.errors import InvalidRequestError

from .records import TASKS

RESAMPLES = 2000


def interval(samples: np.ndarray) -> list[float]:
    return [round(float(v), 4) for v in np.percentile(samples, [2.5, 97.5])]


def scores(records: list[dict], correct: np.ndarray, seed: int = 0) -> dict:
    """correct: bool [prompts, pictures]. {"tasks": {task: {score, interval, prompts}}, "overall": {score, interval}}"""
    rng = np.random.default_rng(seed)
    tasks, resampled = {}, []
    for task in TASKS:
        of_task = correct[[r["tag"] == task for r in records]]
        if not len(of_task):
            raise InvalidRequestError(f"emojieval: this world has nothing to ask for {task}; take a larger one")
        share = of_task.mean(1)  # of each prompt
        samples = rng.choice(share, (RESAMPLES, len(share))).mean(1)
        resampled.append(samples)
        tasks[task] = {"score": round(float(share.mean()), 4), "interval": interval(samples), "prompts": len(share)}
    overall = float(np.mean([entry["score"] for entry in tasks.values()]))
    return {"tasks": tasks, "overall": {"score": round(overall, 4), "interval": interval(np.mean(resampled, axis=0))}}
