"""What runs inside Celery worker processes: GPU queues (`gpu`) and everything else (`io`)."""
