"""A RabbitMQ of one's own."""
