"""Finds the source datasets and FER+'s votes: at a parameter's path, in data/, mounted on Kaggle, or drawn for the demo."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fer_utils import files, places
from fer_utils.data.addresses import CLASS_FOLDERS, DATASETS, VOTES_ADDRESS, VOTES_FILE

DRAWN = "demo_sources"  # folder of the drawn datasets, below the image folder
SECOND = "emotion_detection"  # the dataset without which a run can do


def find_or_draw(given: Mapping[str, str], demo_images: int, seed: int, folder: Path) -> dict[str, Path]:
    """The paths of the source datasets, by name; those given as `demo` are drawn below `folder` first.

    given: name → `auto`, a path, `demo`, or for the second dataset `none`. Raises NotFoundHere as find_dataset does.
    """
    drawn = folder / DRAWN
    if "demo" in given.values():
        from fer_utils.data import demo  # OpenCV takes a while to import

        with files.replacing(drawn) as temporary:
            demo.write_datasets(temporary, demo_images, seed)
    return {
        name: drawn / DATASETS[name][1] if path == "demo" else find_dataset(name, path)
        for name, path in taken(given).items()
    }


def taken(given: Mapping[str, str]) -> dict[str, str]:
    """The source datasets that a run takes, by name, from the parameters of 01: all but a second one given as `none`."""
    return {name: given[name] for name in DATASETS if (name, given[name]) != (SECOND, "none")}


def find_votes(given: str, found: Mapping[str, Path]) -> Path | None:
    """FER+'s votes on FER2013: the file `given`, with `none` None, with `auto` the first that exists of the usual paths.

    These are the votes drawn with `found`, the sources; any `fer2013new.csv` mounted on Kaggle; `data/fer2013new.csv`. `auto`
    gives None if there is none. Raises NotFoundHere if `given` does not exist.
    """
    if given == "none":
        return None
    if given != "auto":
        path = places.place(given)
        if not path.is_file():
            raise places.NotFoundHere(f"votes: no file at {path}; {VOTES_FILE} is at {VOTES_ADDRESS}")
        return path
    drawn = [path.parent / "ferplus" / VOTES_FILE for path in found.values() if path.parent.name == DRAWN]
    mounted = places.find_files(places.kaggle_root() / "input", VOTES_FILE) if places.on_kaggle() else []
    usual = (*drawn, *mounted, places.project_root() / "data" / VOTES_FILE)
    return next((path for path in usual if path.is_file()), None)


def extra_places(given: str, taken: Sequence[str] = ()) -> dict[str, Path]:
    """The paths of a parameter such as `my_faces;more.zip`, by short names that are unique and not among `taken`."""
    found: dict[str, Path] = {}
    for text in filter(None, (piece.strip() for piece in given.split(";"))):
        stem = re.sub(r"[^\w-]+", "_", Path(text).stem).strip("_").encode()[:60].decode(errors="ignore") or "extra"
        used = {name.casefold() for name in (*found, *taken)}
        name = next(name for name in (stem, *(f"{stem}_{n}" for n in range(2, 999))) if name.casefold() not in used)
        found[name] = places.place(text)
    return found


def find_dataset(name: str, given: str) -> Path:
    """The path of a source dataset: `given`, or with `auto` the first that exists of the usual paths.

    These are, in order: `/kaggle/input/datasets/<owner>/<slug>`, `/kaggle/input/<slug>`, any folder mounted on Kaggle that
    has `train/` and `test/` with the dataset's class folders, `data/<slug>` in one of its forms. Raises NotFoundHere,
    naming the dataset to download and what is there, if none exists, or if several mounted folders match.
    """
    owner_slug, local = DATASETS[name]
    if given != "auto":
        path = places.place(given)
        if path.exists():
            return path
        raise places.NotFoundHere(f"{name}: nothing at {path}\n{_how_to_get(owner_slug, local)}")
    inputs, data = places.kaggle_root() / "input", places.project_root() / "data"
    for usual in (inputs / "datasets" / owner_slug, inputs / local):
        if usual.exists():
            return usual
    mounted = places.find_parts(inputs, ("train", "test"), CLASS_FOLDERS[name])
    if len(mounted) > 1:
        both = " and ".join(map(str, mounted))
        raise places.NotFoundHere(f"{name}: {both} both look like it: set the parameter {name} to one of them")
    if found := mounted[0] if mounted else held_as(data, local):
        return found
    looked = f"looked for {data / local} and {data / local}.zip; data/ holds {', '.join(held_data()) or 'nothing'}"
    looked = places.describe(inputs) if places.on_kaggle() else looked
    raise places.NotFoundHere(f"{name}: the dataset is not here; {looked}\n{_how_to_get(owner_slug, local)}")


def held_as(data: Path, local: str) -> Path | None:
    """The dataset in the folder `data`: a folder, an archive or a table, the first of these that exists, or None."""
    forms = (data / f"{local}{suffix}" for suffix in ("", ".zip", ".csv"))
    return next((path for path in forms if path.exists()), None)


def held_data() -> list[str]:
    """The names in the project's `data/`, folders with a slash, without hidden files."""
    data = places.project_root() / "data"
    found = sorted(data.iterdir()) if data.is_dir() else []
    return [f"{path.name}/" if path.is_dir() else path.name for path in found if not path.name.startswith(".")]


def _how_to_get(owner_slug: str, local: str) -> str:
    address = f"https://www.kaggle.com/datasets/{owner_slug}"
    if places.on_kaggle():
        return f"Attach {address} to the notebook: Add Input, Datasets, {owner_slug}."
    return (
        f"Download {address} and put the folder or the zip at data/{local} or "
        f"data/{local}.zip; with kagglehub installed, `python run_all.py --download` does it. To see everything run "
        "without any download: `python run_all.py --params params/demo.yaml`."
    )
