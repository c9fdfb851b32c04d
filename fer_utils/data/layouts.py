"""The layouts in which pictures and their classes are shared: each becomes rows of one kind.

docs/own_pictures.md says what is read. A class comes from the nearest folder with a class's name, or else from a table. What is
no class is left out and counted, or an error that says how `names` gives it one; a file that is there twice counts once. A
name that a CSV cannot hold, and a table that is not whole, are errors that name the image or the row.
"""

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import PurePosixPath
from typing import IO, NamedTuple

from fer_utils import images
from fer_utils.classes import CLASSES, CSV_CODES, class_of
from fer_utils.data.archives import DatasetError, FolderReader, ZipReader, is_hidden, natural_key, tails
from fer_utils.data.known_pictures import USAGES

TABLES = (".csv", ".tsv", ".txt")
CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")
MAX_LINE, MAX_TABLE = 100_000, 500_000_000  # characters of a CSV; FER2013's has 301 million, up to 9,240 in a row
MAX_NAME = 255  # bytes of a file's name; no usual disk holds a longer one

# RAF-DB basic (Li, Deng & Du 2017, doi:10.1109/CVPR.2017.277); the codes are those of its readme.
RAF_DB = {"1": "surprise", "2": "fear", "3": "disgust", "4": "happy", "5": "sad", "6": "angry", "7": "neutral"}
RAF_DB_LIST = "list_patition_label.txt"  # spelled so in the dataset: lines such as train_00001.jpg 5
# AffectNet (Mollahosseini et al. 2017, arXiv:1708.03985), section 3; in brackets what is none of the seven classes.
AFFECTNET = {
    "0": "neutral", "1": "happy", "2": "sad", "3": "surprise", "4": "fear", "5": "disgust", "6": "angry",
    "7": "(contempt)", "8": "(none)", "9": "(uncertain)", "10": "(no face)",
}  # fmt: skip
FER_CODES = {str(code): label for code, label in enumerate((*CSV_CODES, "(contempt)"))}  # 7: of ckextended.csv
NUMBERED = {"affectnet": AFFECTNET, "fer2013": FER_CODES, "raf-db": RAF_DB}
_NUMBERED = f"datasets number their classes differently: say one of {', '.join(NUMBERED)}"
_PARAMETER = "in the parameter for the classes of these pictures (extra_classes, also_classes)"

# Part and usage by a folder's name, a cell, or a word of a table's or a picture's name.
_PARTS = {
    **dict.fromkeys(("train", "train_set"), ("train", "")),
    **dict.fromkeys(("test", "test_set", "testing"), ("test", "")),
    **dict.fromkeys(("val", "val_set", "valid", "validation"), ("val", "")),
    "training": ("train", "Training"),
    "publictest": ("test", "PublicTest"),
    "privatetest": ("test", "PrivateTest"),
}
# Names of columns, in lower case, their letters alone.
_PICTURE = (
    *("pixels", "image", "images", "img", "path", "pth", "file", "filename", "filepath", "imagepath", "imgpath"),
    *("imagename", "imgname", "imagefile", "subdirectoryfilepath", "name", "picture"),
)
_LABEL = ("emotion", "emotions", "label", "labels", "expression", "class", "classname", "category", "target")
_USAGE = ("usage", "split", "set", "part", "subset")
_NO_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # what a CSV or UTF-8 cannot hold in a file's name

Reader = FolderReader | ZipReader


class Row(NamedTuple):
    part: str  # train, test, val, or "" where nothing tells it
    usage: str  # one of USAGES, or ""
    label: str | None  # a class, what it is instead in brackets, "" where nothing tells it, or None: not understood
    file: str  # of the source, or TABLE#ROW; "" if it is not there
    said: str  # the error if label is None or file ""


class Found(NamedTuple):
    rows: list[Row]
    cells: dict[str, str]  # of tables: TABLE#ROW → pixels as text
    left_out: Counter
    ignored: list[str]  # files that are no pictures of it


