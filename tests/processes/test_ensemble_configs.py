"""What an ensemble has to be: every complaint of Triton's about its configuration and its models (spec 5.4)."""

from __future__ import annotations

from typing import Iterator

import pytest
from controlled import Controlled, controlled
from ensembles import DECOUPLED, IO, PLUS_ONE, SUM_IO, X, Y, add, chain, count, ensemble_config, plus_one, tensors
from model_repository import write_model
from stublet.parent import InvalidArgument

ONE = chain("one")
NESTED = [("e", {"X": "X"}, {"Y": "Y"})]
BY_ITSELF = [
    ("no section", f'platform: "ensemble" {X} {Y}', "ensemble scheduling must be set for ensemble e whose platform is ensemble"),
    (
        "not an ensemble",
        ensemble_config(ONE).replace('platform: "ensemble"', 'backend: "python"'),
        "ensemble scheduling cannot be set for model 'e' whose platform is not ensemble",
    ),
    (
        "backend",
        ensemble_config(ONE, extra='backend: "python"'),
        "Ensemble model 'e' must have platform type 'ensemble' and empty backend type",
    ),
    ("no step", ensemble_config([]), "must specify 'step' for ensemble 'e'"),
    ("no model", ensemble_config(chain("one", "")), "must specify 'model_name' in step 1 of ensemble 'e'"),
    ("no input map", ensemble_config([("one", {}, {"OUT": "Y"})]), "must specify 'input_map' in step 0 of ensemble 'e'"),
    ("no output map", ensemble_config([("one", {"IN": "X"}, {})]), "must specify 'output_map' in step 0 of ensemble 'e'"),
    ("instances", ensemble_config(ONE, extra="instance_group { count: 1 }"), "instance group should not be specified for ensemble 'e'"),
    (
        "optimization",
        ensemble_config(ONE, extra="optimization { priority: PRIORITY_MAX }"),
        "optimization should not be specified for ensemble 'e'",
    ),
    (
        "warm-up",
        ensemble_config(ONE, extra='model_warmup { name: "sample" batch_size: 1 }'),
        "model_warmup can not be specified for ensemble 'e'",
    ),
    (
        "written twice",
        ensemble_config([*ONE, *ONE]),
        "ensemble tensor 'Y' can appear in an output map only once for ensemble 'e' step 1",
    ),
    (
        "an input that is written",
        ensemble_config([("one", {"IN": "X"}, {"OUT": "X"}), *ONE]),
        "ensemble input 'X' of ensemble 'e' cannot be in the output map of step 0",
    ),
    ("unused", ensemble_config([*ONE, ("one", {"IN": "X"}, {"OUT": "t"})]), "ensemble tensor 't' is unused in ensemble 'e'"),
    ("unused input", ensemble_config(ONE, inputs=tensors("input", "X", "X2")), "ensemble input 'X2' for ensemble e' is not used"),
    ("unmade output", ensemble_config(ONE, outputs=tensors("output", "Y", "Y2")), "ensemble output 'Y2' for ensemble e' is not used"),
    (
        "from nowhere",
        ensemble_config([("sum", {"A": "X", "B": "q"}, {"OUT": "t"}), ("one", {"IN": "t"}, {"OUT": "Y"})]),
        "output 'Y' for ensemble 'e' is not written: at least one of its depending tensors, 'q', is not connected",
    ),
    (
        "in a circle",
        ensemble_config(
            [("one", {"IN": "t"}, {"OUT": "u"}), ("sum", {"A": "u", "B": "X"}, {"OUT": "t"}), ("one", {"IN": "u"}, {"OUT": "Y"})]
        ),
        "output 'Y' for ensemble 'e' is not written: at least one of its depending tensors, 't', is not connected",
    ),
    ("negative batch", ensemble_config(ONE, extra="max_batch_size: -1"), "'max_batch_size' must be non-negative value for e"),
    ("part of itself", ensemble_config(NESTED), "circular dependency between ensembles: e -> ... -> e -> e"),
]
WITH_MODELS = [
    ("no such model", ensemble_config(chain("no")), "ensemble e contains models that are not available or ambiguous: no"),
    ("two of them", ensemble_config(chain("no", "one", "nor")), "ensemble e contains models that are not available or ambiguous: no, nor"),
    (
        "no such version",
        ensemble_config(ONE).replace("model_version: -1", "model_version: 2"),
        "ensemble 'e' depends on 'one' whose required version 2 is not loaded",
    ),
    (
        "no such input",
        ensemble_config([("one", {"IN": "X", "BAD": "X"}, {"OUT": "Y"})]),
        "in ensemble e, ensemble tensor X is mapping to non-existing input BAD in model one",
    ),
    (
        "no such output",
        ensemble_config([("one", {"IN": "X"}, {"BAD": "Y"})]),
        "in ensemble e, ensemble tensor Y is mapped from non-existing output BAD in model one",
    ),
    (
        "input without a tensor",
        ensemble_config([("both", {"A": "X"}, {"OUT": "Y"})]),
        "in ensemble e, input B in model both is not mapped to any ensemble tensors",
    ),
    (
        "data type",
        ensemble_config(ONE, inputs=tensors("input", "X", data_type="TYPE_INT32")),
        "in ensemble e, ensemble tensor X: inconsistent data type: TYPE_INT32 is inferred from model e while TYPE_FP32 is inferred from model one",
    ),
    (
        "shape",
        ensemble_config(ONE, inputs=tensors("input", "X", dims="2,2")),
        "in ensemble e, ensemble tensor X: inconsistent shape: [2,2] is inferred from model e while [-1] is inferred from model one",
    ),
    (
        "shape of a batch",
        ensemble_config(chain("batch"), inputs=tensors("input", "X", dims="2,2,2")),
        "in ensemble e, ensemble tensor X: inconsistent shape: [2,2,2] is inferred from model e while [-1,-1] is inferred from model batch",
    ),
    (
        "batch size",
        ensemble_config(chain("batch"), extra="max_batch_size: 3"),
        "ensemble e allows maximum batch size 3, but it contains model batch which only allows maximum batch size to be 2",
    ),
    (
        "decoupled origins",
        ensemble_config(
            [("count", {"IN": "X"}, {"OUT": "t"}), ("count2", {"IN": "X"}, {"OUT": "u"}), ("sum", {"A": "t", "B": "u"}, {"OUT": "Y"})]
        ),
        "in ensemble e, step of model 'e' receives inputs originated from different decoupled models",
    ),
    (
        "decoupled outputs",
        ensemble_config([("count", {"IN": "X"}, {"OUT": "Y"}), ("count2", {"IN": "X"}, {"OUT": "Z"})], outputs=tensors("output", "Y", "Z")),
        "in ensemble e, step of model 'e' receives inputs originated from different decoupled models",
    ),
    (
        "decoupled and not",
        ensemble_config([("count", {"IN": "X"}, {"OUT": "t"}), ("sum", {"A": "t", "B": "X"}, {"OUT": "Y"})]),
        "in ensemble e, step of model 'e' receives inputs originated from different decoupled models",
    ),
]
ALLOWED = [
    ("an item for a batch", ensemble_config(chain("batch"))),
    ("a batch for an item", ensemble_config(chain("batch", "one"), extra="max_batch_size: 2")),
    ("an optional input without a tensor", ensemble_config([("sum", {"A": "X"}, {"OUT": "Y"})])),
    ("an output that is an input", ensemble_config(ONE, outputs=tensors("output", "X", "Y"))),
    ("an output that goes on", ensemble_config([*ONE, ("one", {"IN": "Y"}, {"OUT": "Z"})], outputs=tensors("output", "Y", "Z"))),
    ("two decoupled in a row", ensemble_config(chain("count", "count2"))),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controlled]:
    with controlled(tmp_path_factory.mktemp("models")) as models:
        plus_one(models.root, "one")
        plus_one(models.root, "batch", "max_batch_size: 2")
        add(models.root, "sum")
        write_model(models.root, "both", PLUS_ONE, SUM_IO.replace("optional: true", ""))
        count(models.root, "count")
        write_model(models.root, "count2", PLUS_ONE, IO + DECOUPLED)
        (models.root / "e" / "1").mkdir(parents=True)
        for name in ("one", "batch", "sum", "both", "count", "count2"):
            models.load(name)
        yield models


