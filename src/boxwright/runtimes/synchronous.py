"""What backends of engines without asynchronous runs share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from numpy.typing import NDArray

SelfT = TypeVar("SelfT", bound="SynchronousBackend")


class SynchronousBackend(ABC):
    """Gives `submit` and `wait` to a class that has `run`, by a thread that waits for the engine."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None

    @abstractmethod
    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model once; see `Backend.run`."""

    def submit(self, inputs: Mapping[str, NDArray[Any]]) -> Future[dict[str, NDArray[Any]]]:
        """Start a run; see `Backend.submit`."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="boxwright-engine")
        return self._executor.submit(self.run, inputs)

    def wait(self, ticket: Any) -> dict[str, NDArray[Any]]:
        """The outputs of a run; see `Backend.wait`."""
        assert isinstance(ticket, Future)
        outputs: dict[str, NDArray[Any]] = ticket.result()
        return outputs

    def close(self) -> None:
        """Free what this class holds; see `Backend.close`."""
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None

    def __enter__(self: SelfT) -> SelfT:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
