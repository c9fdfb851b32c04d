"""The seven classes: their names, their order, and the spellings that the source datasets use."""

CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
PROBABILITIES = tuple(f"p_{label}" for label in CLASSES)  # columns of tables of predictions

# Emotion Detection FER spells three of the seven differently.
EMOTION_DETECTION_SPELLINGS = {"disgust": "disgusted", "fear": "fearful", "surprise": "surprised"}

_SPELLINGS = {spelling: name for name, spelling in EMOTION_DETECTION_SPELLINGS.items()} | {
    **dict.fromkeys(("anger", "angery"), "angry"),
    **dict.fromkeys(("disgusting", "digust"), "disgust"),
    **dict.fromkeys(("scared", "afraid"), "fear"),
    **dict.fromkeys(("happiness", "happines", "joy"), "happy"),
    "sadness": "sad",
    **dict.fromkeys(("surprising", "suprise", "suprised"), "surprise"),
    **dict.fromkeys(("neutrality", "natural", "nuetral"), "neutral"),
}

CSV_CODES = CLASSES  # 0 to 6 in fer2013.csv (Goodfellow et al. 2013, "Challenges in Representation Learning")


def class_of(spelling: str) -> str | None:
    """The class for a source's folder name, or None if the name is unknown."""
    name = spelling.strip().lower()
    name = _SPELLINGS.get(name, name)
    return name if name in CLASSES else None
