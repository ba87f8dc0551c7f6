"""Work shared out over a Ray cluster: workers that are each made once are handed one piece after the other.

In: a class of workers and pieces of work. Out: what the workers made of them, as they finish.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmbert.errors import MMBertError
from mmbert.plugins import need_packages


def ray_map(
    make: Callable[..., Callable[[Any], Any]],
    arguments: tuple[Any, ...],
    pieces: Sequence[Any],
    workers: int,
    *,
    gpus: int = 0,
) -> Iterator[Any]:
    """Results of ``make(*arguments)(piece)`` for all pieces, in no particular order.

    What goes to the workers and comes back is pickled: among the processes of one cluster only, as Ray itself does.

    Args:
        make: makes a worker, in a process of its own; a name of a module, so that it is found there.
        arguments: for it.
        pieces: of work.
        workers: at a time.
        gpus: of each worker.

    Raises:
        UsageError: Ray is not installed.
        MMBertError: what a worker raised.
    """
    data = require_ray()
    if not pieces:
        return
    items = [{"piece": pickle.dumps(piece)} for piece in pieces]
    todo = data.from_items(items, override_num_blocks=len(items)).map_batches(
        RayWorker,
        fn_constructor_args=(make, arguments),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=min(workers, len(items))),
        num_gpus=gpus,
    )
    for row in todo.iter_rows():
        made = pickle.loads(row["made"])
        if isinstance(made, MMBertError):
            raise made
        yield made


def require_ray() -> Any:
    """Ray's module of data sets.

    Raises:
        UsageError: Ray is not installed.
    """
    (data,) = need_packages("ray", "ray.data", message="Ray is not installed")
    return data


class RayWorker:
    """A worker as Ray wants it: takes and gives columns.

    Args:
        make, arguments: see :func:`ray_map`.
    """

    def __init__(self, make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
        self.work = make(*arguments)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"made": [pickle.dumps(self._made(pickle.loads(piece))) for piece in batch["piece"]]}

    def _made(self, piece: Any) -> Any:
        """What is made of a piece, or what is wrong with it: in an exception of Ray's it would be lost."""
        try:
            return self.work(piece)
        except MMBertError as error:
            return error
