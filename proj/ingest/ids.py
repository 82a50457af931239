"""Ids of the tasks that are made of foreign messages."""

import hashlib
from uuid import UUID, uuid4

#: Bytes of a UUID.
_SIZE = 16


def task_id(message_id: object, queue: str, body: bytes) -> tuple[str, bool]:
    """The id of the task, and whether it is derived.

    A message with a `message_id` has the same id at each delivery, so that its task is not executed again
    once its success is stored. The queue and the body are part of it, since programs number their messages
    anew. Without a `message_id`, nothing tells a second delivery from a second message: the id is random.
    """
    if not isinstance(message_id, str) or not message_id:
        return str(uuid4()), False
    digest = hashlib.blake2b(digest_size=_SIZE)
    for part in (message_id.encode("utf-8", "surrogatepass"), queue.encode(), body):
        digest.update(len(part).to_bytes(8))  # or parts could run into each other
        digest.update(part)
    return str(UUID(bytes=digest.digest(), version=5)), True
