"""What ran in a kernel is compared with the notebook's file: looking makes no difference, changing does."""

from pathlib import Path

from fer_utils.pipeline import cells, parameters

import pytest

ROOT = Path(__file__).resolve().parents[3]
NOTEBOOKS = {stage: ROOT / "notebooks" / file for stage, file in parameters.STAGES.items()}
FILE = [
    "import numpy as np\nfrom a import fit, show\nstage = begin()",
    "train = np.arange(epochs)\nrate = 0.1",
    "figure = show(train)",
    "callbacks = []\nif rate:\n    callbacks.append(rate)",
    "history = fit(train, callbacks)",
    "stage.finish(history)",
]


@pytest.mark.parametrize("path", NOTEBOOKS.values(), ids=NOTEBOOKS)
def test_a_notebook_that_ran_from_top_to_bottom_is_its_file(path):
    file = cells.code_cells(path.read_text())
    assert len(file) > 5 and not any("seed: int" in code for code in file)
    assert cells.differences(file, file) == []


@pytest.mark.parametrize("stage", NOTEBOOKS)
def test_no_notebook_sets_a_parameter_after_its_setup(stage):
    own = set(parameters.declared()[stage])
    file = cells.code_cells(NOTEBOOKS[stage].read_text())
    # Each parameter that a cell sets would be read by the cell itself, had another cell set it.
    assert cells.changes([f"print({', '.join(own)})"], file) == {}


@pytest.mark.parametrize(
    "extra",
    [
        "train.head()",
        "x = len(train); x",
        "import numpy as np",
        "for i in range(3):\n    print(train[i])",
        "# nothing\n",
        "get_ipython().system('pip install this')",
        "get_ipython().run_line_magic('matplotlib', 'inline')",
        "get_ipython().run_cell_magic('time', '', 'train.mean()\\n')",
        "def look(train):\n    train = 1\n    return train",
        "[train for train in (1, 2)]",
        "not python (",
        "return 5",
        "train = 1\nbreak",
        "f(a=1, a=2)",
        "*train, *rate = 1, 2",
        "get_ipython().run_cell_magic('time', '', '!echo hi\\ntrain.mean()\\n')",
        "get_ipython().run_cell_magic('time', '', 'rate = 1\\nreturn\\n')",
        FILE[2],
        "figure =  show(train)  # laid out anew",
    ],
)
def test_a_look_is_no_difference(extra):
    assert cells.differences(FILE, [*FILE[:3], extra, *FILE[3:]]) == []


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        ("rate = 0.2", "rate"),
        ("rate += 1", "rate"),
        ("epochs = 3", "epochs"),
        ("train[0] = 7", "train"),
        ("train.flags.writeable = False", "train"),
        ("callbacks.append(1)", "callbacks"),
        ("del train", "train"),
        ("for rate in (1, 2):\n    pass", "rate"),
        ("def show(x):\n    pass", "show"),
        ("def later():\n    global rate\n    rate = 1", "rate"),
        ("import other as np", "np"),
        ("with a as train:\n    pass", "train"),
        ("get_ipython().run_cell_magic('time', '', 'rate = 0.2\\n')", "rate"),
        ("get_ipython().run_line_magic('time', 'rate = 0.2')", "rate"),
        ("get_ipython().run_cell_magic('capture', 'out', '!echo hi\\nrate = 0.2\\n')", "rate"),
        ("get_ipython().run_cell_magic('time', '', '%time rate = 0.2\\n')", "rate"),
        ("get_ipython().run_line_magic('run', 'other.py')", "begin, callbacks, epochs, fit"),
    ],
)
def test_a_cell_that_changes_what_the_file_reads_is_named(extra, names):
    (difference,) = cells.differences(FILE, [*FILE[:4], extra, *FILE[4:]])
    assert difference.startswith("a cell that is not in the file, `") and f"changes {names}" in difference


def test_an_edited_cell_is_named_and_so_is_what_it_changed():
    edited = FILE[1].replace("0.1", "0.2")
    assert cells.differences(FILE, [FILE[0], edited, *FILE[2:]]) == [
        "a cell that is not in the file, `train = np.arange(epochs)`, changes rate, train",
        "the cell `train = np.arange(epochs)` did not run as in the file",
    ]


def test_a_cell_that_was_left_out_is_named():
    assert cells.differences(FILE, [*FILE[:2], *FILE[3:]]) == [
        "the cell `figure = show(train)` did not run as in the file"
    ]


def test_a_cell_that_ran_again_after_one_that_reads_what_it_sets_is_named():
    again = [*FILE[:5], FILE[3], FILE[5]]
    assert cells.differences(FILE, again) == [
        "the cell `history = fit(train, callbacks)` did not run again after callbacks changed"
    ]
    assert cells.differences(FILE, [*FILE[:4], FILE[3], *FILE[4:]]) == []
    assert cells.differences(FILE, [*FILE[:5], FILE[1], *FILE[2:]]) == []


def test_other_cells_around_them_are_no_difference():
    """As in the notebook for Kaggle, which holds all five stages."""
    assert (
        cells.differences(FILE, ["other = 1", *FILE, "get_ipython().run_line_magic('reset_selective', '-f .')"]) == []
    )