def find(
    reader: Reader, where: str, names: Mapping[str, str], columns: str = "", is_main: bool = False, given: str = ""
) -> Found:
    """The pictures of a source and their classes. Raises DatasetError, which begins with `where`, for an unknown layout.

    names: folder's name or code → class, "" to leave it out. columns: PICTURE:LABEL of the table to take, also beside class
    folders. is_main: a run's own source, which has images of the datasets' formats alone, and FER2013's labels. given: the
    table, where no folder was given.
    """
    everything = [given] if given else reader.files()
    files = [file for file in everything if not is_hidden(file)]
    pictures = _pictures(files, is_main, where)
    rows = [_row_of_folder(file, names) for file in pictures]
    tables = sorted(file for file in files if PurePosixPath(file).suffix.lower() in TABLES)
    own = [file for file in tables if PurePosixPath(file).name in (CSV_NAMES if not pictures else (RAF_DB_LIST,))]
    tables = own[:1] or tables
    if any(row.label for row in rows) and not columns:
        tables = []
    is_alone = bool(own or given) or (len(tables) == 1 and not pictures and not tables[0].lower().endswith(".txt"))
    read = [table for file in tables if (table := _read_table(reader, file, where, columns, is_alone))]
    if columns and not read:
        raise DatasetError(f"{where} holds no table with the columns {columns!r}; expected PICTURE:LABEL, their names")
    if given and not read[0].is_pixels:
        pictures = _pictures(reader.files(), is_main, where)
    ends = defaultdict(list)  # end of a path → the pictures whose paths end so
    for file in pictures:
        for end in tails(file):
            ends[end].append(file)
    cells: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    if every := [row for table in read for row in table.rows_of(ends, names, is_main, cells)]:
        rows = [row for row in every if row.file]
        left_out["(not there)"] = len(every) - len(rows)
        if not rows:
            raise DatasetError(where + every[0].said)
    if unknown := next((row for row in rows if row.label is None), None):
        more = (
            f"; or name the columns of {tables[0]} in extra_columns, as PICTURE:LABEL" if tables and not every else ""
        )
        raise DatasetError(where + unknown.said + more)
    labels: dict[str, str | None] = {}
    for row in rows:
        if labels.setdefault(row.file, row.label) != row.label:
            raise DatasetError(f"{where} lists {row.file} as {labels[row.file]} and as {row.label}: keep one of them")
    taken = {row.file.rsplit("#", 1)[0] if row.file in cells else row.file for row in rows}
    ignored = sorted(file for file in everything if file not in taken)
    return Found(_once(rows, None if every else reader, left_out), cells, +left_out, ignored)


def _pictures(files: Iterable[str], is_main: bool, where: str) -> list[str]:
    """The images among the files. Raises DatasetError for one whose name manifest.csv cannot hold."""
    suffixes = images.SUFFIXES if is_main else images.PHOTOGRAPHS
    found = [file for file in files if PurePosixPath(file).suffix.lower() in suffixes and not is_hidden(file)]
    for file in found:
        fault = "a control character, or is not UTF-8" if _NO_NAME.search(file) else ""
        if not fault and len(PurePosixPath(file).name.encode()) > MAX_NAME:
            fault = f"more than {MAX_NAME} bytes"
        if fault:
            raise DatasetError(f"{where} holds {file[-300:]!r}; its name has {fault}: rename it")
    return sorted(found)


def _row_of_folder(file: str, names: Mapping[str, str]) -> Row:
    folder = PurePosixPath(file).parent
    labels = (_label(name, names) for name in reversed(folder.parts))
    name, said = folder.name, f" holds {file}; pictures should lie in folders named as their class"
    if name:
        known = f"the classes are {', '.join(CLASSES)} (also disgusted, fearful, surprised): rename or remove it"
        way_out = f"{_NUMBERED if name.isdecimal() else known}, or say {name}=happy, or {name}= to leave the folder out"
        said = f" holds {file} in the folder {folder}, which stands for no class; {way_out}, {_PARAMETER}"
    return Row(*_part(file), next((label for label in labels if label is not None), None), file, said)


def _label(text: str, names: Mapping[str, str]) -> str | None:
    """The class that a folder's name or a cell means, what it is instead in brackets, or None if it is not known."""
    label = names.get(text.lower(), "" if text.lower() == "contempt" else class_of(text))
    return f"({text})" if label == "" else label


def _part(file: str, *words: str) -> tuple[str, str]:
    """Part and usage that the first word, the innermost folder, or another word tells; an image's name may tell the usage too."""
    path = PurePosixPath(file)
    tells = (word.lower() for word in (*words[:1], *reversed(path.parent.parts), *words[1:]))
    part, usage = next((_PARTS[word] for word in tells if word in _PARTS), ("", ""))
    begin = path.name.split("_")[0]
    return part, begin if begin in USAGES else usage


