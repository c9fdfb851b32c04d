"""What a sweep found: its points ranked by VAL, the importances of its parameters, its history."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fer_utils import files
from fer_utils.pipeline.study import Plan

if TYPE_CHECKING:
    import optuna
    import pandas as pd

STATES = {"COMPLETE": "done", "PRUNED": "pruned", "RUNNING": "running", "WAITING": "waiting", "FAIL": "failed"}
FEWEST = 4  # points from which importances are told
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>FER sweep {{ base }}</title><style>{{ style }}</style></head><body>
<h1>Sweep “{{ base }}”, ranked by VAL</h1>
<p>Study <code>{{ name }}</code>. {{ about }} The intervals are 95 %, Student's t over the seeds of a point. The best of many
points is the best partly by chance: its score on VAL leans high, and TEST was not looked at.</p>
<h2>Points</h2>{{ points }}
{% if importances %}<h2>Which parameter matters</h2>{{ importances }}
<p>Shares of the score's variance over these points that a parameter explains (fANOVA, Hutter et al. 2014).</p>{% endif %}
{% if history %}<h2>History</h2><figure><img alt="history" src="data:image/png;base64,{{ history }}"></figure>{% endif %}
<p>The runs themselves: <code>python run_all.py --compare RUN RUN</code>.</p>
</body></html>
"""


def table(plan: Plan, study: "optuna.Study") -> "pd.DataFrame":
    """A row for each trial that counts, best first, failed points last.

    Columns: rank, point, score (mean over seeds on VAL), low and high (95 %, Student's t over seeds; empty for one seed),
    seeds, state, trial, a column for each swept parameter, runs.
    """
    import pandas as pd  # slow to import

    rows = []
    for trial in _shown(study):
        point = trial.user_attrs.get("point")
        values = trial.user_attrs.get("values", []) if trial.state.name == "COMPLETE" else []
        low, high = interval(values)
        rows.append(
            {
                "point": _name(plan, point),
                "score": statistics.fmean(values) if values else math.nan,
                "low": low,
                "high": high,
                "seeds": len(values),
                "state": STATES[trial.state.name],
                "trial": trial.number,
                **_swept(plan, point),
                "runs": " ".join(trial.user_attrs.get("runs", [])),
            }
        )
    swept = [axis.key for axis in plan.axes]
    columns = ["point", "score", "low", "high", "seeds", "state", "trial", *swept, "runs"]
    found = pd.DataFrame(rows, columns=columns).sort_values(["score", "trial"], ascending=[False, True], kind="stable")
    found.insert(0, "rank", [str(place) if done else "–" for place, done in enumerate(found["score"].notna(), 1)])
    return found.reset_index(drop=True)


def _shown(study: "optuna.Study") -> list:
    """The trials that count, and of points that only failed the last."""
    trials = study.get_trials(deepcopy=False)
    useful = [trial for trial in trials if trial.state.name != "FAIL"]
    present = {trial.user_attrs.get("point") for trial in useful}
    failed = {
        trial.user_attrs["point"]: trial
        for trial in trials
        if trial.state.name == "FAIL" and "error" in trial.user_attrs and trial.user_attrs.get("point") not in present
    }
    return [*useful, *failed.values()]


def _swept(plan: Plan, point: str | None) -> dict[str, str]:
    import json

    known = json.loads(point) if point else {}
    return {axis.key: known.get(axis.stage, {}).get(axis.name, "") for axis in plan.axes}


def _name(plan: Plan, point: str | None) -> str:
    return ", ".join(f"{name}={value}" for name, value in _swept(plan, point).items())


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of scores, Student's t, cut to 0–1; two NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    from scipy.stats import t  # slow to import

    mean, half = statistics.fmean(values), t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return max(0.0, mean - half), min(1.0, mean + half)


def lines(found: "pd.DataFrame", objective: str) -> list[tuple[str, ...]]:
    """The table for a terminal: rank, point, score, state."""
    rows = [("rank", "point", f"VAL {objective.replace('_f1', ' F1')}", "state")]
    for row in found.itertuples():
        span = "" if math.isnan(row.low) else f" ({row.low:.4f}–{row.high:.4f}, {row.seeds} seeds)"
        rows.append((row.rank, row.point, "" if math.isnan(row.score) else f"{row.score:.4f}{span}", row.state))
    return rows


def importances(study: "optuna.Study") -> dict[str, float]:
    """The share of the score's variance that each parameter explains; empty for fewer than FEWEST or equal scores."""
    import optuna

    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if len(done) < FEWEST or len({trial.value for trial in done}) < 2:
        return {}
    return optuna.importance.get_param_importances(study)


def write(plan: Plan, study: "optuna.Study", outputs: Path) -> tuple[Path, Path]:
    """Write `sweep_<base>.csv` and `sweep_<base>.html` to `outputs`; return both."""
    from fer_utils import plots
    from fer_utils.evaluation import report
    from fer_utils.pipeline import comparison

    import pandas as pd
    from jinja2 import Environment

    found = table(plan, study)
    sheet, page = (outputs / f"sweep_{plan.base}.{suffix}" for suffix in ("csv", "html"))
    files.write_csv(sheet, found)
    weights = importances(study)
    done = found[found["score"].notna()].sort_values("trial")
    shown = found.drop(columns=["runs", "point"]).astype({"score": float})
    with files.replacing(page) as temporary:
        text = (
            Environment(autoescape=True)
            .from_string(_PAGE)
            .render(
                style=report.STYLE,
                base=plan.base,
                name=study.study_name,
                about=f"Score: {plan.objective.replace('_f1', ' F1')} on VAL"
                + (f", mean over {len(plan.seeds)} seeds." if len(plan.seeds) > 1 else "."),
                points=report.html_table(shown.dropna(axis=1, how="all")),
                importances=report.html_table(pd.DataFrame(weights.items(), columns=["parameter", "importance"]))
                if weights
                else None,
                history=comparison.embedded(
                    plots.sweep_history(list(done["trial"]), list(done["score"]), plan.objective)
                )
                if len(done) > 1
                else None,
            )
        )
        temporary.write_text(text, encoding="utf-8")
    return sheet, page
