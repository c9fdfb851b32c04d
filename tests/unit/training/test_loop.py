"""Batches, metrics, weight decay and the history do what their docstrings say, in real compiled training steps."""

from fer_utils.data.augmentation import soften
from fer_utils.training import loop, metrics, optimizers
from fer_utils.training.loop import Batches
from fer_utils.training.metrics import MacroScores
from fer_utils.training.optimizers import AdamW, IncreaseWeightDecayOnLRDrop

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, log_loss, precision_score, recall_score

RATE, DECAY = 0.1, 0.2


def _seen(batches: Batches) -> list[int]:
    return [int(label) for i in range(len(batches)) for label in batches[i][1]]


def _batches(n: int, size: int, **how) -> Batches:
    return Batches(np.arange(n)[:, None] * 10, np.arange(n), size, **how)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 2**32 - 1), st.integers(0, 30))
def test_an_epoch_of_full_batches_shows_a_row_once_with_its_label_and_leaves_out_less_than_a_batch(
    n, size, seed, epoch
):
    batches = _batches(n, size, seed=seed, epoch=epoch)
    seen = _seen(batches)
    assert len(set(seen)) == len(seen) and set(seen) <= set(range(n))
    assert len(seen) == len(batches) * min(size, n) > n - size
    for i in range(len(batches)):
        inputs, labels = batches[i]
        assert (inputs[:, 0] == labels * 10).all()
        assert len(labels) == min(size, n)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(1, 20))
def test_in_order_no_row_is_left_out_and_the_weighted_mean_of_full_batches_is_the_mean_of_the_rows(n, size):
    batches = _batches(n, size)
    assert len(batches) == -(-n // size)
    given = [batches[i] for i in range(len(batches))]
    inputs, labels, weights = (np.concatenate(parts) for parts in zip(*given, strict=True))
    assert {len(part) for batch in given for part in batch} == {min(size, n)}
    assert labels[weights > 0].tolist() == list(range(n))
    assert (inputs[:, 0] == labels * 10).all()
    values = labels.astype(float) ** 2
    assert (weights * values).mean() == pytest.approx((np.arange(n) ** 2).mean(), rel=1e-5)


def test_each_epoch_leaves_out_other_rows():
    left_out = [set(range(20)) - set(_seen(_batches(20, 8, seed=1, epoch=epoch))) for epoch in range(8)]
    assert all(len(rows) == 4 for rows in left_out)
    assert len(set.union(*left_out)) > 12


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 50), st.integers(0, 2**32 - 1), st.integers(0, 8))
def test_a_resumed_epoch_has_the_order_it_would_have_had(n, seed, epoch):
    straight = _batches(n, 4, seed=seed)
    straight.begin_epoch(epoch)
    assert _seen(straight) == _seen(_batches(n, 4, seed=seed, epoch=epoch))


def test_orders_differ_by_epoch_and_seed_and_stay_without_a_seed():
    orders = [_seen(_batches(40, 8, seed=seed, epoch=epoch)) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    still = _batches(40, 8)
    still.on_epoch_end()
    assert _seen(still) == list(range(40))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=3, max_size=40), st.randoms(use_true_random=False))
