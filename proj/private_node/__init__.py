"""A private RabbitMQ node, for development and tests."""
