from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris

from strategies import ClientHalf, ModelUpdate, Ring, ServerState
from strategies.forest import LAYER, forest_of
from strategies.xgb_bagging import XgbBagging
from translation.parity import check_parity
from workflows.causes import CauseCode
from workflows.data.examples import Examples
from workflows.job import Local
from workflows.trainers import ProgramError, Trainer, load_trainer

TABLES = {
    2: load_breast_cancer(return_X_y=True),
    3: load_iris(return_X_y=True),
    0: load_diabetes(return_X_y=True),
}
LOCAL = Local(epochs=2)


def examples(classes: int, every: int = 1, start: int = 0) -> Examples:
    x, y = TABLES[classes]
    kind = np.int64 if classes else np.float32
    return Examples(x[start::every].astype(np.float32), y[start::every].astype(kind))


def program(
    folder: Path, returned: str, classes: int = 2, more: str = "", toml: str = ""
) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "program.py").write_text(f"def build(): return {returned}\n{more}")
    (folder / "program.toml").write_text(f'name = "p"\nframework = "xgboost"\n{toml}\n')
    return load_trainer(folder, {}, 7, TABLES[classes][0].shape[1:], classes)


def trained(trainer: Trainer, sites: list[Examples], rounds: int) -> ServerState:
    strategy = XgbBagging()
    state = strategy.init(trainer.initial())
    for number in range(1, rounds + 1):
        partial = strategy.zero(state)
        partial.epochs = LOCAL.epochs
        for k, data in enumerate(sites):
            one = trainer.train(state.params, data, LOCAL, ClientHalf(), number * 100 + k)
            update = ModelUpdate(f"site-{k}", number, one.delta, one.num_examples)
            strategy.accumulate(partial, update, Ring())
        state = strategy.advance(state, partial, Ring())
    return state


def test_five_sites_in_a_bag_are_nearly_as_good_as_one_that_has_all(tmp_path: Path) -> None:
    trainer = program(tmp_path / "p", "{'eta': 0.1, 'max_depth': 3}")
    alone = program(tmp_path / "alone", "{'eta': 0.3, 'max_depth': 3}")
    whole = examples(2)
    bagged, central = [], []
    for seed in range(3):
        parts = np.array_split(np.random.default_rng(seed).permutation(len(whole)), 8)
        *training, held_out = (
            Examples(whole.x[rows], whole.y[rows])
            for rows in (*parts[:5], np.concatenate(parts[:5]), np.concatenate(parts[5:]))
        )
        for one, sites, found in ((trainer, training[:5], bagged), (alone, training[5:], central)):
            params = trained(one, sites, 8).params
            found.append(one.evaluate(params, held_out, ["accuracy", "auroc"]).values)

    def mean(found: list[Mapping[str, float]], name: str) -> float:
        return float(np.mean([values[name] for values in found]))

    assert mean(central, "accuracy") > 0.94
    assert mean(bagged, "accuracy") > mean(central, "accuracy") - 0.015
    assert mean(bagged, "auroc") > mean(central, "auroc") - 0.005


def test_targets_are_approached_from_the_base_score(tmp_path: Path) -> None:
    trainer = program(tmp_path, "{'eta': 0.3, 'max_depth': 2, 'base_score': 150.0}", 0)
    held_out = examples(0, 2, 1)

    before = trainer.evaluate(trainer.initial(), held_out, ["mse"]).values["mse"]
    after = trainer.evaluate(
        trained(trainer, [examples(0, 2)], 5).params, held_out, ["mse", "loss"]
    ).values

    assert before == pytest.approx(np.mean((held_out.y - 150.0) ** 2))
    assert after["mse"] < 0.7 * before
    assert after["loss"] == pytest.approx(after["mse"])


def test_the_loss_is_the_mean_of_the_logarithms(tmp_path: Path) -> None:
    for classes in (2, 3):
        trainer = program(tmp_path / str(classes), "{}", classes)
        none = trainer.evaluate(trainer.initial(), examples(classes), ["loss"]).values["loss"]
        assert none == pytest.approx(np.log(classes))


