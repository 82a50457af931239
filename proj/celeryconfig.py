"""What Celery is told: one setting a line, each with its why."""

from typing import Any

from proj import queues
from proj.config import CONNECT_TIMEOUT, Settings


def configuration(settings: Settings) -> dict[str, Any]:
    """Celery's settings; the names are Celery's own."""
    return {
        # --- What travels
        # JSON only: a message must never be able to run code, and other languages must be able to write it.
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        # Every message is written to disk. It is Celery's default too, but the promise rests on it.
        "task_default_delivery_mode": queues.PERSISTENT,
        "enable_utc": True,
        "timezone": "UTC",
        # --- Where it travels
        "task_queues": queues.work_queues,
        "task_default_queue": queues.task_queue.name,
        "task_default_exchange": queues.task_exchange.name,
        "task_default_exchange_type": queues.task_exchange.type,
        "task_default_routing_key": queues.task_queue.routing_key,
        # A slip in a queue's name must not make a queue that nobody consumes.
        "task_create_missing_queues": False,
        "broker_native_delayed_delivery_queue_type": queues.DELAY_QUEUE_TYPE,
        # --- Publishing
        "broker_url": settings.broker_url,
        # Celery lets the environment's CELERY_BROKER_URL win over the line above, but not over these.
        "broker_read_url": settings.broker_url,
        "broker_write_url": settings.broker_url,
        "broker_transport_options": {
            # A publish returns when the broker has taken responsibility, not when it was sent.
            "confirm_publish": True,
            # While the broker's memory or disk alarm is on it stops reading, and a confirm never comes:
            # `confirm_timeout` alone leaves the socket to block.
            "read_timeout": settings.proj_publish_timeout,
            "write_timeout": settings.proj_publish_timeout,
            # Read by `proj.rabbitmq.transport`.
            "ca": settings.proj_broker_ca,
        },
        "broker_connection_timeout": CONNECT_TIMEOUT,
        "broker_pool_acquire_timeout": settings.proj_publish_timeout,
        # `proj.enqueue.publish` repeats a publish itself, since only it knows whether it may have arrived.
        "task_publish_retry": False,
        "beat_scheduler": "proj.beat.scheduler:Scheduler",
        # --- Working
        # Acknowledge when the task is done: a worker that dies before gives its message back.
        "task_acks_late": True,
        # One message a slot, so that work goes to whoever is free.
        "worker_prefetch_multiplier": 1,
        # A worker process that is killed gives its message back too; the queue's delivery limit
        # ends the loop of a task that kills its workers.
        "task_reject_on_worker_lost": True,
        # A failed task goes to the dead-letter queue instead of being forgotten.
        "task_acks_on_failure": False,
        "task_acks_on_timeout": False,
        # What may be a repeat is acknowledged without being executed, when its success is stored.
        "worker_deduplicate_successful_tasks": True,
        # Without its connection a worker cannot acknowledge, and the broker gives the message to
        # another; to go on would execute it twice at once.
        "worker_cancel_long_running_tasks_on_connection_loss": True,
        # Below the broker's consumer timeout, which would end the worker's channel. The soft limit is given
        # to each delivery by `proj.worker.request`: from here, it would outlast a lower hard
        # limit of a task's own.
        "task_time_limit": settings.proj_task_time_limit,
        # A worker waits for its broker, for as long as it takes.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "worker_consumer": "proj.worker.consumer:Consumer",
        # --- Watching
        # For Flower, which learns only from events.
        "worker_send_task_events": True,
        # --- Results
        "result_backend": settings.result_backend,
        # The name, the arguments and the worker are stored with the result.
        "result_extended": True,
        # A dead letter explains itself with the exception that is stored, so it always is.
        "task_store_errors_even_if_ignored": True,
        # Made when they are needed: a worker may start before its database.
        "database_create_tables_at_setup": False,
        "database_engine_callback": "proj.results.database:tune_engine",
    }
