"""Turns messages of programs that know nothing of Celery into tasks, by the routes of a file."""
