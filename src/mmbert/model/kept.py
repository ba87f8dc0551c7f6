"""What is made of a weight to multiply with it more quickly, and kept as long as the weight stays the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

Made = TypeVar("Made")


class Kept(Generic[Made]):
    """Something made of a weight when it is first asked for, and anew when the weight has changed.

    A copy of whatever holds it (``copy.deepcopy``, pickle) starts with nothing made.

    Args:
        make: of the detached weight.
    """

    def __init__(self, make: Callable[[Tensor], Made]) -> None:
        self._make = make
        self._known: tuple[Tensor, int, Made] | None = None

    def of(self, weight: Tensor) -> Made:
        """Of this weight; one made in inference mode, which does not say that it has changed, must stay as it is."""
        version = 0 if weight.is_inference() else weight._version
        if self._known is not None:
            numbers, known_version, made = self._known
            if numbers.data_ptr() == weight.data_ptr() and known_version == version:
                return made
        made = self._make(weight.detach())
        # The numbers are held too, so that their address stays theirs.
        self._known = weight.detach(), version, made
        return made

    def __reduce__(self) -> tuple[type[Kept[Made]], tuple[Callable[[Tensor], Made]]]:
        return Kept, (self._make,)
