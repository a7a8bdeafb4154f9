"""The calls of a model for asyncio: each runs in a thread and is ended when its task is cancelled.

asyncio takes 30 ms to import, which an application without it does not pay: it is imported in the calls.
"""

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgeft.runtime.model import Answer, Classification, Message

if TYPE_CHECKING:
    import numpy as np


class AsyncCalls:
    """The asynchronous part of `Model`, on top of the other; see there."""

    if TYPE_CHECKING:
        generate: Callable[..., list[int]]
        chat: Callable[..., Any]
        classify: Callable[..., Classification]
        embed: Callable[..., np.ndarray]

    async def agenerate(self, prompt_ids: Sequence[int], **options: Any) -> list[int]:
        """See `Model.agenerate`."""
        found: list[int] = await _cancellable(self.generate, prompt_ids, **options)
        return found

    async def achat(self, messages: Sequence[Message], **options: Any) -> Answer:
        """See `Model.achat`."""
        answer: Answer = await _cancellable(self.chat, messages, **options)
        return answer

    async def astream(self, messages: Sequence[Message], **options: Any) -> AsyncIterator[str]:
        """See `Model.astream`."""
        import asyncio

        cancel = options.setdefault("cancel", threading.Event())
        pieces = iter(await asyncio.to_thread(self.chat, messages, stream=True, **options))
        try:
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                yield piece
        finally:
            cancel.set()  # a thread may still be in `next`: it ends before another token

    async def aclassify(self, text: str, labels: Sequence[str] | None = None, **options: Any) -> Classification:
        """See `Model.aclassify`."""
        import asyncio

        return await asyncio.to_thread(self.classify, text, labels, **options)

    async def aembed(self, texts: Sequence[str], **options: Any) -> "np.ndarray":
        """See `Model.aembed`."""
        import asyncio

        return await asyncio.to_thread(self.embed, texts, **options)


async def _cancellable(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """`call` in a thread. Its `cancel` is set when the task is cancelled: the thread ends within a token."""
    import asyncio

    cancel = options.setdefault("cancel", threading.Event())
    try:
        return await asyncio.to_thread(call, *arguments, **options)
    except asyncio.CancelledError:
        cancel.set()
        raise