def test_macro_scores_over_batches_are_scikit_learns_over_all(true, random):
    guessed = [random.randrange(7) for _ in true]
    metric = MacroScores()
    for start in range(0, len(true), 7):
        chunk = slice(start, start + 7)
        metric.update_state(np.array(true[chunk])[:, None], np.eye(7)[guessed[chunk]])
    found = {name: float(value) for name, value in metric.result().items()}
    how = {"labels": range(7), "average": "macro", "zero_division": 0}
    assert found["macro_precision"] == pytest.approx(precision_score(true, guessed, **how), abs=1e-6)
    assert found["macro_recall"] == pytest.approx(recall_score(true, guessed, **how), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(f1_score(true, guessed, **how), abs=1e-6)
    metric.reset_state()
    assert float(metric.result()["macro_f1"]) == 0


class _KeepWeights(keras.callbacks.Callback):
    """Notes the kernel after every step, and the decay with which the step was made."""

    def on_train_begin(self, logs=None):
        self.kernels = [self.model.get_weights()[0]]
        self.decays = []

    def on_train_batch_end(self, batch, logs=None):
        self.kernels.append(self.model.get_weights()[0])

    def on_epoch_begin(self, epoch, logs=None):
        self.decays.append(float(self.model.optimizer.weight_decay))


class _DropAt(keras.callbacks.Callback):
    """Multiplies the rate at the end of the given epochs, as ReduceLROnPlateau does."""

    def __init__(self, epochs: dict[int, float]):
        super().__init__()
        self.epochs = epochs

    def on_epoch_end(self, epoch, logs=None):
        rate = self.model.optimizer.learning_rate
        rate.assign(rate * self.epochs.get(epoch, 1.0))


def _still_model(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    """One kernel whose gradient is exactly zero: the loss is the output times 0."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, use_bias=False)])
    model.compile(optimizer, loss=lambda true, given: keras.ops.mean(given) * 0.0, jit_compile=False)
    return model


def _fit(optimizer, drops: dict[int, float], *, factor: float, cap: float, epochs: int = 4) -> _KeepWeights:
    model, kept = _still_model(optimizer), _KeepWeights()
    callbacks = [kept, _DropAt(drops), IncreaseWeightDecayOnLRDrop(factor, cap)]
    model.fit(np.ones((8, 3)), np.zeros((8, 4)), batch_size=4, epochs=epochs, callbacks=callbacks, verbose=0)
    return kept


def _shrinkage(kept: _KeepWeights) -> np.ndarray:
    """What share of itself the kernel lost in each step; 2 steps an epoch."""
    shares = [1 - after / before for before, after in zip(kept.kernels, kept.kernels[1:], strict=False)]
    assert all(np.ptp(share) < 1e-5 for share in shares)  # every weight by the same share
    return np.array([share.mean() for share in shares])


@pytest.mark.parametrize(
    ("drops", "factor", "cap", "rates", "decays"),
    [
        ({1: 0.5}, 3.0, 10.0, [1, 1, 0.5, 0.5], [1, 1, 3, 3]),
        ({0: 0.5}, 2.0, 10.0, [1, 0.5, 0.5, 0.5], [1, 2, 2, 2]),  # what a step shrinks the weights by stays
        ({0: 0.5, 1: 0.5, 2: 0.5}, 2.0, 2.5 * DECAY, [1, 0.5, 0.25, 0.125], [1, 2, 2.5, 2.5]),
        ({0: 0.5}, 2.0, 0.5 * DECAY, [1, 0.5, 0.5, 0.5], [1, 1, 1, 1]),  # above the cap before
        ({}, 2.0, 10.0, [1, 1, 1, 1], [1, 1, 1, 1]),
        ({0: 2.0}, 2.0, 10.0, [1, 2, 2, 2], [1, 1, 1, 1]),
    ],
)
def test_when_the_rate_drops_the_decay_rises_up_to_the_cap_and_the_compiled_step_shrinks_the_weights_by_both(
    drops, factor, cap, rates, decays
):
    kept = _fit(AdamW(RATE, DECAY), drops, factor=factor, cap=cap)
    assert kept.decays == pytest.approx(DECAY * np.array(decays))
    assert _shrinkage(kept) == pytest.approx(RATE * DECAY * np.repeat(np.multiply(rates, decays), 2), abs=1e-6)


def test_setting_keras_own_decay_in_mid_fit_changes_nothing_which_is_why_ours_exists():
    class Set(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.weight_decay = 3 * DECAY

    model, kept = _still_model(keras.optimizers.AdamW(RATE, DECAY)), _KeepWeights()
    model.fit(np.ones((8, 3)), np.zeros((8, 4)), batch_size=4, epochs=2, callbacks=[kept, Set()], verbose=0)
    assert _shrinkage(kept) == pytest.approx([RATE * DECAY] * 4, abs=1e-6)


@pytest.mark.parametrize("optimizer", [keras.optimizers.AdamW(RATE, weight_decay=DECAY), keras.optimizers.Adam(RATE)])
def test_an_optimizer_whose_decay_is_a_constant_is_refused(optimizer):
    with pytest.raises(TypeError, match=r"use fer_utils\.training\.optimizers\.AdamW"):
        _fit(optimizer, {}, factor=2.0, cap=1.0)


@pytest.mark.parametrize(("factor", "cap"), [(0.5, 1), (2, 0), (2, -1)])
def test_a_factor_below_one_and_a_cap_of_nothing_are_refused(factor, cap):
    with pytest.raises(ValueError, match="expected factor >= 1 and cap > 0"):
        IncreaseWeightDecayOnLRDrop(factor, cap)


def test_with_gradients_our_adamw_steps_as_keras_does():
    x, y = np.random.default_rng(0).normal(size=(16, 3)), np.random.default_rng(1).normal(size=(16, 4))
    weights = []
    for kind in (AdamW, keras.optimizers.AdamW):
        model = _still_model(kind(0.01, 0.1))
        model.compile(kind(0.01, 0.1), loss="mse", jit_compile=False)
        model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights()[0])
    assert weights[0] == pytest.approx(weights[1], abs=1e-6)


def test_the_optimizers_config_holds_its_present_decay():
    optimizer = AdamW(RATE, DECAY)
    optimizer.weight_decay.assign(0.5)
    again = AdamW.from_config(optimizer.get_config())
    assert float(again.weight_decay) == 0.5 and float(again.learning_rate) == pytest.approx(RATE)


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_our_optimizers_update_and_clip_at_the_norm_over_all_weights_as_those_of_keras_do(name, clip_norm):
    rng = np.random.default_rng(5)
    start = [rng.normal(size=shape).astype(np.float32) for shape in ((6, 5), (5,))]
    gradients = [[size * rng.normal(size=array.shape).astype(np.float32) for array in start] for size in (0.01, 9, 1)]
    kind = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}[name]
    decay = {"weight_decay": DECAY} if name == "adamw" else {}
    ends = []
    for optimizer in (
        optimizers.make_optimizer(name, 0.01, DECAY, clip_norm),
        kind(0.01, global_clipnorm=clip_norm or None, **decay),
        optimizers.make_optimizer(name, 0.01, DECAY, 0.5 - clip_norm),
    ):
        variables = [keras.Variable(array) for array in start]
        optimizer.build(variables)
        for step in gradients:
            optimizer.apply([keras.ops.convert_to_tensor(gradient) for gradient in step], variables)
        ends.append(np.concatenate([variable.numpy().ravel() for variable in variables]))
    assert ends[0] == pytest.approx(ends[1], abs=1e-6)
    assert np.abs(ends[0] - ends[2]).max() > 1e-3  # clipped and not clipped


def test_weights_decay_by_a_schedule_as_in_keras_and_it_is_computed_once_for_all_of_them():
    class Counted(keras.optimizers.schedules.CosineDecay):
        asked = 0

        def __call__(self, step):
            self.asked += 1
            return super().__call__(step)

    start = [np.full((3,), float(number), np.float32) for number in range(1, 9)]
    ends, asked = [], []
    for kind in (AdamW, keras.optimizers.AdamW):
        schedule = Counted(1e-4, 4, warmup_target=0.01, warmup_steps=2)
        optimizer, variables = kind(schedule, weight_decay=DECAY), [keras.Variable(array) for array in start]
        optimizer.build(variables)
        for _ in range(5):
            optimizer.apply([keras.ops.ones(3)] * len(variables), variables)
        ends.append(np.concatenate([variable.numpy() for variable in variables]))
        asked.append(schedule.asked)
    assert ends[0] == pytest.approx(ends[1], abs=1e-6)
    assert asked == [5 * 2, 5 * (1 + len(start))]  # by the decay, and by the step itself


def _classifier(rate: float = 0.01) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(7, activation="softmax")], name="tiny")
    loop.compile_for_training(model, AdamW(rate, DECAY))
    return model


def _data(n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 5)).astype("float32"), rng.integers(0, 7, n).astype("int32")


def test_the_history_counts_epochs_on_and_tells_rate_decay_and_macro_scores():
    x, y = _data()
    model = _classifier()
    callbacks = [_DropAt({10: 0.5}), IncreaseWeightDecayOnLRDrop(2.0, 1.0)]
    table = loop.fit(model, Batches(x, y, 8, 1, 10), Batches(x, y, 16), "fine_tune", 10, 3, callbacks)
    assert table["epoch"].tolist() == [11, 12, 13] and set(table["phase"]) == {"fine_tune"}
    assert table["learning_rate"].tolist() == pytest.approx([0.01, 0.005, 0.005])
    assert table["weight_decay"].tolist() == pytest.approx([DECAY, 2 * DECAY, 2 * DECAY])
    scores = ("loss", "accuracy", "macro_precision", "macro_recall", "macro_f1")
    assert {*scores, *(f"val_{name}" for name in scores)} <= set(table.columns)
    guessed = loop.predict(model, x).argmax(axis=1)
    expected = f1_score(y, guessed, labels=range(7), average="macro", zero_division=0)
    assert table["val_macro_f1"].iloc[-1] == pytest.approx(expected, abs=1e-6)
    assert table["val_accuracy"].iloc[-1] == pytest.approx((guessed == y).mean(), abs=1e-6)


def test_fit_shows_each_epoch_in_the_order_of_its_own_number():
    x, y = _data(20)
    shown = []

    class Watched(Batches):
        def __getitem__(self, index):
            shown.append((self.epoch, index))
            return super().__getitem__(index)

    loop.fit(_classifier(), Watched(x, y, 8, 1, 4), Batches(x, y, 20), "head", 4, 2)
    expected = [(epoch, index) for epoch in (4, 5) for index in range(2)]
    assert shown[-len(expected) :] == expected  # before them Keras takes a batch or two to trace the model


def test_a_loss_that_is_no_number_is_an_error_that_names_phase_and_epoch():
    x, y = _data()
    x[:] = np.nan
    with pytest.raises(FloatingPointError, match="head: the loss is no number in epoch 1: lower learning_rate"):
        loop.fit(_classifier(), Batches(x, y, 8), Batches(x, y, 16), "head", 0, 2)


def test_prediction_keeps_the_order_whatever_the_batch():
    x, _ = _data(23)
    model = _classifier()
    whole = loop.predict(model, x)
    assert whole.shape == (23, 7)
    assert loop.predict(model, x, batch_size=5) == pytest.approx(whole, abs=1e-6)
    assert whole == pytest.approx(model.predict(x, verbose=0), abs=1e-6)


@pytest.mark.parametrize("several", [False, True])
def test_all_batches_of_a_prediction_have_one_length_since_each_is_compiled(several):
    x, seen = np.arange(23), set()

    def step(batch):
        seen.add(len(batch))
        return [batch, 2 * batch] if several else batch

    found = [*loop.in_batches(step, x, "", 5)]
    if several:
        assert np.array_equal(np.concatenate([second for _, second in found]), 2 * x)
    assert np.array_equal(np.concatenate([given[0] if several else given for given in found]), x)
    assert seen == {5}
    assert [len(given) for given in loop.in_batches(lambda batch: batch, x[:3], "", 5)] == [3]  # one batch stays short


def test_as_specified_losses_scores_and_weights_are_those_of_keras_own_sparse_loss_to_the_bit():
    x, y = _data()
    ends = []
    for keras_own in (False, True):
        model = _classifier()
        if keras_own:
            metrics = [keras.metrics.SparseCategoricalAccuracy(name="accuracy"), MacroScores()]
            own = "sparse_categorical_crossentropy"
            model.compile(AdamW(0.01, DECAY), own, weighted_metrics=metrics, jit_compile=False)
        table = loop.fit(model, Batches(x, y, 8, 3), Batches(x, y, 16), "head", 0, 2)
        ends.append((table.drop(columns="seconds"), model.get_weights()))
    assert ends[0][0].equals(ends[1][0])
    assert all(np.array_equal(one, two) for one, two in zip(ends[0][1], ends[1][1], strict=True))


def test_a_sure_soft_label_costs_what_the_label_itself_costs_and_a_smoothed_one_more():
    _, labels = _data()
    given = np.random.default_rng(1).dirichlet(np.ones(7) / 3, len(labels)).astype(np.float32)
    hard = np.array(metrics.cross_entropy(labels, given))
    assert np.array(metrics.cross_entropy(soften(labels, 0.0), given)) == pytest.approx(hard, rel=1e-4, abs=1e-5)
    smoothed = np.array(metrics.cross_entropy(soften(labels, 0.1), given)).mean()
    everywhere = -np.log(np.clip(given, 1e-7, 1)).mean(axis=1)
    assert smoothed == pytest.approx((0.9 * hard + 0.1 * everywhere).mean(), rel=1e-4)


def _scores(labels, given) -> list[float]:
    """Accuracy, macro precision, recall and F1."""
    accuracy, macro = metrics.Accuracy(), MacroScores()
    for metric in (accuracy, macro):
        metric.update_state(labels, given)
    return [float(accuracy.result()), *(float(score) for score in macro.result().values())]


def test_scores_of_soft_labels_take_the_largest_share_for_the_answer():
    true, guessed = np.array([0, 1, 2, 3]), np.eye(7)[[0, 1, 2, 6]]
    soft = 0.6 * np.eye(7)[true] + 0.4 * np.eye(7)[[6, 6, 6, 6]]
    assert _scores(true, guessed) == _scores(soft.astype(np.float32), guessed)
    assert _scores(true, guessed)[0] == 0.75


def test_a_second_output_adds_the_votes_loss_by_its_weight_and_leaves_the_scores_to_the_labels():
    _, labels = _data()
    rng = np.random.default_rng(1)
    of_label, of_votes = (rng.dirichlet(np.ones(7), len(labels)).astype(np.float32) for _ in range(2))
    given = np.hstack([of_label, of_votes])
    shares = rng.dirichlet(np.ones(7), len(labels)).astype(np.float32)
    shares[0] = 0  # a picture without votes
    targets = np.hstack([soften(labels, 0.0), 0.5 * shares])
    found = np.array(metrics.cross_entropy(targets, given))
    own, of_second = -np.log(of_label[np.arange(len(labels)), labels]), -(shares * np.log(of_votes)).sum(axis=1)
    assert found == pytest.approx(own + 0.5 * of_second, rel=1e-4) and found[0] == pytest.approx(own[0], rel=1e-4)
    assert np.array(metrics.cross_entropy(labels, given)) == pytest.approx(own, rel=1e-4)  # VAL's
    for truth in (targets, labels):
        assert _scores(truth, given) == _scores(truth, of_label)


def _two_outputs() -> keras.Model:
    keras.utils.set_random_seed(0)
    x = keras.Input((5,))
    outputs = [keras.layers.Dense(7, activation="softmax", name=name)(x) for name in ("own", "second")]
    model = keras.Model(x, keras.layers.Concatenate()(outputs), name="two")
    loop.compile_for_training(model, optimizers.make_optimizer("adam", 0.1, 0.0))
    return model


def test_each_of_two_outputs_learns_its_own_answers():
    x, _ = _data(60)
    labels, voted = x.argmax(axis=1).astype(np.int32), x.argmin(axis=1)
    targets = np.hstack([soften(labels, 0.0), 0.5 * np.eye(7, dtype=np.float32)[voted]])
    model = _two_outputs()
    table = loop.fit(model, Batches(x, targets, 8, 1), Batches(x, labels, 16), "fine_tune", 0, 30)
    rows = loop.predict(model, x)
    assert (rows[:, :7].argmax(axis=1) == labels).mean() > 0.9 and (rows[:, 7:].argmax(axis=1) == voted).mean() > 0.9
    assert table["val_accuracy"].iloc[-1] == pytest.approx((rows[:, :7].argmax(axis=1) == labels).mean())
    assert table["val_loss"].iloc[-1] == pytest.approx(log_loss(labels, rows[:, :7], labels=range(7)), rel=1e-4)


def test_cosine_rises_to_the_rate_in_warming_up_and_ends_at_nothing():
    rate = optimizers.make_rate("cosine", 0.4, steps_per_epoch=10, epochs=6, warmup_epochs=1.5)
    assert [float(rate(step)) for step in (0, 15)] == pytest.approx([0.004, 0.4])
    assert float(rate(15 + 15)) == pytest.approx(0.4 * (1 + np.cos(np.pi / 3)) / 2)
    assert float(rate(60)) == pytest.approx(0, abs=1e-8)
    values = [float(rate(step)) for step in range(61)]
    assert np.diff(values[:16]) == pytest.approx(np.full(15, 0.396 / 15), abs=1e-6)
    assert max(np.diff(values[15:])) < 0


def test_without_warming_up_a_cosine_begins_at_the_rate_and_a_plateau_is_the_rate_itself():
    assert float(optimizers.make_rate("cosine", 0.4, 10, 6, 0)(0)) == pytest.approx(0.4)
    assert optimizers.make_rate("plateau", 0.4, 10, 6, 3) == 0.4


def test_a_warm_up_as_long_as_training_is_refused():
    with pytest.raises(ValueError, match="warmup_epochs is 6, expected less than the 6 epochs"):
        optimizers.make_rate("cosine", 0.4, 10, 6, 6)


def test_the_compiled_step_follows_the_cosine():
    model = _still_model(AdamW(optimizers.make_rate("cosine", RATE, 2, 4, 0), DECAY))
    kept = _KeepWeights()
    model.fit(np.ones((16, 3)), np.zeros((16, 4)), batch_size=8, epochs=4, callbacks=[kept], verbose=0)
    rates = [RATE * (1 + np.cos(np.pi * step / 8)) / 2 for step in range(8)]
    assert _shrinkage(kept) == pytest.approx(np.array(rates) * DECAY, abs=1e-6)
