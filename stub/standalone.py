"""What answers ``host.ask`` and ``host.tell`` where there is no server, as in a unit test of a model or a notebook.

Metrics count in this process and are exposed nowhere; there are no other models.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any, Callable, Dict, Optional, Sequence, Tuple
from weakref import WeakValueDictionary

from .error import TritonModelException

Labels = Tuple[Tuple[str, str], ...]


class _Series:
    __slots__ = ("__weakref__", "value")

    def __init__(self) -> None:
        self.value = 0.0


class _Family:
    __slots__ = ("__weakref__", "kind", "series")

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.series: WeakValueDictionary[Labels, _Series] = WeakValueDictionary()


class Standalone:
    """Families and series live as long as handles do: here as in a server, the same names and labels are the same series."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._families: WeakValueDictionary[str, _Family] = WeakValueDictionary()
        self._handles: Dict[int, Any] = {}
        self._lock = threading.Lock()
        self._questions: Dict[str, Callable[..., Any]] = {
            "metric.family": self._family,
            "metric.metric": self._metric,
            "metric.value": self._value,
        }
        self._orders: Dict[str, Callable[..., None]] = {
            "metric.increment": self._increment,
            "metric.set": self._set,
            "metric.observe": self._increment,
            "metric.drop_family": self._drop,
            "metric.drop_metric": self._drop,
        }

    def ask(self, what: str, *arguments: Any) -> Any:
        """Raises:
        TritonModelException: refused, or a question that only a server can answer.
        """
        answer = self._questions.get(what)
        if answer is None:
            raise TritonModelException("there is no server in this process")
        return answer(*arguments)

    def tell(self, what: str, *arguments: Any) -> None:
        self._orders[what](*arguments)

    def _family(self, name: str, _description: str, kind: int) -> int:
        with self._lock:
            family = self._families.setdefault(name, _Family(kind))
            if family.kind != kind:
                raise TritonModelException("Family name already exists with different type")
            return self._handle(family)

    def _metric(self, family_id: int, labels: Dict[str, str], _buckets: Optional[Sequence[float]]) -> int:
        with self._lock:
            family: _Family = self._handles[family_id]
            return self._handle(family.series.setdefault(tuple(sorted(labels.items())), _Series()))

    def _handle(self, referred: Any) -> int:
        number = next(self._ids)
        self._handles[number] = referred
        return number

    def _value(self, metric_id: int) -> float:
        value: float = self._handles[metric_id].value
        return value

    def _increment(self, metric_id: int, value: float) -> None:
        with self._lock:
            self._handles[metric_id].value += value

    def _set(self, metric_id: int, value: float) -> None:
        self._handles[metric_id].value = value

    def _drop(self, number: int) -> None:
        # Without the lock: the garbage collector may call this while this very thread holds it.
        self._handles.pop(number, None)
