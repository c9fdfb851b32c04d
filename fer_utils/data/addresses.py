"""Where the two datasets and FER+'s votes come from, and how they are recognised."""

from fer_utils.classes import CLASSES, EMOTION_DETECTION_SPELLINGS

# Notebook parameter → Kaggle's owner/slug, and the folder's name in data/.
DATASETS = {
    "fer2013": ("msambare/fer2013", "fer2013"),
    "emotion_detection": ("ananthu017/emotion-detection-fer", "emotion-detection-fer"),
}
# FER+'s votes on FER2013 (MIT): github.com/microsoft/FERPlus
VOTES_FILE = "fer2013new.csv"
VOTES_ADDRESS = "https://raw.githubusercontent.com/microsoft/FERPlus/master/fer2013new.csv"
GET_VOTES = f"put {VOTES_FILE} into data/; if it is there, add Emotion Detection FER, or give fer2013.csv, not folders"
VOTES_SHA256 = "9206e20d62f56475939f516847d61753e4860caeac9718b560129541b776fc2c"
# The class folders, which differ between the datasets and so identify a mounted one.
CLASS_FOLDERS = {
    "fer2013": CLASSES,
    "emotion_detection": tuple(EMOTION_DETECTION_SPELLINGS.get(name, name) for name in CLASSES),
}
