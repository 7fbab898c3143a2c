"""The smallest Celery application on the Redis of a test; `celery -A tests.support.broker_app`."""

from __future__ import annotations

import os

from celery import Celery

celery = Celery("broker_app", broker=os.environ["TEST_BROKER_URL"])
celery.conf.update(worker_send_task_events=True, broker_connection_retry_on_startup=True)


@celery.task(name="broker_app.nothing")
def nothing(**_range: int) -> None:
    """Do nothing, with any arguments for Flower to show."""
