"""Flower's web application, with all pages behind the login, and a broker page that shows errors.

Only `proj.flower.start` imports this module.
"""

import logging
import os
import signal
import time
from typing import Any, Final

from celery.events import EventReceiver
from flower import app, events
from flower.views import broker, monitor
from tornado import web
from tornado.ioloop import IOLoop

from proj.errors import ManagementUnavailable
from proj.rabbitmq import failures
from proj.rabbitmq.management import Management

log = logging.getLogger(__name__)

#: Seconds between two attempts to reconnect for events.
RETRY_INTERVAL: Final = 5

#: Seconds without a heartbeat after which a worker counts as offline in the metrics. Workers send one every
#: two seconds, and a busy machine delays them.
SILENT: Final = 30

#: Every `Host` header that does not name this machine. Without the check, a web page whose host name resolves
#: to 127.0.0.1 (DNS rebinding) could read a Flower that has no login.
_FOREIGN_HOST: Final = r"(?!(localhost|127\.\d+\.\d+\.\d+|\[::1\])$).*$"


class MonitorApp(app.Flower):
    """Flower with its metrics page, broker page and event receiver replaced."""

    def __init__(self, options: Any, capp: Any, **settings: Any) -> None:
        io_loop = IOLoop.instance()
        receiver = _Events(
            capp,
            io_loop,
            db=options.db,
            persistent=options.persistent,
            state_save_interval=options.state_save_interval,
            enable_events=options.enable_events,
            max_workers_in_memory=options.max_workers,
            max_tasks_in_memory=options.max_tasks,
        )
        super().__init__(
            options=options, capp=capp, events=receiver, io_loop=io_loop, transforms=[_Headers], **settings
        )
        if not (options.basic_auth or options.auth or options.unix_socket):
            self.add_handlers(_FOREIGN_HOST, [(".*", _ForeignHost)])
        prefix = f"/{options.url_prefix.strip('/')}" if options.url_prefix else ""
        self.add_handlers(".*", [(f"{prefix}/metrics", _Metrics), (f"{prefix}/broker", _BrokerPage)])

    def start(self) -> None:
        """Run until SIGTERM or Ctrl-C, then save the state and end the process.

        Does not return: Python would wait for Flower's threads, and one that publishes to an unreachable
        broker does not end.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            # Not as an exception: a second signal, raised while the first is handled, would make it return.
            self.io_loop.asyncio_loop.add_signal_handler(number, self.io_loop.stop)
        super().start()
        try:
            self.stop()
        finally:
            logging.shutdown()
            os._exit(0)

    @property
    def management(self) -> Management:
        """The API at `broker_api`, if Flower's user has set this option, or else of the settings."""
        ours = Management.from_settings(self.capp.settings)
        if self.options.broker_api == ours.api_url:
            return ours  # all its nodes; Flower takes one
        url = self.options.broker_api.rstrip("/").removesuffix("/api")
        return Management.from_settings(self.capp.settings.model_copy(update={"proj_management_url": url}))


class _Events(events.Events):
    """Flower's event receiver with a constant retry interval, and errors logged as one line."""

    def run(self) -> None:
        # Flower doubles its pause without a limit: after a night without a broker it sleeps for hours.
        problem = ""
        while True:
            try:
                with self.capp.connection() as conn:
                    receiver = EventReceiver(conn, handlers={"*": self.on_event}, app=self.capp)
                    problem = ""
                    receiver.capture(limit=None, timeout=None, wakeup=True)
            except Exception as error:
                # Once, not at every attempt.
                if problem != (problem := failures.words(error)):
                    log.warning("no events from the broker, retrying: %s", problem)
                time.sleep(RETRY_INTERVAL)

    def save_state(self) -> None:
        """Save the state; an error is logged, and Flower goes on."""
        try:
            super().save_state()
        except OSError as error:
            log.error("the state cannot be saved to %s: %s", self.db, error.strerror or error)


class _Headers(web.OutputTransform):
    def transform_first_chunk(
        self, status_code: int, headers: Any, chunk: bytes, finishing: bool
    ) -> tuple[int, Any, bytes]:
        headers["X-Frame-Options"] = "DENY"
        # Pages with tasks' arguments must not be cached; Flower's scripts may be.
        headers.setdefault("Cache-Control", "no-store")
        return status_code, headers, chunk


class _ForeignHost(web.RequestHandler):
    def prepare(self) -> None:
        self.set_status(403)
        self.finish("Without a login, Flower answers at localhost and 127.0.0.1 only.\n")


class _Metrics(monitor.Metrics):
    # Flower leaves it open: https://github.com/mher/flower/issues/1342
    @web.authenticated
    async def get(self) -> None:
        self._notice_silent_workers()
        await super().get()

    def _notice_silent_workers(self) -> None:
        """Report as offline each worker that was killed: Flower does so only for those that said goodbye."""
        state, now = self.application.events.state, time.time()
        for name, worker in state.workers.items():
            if not worker.heartbeats or worker.heartbeats[-1] < now - SILENT:
                state.metrics.worker_online.labels(name).set(0)


class _BrokerPage(broker.BrokerView):
    """Flower's broker page with the dead-letter queue, and an error page when the API is unavailable."""

    @web.authenticated
    async def get(self) -> None:
        run = self.application.io_loop.run_in_executor
        try:
            found = await run(None, self.application.management.of_vhost, "queues")
        except ManagementUnavailable as error:
            log.warning("%s", error)
            self.set_status(503)
            self.render("404.html", message=str(error))
            return
        ours = self.application.capp.settings.topology.queues
        names = {*self.get_active_queue_names(), *(queue.name for queue in ours)}
        shown = [queue for queue in found if queue["name"] in names]
        self.render("broker.html", broker_url=self.application.broker_uri, queues=shown)
