"""Whether the objects found in a picture are those of a record: GenEval's rules.

    include   at least `count` objects of the class; the surest `count` of them have the asked `color` and stand in the
              asked `position` to every object of the entry that it refers to
    exclude   fewer than `count` objects of the class

Position compares centres after a tenth of both boxes' sides is taken off their distance, so that a slight offset is
no relation; a relation holds where its direction makes up more than half of the distance. Counting asks for surer
detections than the rest, because a half-recognised shape beside the right number should not spoil it.
"""

from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.3
COUNTING_CONFIDENCE = 0.5
POSITION_TOLERANCE = 0.1


@dataclass(frozen=True)
class Detection:
    noun: str
    confidence: float
    colour: str  # the likeliest name, also for things in their own colours
    box: tuple[float, float, float, float]  # left, top, right, bottom


def relations(box: tuple, other: tuple) -> set[str]:
    """What may be said of `box`: left of, right of, above, below `other`, or nothing."""
    a, b = np.array(box, float), np.array(other, float)
    distance = (a[:2] + a[2:] - b[:2] - b[2:]) / 2
    sides = (a[2:] - a[:2]) + (b[2:] - b[:2])
    shrunk = np.maximum(np.abs(distance) - POSITION_TOLERANCE * sides, 0) * np.sign(distance)
    if (np.abs(shrunk) < 1e-3).all():
        return set()
    dx, dy = shrunk / np.linalg.norm(distance)
    found = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in found.items() if holds}


def judge(record: dict, detections: list[Detection]) -> tuple[bool, str]:
    """(correct, reason), the reason empty where nothing is wrong."""
    threshold = COUNTING_CONFIDENCE if record["tag"] == "counting" else CONFIDENCE
    objects: dict[str, list[Detection]] = {}
    for found in sorted(detections, key=lambda d: -d.confidence):
        if found.confidence > threshold:
            objects.setdefault(found.noun, []).append(found)
    reasons, matched = [], []
    for asked in record["include"]:
        noun, count = asked["class"], asked["count"]
        found = objects.get(noun, [])[:count]
        matched.append(found)
        if len(found) < count:
            reasons.append(f"expected {noun}>={count}, found {len(found)}")
            continue
        if "color" in asked and any(d.colour != asked["color"] for d in found):
            reasons.append(f"expected {asked['color']} {noun}, found {', '.join(d.colour for d in found)}")
        if "position" in asked:
            relation, index = asked["position"]
            if not matched[index]:
                reasons.append(f"no target for {noun} to be {relation}")
            elif not all(relation in relations(d.box, target.box) for d in found for target in matched[index]):
                reasons.append(f"expected {noun} {relation} {record['include'][index]['class']}")
    for banned in record.get("exclude", ()):
        if len(objects.get(banned["class"], [])) >= banned["count"]:
            reasons.append(f"expected {banned['class']}<{banned['count']}, found {len(objects[banned['class']])}")
    return not reasons, "; ".join(reasons)
