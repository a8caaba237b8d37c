from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from strategies import ClientHalf, ModelUpdate, Ring
from workflows.data.partitioners import Iid
from workflows.data.preparation import open_prepared, prepare
from workflows.job import Local, Partitioned, Sgd
from workflows.job_document import read_job
from workflows.program import pack, unpack
from workflows.programs import BUILTIN, builtin_folder
from workflows.seeds import derive
from workflows.trainers import load_trainer

DIGITS = Path(__file__).parents[3] / "examples" / "digits.yaml"


def test_there_are_five_builtin_programs() -> None:
    names = {"breast-cancer-xgb", "digits-cnn", "digits-lora", "digits-mlp", "digits-xgb"}
    assert set(BUILTIN) == names
    with pytest.raises(KeyError):
        builtin_folder("digits-rnn")


@pytest.mark.parametrize("name", BUILTIN)
def test_the_facts_on_file_are_those_of_the_built_model(name: str) -> None:
    trainer = load_trainer(builtin_folder(name), {}, 0)

    facts = msgspec.structs.replace(trainer.facts, import_s=0.0)

    assert facts == BUILTIN[name]


@pytest.mark.parametrize("name", BUILTIN)
def test_a_builtin_program_is_an_ordinary_bundle(tmp_path: Path, name: str) -> None:
    pack(builtin_folder(name), tmp_path / "bundle.tar")

    manifest = unpack(tmp_path / "bundle.tar", tmp_path / "out")

    assert manifest.name == name
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"program.py", "program.toml"}


def test_the_digits_example_reaches_95_percent_in_a_bare_loop(tmp_path: Path) -> None:
    spec = read_job(DIGITS.read_text())
    assert isinstance(spec.data, Partitioned)
    assert (spec.data.sites, spec.runtime.kind, spec.rounds) == (10, "flower", 12)
    prepare(spec.data, tmp_path, tmp_path / "data")
    data = open_prepared(tmp_path / "data")
    trainer = load_trainer(builtin_folder("digits-cnn"), {}, 7, data.features, data.num_classes)
    state, ring = spec.strategy.init(trainer.initial()), Ring()

    for number in range(1, spec.rounds + 1):
        partial = spec.strategy.zero(state)
        for site in data.sites:
            seed = derive(7, "train", number, site)
            half = spec.strategy.client_half()
            trained = trainer.train(state.params, data.training(site), spec.local, half, seed)
            update = ModelUpdate(site, number, trained.delta, trained.num_examples)
            partial = spec.strategy.accumulate(partial, update, ring)
        state = spec.strategy.step(state, spec.strategy.finish(partial, ring))

    measured = trainer.evaluate(state.params, data.central(), spec.evaluate.metrics)
    assert measured.num_examples == round(0.2 * 1797)
    assert measured.values["accuracy"] >= 0.95
    assert all(array.dtype == np.float32 for array in state.params.values())


def test_the_example_of_an_own_program_learns(tmp_path: Path) -> None:
    data = Partitioned(dataset="breast-cancer", sites=1, holdout=0.3, partitioner=Iid())
    prepare(data, tmp_path, tmp_path / "data")
    found = open_prepared(tmp_path / "data")
    folder = DIGITS.parent / "own-program" / "program"
    trainer = load_trainer(folder, {"width": 16}, 7, found.features, found.num_classes)
    (site,) = found.sites
    local = Local(epochs=10, batch_size=16, optimizer=Sgd(lr=0.05, momentum=0.9))

    trained = trainer.train(trainer.initial(), found.training(site), local, ClientHalf(), 1)

    params = {name: a + trained.delta[name] for name, a in trainer.initial().items()}
    measured = trainer.evaluate(params, found.held_out(site), ["accuracy", "auroc", "brier"])
    assert measured.values["accuracy"] > 0.93
    assert measured.values["auroc"] > 0.97
    assert measured.values["brier"] < 0.12
