"""Every input that is kept, and mutations of them, at each boundary."""

from __future__ import annotations

import pytest

from .mutation import mutations
from .target import CORPUS, corpus, timed
from .targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    with TARGETS[name].opened() as check:
        for file, data in corpus(name).items():
            try:
                timed(check)(data)
            except BaseException as error:
                raise AssertionError(f"corpus/{name}/{file}") from error


@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name: str) -> None:
    target = TARGETS[name]
    with target.opened() as check:
        for data in mutations(list(corpus(name).values()), target.tokens, target.mutations, name):
            try:
                timed(check)(data)
            except BaseException as error:
                raise AssertionError(f"{name}: {data!r}") from error


def test_each_target_has_a_corpus() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