def test_the_update_is_the_new_trees_alone_and_the_same_every_time(tmp_path: Path) -> None:
    trainer = program(tmp_path, "{'subsample': 0.5, 'colsample_bynode': 0.5, 'max_depth': 3}", 3)
    state = trained(trainer, [examples(3, 2)], 2)

    first, other, again = (
        trainer.train(state.params, examples(3), LOCAL, ClientHalf(), seed) for seed in (1, 2, 1)
    )

    assert forest_of(first.delta).num_trees == 3 * LOCAL.epochs
    assert forest_of(state.params).num_trees == 2 * 3 * LOCAL.epochs
    assert first.delta[LAYER].tobytes() == again.delta[LAYER].tobytes()
    assert first.delta[LAYER].tobytes() != other.delta[LAYER].tobytes()
    assert (first.num_examples, first.loss) == (150, again.loss)


def test_a_full_tree_is_within_what_the_facts_say(tmp_path: Path) -> None:
    trainer = program(tmp_path, "{'max_depth': 4, 'min_child_weight': 0, 'lambda': 0}", 0)

    one = trainer.train(trainer.initial(), examples(0), Local(epochs=3), ClientHalf(), 1)

    growth = len(one.delta[LAYER]) - len(trainer.initial()[LAYER])
    assert trainer.facts.growth_bytes == 512 + 128 * 31
    assert growth <= 3 * trainer.facts.growth_bytes
    assert growth > trainer.facts.growth_bytes  # and the bound is no empty one
    assert trainer.facts.parameters[0].name == LAYER


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_the_onnx_form_answers_alike(tmp_path: Path, classes: int) -> None:
    trainer = program(tmp_path, "{'max_depth': 3}", classes)
    state = trained(trainer, [examples(classes, 2)], 3)

    trainer.export(state.params, examples(classes).x[:32], tmp_path)

    with np.load(tmp_path / "reference.npz") as reference:
        inputs, outputs = reference["inputs"], reference["outputs"]
    assert outputs.shape == (32, max(1, classes))
    check_parity(tmp_path / "model.onnx", inputs, outputs, atol=1e-4, rtol=1e-5)


def test_a_metric_of_ones_own_is_given_the_booster(tmp_path: Path) -> None:
    code = (
        "import xgboost\n"
        "def evaluate(model, batch):\n"
        "    x, y = batch\n"
        "    p = model.predict(xgboost.DMatrix(x))\n"
        "    return {'brier': float(((p - y) ** 2).mean())}\n"
    )
    trainer = program(tmp_path, "{}", more=code, toml='metrics = {brier = "minimize"}')

    measured = trainer.evaluate(trainer.initial(), examples(2), ["brier", "accuracy"])

    assert measured.values["brier"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("returned", "classes", "said"),
    [
        ("None", 2, "returned NoneType; it must return parameters"),
        ("{'nthread': 8}", 2, "sets nthread; it may set"),
        ("{'objective': 'reg:squarederror'}", 2, "needs binary:logistic or multi:softprob"),
        ("{'objective': 'binary:logistic'}", 0, "needs reg:squarederror"),
        ("{'max_depth': 0}", 2, "from 1 to 16"),
        ("{'max_depth': 2.5}", 2, "from 1 to 16"),
        ("{'num_parallel_tree': 0}", 2, "from 1 to 1000"),
        ("{'eta': 'much'}", 2, "does not take"),
        ("{'subsample': -1}", 2, "does not take"),
        ("{'base_score': 2.0}", 2, "does not take"),
        ("1 / 0", 2, "ZeroDivisionError"),
    ],
)
def test_what_xgboost_would_stumble_over_is_said_at_once(
    tmp_path: Path, returned: str, classes: int, said: str
) -> None:
    with pytest.raises(ProgramError, match=said) as refused:
        program(tmp_path, returned, classes)

    assert refused.value.cause.code is CauseCode.PROGRAM_RAISED
    assert "/" not in refused.value.cause.detail


def test_a_strategy_that_needs_gradients_is_refused(tmp_path: Path) -> None:
    trainer = program(tmp_path, "{}")
    with pytest.raises(ProgramError, match="use xgb-bagging"):
        trainer.train(trainer.initial(), examples(2), LOCAL, ClientHalf(proximal_mu=0.1), 1)


def test_no_other_framework_is_loaded(tmp_path: Path) -> None:
    program(tmp_path, "{}")
    code = (
        "import sys; from pathlib import Path; from workflows.trainers import load_trainer; "
        f"load_trainer(Path({str(tmp_path)!r}), {{}}, 0, (30,), 2); "
        "print(sorted({'torch', 'flwr', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