def _once(rows: Iterable[Row], reader: Reader | None, left_out: Counter) -> list[Row]:
    """The rows in natural order, each file once; with `reader`, also equal files of one name, class folder and part."""

    def is_equal(first: str, second: str) -> bool:
        with suppress(images.UnreadableImage):
            return reader is None or reader.read(first) == reader.read(second)
        return False

    kept: dict[object, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.file.count("/")):
        same = kept[(row.part, *row.file.split("/")[-2:]) if reader else row.file]
        if any(is_equal(row.file, other.file) for other in same):
            left_out["(listed twice)"] += 1
        else:
            same.append(row)
    return sorted((row for same in kept.values() for row in same), key=lambda row: natural_key(row.file))


class _Table(NamedTuple):
    file: str
    picture: int  # the numbers of the columns, -1 for none
    label: int
    usage: int
    has_header: bool
    is_pixels: bool
    rows: list[list[str]] = []  # noqa: RUF012, never changed

    def rows_of(
        self, ends: Mapping[str, list[str]], names: Mapping[str, str], is_main: bool, cells: dict[str, str]
    ) -> Iterator[Row]:
        """A row for each picture."""
        own_codes = RAF_DB if PurePosixPath(self.file).name == RAF_DB_LIST else FER_CODES if self.is_pixels else {}
        usages = USAGES if _cell(self.rows[0], self.usage) in USAGES else _PARTS
        words = re.split(r"[\W_]+", PurePosixPath(self.file).stem)
        meant = [] if self.is_pixels else self._meant(ends)
        for number, row in enumerate(self.rows):
            picture, text, usage = (_cell(row, column) for column in (self.picture, self.label, self.usage))
            label = self._label_of(text, {**own_codes, **names}, is_main)
            is_part = self.usage < 0 or (usage if usages is USAGES else usage.lower()) in usages
            label = label if is_part else None
            if self.is_pixels:
                file = f"{self.file}#{number}"
                cells[file] = picture
                found = f"row {number} has Usage {usage[:20]!r} and emotion {text[:20]!r}"
                said = f": {self.file} {found}; expected one of {', '.join(USAGES)} and 0–{len(FER_CODES) - 1}"
                yield Row(*_part(file, usage, *words), label, file, said)
                continue
            path, files = meant[number]
            files = [file for file in files if _part(file)[0] == _part(self.file, usage, *words)[0]] or files
            file = files[0] if files else ""
            where = f": {self.file}, line {number + self.has_header + 1}"
            if not files:
                said = f": {self.file} lists {str(path)[:99]}, but there is no such picture: give the folder that holds both"
            elif len(files) > 1:
                label, said = None, f"{where} names {file} and {files[1]}: give the paths from the table's folder on"
            else:
                line = ("," if self.file.lower().endswith("csv") else " ").join(row)[:80]
                said = f"{where} is {line!r}; expected such as train_00001.jpg 5"
                if not is_part:
                    said += f": its part is {usage[:20]!r}, not such as train or test"
                elif text.isdecimal() and not own_codes:
                    said += f": {_NUMBERED}, {_PARAMETER}"
            yield Row(*_part(file, usage, *words, path.stem.split("_")[0]), label, file, said)

    def _label_of(self, text: str, codes: Mapping[str, str], is_main: bool) -> str | None:
        if self.label < 0:
            return "" if is_main else "(no class)"
        label = _label(re.sub(r"^(\d+)\.0+$", r"\1", text), codes)  # 3.0: pandas writes so beside an empty cell
        return f"({text[:40]})" if label is None and any(map(str.isalpha, text)) else label

    def _meant(self, ends: Mapping[str, list[str]]) -> list[tuple[PurePosixPath, list[str]]]:
        """Each row's path, and the pictures it may mean: RAF-DB's aligned ones, those beside the table, or those that end so.

        One rule serves the whole table, so that a row whose picture is missing gets no other of that name: the fewest outer
        folders are left out with which any picture is found.
        """
        paths = [PurePosixPath(_cell(row, self.picture).replace("\\", "/")) for row in self.rows]
        beside = [(PurePosixPath(self.file).parent / path).as_posix() for path in paths]
        found = [[name] if name in ends.get(name, ()) else [] for name in beside]
        if PurePosixPath(self.file).name == RAF_DB_LIST:
            aligned = [ends.get(f"{path.stem}_aligned{path.suffix or '.jpg'}", []) for path in paths]
            found = aligned if any(aligned) else found
        if not any(found):
            outer = min((n for path in paths for n, end in enumerate(tails(str(path))) if end in ends), default=0)
            found = [ends.get("/".join(path.parts[outer:]), []) for path in paths]
        return [*zip(paths, found, strict=True)]


