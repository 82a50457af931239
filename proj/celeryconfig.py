"""The configuration of Celery: one setting a line, each with its reason."""

from typing import Any

from proj import queues
from proj.config import CONNECT_TIMEOUT, Settings


def configuration(settings: Settings) -> dict[str, Any]:
    """The configuration of Celery, under Celery's own names."""
    return {
        # --- Messages
        # JSON only: a message must never be able to run code, and other languages must be able to write it.
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        # Every message is written to disk. This is Celery's default too, but the promise depends on it.
        "task_default_delivery_mode": queues.PERSISTENT,
        "enable_utc": True,
        "timezone": "UTC",
        # --- Routing
        "task_queues": settings.topology.work_queues,
        "task_default_queue": queues.DEFAULT_QUEUE,
        "task_default_exchange": queues.task_exchange.name,
        "task_default_exchange_type": queues.task_exchange.type,
        "task_default_routing_key": queues.DEFAULT_QUEUE,
        # A misspelt queue name must not create a queue without consumers.
        "task_create_missing_queues": False,
        "broker_native_delayed_delivery_queue_type": queues.DELAY_QUEUE_TYPE,
        # --- Publishing
        "broker_url": settings.broker_url,
        # In Celery, CELERY_BROKER_URL of the environment overrides the line above, but not these.
        "broker_read_url": settings.broker_url,
        "broker_write_url": settings.broker_url,
        "broker_transport_options": {
            # A publish returns when the broker has confirmed the message, not when it was sent.
            "confirm_publish": True,
            # During a memory or disk alarm the broker stops reading, and writes to the socket block;
            # `confirm_timeout` does not bound them.
            "read_timeout": settings.proj_publish_timeout,
            "write_timeout": settings.proj_publish_timeout,
            # Read by `proj.rabbitmq.transport`.
            "ca": settings.proj_broker_ca,
        },
        "broker_connection_timeout": CONNECT_TIMEOUT,
        "broker_pool_acquire_timeout": settings.proj_publish_timeout,
        # `proj.enqueue.publish` retries instead, since it knows whether the message may have arrived.
        "task_publish_retry": False,
        "beat_scheduler": "proj.beat.scheduler:Scheduler",
        # --- Working
        # Acknowledge when the task has ended: the broker requeues the message of a worker that dies before.
        "task_acks_late": True,
        # One message a slot, so that an idle worker gets the next message.
        "worker_prefetch_multiplier": 1,
        # Requeue the message of a killed pool process too; the queue's delivery limit stops a task that
        # kills its workers.
        "task_reject_on_worker_lost": True,
        # A failed task becomes a dead letter instead of being acknowledged.
        "task_acks_on_failure": False,
        "task_acks_on_timeout": False,
        # A repeat whose success is stored is acknowledged without being executed.
        "worker_deduplicate_successful_tasks": True,
        # A worker that lost its connection cannot acknowledge, and the broker delivers the message to
        # another worker: both would execute it at the same time.
        "worker_cancel_long_running_tasks_on_connection_loss": True,
        # Below the broker's consumer timeout, which would close the worker's channel. The soft limit is set
        # for each delivery by `proj.worker.request`: set here, it might be above a task's own hard limit.
        "task_time_limit": settings.proj_task_time_limit,
        # On quorum queues a prefetch count is fixed. After a reconnect Celery would set it to the number of
        # processes of that moment, and a worker with --autoscale would never again have more.
        "worker_enable_prefetch_count_reduction": False,
        # A worker retries without limit while its broker is unreachable.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "worker_consumer": "proj.worker.consumer:Consumer",
        # Celery polls for the end of a chord's header tasks once a second.
        "task_annotations": ["proj.worker.chords:BackOff"],
        # --- Monitoring
        # `proj.worker.watchers` switches them on while somebody receives them.
        "worker_send_task_events": False,
        # --- Results
        "result_backend": settings.result_backend,
        # `proj.worker.ageing` deletes what expires in a database. With None, `celery beat` does not send
        # `celery.backend_cleanup`, which deletes failures too. Other stores expire results by themselves.
        "result_expires": None if settings.deletes_results else settings.proj_result_expires or None,
        # Store the name, the arguments and the worker with the result.
        "result_extended": True,
        # `proj dead` shows the stored exception of a dead letter.
        "task_store_errors_even_if_ignored": True,
        # On first use instead: a worker may start before its database.
        "database_create_tables_at_setup": False,
    }
