"""How we talk to RabbitMQ."""