@pytest.mark.parametrize("config, complaint", [row[1:] for row in BY_ITSELF + WITH_MODELS], ids=[row[0] for row in BY_ITSELF + WITH_MODELS])
def test_what_cannot_be_an_ensemble(models: Controlled, config: str, complaint: str) -> None:
    (models.root / "e" / "config.pbtxt").write_text(config)
    with pytest.raises(InvalidArgument) as error:
        models.load("e")
    assert complaint in str(error.value)


@pytest.mark.parametrize("config", [row[1] for row in ALLOWED], ids=[row[0] for row in ALLOWED])
def test_what_can(models: Controlled, config: str) -> None:
    (models.root / "e" / "config.pbtxt").write_text(config)
    models.load("e")
    assert models.ready("e")
    models.unload("e")


def test_a_circle_of_two(models: Controlled) -> None:
    for name, part in (("round", "about"), ("about", "round")):
        directory = models.root / name
        (directory / "1").mkdir(parents=True)
        (directory / "config.pbtxt").write_text(ensemble_config([(part, {"X": "X"}, {"Y": "Y"})]))
    with pytest.raises(InvalidArgument, match=r"circular dependency between ensembles: round -> ... -> about -> round"):
        models.load("round")


def test_why_a_model_is_not_there(models: Controlled) -> None:
    write_model(models.root, "broken", "raise RuntimeError('no luck')", IO)
    (models.root / "e" / "config.pbtxt").write_text(ensemble_config(chain("broken")))
    with pytest.raises(InvalidArgument, match=r"not available or ambiguous: broken; 'broken': .*no luck"):
        models.load("e")