def _read_table(reader: Reader, file: str, where: str, columns: str, is_alone: bool) -> _Table | None:
    """The table; None for a file that is none of pictures, unless it is all that there is."""
    rows: list[list[str]] = []
    table = None
    try:
        with reader.open(file) as stream:
            raw = _raw_rows(stream, PurePosixPath(file).suffix.lower())
            first = next(raw, [])
            table = _recognise(file, first, columns)
            for row in raw if table else ():
                rows.append(row)
    except DatasetError:
        raise
    except Exception as error:  # csv, zipfile and the decoder raise about ten types for damaged bytes
        if not table and not is_alone and file.lower().endswith(".txt"):
            return None
        raise DatasetError(
            f"{where}: {file} cannot be read past its first {len(rows):,} rows ({error}): save it as CSV in UTF-8, or "
            "download it again"
        ) from error
    if not table and (columns or not is_alone):
        return None
    rows = rows if table and table.has_header else [first, *rows]
    if not table or not rows:
        raise DatasetError(
            f"{where}: {file} lacks the column(s) emotion, pixels, usage; a table needs a column of pixels or pictures and "
            "one of classes, which PICTURE:LABEL in extra_columns or also_columns may name"
        )
    return table._replace(rows=rows)


def _recognise(file: str, first: list[str], columns: str) -> _Table | None:
    """The table that begins with this row, without its rows."""
    if PurePosixPath(file).name == RAF_DB_LIST:
        return _Table(file, 0, 1, -1, False, False)
    cells = [cell.strip() for cell in first]
    number = {_plain(cell): column for column, cell in enumerate(cells)}
    wanted = [(_plain(name),) for name in (columns + ":").split(":")[:2]]
    picture, label, usage = (
        next((number[name] for name in names if name in number), -1)
        for names in (*(wanted if columns else (_PICTURE, _LABEL)), _USAGE)
    )
    is_pixels = 0 <= picture == number.get("pixels")
    if picture >= 0 and (label >= 0 or is_pixels):
        return _Table(file, picture, label, usage, True, is_pixels)
    for picture, cell in enumerate([] if columns else cells):  # without a header
        is_pixels = re.match(r"\d+ \d+ \d+ ", cell) is not None
        if is_pixels or PurePosixPath(cell).suffix.lower() in images.PHOTOGRAPHS:
            others = [column for column in range(len(cells)) if column != picture]
            words = sorted(others, key=lambda column: cells[column].isdecimal())  # a class's name before an index
            label = next((column for column in words if _label(cells[column], FER_CODES)), -1)
            usage = next((column for column in others if cells[column].lower() in _PARTS), -1)
            return _Table(file, picture, label, usage, False, is_pixels) if label >= 0 else None
    return None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _cell(row: list[str], column: int) -> str:
    return row[column].strip() if 0 <= column < len(row) else ""


def _raw_rows(stream: IO[bytes], suffix: str) -> Iterator[list[str]]:
    """The rows of a table, with its header. The first line tells what separates cells; Excel writes ; in half of Europe."""
    lines = _lines(stream)
    first = next(lines, "")
    usual = {".tsv": "\t", ".txt": "\t,; "}.get(suffix, ",\t;")
    delimiter = next((each for each in usual if each in first), usual[-1])
    return filter(None, csv.reader(chain([first], lines), delimiter=delimiter, skipinitialspace=True, strict=True))


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """The lines of a text in UTF-8; no line over MAX_LINE is read, and no text over MAX_TABLE."""
    total, text = 0, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    while line := text.readline(MAX_LINE):
        total += len(line)
        if len(line) == MAX_LINE or total > MAX_TABLE:
            raise ValueError(f"more than {MAX_LINE:,} characters in a line, or {MAX_TABLE:,} in all")
        yield line


def parse_classes(given: str) -> dict[str, str]:
    """A parameter such as `joy=happy, unsure=` as folder's name or cell → class, "" for what is left out.

    `affectnet`, `fer2013` and `raf-db` stand for the codes of these datasets. Raises DatasetError for anything else.
    """
    names: dict[str, str] = {}
    for piece in filter(None, (piece.strip() for piece in given.split(","))):
        folder, equals, spelling = (part.strip() for part in piece.partition("="))
        if piece.lower() in NUMBERED:
            names |= NUMBERED[piece.lower()]
        elif equals and folder and (not spelling or class_of(spelling)):
            names[folder.lower()] = class_of(spelling) or ""
        else:
            raise DatasetError(
                f"classes: {piece!r} is neither {', '.join(NUMBERED)} nor FOLDER=CLASS, such as joy=happy; the classes "
                f"are {', '.join(CLASSES)}, and FOLDER= leaves the folder out"
            )
    return names
