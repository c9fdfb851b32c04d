"""Fetches both datasets with kagglehub, and FER+'s votes, into data/ of the project's folder, where the process stands."""

import hashlib
import shutil
import urllib.request
from pathlib import Path

from fer_utils import files, places
from fer_utils.data import addresses, finding


def download() -> None:
    """Fetch both datasets, unless they are there, and FER+'s votes into data/. Raises NotFoundHere with the way out."""
    missing, by_hand = {}, "By hand, download"
    for slug, local in addresses.DATASETS.values():
        target = Path("data") / local
        if there := finding.held_as(target.parent, local):
            print(f"{there} is there already")
        else:
            missing[slug] = target
            by_hand += f"\n  https://www.kaggle.com/datasets/{slug} → {target} or {target}.zip"
    for slug, target in missing.items():
        fetched = _fetched(slug, by_hand)
        with files.replacing(target) as temporary:
            shutil.copytree(fetched, temporary)
        (target / files.WRITTEN).unlink()  # nothing ever replaces a source
    download_votes()


def _fetched(slug: str, by_hand: str) -> str:
    """The folder into which kagglehub fetches a dataset. Raises NotFoundHere with the way out."""
    try:
        import kagglehub

        return kagglehub.dataset_download(slug)
    except ImportError:
        raise places.NotFoundHere(
            "--download needs kagglehub: `pip install kagglehub`, or with uv `uv run --extra download run_all.py --download`. "
            + by_hand
        ) from None
    except Exception as error:  # kagglehub has a dozen, most of them plain: refused, not found, no network
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise places.NotFoundHere(f"{slug} could not be fetched ({reason}). {by_hand}") from error


def download_votes() -> None:
    """Fetch FER+'s votes into data/, 2 MB; a download that is not the published file is an error."""
    target = Path("data") / addresses.VOTES_FILE
    if target.exists():
        print(f"{target} is there already")
        return
    by_hand = f"download {addresses.VOTES_ADDRESS} by hand and put it at {target}"
    try:
        with urllib.request.urlopen(addresses.VOTES_ADDRESS, timeout=60) as answer:
            data = answer.read()
    except OSError as error:
        raise places.NotFoundHere(f"FER+'s votes could not be fetched ({error}): {by_hand}") from error
    if hashlib.sha256(data).hexdigest() != addresses.VOTES_SHA256:
        raise places.NotFoundHere(f"what {addresses.VOTES_ADDRESS} gave is not the file that FER+ published: {by_hand}")
    with files.replacing(target) as temporary:
        temporary.write_bytes(data)
